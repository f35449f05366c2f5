"""The host by psutil, and one engine's processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import psutil

from qmeter.record import SeriesInfo

STALE_S = 2.0
"""A share since a reading longer ago (in the cell before) is none of the present moment. Units: s."""
PIDS_S = 1.0
"""How often an engine is asked for its processes: looking through /proc takes milliseconds. Units: s."""


class HostSampler:
    """CPU share and memory of the whole host (source: psutil, /proc)."""

    def __init__(self) -> None:
        self._last: tuple[float, float, float] | None = None

    def series(self) -> tuple[SeriesInfo, ...]:
        """``host.cpu_share`` (0..1 over all cores, since the last reading) and ``host.memory_used_bytes``."""
        return (
            SeriesInfo(name="host.cpu_share", unit="1", source="psutil.cpu_times: busy / all"),
            SeriesInfo(name="host.memory_used_bytes", unit="B", source="psutil.virtual_memory: total - available"),
        )

    def read(self) -> Mapping[str, float]:
        """The present values; no share at the first reading, which has nothing before it to count from."""
        memory = psutil.virtual_memory()
        values = {"host.memory_used_bytes": float(memory.total - memory.available)}
        share = self._share()
        return values if share is None else {**values, "host.cpu_share": share}

    def _share(self) -> float | None:
        """Busy share since the last reading. Guest time is part of user time in /proc/stat: it counts once."""
        times, now_s = psutil.cpu_times(), time.monotonic()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        all_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        last, self._last = self._last, (now_s, idle_s, all_s)
        if last is None or now_s - last[0] > STALE_S or all_s <= last[2]:
            return None
        return min(max(1.0 - (idle_s - last[1]) / (all_s - last[2]), 0.0), 1.0)

    def close(self) -> None:
        """Nothing to let go of."""


class EngineProcessSampler:
    """Memory and CPU of an engine's processes together (source: psutil).

    Args:
        pids: gives the processes; asked every :data:`PIDS_S`, since engines start workers.
    """

    def __init__(self, pids: Callable[[], list[int]]):
        self._pids = pids
        self._known: dict[int, psutil.Process] = {}
        self._asked_s, self._present = time.monotonic(), pids()
        self._gap = None if self._present else "the engine is not a process of this host's qMeter"
        self._read_s: float | None = None

    def series(self) -> tuple[SeriesInfo, ...]:
        """``engine_process.rss_bytes`` (shared pages count in each), ``engine_process.cpu_share`` (1 = one core)."""
        return (
            SeriesInfo(name="engine_process.rss_bytes", unit="B", source="psutil RSS, summed", gap=self._gap),
            SeriesInfo(name="engine_process.cpu_share", unit="1", source="psutil CPU time, summed", gap=self._gap),
        )

    def read(self) -> Mapping[str, float]:
        """Sums over the processes there are now; empty where there is none, no share at the first reading."""
        now_s = time.monotonic()
        if now_s - self._asked_s > PIDS_S:
            self._asked_s, self._present = now_s, self._pids()
        rss, share, seen = 0, 0.0, 0
        fresh = self._read_s is not None and now_s - self._read_s <= STALE_S
        for pid in self._present:
            try:
                process = self._known.get(pid)
                if process is None:
                    process = self._known[pid] = psutil.Process(pid)
                rss += process.memory_info().rss
                share += process.cpu_percent(interval=None) / 100
                seen += 1
            except psutil.Error:
                self._known.pop(pid, None)
        self._read_s = now_s
        if not seen:
            return {}
        values = {"engine_process.rss_bytes": float(rss)}
        return {**values, "engine_process.cpu_share": share} if fresh else values

    def close(self) -> None:
        """Forget the processes."""
        self._known.clear()
