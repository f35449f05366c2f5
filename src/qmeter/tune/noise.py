"""Dominance that knows its noise: how sure it is that a point is on the front, and where a repeat would settle it.

Everything is in losses. The standard error of one measurement of a term is what repeats of all points, pooled, differed
by; below three degrees of freedom, no less than what the records' own intervals say (the median). A point's own is that
over the square root of its repeats. Intervals are Student's t with the pooled degrees of freedom, or the records' own
where nothing was repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.record import Quantity
from qmeter.tune.problem import Term
from qmeter.tune.space import Point

F64 = NDArray[np.float64]

SAMPLES = 512
UNSURE = 0.05
"""A point whose chance to be on the front is between this and its complement is undecided."""
LEAST_SIGMA = 0.002
ENOUGH = 3
"""Degrees of freedom from which the pooled spread of repeats is used alone."""


@dataclass(frozen=True)
class Measured:
    """One point over its repeats: mean losses of every term, their standard errors, and the number of repeats."""

    point: Point
    losses: F64
    errors: F64
    repeats: int


@dataclass(frozen=True)
class Standing:
    """A measured point among the others.

    Attributes:
        chance: probability that nothing dominates it and it keeps every limit.
        on_front: by the means.
        dominated_by: a point that is better beyond noise on one objective and worse beyond noise on none.
    """

    measured: Measured
    feasible: bool
    on_front: bool
    chance: float
    dominated_by: Point | None


class Noise:
    """Pooled run-to-run spread of each term."""

    def __init__(self, terms: Sequence[Term], values: Mapping[Point, Sequence[Mapping[str, Quantity]]]):
        self.terms = tuple(terms)
        rows = {p: np.array([[_loss(t, v) for t in self.terms] for v in vs]) for p, vs in values.items()}
        within = [[t.sigma(v[t.key]) for t in self.terms] for vs in values.values() for v in vs]
        self.freedom = sum(len(r) - 1 for r in rows.values())
        squares = sum(((r - r.mean(axis=0)) ** 2).sum(axis=0) for r in rows.values() if len(r) > 1)
        between = np.sqrt(np.asarray(squares) / self.freedom) if self.freedom else np.zeros(len(self.terms))
        own = np.array([_median(column) for column in zip(*within, strict=True)]) if within else np.zeros(len(terms))
        self.between = np.broadcast_to(between, (len(self.terms),)).astype(float)
        raw = np.where(self.freedom >= ENOUGH, self.between, np.maximum(self.between, own))
        self.exact = raw == 0
        self.single = np.maximum(raw, LEAST_SIGMA)
        self.points = [Measured(p, r.mean(axis=0), self.single / math.sqrt(len(r)), len(r)) for p, r in rows.items()]

    def interval(self, measured: Measured, term: Term, single: Quantity) -> Quantity:
        """A term's value over the repeats with a 95% interval."""
        j = self.terms.index(term)
        value = term.value(float(measured.losses[j]))
        if self.exact[j] or (measured.repeats == 1 and self.freedom < ENOUGH):
            return single
        pooled = self.freedom >= ENOUGH
        half = (_t975(self.freedom) if pooled else 1.96) * float(measured.errors[j])
        ends = sorted(term.value(float(measured.losses[j]) + s * half) for s in (-1, 1))
        why = f"spread pooled over {self.freedom} repeats of all points" if pooled else "spread within single runs"
        return Quantity.of(value, term.unit, low=ends[0], high=ends[1], n=measured.repeats, why=why)


def standings(
    noise: Noise, objectives: int, bounds: Sequence[tuple[int, float]], method_of: Callable[[Point], str], seed: int = 0
) -> list[Standing]:
    """Where each measured point stands.

    Points of one method that noise does not tell apart on any objective are no rivals: a knob that makes no difference
    would otherwise leave every one of them unsure, and draw repeats that settle nothing.

    Args:
        objectives: how many of the terms, from the first, are objectives.
        bounds: of each limit: the term's place, and the loss it must not exceed.
        method_of: the method of a point.
    """
    points = noise.points
    if not points:
        return []
    mean = np.array([p.losses for p in points])
    error = np.array([p.errors for p in points])
    rng = np.random.default_rng(seed)
    draws = mean[None] + error[None] * rng.standard_normal((SAMPLES, *mean.shape))
    kept = _kept(draws, bounds)
    rivals = ~_alike(points, objectives, [method_of(p.point) for p in points])
    chance = _on_front(draws[:, :, :objectives], kept, rivals).mean(axis=0)
    good = _kept(mean[None], bounds)[0]
    front = _on_front(mean[None, :, :objectives], good[None], rivals)[0]
    out = []
    for i, p in enumerate(points):
        by = next((points[j].point for j in range(len(points)) if good[j] and _beats(points[j], p, objectives)), None)
        out.append(Standing(p, bool(good[i]), bool(front[i]), float(chance[i]), by))
    return out


def undecided(found: Sequence[Standing], most_repeats: int) -> Standing | None:
    """The point whose repeat decides most: its place on the front is the least sure; ``None``: nothing is open."""
    open_ = [s for s in found if UNSURE < s.chance < 1 - UNSURE and s.measured.repeats < most_repeats]
    return max(open_, key=lambda s: _entropy(s.chance) / s.measured.repeats, default=None)


def _kept(draws: F64, bounds: Sequence[tuple[int, float]]) -> NDArray[np.bool_]:
    kept = np.ones(draws.shape[:2], dtype=bool)
    for j, most in bounds:
        kept &= draws[:, :, j] <= most
    return kept


def _alike(points: Sequence[Measured], objectives: int, methods: Sequence[str]) -> NDArray[np.bool_]:
    """Pairs of one method whose objectives are all within two standard errors of each other. Shape (points, points)."""
    mean = np.array([p.losses for p in points])[:, :objectives]
    error = np.array([p.errors for p in points])[:, :objectives]
    apart = np.abs(mean[:, None] - mean[None]) > 2 * np.hypot(error[:, None], error[None])
    names = np.array(methods, dtype=object)
    return np.asarray(~apart.any(axis=2) & (names[:, None] == names[None]), dtype=bool)


def _on_front(draws: F64, kept: NDArray[np.bool_], rivals: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Per draw, which points are feasible and not dominated by a feasible rival. Shape (draws, points)."""
    out = kept.copy()
    for j in range(draws.shape[1]):
        other = draws[:, j : j + 1, :]
        beaten = np.all(other <= draws, axis=2) & np.any(other < draws, axis=2) & kept[:, j : j + 1]
        out &= ~(beaten & rivals[j][None])
    return out


def _beats(a: Measured, b: Measured, objectives: int) -> bool:
    """Better beyond noise somewhere, worse beyond noise nowhere (two standard errors of the difference)."""
    apart = (b.losses - a.losses)[:objectives] / np.hypot(a.errors, b.errors)[:objectives]
    return bool(np.all(apart > -2) and np.any(apart > 2))


def _entropy(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p)) if 0 < p < 1 else 0.0


def _loss(term: Term, values: Mapping[str, Quantity]) -> float:
    value = values[term.key].value
    return float("nan") if value is None else term.loss(value)


def _median(column: Sequence[float | None]) -> float:
    known = [v for v in column if v is not None]
    return float(np.median(known)) if known else 0.0


def _t975(freedom: int) -> float:
    from qmeter.analysis.stats import t_quantile

    return float(t_quantile(0.975, freedom))
