"""What is searched for, as numbers: losses to be made small, limits to be kept, and what was seen so far.

A loss is the logarithm of a quantity that is positive by nature (its negative where more is better), else the quantity
itself: a change of 5% then counts the same at 20 ms and at 2 s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.metrics import Better, metric
from qmeter.record import Quantity
from qmeter.tune.space import Point, Space

F64 = NDArray[np.float64]

LOG_UNITS = ("s", "J", "J/token", "J/request", "J·s", "W", "B", "token/s", "token")
LEAST = 1e-9


@dataclass(frozen=True)
class Term:
    """One quantity of one workload: an objective's or a constraint's.

    Attributes:
        name: of the quantity, as records have it; workload: whose.
        better: which way is better.
        limit: what it must keep (a constraint, or an objective with a bound), in the quantity's unit; ``None``: none.
        per_gpu: whether it counts a GPU of the deployment's (:func:`qmeter.analysis.compare.counts_per_gpu`).
    """

    name: str
    workload: str
    better: Better
    limit: float | None = None
    per_gpu: bool = False

    @property
    def key(self) -> str:
        """``name@workload``, where it counts a GPU ``name_per_gpu@workload``."""
        return f"{self.name}{'_per_gpu' if self.per_gpu else ''}@{self.workload}"

    @property
    def whole(self) -> str:
        """The key of the whole deployment's quantity."""
        return f"{self.name}@{self.workload}"

    @property
    def label(self) -> str:
        """For people, without the workload."""
        return metric(self.name).label + (" a GPU" if self.per_gpu else "")

    @property
    def unit(self) -> str:
        """The quantity's unit."""
        return metric(self.name).unit

    def loss(self, value: float) -> float:
        """The value as a loss."""
        sign = 1.0 if self.better is Better.LOWER else -1.0
        return sign * (math.log(max(value, LEAST)) if self.unit in LOG_UNITS else value)

    def value(self, loss: float) -> float:
        """The value that a loss stands for."""
        x = loss if self.better is Better.LOWER else -loss
        return math.exp(x) if self.unit in LOG_UNITS else x + 0.0  # a negative zero is none

    def violation(self, value: float) -> float:
        """By how much the limit is broken, as a loss; 0 or less: it is kept."""
        return -math.inf if self.limit is None else self.loss(value) - self.loss(self.limit)

    def sigma(self, q: Quantity) -> float | None:
        """Standard error of the loss that the quantity's own 95% interval means; ``None`` where it has none."""
        if q.value is None or q.low is None or q.high is None:
            return None
        ends = (self.loss(q.low), self.loss(q.high)) if q.low > 0 or self.unit not in LOG_UNITS else None
        middle = self.loss(q.value)
        spread = max(abs(e - middle) for e in ends) if ends else abs(self.loss(q.high) - middle)
        return spread / 1.96


@dataclass(frozen=True)
class Seen:
    """What one evaluation of a point showed.

    Attributes:
        losses: of the objectives, shape (m,); ``None`` where it failed or an objective stayed unknown.
        violations: of every term with a limit, in order; above 0: broken.
        failure: kind of the error that it ended in, or ``None``.
    """

    point: Point
    losses: tuple[float, ...] | None
    violations: tuple[float, ...] = ()
    failure: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether it ran and kept every limit."""
        return self.losses is not None and all(v <= 0 for v in self.violations)


@dataclass(frozen=True)
class Problem:
    """Everything that a sampler may know before the first measurement.

    Attributes:
        space: the points.
        objectives: what is optimized.
        limits: terms with a limit: objectives' own, then constraints.
        low: point → term's key → value at low fidelity (a simulation): known for some points or none.
        seed: of all random choices.
        budget: evaluations in all.
    """

    space: Space
    objectives: tuple[Term, ...]
    limits: tuple[Term, ...] = ()
    low: Mapping[Point, Mapping[str, float]] = field(default_factory=dict)
    seed: int = 1
    budget: int = 100

    def seen(self, point: Point, values: Mapping[str, Quantity], failure: str | None = None) -> Seen:
        """An evaluation as losses; where an objective or a limit is unknown, it counts as failed (``Unknown``)."""
        terms = (*self.objectives, *self.limits)
        found = {t.key: values[t.key].value for t in terms if t.key in values}
        if failure or any(found.get(t.key) is None for t in terms):
            return Seen(point, None, (), failure or "Unknown")
        known = {k: v for k, v in found.items() if v is not None}
        losses = tuple(t.loss(known[t.key]) for t in self.objectives)
        return Seen(point, losses, tuple(t.violation(known[t.key]) for t in self.limits))

    def low_losses(self, terms: Sequence[Term]) -> F64:
        """Losses at low fidelity of every point of the space, NaN where it knows nothing. Shape (points, terms)."""
        out = np.full((len(self.space), len(terms)), np.nan)
        for point, values in self.low.items():
            row = self.space.row.get(point)
            if row is not None:
                out[row] = [t.loss(values[t.key]) if t.key in values else np.nan for t in terms]
        return out

    def reference(self, losses: F64) -> F64:
        """Losses from which a point no longer counts: an objective's limit, else a tenth beyond the worst seen."""
        worst, best = losses.max(axis=0), losses.min(axis=0)
        free = worst + np.maximum(0.1 * (worst - best), 0.02)
        own = [math.inf if t.limit is None else t.loss(t.limit) for t in self.objectives]
        return np.asarray(np.minimum(free, np.maximum(own, best + 0.02)), dtype=np.float64)
