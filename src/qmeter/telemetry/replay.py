"""A sampler that plays back recorded telemetry, so that every path runs where there is no GPU.

The recording is a ``telemetry`` table of a study folder (Parquet) or a CSV file with the columns series, t_s, value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from qmeter.errors import TelemetryError
from qmeter.record import SeriesInfo, Telemetry

UNITS = {"throttle_reasons": "bitmask", "_bytes_s": "B/s", "_bytes": "B", "_hz": "Hz", "_w": "W", "_j": "J", "_c": "°C"}

REPLAY = "replay"
"""The source of series that are played back."""


class ReplaySampler:
    """Gives, at each reading, the last recorded value of every series at the same time since its start.

    Past the recording's end its series fall silent, as a sampler's do that stopped; ``loop`` starts it over, with
    cumulative counters going on from where they were.

    Args:
        telemetry: the recording, or the file that holds it.
        clock: gives seconds; tests pass their own.
    """

    def __init__(self, telemetry: Telemetry | Path, *, loop: bool = False, clock: Callable[[], float] = time.monotonic):
        table = read_recording(telemetry) if isinstance(telemetry, Path) else telemetry
        if not len(table):
            raise TelemetryError("the recording has no readings", hint="record one with qmeter run on a host that has")
        names = sorted(set(table.series.tolist()))
        self._tracks = {name: table.of(name) for name in names}
        self._first_s = min(float(t[0]) for t, _ in self._tracks.values())
        self._length_s = max(float(t[-1]) for t, _ in self._tracks.values()) - self._first_s
        self._loop, self._clock, self._start_s = loop, clock, clock()

    def series(self) -> tuple[SeriesInfo, ...]:
        """The recording's series, units by their names."""
        return tuple(
            SeriesInfo(name=n, unit=unit_of(n), source=REPLAY, cumulative=n.endswith("_j")) for n in self._tracks
        )

    def read(self) -> Mapping[str, float]:
        """Values at the present time of the playback."""
        played_s = self._clock() - self._start_s
        turns = int(played_s // self._length_s) if self._loop and self._length_s > 0 else 0
        at_s = self._first_s + played_s - turns * self._length_s
        if at_s > self._first_s + self._length_s:
            return {}
        values = {}
        for name, (t_s, value) in self._tracks.items():
            k = int(np.searchsorted(t_s, at_s, side="right")) - 1
            if k >= 0:
                rise = float(value[-1] - value[0]) * turns if name.endswith("_j") else 0.0
                values[name] = float(value[k]) + rise
        return values

    def close(self) -> None:
        """Nothing to let go of."""


def read_recording(path: Path) -> Telemetry:
    """A recording from a Parquet or CSV file.

    Raises:
        TelemetryError: the file is missing, or has not the columns series, t_s and value.
    """
    import duckdb

    try:
        with duckdb.connect() as database:
            database.execute("SET enable_progress_bar = false")
            rows = database.execute("SELECT series, t_s, value FROM " + _source(path)).fetchnumpy()
    except (duckdb.Error, OSError) as error:
        raise TelemetryError(
            f"{path} cannot be replayed: {str(error).splitlines()[0]}",
            hint="give a study's telemetry Parquet file, or a CSV with the columns series, t_s, value",
        ) from error
    return Telemetry(series=rows["series"], t_s=rows["t_s"], value=rows["value"])


def _source(path: Path) -> str:
    quoted = str(path).replace("'", "''")
    return f"read_csv('{quoted}')" if path.suffix == ".csv" else f"read_parquet('{quoted}')"


def unit_of(series: str) -> str:
    """The unit that a series' name ends in; "1" for shares and counts."""
    return next(
        (unit for ending, unit in sorted(UNITS.items(), key=lambda i: -len(i[0])) if series.endswith(ending)), "1"
    )
