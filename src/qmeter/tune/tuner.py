"""The search: what to measure next, and what is known so far. It asks and is told; it never runs anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qmeter.errors import IncompatibleRecords
from qmeter.record import Quantity
from qmeter.tune.feasibility import Feasibility
from qmeter.tune.journal import Outcome, Proposal, SearchJournal
from qmeter.tune.noise import Noise, Standing, standings, undecided
from qmeter.tune.outcome import with_shares
from qmeter.tune.problem import Problem, Seen, Term
from qmeter.tune.samplers.base import make
from qmeter.tune.space import Point
from qmeter.tune.spec import Tuning

REPEAT_EVERY = 3
"""While undecided points remain, at most every third measurement is a repeat, until the last share of the budget."""


@dataclass(frozen=True)
class Evaluated:
    """One point with everything measured on it: its proposals and their outcomes, in order."""

    point: Point
    runs: tuple[tuple[Proposal, Outcome], ...]

    @property
    def good(self) -> list[Outcome]:
        """The runs that gave numbers."""
        return [o for _, o in self.runs if o.failure is None]


class Tuner:
    """Asks for measurements and learns from them, journaled so that a killed search goes on where it stopped.

    Args:
        tuning: the resolved tune file.
        folder: of the search; its journal is read, and the sampler brought back by asking and telling again.
        low: what the low fidelity says of each point.

    Raises:
        IncompatibleRecords: the journal is of another space.
    """

    def __init__(self, tuning: Tuning, folder: Path, low: Mapping[Point, Mapping[str, float]] | None = None):
        search = tuning.spec.search
        self.tuning = tuning
        self.problem = Problem(tuning.space, tuning.objectives, tuning.limits, low or {}, search.seed,
                               search.evaluations)  # fmt: skip
        self.terms: tuple[Term, ...] = tuple(dict.fromkeys((*tuning.objectives, *tuning.limits)))
        self._sampler = make(search.sampler, self.problem)
        self._journal = SearchJournal(folder)
        self._feasibility = Feasibility(tuning.space)
        self._entries: list[tuple[Proposal, Outcome | None]] = []
        self._since_repeat = 0
        self._replay()

    def _replay(self) -> None:
        for proposal, told in self._journal.read():
            if proposal.point not in self.tuning.space.row:
                raise IncompatibleRecords(f"{self._journal.path}: {proposal.point.label} is not in the space",
                                          hint="the tune file was changed: search into a new folder")  # fmt: skip
            outcome = self._with_shares(proposal, told)
            if proposal.repeat == 0 and not self._is_reference(proposal):
                self._bring_back(proposal.point)
            self._entries.append((proposal, outcome))
            self._count(proposal)
            if outcome is not None:
                self._learn(proposal, outcome)

    def _with_shares(self, proposal: Proposal, outcome: Outcome | None) -> Outcome | None:
        if outcome is None:
            return None
        gpus = self.tuning.gpus(proposal.point)
        return replace(outcome, values=with_shares(outcome.values, self.terms, gpus))

    def _bring_back(self, point: Point) -> None:
        """Let the sampler ask again until it has come to ``point``; one that asks for another goes on from there."""
        while (asked := self._sampler.ask()) is not None and asked != point and (told := self._refused(asked)):
            self._sampler.tell(told)

    def _refused(self, point: Point) -> Seen | None:
        """What a proposed point is told that is not to be measured (again); ``None``: measure it."""
        if any(p.point == point for p, _ in self._entries):
            outcome = next((o for p, o in self._entries if p.point == point and o is not None), Outcome({}))
            return self.problem.seen(point, outcome.values, outcome.kind)
        ruled = self._feasibility.ruled_out(self.tuning.space.row[point])
        return Seen(point, None, (), "RuledOut") if ruled else None

    def _is_reference(self, proposal: Proposal) -> bool:
        return proposal.number == 1 and self.tuning.needs_quality

    @property
    def done(self) -> int:
        """Measurements made."""
        return sum(o is not None for _, o in self._entries)

    @property
    def typical_s(self) -> float:
        """Median wall time of a measurement so far, 0 before the first. Units: s."""
        return float(np.median([o.seconds for _, o in self._entries if o is not None] or [0.0]))

    @property
    def lessons(self) -> list[str]:
        """What failures ruled out, in words."""
        return list(self._feasibility.lessons)

    def ask(self) -> Proposal | None:
        """The next measurement; one that was asked for and never told comes first. ``None``: the search is over."""
        if self.done >= self.tuning.spec.search.evaluations:
            return None
        waiting = next((p for p, o in self._entries if o is None), None)
        if waiting is not None:
            return waiting
        proposal = self._choose()
        if proposal is not None:
            self._journal.asked(proposal)
            self._entries.append((proposal, None))
            self._count(proposal)
        return proposal

    def tell(self, proposal: Proposal, outcome: Outcome) -> None:
        """What the measurement gave; on return it is on the disk."""
        self._journal.told(proposal, outcome)
        self._entries = [(p, outcome if p == proposal else o) for p, o in self._entries]
        self._learn(proposal, outcome)

    def _learn(self, proposal: Proposal, outcome: Outcome) -> None:
        seen = self.problem.seen(proposal.point, outcome.values, outcome.kind)
        self._sampler.tell(seen)
        self._feasibility.tell(seen)

    def _count(self, proposal: Proposal) -> None:
        self._since_repeat = 0 if proposal.repeat else self._since_repeat + 1

    def _choose(self) -> Proposal | None:
        number = len(self._entries) + 1
        if number == 1 and self.tuning.needs_quality:
            return Proposal(1, self._reference_point(), 0, "the quality reference, which all others are scored against")
        if (standing := self._repeat(number)) is not None:
            p = standing.measured
            why = f"repeat: {standing.chance:.0%} sure to be on the front"
            return Proposal(number, p.point, p.repeats, why)
        while (point := self._sampler.ask()) is not None:
            if (told := self._refused(point)) is None:
                return Proposal(number, point, 0, self._why(point))
            self._sampler.tell(told)
        return None

    def _why(self, point: Point) -> str:
        low = self.problem.low.get(point)
        return f"{self.tuning.spec.search.sampler}" + (", with a low-fidelity estimate" if low else "")

    def _reference_point(self) -> Point:
        reference = self.tuning.base.quality.reference or self.tuning.base.methods[0]
        points = self.tuning.space.points
        return next((p for p in points if self.tuning.space.method_of(p) == reference), points[0])

    def _repeat(self, number: int) -> Standing | None:
        """The point to measure again, where one is undecided and it is a repeat's turn."""
        search = self.tuning.spec.search
        spent = sum(p.repeat > 0 for p, _ in self._entries)
        allowed = int(search.repeat_share * search.evaluations)
        if search.repeats < 2 or spent >= allowed:
            return None
        last_share = search.evaluations - number < allowed - spent
        if not last_share and (self._since_repeat < REPEAT_EVERY or number <= search.evaluations // 3):
            return None
        return undecided(self.standings(), search.repeats)

    def evaluated(self) -> list[Evaluated]:
        """Every measured point, in order of its first measurement."""
        runs: dict[Point, list[tuple[Proposal, Outcome]]] = {}
        for proposal, outcome in self._entries:
            if outcome is not None:
                runs.setdefault(proposal.point, []).append((proposal, outcome))
        return [Evaluated(p, tuple(r)) for p, r in runs.items()]

    def noise(self) -> Noise:
        """Points with numbers for every term, and their pooled spread."""
        values: dict[Point, list[Mapping[str, Quantity]]] = {}
        for e in self.evaluated():
            whole = [o.values for o in e.good if all(t.key in o.values and o.values[t.key].known for t in self.terms)]
            if whole:
                values[e.point] = list(whole)
        return Noise(self.terms, values)

    def standings(self) -> list[Standing]:
        """Where each measured point stands."""
        seed, space = self.tuning.spec.search.seed, self.tuning.space
        return standings(self.noise(), len(self.tuning.objectives), self.bounds(), space.method_of, seed)

    def bounds(self) -> list[tuple[int, float]]:
        """Of each limit: the term's place among :attr:`terms`, and the loss that must not be exceeded."""
        return [(self.terms.index(t), t.loss(t.limit)) for t in self.tuning.limits if t.limit is not None]
