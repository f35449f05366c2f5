"""Is a method better, worse, or not different by more than x? Items paired, methods corrected for one another.

For each task every method's run is compared with the reference's on the items that both answered. Scores of 0 and 1:
McNemar's exact test and the Bonett-Price interval. Other scores: sign flips and a paired bootstrap. Holm's correction
runs over the methods of one task. A verdict other than "no difference" needs the corrected p below alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from qmeter.quality import statistics
from qmeter.quality.tasks.grading import Grades
from qmeter.record import Quantity

F64 = NDArray[np.float64]
POOLED = "all"
"""Name of the comparison over all tasks' items together."""


class Verdict(StrEnum):
    """What the paired items say of a method against the reference."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference larger than"
    TOO_FEW = "too few items"


@dataclass(frozen=True)
class Comparison:
    """One method against the reference on one task.

    Attributes:
        n: paired items.
        reference, method: mean scores on them.
        difference: method - reference, with its interval.
        lost, gained: items that passed before and do not now (flips to wrong), and the other way round.
        p, p_adjusted: of "no difference", alone and by Holm over the methods.
        verdict: see :class:`Verdict`.
        bound: no difference larger than this (same level as the interval): the interval's farther end.
        items_for: items needed to find a true difference of ``margin`` with 80% power, given how often items flip.
        margin: the difference that would matter.
    """

    task: str
    name: str
    n: int
    reference: float
    method: float
    difference: Quantity
    lost: int
    gained: int
    p: float
    p_adjusted: float
    verdict: Verdict
    bound: float | None
    items_for: int | None
    margin: float

    def sentence(self) -> str:
        """For people: the verdict with its numbers."""
        if self.verdict is Verdict.TOO_FEW:
            return f"{self.name} on {self.task}: too few items ({self.n})"
        points = (
            f"{100 * (self.difference.value or 0):+.1f} points, {self.lost} lost and {self.gained} gained of {self.n}"
        )
        if self.verdict is Verdict.NO_DIFFERENCE:
            said = f"no difference larger than {100 * (self.bound or 0):.1f} points"
            short = self.items_for is not None and (self.bound or 0) > self.margin and self.items_for > self.n
            need = f"; {self.items_for} items would find {100 * self.margin:g} points" if short else ""
            return f"{self.name} on {self.task}: {said} ({points}{need})"
        return f"{self.name} on {self.task}: {self.verdict} ({points}, p = {self.p_adjusted:.2g} by Holm)"


def compare_methods(
    reference: Grades, methods: Mapping[str, Grades], *, level: float = 0.95, margin: float = 0.05, seed: int = 0
) -> tuple[Comparison, ...]:  # fmt: skip
    """Every method against the reference, task by task and over all tasks' items, Holm over the methods of each.

    Args:
        reference: the reference deployment's grades.
        methods: name → grades of the same items under another method.
        level: of intervals; alpha is 1 - level.
        margin: the score difference that would matter, for the power figures.
        seed: of bootstrap and sign flips.
    """
    found: list[Comparison] = []
    for task in (*reference.tasks(), POOLED):
        if task == POOLED and len(reference.tasks()) < 2:
            continue
        family = [
            _compare(task, name, *_paired(reference, grades, task), level=level, margin=margin, seed=seed)
            for name, grades in methods.items()
        ]
        adjusted = statistics.holm({c.name: c.p for c in family if c.verdict is not Verdict.TOO_FEW})
        found += [_judge(c, adjusted.get(c.name, 1.0), 1 - level) for c in family]
    return tuple(found)


def _paired(reference: Grades, other: Grades, task: str) -> tuple[F64, F64]:
    """Scores of the items that both graded, in the same order."""
    before, after = list[float](), list[float]()
    for name in reference.tasks() if task == POOLED else (task,):
        mine, theirs = reference.of(name), other.of(name)
        shared = [item for item in mine if item in theirs]
        before += [mine[item].score for item in shared]
        after += [theirs[item].score for item in shared]
    return np.array(before, np.float64), np.array(after, np.float64)


def _compare(task: str, name: str, before: F64, after: F64, *, level: float, margin: float, seed: int) -> Comparison:
    n, change = len(before), after - before
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    if n < 3:
        unknown = Quantity.unknown("1", f"{n} paired items", n=n)
        mean = float("nan")
        return Comparison(
            task, name, n, mean, mean, unknown, lost, gained, 1.0, 1.0, Verdict.TOO_FEW, None, None, margin
        )
    if np.isin(change, (-1.0, 0.0, 1.0)).all():
        interval: statistics.Interval | None = statistics.paired_shares(lost, gained, n, level)
        p = statistics.mcnemar(lost, gained)
    else:
        interval = statistics.bootstrap_ratio(change, np.ones(n), level=level, seed=seed)
        p = statistics.sign_flip(change, seed=seed)
    low, high = (interval.low, interval.high) if interval else (None, None)
    variance = max(float((change**2).mean()), 1 / (n + 2))  # nothing flipped: still at most about one in n
    needed = statistics.items_needed(margin, max(variance, margin**2), alpha=1 - level)
    difference = Quantity.of(float(change.mean()), "1", low=low, high=high, n=n)
    bound = max(abs(low), abs(high)) if low is not None and high is not None else None
    return Comparison(task, name, n, float(before.mean()), float(after.mean()), difference, lost, gained, p, p,
                      Verdict.NO_DIFFERENCE, bound, needed, margin)  # fmt: skip


def _judge(c: Comparison, p_adjusted: float, alpha: float) -> Comparison:
    if c.verdict is Verdict.TOO_FEW:
        return c
    verdict = Verdict.NO_DIFFERENCE
    if p_adjusted <= alpha:
        verdict = Verdict.WORSE if (c.difference.value or 0) < 0 else Verdict.BETTER
    return replace(c, p_adjusted=p_adjusted, verdict=verdict)
