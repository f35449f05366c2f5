"""The iteration log: a ring of scheduler steps, its JSON page, and its reader."""

from __future__ import annotations

import json
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qmeter.engines.base import Launch
from qmeter.errors import EngineError
from qmeter.record import Steps

COLUMNS = ("start_s", "duration_s", "running", "waiting", "prefill_tokens", "decode_tokens", "kv_use")
"""Columns of a row; ``start_s`` is CLOCK_MONOTONIC of this host."""


class StepLog:
    """The latest steps, oldest dropped first; a row is a sequence in the order of :data:`COLUMNS`."""

    def __init__(self, capacity: int):
        self._rows: deque[Sequence[float]] = deque(maxlen=capacity)
        self.count = 0

    def append(self, row: Sequence[float]) -> None:
        """Add one step."""
        self._rows.append(row)
        self.count += 1

    def page(self, since_s: float | None = None) -> dict[str, Any]:
        """Columns of the steps that began at ``since_s`` or later, and how many were ever dropped."""
        rows = [r for r in self._rows if since_s is None or r[0] >= since_s]
        columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
        return {
            "count": self.count,
            "dropped": self.count - len(self._rows),
            "oldest_s": self._rows[0][0] if self._rows else None,
            "clock": "CLOCK_MONOTONIC",
            "columns": columns,
        }


def to_steps(page: Mapping[str, Any], origin_monotonic_s: float) -> Steps:
    """A page as a table on the cell's clock, steps before the origin left out."""
    columns: dict[str, Any] = {name: np.asarray(page["columns"][name], dtype=np.float64) for name in COLUMNS}
    columns["start_s"] = columns["start_s"] - origin_monotonic_s
    inside = columns["start_s"] + columns["duration_s"] >= 0
    return Steps(**{name: column[inside] for name, column in columns.items()})


def read_steps(launch: Launch, origin_monotonic_s: float) -> Steps:
    """The iteration log of a running embedded server, on the cell's clock.

    Raises:
        EngineError: the server does not answer, or dropped steps that the cell needs.
    """
    url = f"{launch.base_url}/qmeter/steps?since={origin_monotonic_s!r}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            page = json.load(answer)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read the iteration log: {error}", stage="load") from error
    if page["dropped"] and page["oldest_s"] > origin_monotonic_s:
        raise EngineError(
            f"the iteration log dropped {page['dropped']} steps of this cell",
            stage="load",
            hint="set engines[].options.steps higher",
        )
    return to_steps(page, origin_monotonic_s)
