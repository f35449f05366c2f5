"""The loop: solve, simulate the plan, tighten what fails and loosen what has room, until every promise holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import Precision
from qmeter.errors import AnalysisError
from qmeter.plan.check import PoolLimit, Watched, draws_of, limits, watch
from qmeter.plan.model import Solution, solve
from qmeter.plan.spec import PlanSpec
from qmeter.plan.table import Table, problem_of, tie_of

F64 = NDArray[np.float64]

ROUNDS = 12
DRAWS = 24
SAFE = 0.995
"""Loosened capacities stay this far below what was found."""
CUT = 0.98
LOOK = Precision(requests=5000)


@dataclass(frozen=True)
class Round:
    """One turn of the loop: the model's value, and how the plan fared when simulated."""

    value: float
    factor: float
    broken: int
    kept: bool


@dataclass(frozen=True)
class Found:
    """The best plan that kept every promise when simulated.

    Attributes:
        factor: (P,) what simulated mixtures made of the linear capacities.
        limits: of its pools. watched: its simulation with fresh requests.
        bound: least value that the linear model allows with every pool at the most that any simulation found for it;
            no plan of these pools below it can hold, as far as capacities combine linearly.
    """

    solution: Solution
    factor: F64
    limits: tuple[PoolLimit, ...]
    watched: Watched
    bound: float
    rounds: tuple[Round, ...]

    @property
    def gap(self) -> float:
        """Relative distance of the plan's value from ``bound``."""
        value = self.solution.value
        return 0.0 if value <= 0 else max(0.0, (value - self.bound) / value)


@dataclass(frozen=True)
class Stuck:
    """No plan is feasible at what simulated mixtures made of the capacities (``factor``, (P,))."""

    factor: F64
    rounds: tuple[Round, ...]


def search(spec: PlanSpec, table: Table, *, on_step: Callable[[str], None] | None = None) -> Found | Stuck:
    """The least plan whose simulation keeps every promise.

    Capacities of a pool's mixture start from the linear rule. A pool whose mixture sustains less is cut down to what
    it sustains, for good; one that sustains more is loosened, but never above what failed before. Each plan is then
    simulated with fresh requests, period by period; a pool that breaks a promise there is cut by 2% more. With a
    certainty asked for, so is the pool that fails in most of the calibration's draws, until enough of them hold.

    Raises:
        AnalysisError: plans were feasible, but none held within ROUNDS rounds.
    """
    factor, ceiling = np.ones(len(table.pools)), np.full(len(table.pools), np.inf)
    best: Found | None = None
    rounds: list[Round] = []
    most, tie = factor.copy(), tie_of(spec, table)
    while len(rounds) < ROUNDS:
        if on_step:
            on_step(f"round {len(rounds) + 1}: solving and simulating")
        plan = solve(problem_of(spec, table, factor), gap=spec.gap, tie=tie)
        if plan is None and best is None:
            if _relax(factor, ceiling):
                continue
            return Stuck(factor, tuple(rounds))
        if plan is None or (best is not None and plan.value >= best.solution.value * (1 - 1e-9)):
            break
        found = limits(spec, table, plan, seed=spec.seed, draws=DRAWS if spec.certainty else 0, precision=LOOK)
        weak = [f.pool for f in found if f.factor < 1] or _unsure(spec, found)
        watched = None if weak else watch(spec, table, plan, seed=spec.seed + 1000)
        good = watched is not None and not watched.broken
        broken = len(watched.broken) if watched else len(weak)
        rounds.append(Round(plan.value, min((f.factor for f in found), default=1.0), broken, good))
        if good and watched is not None:
            best = Found(plan, factor.copy(), tuple(found), watched, 0.0, ())
        moved = _adjust(factor, ceiling, found, watched.guilty if watched else tuple(weak))
        most = np.maximum(most, factor)
        if good and not moved:
            break
    if best is None:
        raise AnalysisError(f"no plan kept its promises when simulated, in {ROUNDS} rounds of tightening",
                            hint="loosen the tightest limit, or give another seed")  # fmt: skip
    bound = solve(problem_of(spec, table, most), gap=spec.gap)
    least = min(bound.bound if bound else best.solution.bound, best.solution.value)
    return Found(best.solution, best.factor, best.limits, best.watched, least, tuple(rounds))


def _unsure(spec: PlanSpec, found: list[PoolLimit]) -> list[int]:
    """The pool that fails in most draws, where too few of them hold in every pool at once; else none."""
    draws = draws_of(found)
    if spec.certainty is None or not len(draws) or float(np.mean(draws >= 1)) >= spec.certainty:
        return []
    return [min(found, key=lambda f: float(np.mean(np.asarray(f.found.draws_hz) >= f.rate_hz))).pool]


def _adjust(factor: F64, ceiling: F64, found: list[PoolLimit], guilty: tuple[int, ...]) -> bool:
    """Turn each used pool's factor towards what its mixture sustained; whether any capacity rose."""
    rose = False
    for one in found:
        p, seen = one.pool, one.linear * SAFE
        if one.factor < 1:
            ceiling[p] = min(ceiling[p], seen, factor[p] * CUT)
            factor[p] = ceiling[p]
        elif p in guilty:
            ceiling[p] = factor[p] * CUT
            factor[p] = ceiling[p]
        elif min(seen, ceiling[p]) > factor[p] * 1.01:
            factor[p] = min(seen, ceiling[p])
            rose = True
    return rose


def _relax(factor: F64, ceiling: F64) -> bool:
    """Give pools that were never found wanting a little more, where no plan is feasible: the linear rule is no law."""
    free = np.isinf(ceiling) & (factor < 1.3)
    factor[free] *= 1.1
    return bool(np.any(free))
