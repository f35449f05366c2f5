"""The idle-power baseline before a deployment, and what the GPUs were like meanwhile: on one card it moves by a third.

One H200 drew 80 W before a host's first start and 103 to 108 W before every later one. Power alone does not say why:
clocks that have not come down, a warm card, or a context that a program started ahead holds. So these are kept too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qmeter.engines import standby
from qmeter.record import Quantity, SeriesInfo, Telemetry
from qmeter.spec.study import Deployment
from qmeter.study.attribution import mean_power, own_readings, with_power
from qmeter.telemetry.base import Occupied, Sampler
from qmeter.telemetry.recorder import Recorder

IDLE_S = 3.0
"""Length of the baseline before each deployment, where the host has a power counter. Units: s."""
_READ = {"sm_clock_hz": "Hz", "temperature_c": "°C", "memory_used_bytes": "B"}
NONE_LISTED = "the driver lists none; in some containers it lists none ever"
_GPU = re.compile(r"^(gpu\d+)\.")


@dataclass(frozen=True)
class Baseline:
    """Idle power, and what it was taken under.

    Attributes:
        power: of the deployment's devices; ``why`` says in words what it was taken under. Units: W.
        conditions: ``idle_sm_clock_hz``, ``idle_temperature_c`` and ``idle_memory_used_bytes`` (means over its GPUs),
            ``idle_processes`` (with a context on them) and ``idle_standbys`` (programs started ahead that were alive);
            empty without a GPU.
    """

    power: Quantity = field(default_factory=lambda: Quantity.unknown("W", "not measured before this deployment"))
    conditions: Mapping[str, Quantity] = field(default_factory=dict)


def measure_idle(
    samplers: Sequence[Sampler], deployment: Deployment, devices: Sequence[int] | None, rate_hz: float
) -> Baseline:
    """Mean power of the deployment's devices over :data:`IDLE_S` before its launch."""
    powered = with_power(samplers)
    if not powered:
        return Baseline(Quantity.unknown("W", "this host has no power sensor that qMeter reads"))
    recorder = Recorder(powered, rate_hz, time.monotonic())
    waiting = standby.alive()
    recorder.start()
    time.sleep(IDLE_S)
    telemetry, series = own_readings(deployment, None, *recorder.stop(), devices)
    open_on = {gpu: n for s in powered if isinstance(s, Occupied) for gpu, n in s.processes().items()}
    return baseline(telemetry, series, open_on, max(waiting, standby.alive()))


def baseline(
    telemetry: Telemetry, series: Sequence[SeriesInfo], processes: Mapping[str, int], standbys: int
) -> Baseline:
    """The baseline from its readings.

    Args:
        processes: GPU → processes with a context on it.
        standbys: programs started ahead that were alive.
    """
    power = mean_power(telemetry, series)
    gpus = sorted({m[1] for info in series if (m := _GPU.match(info.name))})
    if not gpus or not power.known:
        return Baseline(power)
    conditions = {f"idle_{name}": _mean(telemetry, gpus, name, unit) for name, unit in _READ.items()}
    held = [processes[g] for g in gpus if g in processes]
    conditions["idle_processes"] = (
        Quantity.of(sum(held), "1", n=len(held), why=None if any(held) else NONE_LISTED)
        if len(held) == len(gpus)
        else Quantity.unknown("1", "no sampler lists the processes on these GPUs")
    )
    conditions["idle_standbys"] = Quantity.of(standbys, "1")
    return Baseline(power.model_copy(update={"why": _words(conditions)}), conditions)


def _mean(telemetry: Telemetry, gpus: Sequence[str], name: str, unit: str) -> Quantity:
    readings = [telemetry.of(f"{gpu}.{name}")[1] for gpu in gpus]
    if not all(len(values) for values in readings):
        return Quantity.unknown(unit, f"no reading of {name} on every GPU")
    return Quantity.of(sum(float(v.mean()) for v in readings) / len(gpus), unit, n=sum(len(v) for v in readings))


def _words(conditions: Mapping[str, Quantity]) -> str:
    clock, warm, used, held, waits = (conditions[f"idle_{n}"].value for n in (*_READ, "processes", "standbys"))
    told = [
        "SM clock unknown" if clock is None else f"SM clock {clock / 1e6:.0f} MHz",
        "temperature unknown" if warm is None else f"{warm:.0f} °C",
        "memory in use unknown" if used is None else f"{used / 2**30:.1f} GiB in use",
        f"processes on the GPU {'unknown' if held is None else f'{held:.0f}'}",
        f"programs started ahead {waits or 0:.0f}",
    ]
    return f"before the launch: {', '.join(told)}"
