"""CPU energy from RAPL, by the kernel's powercap interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qmeter.record import SeriesInfo

ROOT = Path("/sys/class/powercap")


class RaplSampler:
    """The package energy counters, summed over sockets, unwrapped (source: powercap ``intel-rapl:N/energy_uj``).

    AMD processors answer under the same name. Package domains include their cores; DRAM is left out, since not
    every host has it, and so is ``psys`` (the whole platform), which holds the packages once more.

    Args:
        root: the powercap folder, for tests.
    """

    def __init__(self, root: Path = ROOT):
        self._zones = [z for z in sorted(root.glob("intel-rapl:*")) if z.name.count(":") == 1 and _is_package(z)]
        self._last: dict[Path, float] = {}
        self._wrapped_j: dict[Path, float] = {}
        self._gap = self._why_not()

    def series(self) -> tuple[SeriesInfo, ...]:
        """``cpu.energy_j``, or its gap: virtual machines mostly have no RAPL, and reading it may need root."""
        return (SeriesInfo(name="cpu.energy_j", unit="J", source="RAPL package", cumulative=True, gap=self._gap),)

    def read(self) -> Mapping[str, float]:
        """The counters' sum, wraps undone. Units: J."""
        if self._gap:
            return {}
        return {"cpu.energy_j": sum(self._zone_j(zone) for zone in self._zones)}

    def close(self) -> None:
        """Nothing to let go of."""

    def _zone_j(self, zone: Path) -> float:
        now_j = int((zone / "energy_uj").read_text()) / 1e6
        if now_j < self._last.get(zone, 0.0):
            range_j = int((zone / "max_energy_range_uj").read_text()) / 1e6
            self._wrapped_j[zone] = self._wrapped_j.get(zone, 0.0) + range_j
        self._last[zone] = now_j
        return now_j + self._wrapped_j.get(zone, 0.0)

    def _why_not(self) -> str | None:
        if not self._zones:
            return "this host shows no RAPL energy counter (usual in virtual machines)"
        try:
            for zone in self._zones:
                (zone / "energy_uj").read_text()
        except PermissionError:
            return "reading RAPL needs root here: allow it with 'chmod a+r /sys/class/powercap/*/energy_uj'"
        except OSError as error:
            return f"RAPL cannot be read: {error}"
        return None


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return True
