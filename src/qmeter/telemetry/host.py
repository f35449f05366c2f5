"""The host by psutil, and one engine's processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import psutil

from qmeter.record import SeriesInfo


class HostSampler:
    """CPU share and memory of the whole host (source: psutil, /proc)."""

    def __init__(self) -> None:
        psutil.cpu_percent(interval=None)

    def series(self) -> tuple[SeriesInfo, ...]:
        """``host.cpu_share`` (0..1 over all cores, since the last reading) and ``host.memory_used_bytes``."""
        return (
            SeriesInfo(name="host.cpu_share", unit="1", source="psutil.cpu_percent"),
            SeriesInfo(name="host.memory_used_bytes", unit="B", source="psutil.virtual_memory: total - available"),
        )

    def read(self) -> Mapping[str, float]:
        """The present values."""
        memory = psutil.virtual_memory()
        return {
            "host.cpu_share": psutil.cpu_percent(interval=None) / 100,
            "host.memory_used_bytes": float(memory.total - memory.available),
        }

    def close(self) -> None:
        """Nothing to let go of."""


class EngineProcessSampler:
    """Memory and CPU of an engine's processes together (source: psutil).

    Args:
        pids: gives the processes; asked at every reading, since engines start workers.
    """

    def __init__(self, pids: Callable[[], list[int]]):
        self._pids = pids
        self._known: dict[int, psutil.Process] = {}

    def series(self) -> tuple[SeriesInfo, ...]:
        """``engine_process.rss_bytes`` (shared pages count in each), ``engine_process.cpu_share`` (1 = one core)."""
        gap = None if self._pids() else "the engine is not a process of this host's qMeter"
        return (
            SeriesInfo(name="engine_process.rss_bytes", unit="B", source="psutil RSS, summed", gap=gap),
            SeriesInfo(name="engine_process.cpu_share", unit="1", source="psutil CPU time, summed", gap=gap),
        )

    def read(self) -> Mapping[str, float]:
        """Sums over the processes there are now; empty where there is none."""
        rss, cpu, seen = 0, 0.0, 0
        for pid in self._pids():
            try:
                process = self._known.setdefault(pid, psutil.Process(pid))
                rss += process.memory_info().rss
                cpu += process.cpu_percent(interval=None) / 100
                seen += 1
            except psutil.Error:
                self._known.pop(pid, None)
        return {"engine_process.rss_bytes": float(rss), "engine_process.cpu_share": cpu} if seen else {}

    def close(self) -> None:
        """Forget the processes."""
        self._known.clear()
