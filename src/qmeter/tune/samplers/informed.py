"""Our own search: Gaussian processes over the whole listed space, with the simulator's answers as their prior mean.

    loss(x) = low-fidelity loss(x) + discrepancy(x),  discrepancy ~ GP over knobs, method features and the low losses

What the simulator is wrong about is learned from the measurements; where it knows nothing, the mean is a constant. The
next point has the largest expected hypervolume improvement x probability that it runs and keeps every limit. Without a
low fidelity this is plain constrained EHVI Bayesian optimization (:class:`BlackBoxSampler`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import MissingExtra
from qmeter.tune.feasibility import PRIOR_SUCCESS, Feasibility
from qmeter.tune.gp import Inputs, Prior, Process, one_thread
from qmeter.tune.hypervolume import Partition, front_mask
from qmeter.tune.problem import Problem, Seen, Term
from qmeter.tune.space import Point, features

F64 = NDArray[np.float64]

BLIND = Prior(length=0.7, signal=0.5)
"""Of a loss about which nothing is known."""
TRUSTING = Prior(length=1.0, length_sigma=0.8, kind=0.4, signal=0.25)
"""Of what a simulator is wrong by: smooth in the knobs, different for each method."""
START, MOST_START = 3, 16
"""Points measured before a surrogate without a low fidelity proposes: this many for each dimension, at most 16."""
START_SHARE = 4
"""With a low fidelity, each method's best point by it is measured first, in at most a quarter of the budget: what a
simulator is wrong by differs most between methods."""
REFUSED = 0.2
"""Chance to run of a point that the low fidelity could not run, before anything was measured."""


@dataclass
class _Model:
    """One term: what the low fidelity says of it at every point, and the process over its error, or over the term.

    Which of the two holds is decided by their evidence each time: a simulator that misleads is dropped.
    """

    term: Term
    mean: F64
    known: NDArray[np.bool_]
    trusted: bool
    error: Process | None = None
    plain: Process | None = None

    def predict(self, rows: NDArray[np.int64], informed: Inputs, blind: Inputs) -> tuple[F64, F64]:
        """Mean and deviation at some points."""
        process = self.error if self.trusted else self.plain
        assert process is not None
        mean, sigma = process.predict((informed if self.trusted else blind).take(rows))
        return mean + (self.mean[rows] if self.trusted else 0.0), sigma


class InformedSampler:
    """Expected hypervolume improvement with the simulator as prior mean."""

    def __init__(self, problem: Problem, *, use_low: bool = True):
        _need_scipy()
        self._problem, self._rng = problem, np.random.default_rng(problem.seed)
        terms = list(dict.fromkeys((*problem.objectives, *(t for t in problem.limits))))
        low = problem.low_losses(terms) if use_low else np.full((len(problem.space), len(terms)), np.nan)
        self._informed = bool(np.isfinite(low).any())
        numbers, kinds = features(problem.space)
        self._blind = Inputs(numbers, kinds)
        self._inputs = Inputs(np.column_stack([numbers, *_columns(low)]), kinds)
        self._low = low
        self._models = [_model(t, low[:, j]) for j, t in enumerate(terms)]
        refused = np.array([self._informed and p not in problem.low for p in problem.space.points])
        self._feasibility = Feasibility(problem.space, np.where(refused, REFUSED, PRIOR_SUCCESS))
        self._seen: list[Seen] = []
        self._open: set[int] = set()
        self._start = self._first_points()
        self._fitted = 0

    def ask(self) -> Point | None:
        """The point with the largest expected gain."""
        space, done = self._problem.space, self._done()
        left = np.array([i for i in range(len(space)) if i not in done], dtype=np.int64)
        if not len(left):
            return None
        while self._start:
            row = self._start.pop(0)
            if row not in done:
                return self._take(row)
        with one_thread():
            gain = self._gain(left)
        best = left[gain >= gain.max() * (1 - 1e-9)]
        return self._take(int(best[0] if len(best) == 1 else self._rng.choice(best)))

    def tell(self, seen: Seen) -> None:
        """Learn; the surrogates are fitted when the next point is asked for."""
        self._seen.append(seen)
        self._feasibility.tell(seen)

    def _take(self, row: int) -> Point:
        self._open.add(row)
        return self._problem.space.points[row]

    def _done(self) -> set[int]:
        return self._open | {self._problem.space.row[s.point] for s in self._seen}

    def _first_points(self) -> list[int]:
        """Spread points, each as far as can be from those before; with a low fidelity, each method's best by it."""
        if self._informed:
            return self._best_of_each_method()
        dimensions = self._blind.numbers.shape[1] + self._blind.kinds.shape[1]
        count = min(MOST_START, START * dimensions, len(self._problem.space))
        chosen = [int(self._rng.integers(len(self._problem.space)))]
        far = self._distance(chosen[0])
        while len(chosen) < count:
            row = int(np.argmax(far + 1e-3 * self._rng.random(len(far))))
            chosen.append(row)
            far = np.minimum(far, self._distance(row))
        return chosen

    def _best_of_each_method(self) -> list[int]:
        """By the sum of low losses, each scaled to its range among what keeps the limits by the low fidelity."""
        m, space = len(self._problem.objectives), self._problem.space
        place = {model.term: j for j, model in enumerate(self._models)}
        known = [j for j in range(m) if np.isfinite(self._low[:, j]).any()]
        if not known:
            return []
        good = np.isfinite(self._low[:, known]).all(axis=1)
        over = np.zeros(len(space))
        for term in self._problem.limits:
            most = term.loss(term.limit if term.limit is not None else 0.0)
            over += np.nan_to_num(np.maximum(self._low[:, place[term]] - most, 0.0))
        table = self._low[:, known]
        span = np.nanmax(table, axis=0) - np.nanmin(table, axis=0) + 1e-12
        score = ((table - np.nanmin(table, axis=0)) / span).sum(axis=1) + 100.0 * over
        best: dict[str, int] = {}
        for row in np.flatnonzero(good)[np.argsort(score[good], kind="stable")]:
            best.setdefault(space.method_of(space.points[row]), int(row))
        return list(best.values())[: max(START_SHARE, self._problem.budget // START_SHARE)]

    def _distance(self, row: int) -> F64:
        x = self._blind
        apart = ((x.numbers - x.numbers[row]) ** 2).sum(axis=1) + 0.5 * (x.kinds != x.kinds[row]).sum(axis=1)
        return np.asarray(np.sqrt(apart), dtype=np.float64)

    def _gain(self, left: NDArray[np.int64]) -> F64:
        mean, sigma = self._predict(left)
        m = len(self._problem.objectives)
        place = {model.term: j for j, model in enumerate(self._models)}
        chance = self._feasibility.probability(left)
        from scipy.special import ndtr

        for term in self._problem.limits:
            j, limit = place[term], term.loss(term.limit if term.limit is not None else 0.0)
            chance = chance * ndtr((limit - mean[:, j]) / sigma[:, j])
        partition = self._partition(mean[:, :m])
        gain = partition.expected_improvement(mean[:, :m], sigma[:, :m])
        return np.asarray(np.maximum(gain, 0.0) * chance, dtype=np.float64) + 1e-12 * chance

    def _partition(self, predicted: F64) -> Partition:
        """What the feasible points seen so far leave, by the surrogates' own smoothed values of them.

        The reference lies a tenth beyond the worst of the front that is measured or predicted: not the measured one's
        alone, or an extreme that nobody measured yet would be worth nothing.
        """
        good = [s for s in self._seen if s.feasible]
        rows = np.array(sorted({self._problem.space.row[s.point] for s in good}), dtype=np.int64)
        m = len(self._problem.objectives)
        have = self._predict(rows)[0][:, :m] if len(rows) else np.zeros((0, m))
        every = np.concatenate([have, predicted])
        likely = np.concatenate([have, predicted[np.all(predicted <= self._most(), axis=1)]])
        reference = self._problem.reference(likely[front_mask(likely)] if len(likely) > 2 else every)
        floor = np.minimum(every.min(axis=0), reference) - 0.5
        made = Partition(reference, floor)
        for loss in have[front_mask(have)]:
            made.add(loss)
        return made

    def _most(self) -> F64:
        """The objectives' own limits as losses, infinite where there is none."""
        objectives = self._problem.objectives
        return np.array([np.inf if t.limit is None else t.loss(t.limit) for t in objectives])

    def _predict(self, rows: NDArray[np.int64]) -> tuple[F64, F64]:
        """Mean and deviation of every term at some points. Shapes (n, terms)."""
        self._fit()
        mean, sigma = np.empty((len(rows), len(self._models))), np.empty((len(rows), len(self._models)))
        for j, model in enumerate(self._models):
            mean[:, j], sigma[:, j] = model.predict(rows, self._inputs, self._blind)
        return mean, sigma

    def _fit(self) -> None:
        told = [s for s in self._seen if s.losses is not None]
        if self._fitted == len(self._seen) and all(m.plain for m in self._models):
            return
        refit = len(told) <= 30 or len(told) % 5 == 0
        rows = np.array([self._problem.space.row[s.point] for s in told], dtype=np.int64)
        values = np.array([self._losses(s) for s in told]).reshape(len(told), len(self._models))
        for j, model in enumerate(self._models):
            model.plain = Process(self._blind.take(rows), values[:, j], BLIND, model.plain, refit=refit)
            if model.known.any():
                off = values[:, j] - model.mean[rows]
                model.error = Process(self._inputs.take(rows), off, TRUSTING, model.error, refit=refit)
                model.trusted = len(told) < 3 or model.error.surprise <= model.plain.surprise
        self._fitted = len(self._seen)

    def _losses(self, seen: Seen) -> list[float]:
        assert seen.losses is not None
        known = dict(zip(self._problem.objectives, seen.losses, strict=True))
        for term, violation in zip(self._problem.limits, seen.violations, strict=True):
            known.setdefault(term, violation + term.loss(term.limit if term.limit is not None else 0.0))
        return [known[m.term] for m in self._models]


class BlackBoxSampler(InformedSampler):
    """The same without any low fidelity: it knows the knobs and the catalog alone."""

    def __init__(self, problem: Problem):
        super().__init__(problem, use_low=False)


def _model(term: Term, low: F64) -> _Model:
    """A term's model; where the simulator knows nothing of a point, its mean is that of the others."""
    known = np.isfinite(low)
    fill = float(low[known].mean()) if known.any() else 0.0
    return _Model(term, np.where(known, low, fill), known, trusted=bool(known.any()))


def _columns(low: F64) -> list[F64]:
    """Low losses as features in 0..1; those that know nothing are left out."""
    out = []
    for j in range(low.shape[1]):
        column = low[:, j]
        if np.isfinite(column).any() and np.nanmax(column) > np.nanmin(column):
            span = np.nanmax(column) - np.nanmin(column)
            out.append(np.nan_to_num((column - np.nanmin(column)) / span, nan=0.5))
    return out


def _need_scipy() -> None:
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise MissingExtra("tune", "the samplers informed and ehvi") from error
