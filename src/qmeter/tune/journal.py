"""The search's journal: one line when a point is asked for, one when it was measured; what a resumed search goes by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmeter.errors import IncompatibleRecords, StoreError
from qmeter.record import Quantity, Reason
from qmeter.store.journal import append_line, whole_lines
from qmeter.tune.space import Point

VERSION = 1
NAME = "evaluations.jsonl"


@dataclass(frozen=True)
class Proposal:
    """One measurement to make.

    Attributes:
        number: counted from 1.
        repeat: which repeat of the point, from 0.
        why: why it was chosen, in words.
    """

    number: int
    point: Point
    repeat: int
    why: str

    @property
    def folder(self) -> str:
        """Where its study lies, under the search's folder."""
        return f"evaluations/{self.number:04d}"


@dataclass(frozen=True)
class Outcome:
    """What a measurement gave.

    Attributes:
        values: term's key → quantity.
        failure: why it gave none, or ``None``.
        seconds: wall time it took.
        overloaded: workloads whose requests came faster than they were served: what is unknown there, is for that.
    """

    values: Mapping[str, Quantity]
    failure: Reason | None = None
    seconds: float = 0.0
    overloaded: tuple[str, ...] = ()

    @property
    def kind(self) -> str | None:
        """The failure's kind."""
        return self.failure.kind if self.failure else None


class SearchJournal:
    """Appends and reads; a line torn by a crash is left out and set aside at the next append."""

    def __init__(self, folder: Path):
        self.path = folder / NAME

    def asked(self, proposal: Proposal) -> None:
        """Note a proposal before it is measured."""
        self._append({"event": "asked", "number": proposal.number, "point": proposal.point.as_dict(),
                      "repeat": proposal.repeat, "why": proposal.why})  # fmt: skip

    def told(self, proposal: Proposal, outcome: Outcome) -> None:
        """Note what it gave."""
        self._append({
            "event": "told", "number": proposal.number, "seconds": round(outcome.seconds, 3),
            "values": {k: q.model_dump(mode="json", exclude_none=True) | {"value": q.value}
                       for k, q in outcome.values.items()},
            "failure": outcome.failure.model_dump(mode="json") if outcome.failure else None,
            "overloaded": list(outcome.overloaded),
        })  # fmt: skip

    def read(self) -> list[tuple[Proposal, Outcome | None]]:
        """Every proposal in order, with its outcome where it was measured.

        Raises:
            StoreError: a line in the middle is broken.
        """
        asked: dict[int, Proposal] = {}
        told: dict[int, Outcome] = {}
        for number, line in whole_lines(self.path):
            try:
                self._take(json.loads(line), asked, told)
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{self.path}, line {number}: not an entry ({error})",
                                 hint="remove that line and the ones after it") from error  # fmt: skip
        return [(p, told.get(n)) for n, p in asked.items()]

    def _take(self, row: dict[str, Any], asked: dict[int, Proposal], told: dict[int, Outcome]) -> None:
        if row["version"] > VERSION:
            raise IncompatibleRecords(f"{self.path} was written by a newer qMeter", hint="upgrade qMeter")
        number = int(row["number"])
        if row["event"] == "asked":
            asked[number] = Proposal(number, Point(tuple(row["point"].items())), int(row["repeat"]), row["why"])
        else:
            values = {k: Quantity.model_validate(q) for k, q in row["values"].items()}
            failure = Reason.model_validate(row["failure"]) if row["failure"] else None
            told[number] = Outcome(values, failure, float(row["seconds"]), tuple(row.get("overloaded", ())))

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps({"version": VERSION, **row}).encode()
        append_line(self.path, line, "free disk space, then run the same command again")
