"""Reads every sampler on an absolute schedule, each in a thread of its own, onto the cell's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from qmeter.record import SeriesInfo, Telemetry
from qmeter.telemetry.base import Sampler

STUCK_S = 10.0
"""How long the last reading may take before it is given up. Units: s."""


class Recorder:
    """Samples from :meth:`start` to :meth:`stop`.

    Args:
        samplers: what to read; not closed by the recorder, so that they serve the next cell too.
        rate_hz: readings a second asked for; the rate kept is in each series' ``rate_hz``.
        origin_monotonic_s: the cell clock's origin; times are CLOCK_MONOTONIC minus this. Units: s.

    A reading's time is the middle of its ``read()`` call. A slow sampler skips the ticks it missed, it does not
    shift the others. A sampler that raises is stopped, and its series get a gap that says so.
    """

    def __init__(self, samplers: Sequence[Sampler], rate_hz: float, origin_monotonic_s: float):
        self._period_s = 1.0 / rate_hz
        self._origin_s = origin_monotonic_s
        self._tracks = [_Track(sampler) for sampler in samplers]
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin sampling."""
        for track in self._tracks:
            track.thread = threading.Thread(target=self._run, args=(track,), name="qmeter-sampler", daemon=True)
            track.thread.start()

    def stop(self) -> tuple[Telemetry, tuple[SeriesInfo, ...]]:
        """End sampling; every reading in time order, and each series with its measured rate or its gap."""
        self._stopping.set()
        for track in self._tracks:
            if track.thread:
                track.thread.join(timeout=STUCK_S)
                if track.thread.is_alive():
                    track.broken = f"a reading was stuck for more than {STUCK_S:g} s at the end"
        rows = [row for track in self._tracks for row in tuple(track.rows)]
        rows.sort(key=lambda row: row[1])
        table = Telemetry(
            series=np.array([r[0] for r in rows], dtype=object),
            t_s=np.array([r[1] for r in rows], dtype=np.float64),
            value=np.array([r[2] for r in rows], dtype=np.float64),
        )
        return table, tuple(info for track in self._tracks for info in track.described())

    def _run(self, track: _Track) -> None:
        due_s = time.monotonic()
        while not self._stopping.is_set():
            before_s = time.monotonic()
            try:
                values = {name: float(value) for name, value in track.sampler.read().items()}
            except Exception as error:  # a broken sampler is a gap in the record, not the end of the cell
                track.broken = f"the sampler stopped after {len(track.rows)} readings: {type(error).__name__}: {error}"
                return
            after_s = time.monotonic()
            at_s = (before_s + after_s) / 2 - self._origin_s
            track.rows.extend((name, at_s, value) for name, value in values.items())
            due_s += self._period_s
            if due_s < after_s:
                due_s += np.ceil((after_s - due_s) / self._period_s) * self._period_s
            self._stopping.wait(max(0.0, due_s - time.monotonic()))


class _Track:
    """One sampler's readings."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self.rows: list[tuple[str, float, float]] = []
        self.broken: str | None = None
        self.thread: threading.Thread | None = None

    def described(self) -> list[SeriesInfo]:
        times: dict[str, list[float]] = {}
        for name, at_s, _ in self.rows:
            times.setdefault(name, []).append(at_s)
        made = []
        for info in self.sampler.series():
            seen = times.get(info.name, [])
            rate = (len(seen) - 1) / (seen[-1] - seen[0]) if len(seen) > 1 and seen[-1] > seen[0] else None
            gap = info.gap or self.broken or (None if seen else "no reading succeeded")
            made.append(info.model_copy(update={"rate_hz": rate, "gap": gap}))
        return made
