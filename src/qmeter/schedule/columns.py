"""Many slots: the same program by column generation, since its plain relaxation is weak and its tree without end.

A column is what one slot may do: whole replicas of each kind and the shares that go with them. Slots touch one another
only by starts, by devices that load beside those that serve, and by floors over the day. The master problem chooses
columns under these; its duals put a price on quality and a toll on replicas, at which each slot's own program
(:mod:`qmeter.schedule.milp`, one slot) proposes another column. Fractional replicas are gone from the relaxation, so
that its bound (Dantzig and Wolfe, Oper. Res. 8, 1960; Lagrange's, in every round) is within a percent of whole plans.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.schedule.milp import GAP, NODES, SCALE_J, Infeasible, Problem, Rows, Solution, optimise
from qmeter.solver import milp

Prices = Mapping[tuple[int, str], float]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

DIRECT_SLOTS = 4
"""Up to as many slots the program is solved as it stands."""
ROUNDS = 14
SLOT_GAP, SLOT_NODES = 1e-3, 400
MOST_THREADS = 8
MISSING = 1e3
"""Megajoules for each unit by which the master breaks a row: gone at the end, or there is no plan."""
TOLERANCE = 1e-4
MORE = ((0.8, 1.25),)
"""Prices of quality, over the master's, at which further columns are proposed where no good whole choice was found."""
SMALL = 24
"""Slots × kinds up to which the program is solved as it stands too."""
CHOICE_S = 20.0


@dataclass(frozen=True)
class Column:
    """One slot's way: replicas by band, shares, megajoules, quality gained in each floor's row."""

    bands: I64
    shares: F64
    cost: float
    gain: F64

    @property
    def n(self) -> I64:
        """Replicas of each kind."""
        return np.asarray(self.bands.sum(axis=1))


@dataclass(frozen=True)
class Duals:
    """Prices that the master found: each floor's (J a request and unit of quality), and each slot's toll on a replica
    of each kind, shape (slots, kinds), J."""

    price_j: Prices
    toll_j: F64


def optimise_day(problem: Problem, gap: float = GAP, guess: Prices | None = None) -> Solution:
    """Solve a program of many slots to a gap, as far as rounds suffice; the solution says what gap is left.

    Raises:
        Infeasible: no plan keeps every constraint.
    """
    if problem.slots <= DIRECT_SLOTS or problem.constant:
        return optimise(problem, gap)
    return plan_day(problem, gap, guess)[0]


def plan_day(problem: Problem, gap: float = GAP, guess: Prices | None = None) -> tuple[Solution, Master]:
    """As :func:`optimise_day`, with the columns that were found.

    Args:
        guess: what quality is worth on a day like this one: fewer rounds are needed.

    Raises:
        Infeasible: no plan keeps every constraint.
    """
    made, bound = Master(problem), -np.inf
    no_toll, steepest = np.zeros((problem.slots, len(problem.kinds))), made.steepest()
    for i in range(2 if made.floors else 1):
        near = {key: (0.75, 1.25)[i] * guess[key] if guess else (0.0, steepest)[i] for key in made.floors}
        made.propose(Duals(near, no_toll))
    for turn in range(ROUNDS):
        value, duals, convexity, missing = made.relaxed()
        if turn == 0 and guess and missing >= TOLERANCE:
            made.propose(Duals(dict.fromkeys(made.floors, steepest), no_toll))
            continue
        bound = max(bound, value + made.propose(duals, convexity))
        if missing < TOLERANCE and value - bound <= gap / 2 * abs(value):
            break
    best = made.whole(gap)
    for factors in MORE:
        if best is not None and best.energy_j - problem.off_j <= bound / SCALE_J * (1 + gap):
            break
        for factor in factors:
            price_j = {key: factor * price for key, price in duals.price_j.items()}
            made.propose(Duals(price_j, no_toll))
        again = made.whole(gap)
        best = min((one for one in (best, again) if one is not None), key=lambda one: one.energy_j, default=None)
    if best is None or (
        problem.slots * len(problem.kinds) <= SMALL and best.energy_j - problem.off_j > bound / SCALE_J
    ):
        try:
            whole = optimise(problem, gap)
        except Infeasible:
            if best is None:
                raise
            whole = best
        best = whole if best is None or whole.energy_j < best.energy_j else best
    energy = best.energy_j - problem.off_j
    bound_j = min(bound / SCALE_J, energy)
    left = (energy - bound_j) / max(abs(energy), 1e-9)
    return replace(best, bound_j=bound_j + problem.off_j, gap=float(left)), made


class Master:
    """The choice among columns: variables are columns' weights, starts, and what is missing in each row."""

    def __init__(self, p: Problem):
        self.p = p
        self.columns: list[list[Column]] = [[] for _ in range(p.slots)]
        self.gains = p.gains() if p.price_j is None else {}
        self.floors = list(self.gains)
        requests = p.mean_hz * p.lengths_s
        self.total = {key: max(float(requests[key[0]].sum()), 1e-9) for key in self.floors}
        self.scale = {key: p.slots / max(float(np.abs(self.gains[key]).max()), 1e-9) for key in self.floors}
        """Rows of floors are scaled so that a slot weighs about 1: HiGHS's tolerances are absolute."""
        self.weight = {key: requests[key[0]] / self.total[key] * self.scale[key] for key in self.floors}
        self.devices = list(p.spec.fleet)
        self.takes = np.array([[k.devices if k.device == d else 0 for k in p.kinds] for d in self.devices])
        self.count = np.array([p.spec.fleet[d].count for d in self.devices])
        self.start = np.array([
            max(k.load_j + p.spec.switch_energy - p.off_w[k.device] * k.devices * k.load_s, 1.0) for k in p.kinds
        ]) * SCALE_J  # fmt: skip

    def steepest(self) -> float:
        """A price of quality at which nothing else counts. Units: J."""
        p = self.p
        energy = max(max(k.power_w) for k in p.kinds) * sum(f.count for f in p.spec.fleet.values()) * p.lengths_s.max()
        steps = [abs(a - b) for g in self.gains.values() for a in g for b in g if abs(a - b) > 1e-9]
        return 10.0 * float(energy) / (min(steps, default=1.0) * max(float((p.mean_hz * p.lengths_s).min()), 1.0))

    def propose(self, duals: Duals, convexity: F64 | None = None) -> float:
        """A column more for each slot, at these prices; the sum of their reduced costs (a bound on them). Units: MJ."""

        def solved(t: int) -> tuple[Rows, Any]:
            p = replace(
                self.p, mean_hz=self.p.mean_hz[:, [t]], peak_hz=self.p.peak_hz[:, [t]], before=None, whole=None,
                length_s=self.p.lengths_s[[t]], price_j=duals.price_j if self.floors else self.p.price_j,
            )  # fmt: skip
            rows = Rows(p, duals.toll_j[[t]])
            return rows, rows.solve(SLOT_GAP, SLOT_NODES)

        reduced = 0.0
        with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:  # HiGHS works outside of Python's lock
            for t, (rows, answer) in enumerate(pool.map(solved, range(self.p.slots))):
                bound = getattr(answer, "mip_dual_bound", None)
                value = answer.fun if bound is None else float(bound)
                reduced += value - (0.0 if convexity is None else float(convexity[t]))
                self._keep(t, rows, answer, duals)
        return reduced

    def _keep(self, t: int, rows: Rows, answer: Any, duals: Duals) -> None:
        shares = rows.solution(answer).shares[0]
        bands = rows.bands(answer.x)[0]
        gain = np.array([float(self.weight[key][t] * (shares[key[0]] @ self.gains[key])) for key in self.floors])
        cost = float(answer.fun) - float((bands.sum(axis=1) * duals.toll_j[t]).sum()) * SCALE_J
        for i, key in enumerate(self.floors):
            cost += duals.price_j.get(key, 0.0) * float(gain[i]) * self.total[key] / self.scale[key] * SCALE_J
        same = [c for c in self.columns[t] if (c.bands == bands).all() and np.abs(c.shares - shares).max() < 1e-6]
        if not same:
            self.columns[t].append(Column(bands, shares, cost, gain))

    def _matrix(self, columns: list[list[Column]]) -> tuple[Any, F64, F64, F64, int]:
        """Rows (convexity, then ``≥`` rows: floors, starts, devices), their low ends, cost, and the columns' number."""
        from scipy.sparse import coo_matrix

        p, kinds, slots = self.p, len(self.p.kinds), self.p.slots
        flat = [(t, c) for t, own in enumerate(columns) for c in own]
        x, f, d = len(flat), len(self.floors), len(self.devices)
        starts0, missing0 = x, x + slots * kinds
        row_start, row_fleet = slots + f, slots + f + slots * kinds
        rows = row_fleet + (slots + 1) * d
        entries: list[tuple[int, int, float]] = []
        low = np.zeros(rows)
        low[:slots] = 1.0
        for j, (t, c) in enumerate(flat):
            entries.append((t, j, 1.0))
            entries += [(slots + i, j, float(g)) for i, g in enumerate(c.gain)]
            for k in map(int, np.flatnonzero(c.n)):
                entries.append((row_start + t * kinds + k, j, -float(c.n[k])))
                if t + 1 < slots:
                    entries.append((row_start + (t + 1) * kinds + k, j, float(c.n[k])))
            entries += [(row_fleet + t * d + i, j, -float(v)) for i, v in enumerate(self.takes @ c.n)]
        for t in range(slots):
            for k in range(kinds):
                entries.append((row_start + t * kinds + k, starts0 + t * kinds + k, 1.0))
                before = row_fleet + ((t - 1) * d if t else slots * d)
                if t or p.before is not None:
                    entries += [(before + i, starts0 + t * kinds + k, -float(v)) for i, v in
                                enumerate(self.takes[:, k])]  # fmt: skip
        for i, key in enumerate(self.floors):
            owed = min(-p.banked.get(key, 0.0) / self.total[key], float(self.gains[key].max()))
            low[slots + i] = owed * self.scale[key]
        low[row_fleet:] = -np.tile(self.count, slots + 1)
        cost = np.concatenate([[c.cost for _, c in flat], np.tile(self.start, slots), np.full(rows - slots, MISSING)])
        if p.before is not None:
            low[row_start : row_start + kinds] = -p.before
            low[row_fleet + slots * d :] = -np.maximum(self.count - self.takes @ p.before, 0)
        else:
            cost[starts0 : starts0 + kinds] = 0.0
        entries += [(r, missing0 + r - slots, 1.0) for r in range(slots, rows)]
        at = np.array(entries)
        size = missing0 + rows - slots
        matrix = coo_matrix((at[:, 2], (at[:, 0].astype(int), at[:, 1].astype(int))), shape=(rows, size)).tocsr()
        return matrix, low, cost, np.array([t for t, _ in flat]), x

    def relaxed(self) -> tuple[float, Duals, F64, float]:
        """The master with fractions: its value (MJ), duals, those of the convexity rows, and what is missing."""
        from scipy.optimize import linprog

        slots, kinds, f = self.p.slots, len(self.p.kinds), len(self.floors)
        matrix, low, cost, _, _ = self._matrix(self.columns)
        answer = linprog(cost, A_ub=-matrix[slots:], b_ub=-low[slots:], A_eq=matrix[:slots], b_eq=low[:slots],
                         method="highs")  # fmt: skip
        if answer.x is None:
            raise Infeasible(f"the optimiser found no plan: {answer.message}")
        dual = np.maximum(-answer.ineqlin.marginals, 0.0)
        starts = dual[f : f + slots * kinds].reshape(slots, kinds)
        fleet = dual[f + slots * kinds :].reshape(slots + 1, len(self.devices))[:slots]
        toll = starts - np.vstack([starts[1:], np.zeros((1, kinds))]) + fleet @ self.takes
        price = {key: float(dual[i]) * self.scale[key] / self.total[key] / SCALE_J for i, key in enumerate(self.floors)}
        missing = float(answer.x[len(cost) - (matrix.shape[0] - slots) :].sum())
        return float(answer.fun), Duals(price, toll / SCALE_J), np.asarray(answer.eqlin.marginals), missing

    def prices(self, since: int, banked: Prices, factor: F64, until: int | None = None) -> dict[tuple[int, str], float]:
        """What quality is worth over the slots from ``since`` to before ``until``, after so much is banked, where rates
        are ``factor`` times those planned for, shape (classes, slots): from the columns found, as they stand.
        Units: J."""
        from scipy.optimize import linprog

        flat = [(t, c) for t in range(since, until or self.p.slots) for c in self.columns[t]]
        f, x = len(self.floors), len(flat)
        if not f:
            return {}
        level = (factor * self.p.mean_hz).sum(axis=0) / np.maximum(self.p.mean_hz.sum(axis=0), 1e-9)
        cost = np.concatenate([[c.cost * level[t] for t, c in flat], np.full(f, MISSING)])
        one_each, gain = np.zeros(((until or self.p.slots) - since, x + f)), np.zeros((f, x + f))
        for j, (t, c) in enumerate(flat):
            one_each[t - since, j] = 1.0
            gain[:, j] = [g * factor[key[0], t] for g, key in zip(c.gain, self.floors, strict=True)]
        gain[:, x:] = np.eye(f)
        owed = np.array([-banked.get(key, 0.0) / self.total[key] * self.scale[key] for key in self.floors])
        answer = linprog(cost, A_ub=-gain, b_ub=-owed, A_eq=one_each, b_eq=np.ones(len(one_each)), method="highs")
        dual = np.maximum(-answer.ineqlin.marginals, 0.0)
        return {key: float(dual[i]) * self.scale[key] / self.total[key] / SCALE_J for i, key in enumerate(self.floors)}

    def whole(self, gap: float) -> Solution | None:
        """The best whole choice among the columns, its shares then made anew for the replicas chosen."""
        from scipy.optimize import Bounds, LinearConstraint

        slots = self.p.slots
        matrix, low, cost, of_slot, x = self._matrix(self.columns)
        high = np.where(np.arange(len(low)) < slots, 1.0, np.inf)
        integer = np.zeros(len(cost))
        integer[:x] = 1.0
        upper = np.full(len(cost), np.inf)
        upper[:x] = 1.0
        answer = milp(
            cost, constraints=LinearConstraint(matrix, low, high), bounds=Bounds(np.zeros(len(cost)), upper),
            integrality=integer, options={"mip_rel_gap": gap / 4, "node_limit": NODES, "time_limit": CHOICE_S},
        )  # fmt: skip
        if answer.x is None or answer.x[len(cost) - (len(low) - slots) :].sum() > TOLERANCE:
            return None
        flat = [c for own in self.columns for c in own]
        chosen = [max(np.flatnonzero(of_slot == t), key=lambda j: answer.x[j]) for t in range(slots)]
        rows = Rows(self.p, given=np.array([flat[j].bands for j in chosen]))
        try:
            return rows.solution(rows.solve(1e-6, NODES))
        except Infeasible:
            return None
