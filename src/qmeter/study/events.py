"""What the runner tells while it works; the command line draws it, tests record it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qmeter.record import Record


@dataclass(frozen=True)
class StudyStarted:
    """The run begins: cells in all, and how many of them an earlier run already did."""

    study: str
    folder: str
    cells: int
    done: int


@dataclass(frozen=True)
class StageStarted:
    """A stage begins: source, launch, verify, quality, warmup, load, analyse, teardown.

    ``expected_s`` is how long it should take, where that is known.
    """

    stage: str
    label: str
    expected_s: float | None = None


@dataclass(frozen=True)
class CellEnded:
    """A cell's record is on the disk."""

    label: str
    record: Record
    remaining: int


@dataclass(frozen=True)
class StudyEnded:
    """Every cell has a record, but those ``waiting`` for a host with more GPUs. Wall time in s."""

    folder: str
    ok: int
    invalid: int
    failed: int
    wall_s: float
    waiting: int = 0


Event = StudyStarted | StageStarted | CellEnded | StudyEnded
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""
