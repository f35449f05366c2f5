"""NVIDIA GPUs by NVML: the energy counter, power, clocks, temperature, throttle reasons, memory, utilization.

The counter (``nvmlDeviceGetTotalEnergyConsumption``) is the source of energy; instant power is its cross-check. On a
Hopper card both refresh about every 100 ms, so reading faster gains nothing. Nothing is ever set on the card.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qmeter.record import SeriesInfo

STUCK_S = 2.0
"""How long a thread waits for another's call before it goes on without its turn. Units: s."""
_TURN = threading.Lock()
ABSENT = "nvml.devices"
"""The series that carries the gap where NVML shows no device (a ``gpu0`` series would claim that there is one)."""
POWER_INSTANT_FIELD = 186
"""NVML_FI_DEV_POWER_INSTANT. Units: mW."""
NVLINK_TX_FIELD, NVLINK_RX_FIELD, ALL_LINKS = 138, 139, 0xFFFFFFFF
"""NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX and _RX: payload since the driver was loaded. Units: KiB."""
POWER_AVERAGE_FIELD = 185
"""NVML_FI_DEV_POWER_AVERAGE: over one second on Ampere and newer. Units: mW."""


@contextlib.contextmanager
def one_at_a_time() -> Iterator[bool]:
    """Held while readings are probed and around every GPM call; false where another thread's call is stuck.

    Where four threads each had a GPU of its own, NVML (driver 580) ended the process in GPM's metrics, and it answered
    "Not Supported" for NVLink counters that other deployments on the same GPUs had.
    """
    mine = _TURN.acquire(timeout=STUCK_S)
    try:
        yield mine
    finally:
        if mine:
            _TURN.release()


@dataclass(frozen=True)
class Reading:
    """One series of each GPU: how to read it from ``(pynvml, handle)``, in ``unit``."""

    name: str
    unit: str
    source: str
    read: Callable[[Any, Any], float]
    cumulative: bool = False


def _field(field: int) -> Callable[[Any, Any], float]:
    """A power field. Units: mW there, W here."""

    def read(nvml: Any, handle: Any) -> float:
        value = nvml.nvmlDeviceGetFieldValues(handle, [field])[0]
        if value.nvmlReturn != 0:
            raise nvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal) / 1e3

    return read


def _counter(field: int, scale: float) -> Callable[[Any, Any], float]:
    """A cumulative field over all links of the GPU (scope: all)."""

    def read(nvml: Any, handle: Any) -> float:
        value = nvml.nvmlDeviceGetFieldValues(handle, [(field, ALL_LINKS)])[0]
        if value.nvmlReturn != 0:
            raise nvml.NVMLError(value.nvmlReturn)
        return float(value.value.ullVal) * scale

    return read


def _throttle(nvml: Any, handle: Any) -> float:
    newer = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return float((newer or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))


READINGS: tuple[Reading, ...] = (
    Reading("energy_j", "J", "NVML total energy counter",
            lambda n, h: n.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3, cumulative=True),
    Reading("power_w", "W", "NVML instant power", _field(POWER_INSTANT_FIELD)),
    Reading("average_power_w", "W", "NVML average power", _field(POWER_AVERAGE_FIELD)),
    Reading("sm_clock_hz", "Hz", "NVML SM clock", lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM) * 1e6),
    Reading("memory_clock_hz", "Hz", "NVML memory clock",
            lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM) * 1e6),
    Reading("temperature_c", "°C", "NVML GPU temperature",
            lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU)),
    Reading("memory_used_bytes", "B", "NVML memory info", lambda n, h: n.nvmlDeviceGetMemoryInfo(h).used),
    Reading("throttle_reasons", "bitmask", "NVML clocks event reasons", _throttle),
    Reading("nvlink_tx_bytes", "B", "NVML NVLink data sent", _counter(NVLINK_TX_FIELD, 1024.0), cumulative=True),
    Reading("nvlink_rx_bytes", "B", "NVML NVLink data received", _counter(NVLINK_RX_FIELD, 1024.0), cumulative=True),
    Reading("util", "1", "NVML GPU utilization", lambda n, h: n.nvmlDeviceGetUtilizationRates(h).gpu / 100),
    Reading("power_limit_w", "W", "NVML enforced power limit",
            lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h) / 1e3),
)  # fmt: skip
"""What is read of each GPU."""


@dataclass(frozen=True)
class Gpus:
    """The NVIDIA GPUs that this process may use, or why there are none."""

    nvml: Any = None
    handles: tuple[tuple[str, Any], ...] = ()
    gap: str | None = None


def open_gpus(nvml: Any = None) -> Gpus:
    """Find them: all that ``CUDA_VISIBLE_DEVICES`` leaves, named ``gpu0``… in its order.

    Args:
        nvml: a stand-in for ``pynvml``, for tests.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Gpus(gap="NVML is not read: pip install 'qmeter[nvidia]'")
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        chosen = [_handle(nvml, which) for which in _visible(count)]
    except nvml.NVMLError as error:
        return Gpus(gap=f"no NVIDIA GPU: NVML says {error}")
    if not chosen:
        return Gpus(gap="no NVIDIA GPU is visible (CUDA_VISIBLE_DEVICES hides all, or the driver shows none)")
    return Gpus(nvml=nvml, handles=tuple((f"gpu{i}", handle) for i, handle in enumerate(chosen)))


def _visible(count: int) -> list[int | str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(range(count))
    return [int(w) if w.isdigit() else w for w in (p.strip() for p in named.split(",")) if w and w != "-1"]


def _handle(nvml: Any, which: int | str) -> Any:
    if isinstance(which, int):
        return nvml.nvmlDeviceGetHandleByIndex(which)
    return nvml.nvmlDeviceGetHandleByUUID(which.encode())


class NvmlSampler:
    """Reads :data:`READINGS` of every visible GPU; one that a card lacks is a gap with NVML's own words.

    Args:
        nvml: a stand-in for ``pynvml``, for tests.
    """

    def __init__(self, nvml: Any = None):
        self._gpus = open_gpus(nvml)
        self._works: list[tuple[str, Any, Reading]] = []
        self._infos: list[SeriesInfo] = []
        if self._gpus.gap:
            self._infos.append(SeriesInfo(name=ABSENT, unit="1", source="NVML", gap=self._gpus.gap))
        with one_at_a_time():
            for gpu, handle in self._gpus.handles:
                for reading in READINGS:
                    self._probe(gpu, handle, reading)

    def series(self) -> tuple[SeriesInfo, ...]:
        """Every reading of every GPU, or its gap."""
        return tuple(self._infos)

    def read(self) -> Mapping[str, float]:
        """The present values; one that fails now is left out."""
        values = {}
        for name, handle, reading in self._works:
            try:
                values[name] = float(reading.read(self._gpus.nvml, handle))
            except self._gpus.nvml.NVMLError:
                continue
        return values

    def processes(self) -> Mapping[str, int]:
        """Processes with a compute context on each GPU, as the driver lists them; in some containers it lists none."""
        found = {}
        for gpu, handle in self._gpus.handles:
            with contextlib.suppress(self._gpus.nvml.NVMLError, AttributeError):
                found[gpu] = len(self._gpus.nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return found

    def narrow(self, gpus: Collection[str]) -> None:
        """Read these GPUs and no others."""
        self._works = [w for w in self._works if w[0].partition(".")[0] in gpus]
        self._infos = [i for i in self._infos if i.name == ABSENT or i.name.partition(".")[0] in gpus]

    def close(self) -> None:
        """Let NVML go."""
        if self._gpus.nvml is not None:
            self._gpus.nvml.nvmlShutdown()
            self._gpus, self._works = Gpus(gap="closed"), []

    def _probe(self, gpu: str, handle: Any, reading: Reading) -> None:
        name = f"{gpu}.{reading.name}"
        gap = None
        try:
            reading.read(self._gpus.nvml, handle)
            self._works.append((name, handle, reading))
        except (self._gpus.nvml.NVMLError, AttributeError) as error:
            gap = f"{reading.source}: {error}"
        self._infos.append(
            SeriesInfo(name=name, unit=reading.unit, source=reading.source, cumulative=reading.cumulative, gap=gap)
        )
