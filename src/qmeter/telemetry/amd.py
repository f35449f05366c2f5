"""AMD GPUs by amdsmi, behind the same seam and under the same series names as NVIDIA's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qmeter.record import SeriesInfo

ABSENT = "amdsmi.devices"


@dataclass(frozen=True)
class Reading:
    """One series of each GPU, read from ``(amdsmi, handle)``."""

    name: str
    unit: str
    source: str
    read: Callable[[Any, Any], float]
    cumulative: bool = False


def _energy_j(smi: Any, handle: Any) -> float:
    """Accumulator ticks × resolution (µJ a tick; 15.3 µJ on CDNA)."""
    count = smi.amdsmi_get_energy_count(handle)
    ticks = count["energy_accumulator"] if "energy_accumulator" in count else count["power"]
    return float(ticks) * float(count["counter_resolution"]) / 1e6


def _power_w(smi: Any, handle: Any) -> float:
    power = smi.amdsmi_get_power_info(handle)
    return _number(next((power[k] for k in ("current_socket_power", "socket_power") if k in power), None))


def _number(value: Any) -> float:
    """amdsmi writes the text "N/A" for what a card does not have."""
    if value is None or isinstance(value, str):
        raise ValueError(f"amdsmi answers {value!r}")
    return float(value)


READINGS: tuple[Reading, ...] = (
    Reading("energy_j", "J", "amdsmi energy count", _energy_j, cumulative=True),
    Reading("power_w", "W", "amdsmi current socket power", _power_w),
    Reading("average_power_w", "W", "amdsmi average socket power",
            lambda s, h: _number(s.amdsmi_get_power_info(h)["average_socket_power"])),
    Reading("sm_clock_hz", "Hz", "amdsmi GFX clock",
            lambda s, h: _number(s.amdsmi_get_clock_info(h, s.AmdSmiClkType.GFX)["clk"]) * 1e6),
    Reading("memory_clock_hz", "Hz", "amdsmi memory clock",
            lambda s, h: _number(s.amdsmi_get_clock_info(h, s.AmdSmiClkType.MEM)["clk"]) * 1e6),
    Reading("temperature_c", "°C", "amdsmi hotspot temperature",
            lambda s, h: _number(s.amdsmi_get_temp_metric(
                h, s.AmdSmiTemperatureType.HOTSPOT, s.AmdSmiTemperatureMetric.CURRENT))),
    Reading("memory_used_bytes", "B", "amdsmi VRAM usage",
            lambda s, h: _number(s.amdsmi_get_gpu_vram_usage(h)["vram_used"]) * 2**20),
    Reading("util", "1", "amdsmi GFX activity",
            lambda s, h: _number(s.amdsmi_get_gpu_activity(h)["gfx_activity"]) / 100),
    Reading("memory_util", "1", "amdsmi memory controller activity",
            lambda s, h: _number(s.amdsmi_get_gpu_activity(h)["umc_activity"]) / 100),
)  # fmt: skip


class AmdSampler:
    """Reads :data:`READINGS` of every AMD GPU; what a card lacks is a gap with amdsmi's own words.

    Args:
        smi: a stand-in for the ``amdsmi`` module, for tests.
    """

    def __init__(self, smi: Any = None):
        self._smi, self._gap = _open(smi)
        self._works: list[tuple[str, Any, Reading]] = []
        self._infos: list[SeriesInfo] = []
        if self._gap:
            self._infos.append(SeriesInfo(name=ABSENT, unit="1", source="amdsmi", gap=self._gap))
            return
        for index, handle in enumerate(self._smi.amdsmi_get_processor_handles()):
            for reading in READINGS:
                self._probe(f"gpu{index}.{reading.name}", handle, reading)

    def series(self) -> tuple[SeriesInfo, ...]:
        """Every reading of every GPU, or its gap."""
        return tuple(self._infos)

    def read(self) -> Mapping[str, float]:
        """The present values; one that fails now is left out."""
        values = {}
        for name, handle, reading in self._works:
            try:
                values[name] = reading.read(self._smi, handle)
            except Exception:  # amdsmi raises its own tree and plain errors alike: a reading less, not a cell less
                continue
        return values

    def close(self) -> None:
        """Let amdsmi go."""
        if self._smi is not None:
            self._smi.amdsmi_shut_down()
            self._smi, self._works = None, []

    def _probe(self, name: str, handle: Any, reading: Reading) -> None:
        gap = None
        try:
            reading.read(self._smi, handle)
            self._works.append((name, handle, reading))
        except Exception as error:  # see read()
            gap = f"{reading.source}: {error}"
        self._infos.append(
            SeriesInfo(name=name, unit=reading.unit, source=reading.source, cumulative=reading.cumulative, gap=gap)
        )


def _open(smi: Any) -> tuple[Any, str | None]:
    if smi is None:
        try:
            smi = importlib.import_module("amdsmi")
        except Exception as error:  # it loads a driver library as it is imported, and fails in many ways
            return None, f"no AMD GPU is read: amdsmi cannot be imported ({type(error).__name__})"
    try:
        smi.amdsmi_init()
        found = smi.amdsmi_get_processor_handles()
    except Exception as error:  # as above
        return None, f"no AMD GPU: amdsmi says {error}"
    return (smi, None) if found else (None, "amdsmi shows no AMD GPU")
