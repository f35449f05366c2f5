"""The optimisation: replicas and shares over slots at least energy, as a mixed-integer program for HiGHS.

For slot t, kind k, band b of utilisation and class c:

    n[t,k,b]   replicas of k that run in band b (integer)         z[t,k,b]   band b is the one in use (binary)
    u[t,k,b]   work in it, as power is looked up                  y[t,c,k]   share of class c that k serves
    s[t,k]     starts at the beginning of t

    minimise   Σ length_t · (Σ a_kb n + g_kb u − off_w · devices · n)  +  Σ (load_j + switch_j − off_w load_s) s
    subject to Σ_k y[t,c,k] = 1
               Σ_b u[t,k,b] = Σ_c mean[t,c] y[t,c,k] draw[k,c] / capacity[k,c]
               Σ_c peak[t,c] y[t,c,k] / capacity[k,c] ≤ headroom · Σ_b n[t,k,b]
               lo_b n ≤ u ≤ hi_b n,   n[t,k,b] ≤ count z[t,k,b],   Σ_b z[t,k,b] ≤ 1
               s[t,k] ≥ Σ_b n[t,k,b] − Σ_b n[t−1,k,b]
               Σ_k devices_k (Σ_b n[t,k,b] + s[t+1,k]) ≤ count          (a replica loads beside those that serve)
               Σ_t,k mean[t,c] (quality[k] − floor) y[t,c,k] ≥ − banked (averaged over the day's requests)

A replica's power is concave in its load, so that the bands' binaries are needed: a plain linear model would save energy
on paper by running half of a kind full and half idle, which no balanced router does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import lower_is_better
from qmeter.errors import AnalysisError, MissingExtra
from qmeter.schedule.kinds import BANDS, Kind
from qmeter.schedule.spec import ScheduleSpec
from qmeter.solver import milp

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

GAP = 0.005
NODES = 3000
TIME_LIMIT_S = 300.0
"""Only a stop for what never ends."""
NB = len(BANDS) - 1
SCALE_J = 1e-6
"""The objective is in megajoules: HiGHS's tolerances are absolute."""


class Infeasible(AnalysisError):
    """No plan keeps every constraint."""


@dataclass(frozen=True)
class Problem:
    """What is asked of the optimiser: demand in slots, kinds, fleet, and what is banked.

    Attributes:
        mean_hz, peak_hz: shape (classes, slots).
        before: replicas of each kind that run before the first slot; ``None``: any may, for nothing.
        banked: (class, metric) → Σ (quality − floor) of the requests already served, sign as "more is better".
        whole: number of first slots whose replicas must be whole; the rest may be fractions (a long look-ahead).
        length_s: of each slot, shape (slots,); ``None``: the spec's.
        price_j: (class, metric) → joules that a request's unit of quality above the floor is worth; given, floors are
            paid for instead of kept.
    """

    spec: ScheduleSpec
    kinds: tuple[Kind, ...]
    off_w: Mapping[str, float]
    mean_hz: F64
    peak_hz: F64
    before: I64 | None = None
    banked: Mapping[tuple[int, str], float] = field(default_factory=dict)
    whole: int | None = None
    length_s: F64 | None = None
    price_j: Mapping[tuple[int, str], float] | None = None
    constant: bool = False
    """The same replicas and shares in every slot: one decision for the day."""

    @property
    def slots(self) -> int:
        """Slots asked for."""
        return int(self.mean_hz.shape[1])

    @property
    def lengths_s(self) -> F64:
        """Length of each slot, shape (slots,)."""
        return np.full(self.slots, float(self.spec.slot)) if self.length_s is None else self.length_s

    @property
    def off_j(self) -> float:
        """Energy of the whole fleet with nothing loaded."""
        watts = sum(f.count * self.off_w[name] for name, f in self.spec.fleet.items())
        return float(watts * self.lengths_s.sum())

    def gains(self) -> dict[tuple[int, str], F64]:
        """(class, metric) → each kind's quality above the floor, sign as "more is better", shape (kinds,)."""
        out = {}
        for c, one in enumerate(self.spec.classes):
            for name, floor in one.quality.items():
                sign = -1.0 if lower_is_better(name) else 1.0
                out[c, name] = np.array([sign * (k.quality[name] - floor) for k in self.kinds])
        return out


@dataclass(frozen=True)
class Solution:
    """Replicas of each kind in each slot, shape (slots, kinds); shares, shape (slots, classes, kinds); the expected
    energy with its bound; the relative gap between them."""

    n: I64
    shares: F64
    energy_j: float
    bound_j: float
    gap: float


def optimise(problem: Problem, gap: float = GAP, nodes: int = NODES) -> Solution:
    """Solve it, with at most ``nodes`` nodes of the search tree (not seconds: the answer is the same on a busy host).

    Raises:
        Infeasible: no plan keeps every constraint.
        MissingExtra: scipy is not installed.
    """
    rows = Rows(problem)
    return rows.solution(rows.solve(gap, nodes))


class _Variables:
    """Where each variable stands in the vector."""

    def __init__(self, slots: int, kinds: int, classes: int):
        self.t, self.k, self.c = slots, kinds, classes
        cell = slots * kinds
        self.n0, self.z0, self.u0 = 0, cell * NB, 2 * cell * NB
        self.y0 = 3 * cell * NB
        self.s0 = self.y0 + slots * classes * kinds
        self.size = self.s0 + cell

    def n(self, t: int, k: int, b: int) -> int:
        return self.n0 + (t * self.k + k) * NB + b

    def z(self, t: int, k: int, b: int) -> int:
        return self.z0 + (t * self.k + k) * NB + b

    def u(self, t: int, k: int, b: int) -> int:
        return self.u0 + (t * self.k + k) * NB + b

    def y(self, t: int, c: int, k: int) -> int:
        return self.y0 + (t * self.c + c) * self.k + k

    def s(self, t: int, k: int) -> int:
        return self.s0 + t * self.k + k


class Rows:
    """Cost, bounds and constraints.

    Args:
        toll_j: joules a replica on top, shape (slots, kinds). given: whole replicas by band that are not to be changed,
            shape (slots, kinds, bands).
    """

    def __init__(self, p: Problem, toll_j: F64 | None = None, given: I64 | None = None):
        self.p = p
        self.v = _Variables(p.slots, len(p.kinds), len(p.spec.classes))
        self.row: list[int] = []
        self.column: list[int] = []
        self.value: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.cost, self.upper = np.zeros(self.v.size), np.full(self.v.size, np.inf)
        self.lower = np.zeros(self.v.size)
        self.integer = np.zeros(self.v.size)
        self._objective()
        for t in range(p.slots):
            self._slot(t)
            self._fleet(t)
        if p.price_j is None:
            self._quality()
        else:
            self._priced(p.price_j)
        if p.constant:
            self._constant()
        if toll_j is not None:
            self.cost[: self.v.z0] += np.repeat(toll_j.ravel(), NB) * SCALE_J
        if given is not None:
            self._given(given)

    def add(self, low: float, high: float, terms: list[tuple[int, float]]) -> None:
        """A row: low ≤ Σ value · variable ≤ high."""
        at = len(self.low)
        for column, value in terms:
            if value:
                self.row.append(at)
                self.column.append(column)
                self.value.append(value)
        self.low.append(low)
        self.high.append(high)

    def solve(self, gap: float, nodes: int, time_limit_s: float = TIME_LIMIT_S) -> Any:
        """scipy's answer.

        Raises:
            Infeasible: no plan keeps every constraint.
        """
        try:
            from scipy.optimize import Bounds, LinearConstraint
            from scipy.sparse import coo_matrix
        except ImportError as error:
            raise MissingExtra("simulate", "the scheduler's optimisation") from error
        matrix = coo_matrix((self.value, (self.row, self.column)), shape=(len(self.low), self.v.size)).tocsr()
        answer = milp(
            self.cost, constraints=LinearConstraint(matrix, np.array(self.low), np.array(self.high)),
            bounds=Bounds(self.lower, self.upper), integrality=self.integer,
            options={"mip_rel_gap": gap, "node_limit": nodes, "time_limit": time_limit_s, "presolve": True},
        )  # fmt: skip
        if answer.x is None:
            raise Infeasible("no plan keeps every promise with this fleet" if answer.status == 2 else
                             f"the optimiser found no plan: {answer.message}",
                             hint="more devices, a lower floor, a looser SLO, or a longer time limit")  # fmt: skip
        return answer

    def bands(self, x: F64) -> I64:
        """Whole replicas by band, shape (slots, kinds, bands)."""
        return np.asarray(np.ceil(x[: self.v.z0].reshape(self.p.slots, self.v.k, NB) - 1e-6), dtype=np.int64)

    def _given(self, n: I64) -> None:
        flat = n.ravel().astype(np.float64)
        self.lower[: self.v.z0] = self.upper[: self.v.z0] = flat
        self.lower[self.v.z0 : self.v.u0] = self.upper[self.v.z0 : self.v.u0] = flat > 0
        self.integer[:] = 0.0

    def _priced(self, price_j: Mapping[tuple[int, str], float]) -> None:
        p, v, gains = self.p, self.v, self.p.gains()
        for (c, name), price in price_j.items():
            for t, length_s in enumerate(p.lengths_s):
                for k in range(v.k):
                    requests = float(p.mean_hz[c, t]) * float(length_s)
                    self.cost[v.y(t, c, k)] -= price * requests * float(gains[c, name][k]) * SCALE_J

    def _count(self, k: int) -> int:
        kind = self.p.kinds[k]
        return self.p.spec.fleet[kind.device].count // kind.devices

    def _objective(self) -> None:
        p, v, lengths_s = self.p, self.v, self.p.lengths_s
        whole = p.slots if p.whole is None else p.whole
        for t in range(p.slots):
            for k, kind in enumerate(p.kinds):
                off = p.off_w[kind.device] * kind.devices
                for b in range(NB):
                    slope = (kind.power_w[b + 1] - kind.power_w[b]) / (BANDS[b + 1] - BANDS[b])
                    base = kind.power_w[b] - slope * BANDS[b]
                    self.cost[v.n(t, k, b)] = lengths_s[t] * (base - off) * SCALE_J
                    self.cost[v.u(t, k, b)] = lengths_s[t] * slope * SCALE_J
                    self.upper[v.n(t, k, b)] = self._count(k)
                    self.upper[v.z(t, k, b)] = 1.0
                    self.integer[v.n(t, k, b)] = self.integer[v.z(t, k, b)] = float(t < whole)
                start = kind.load_j + p.spec.switch_energy - off * kind.load_s
                self.cost[v.s(t, k)] = max(start, 1.0) * SCALE_J
                for c in range(v.c):
                    self.upper[v.y(t, c, k)] = float(kind.capacity_hz[c] > 0)
            if p.before is None:
                self.cost[v.s(0, 0) : v.s(0, 0) + v.k] = 0.0

    def _slot(self, t: int) -> None:
        p, v = self.p, self.v
        for c in range(v.c):
            self.add(1.0, 1.0, [(v.y(t, c, k), 1.0) for k in range(v.k)])
        for k, kind in enumerate(p.kinds):
            inverse = [1.0 / r if r > 0 else 0.0 for r in kind.capacity_hz]
            count = float(self._count(k))
            edges = (*BANDS[:-1], kind.top)
            work = [(v.y(t, c, k), -p.mean_hz[c, t] * float(kind.work[c])) for c in range(v.c)]
            self.add(0.0, 0.0, [(v.u(t, k, b), 1.0) for b in range(NB)] + work)
            peak = [(v.y(t, c, k), -p.peak_hz[c, t] * inverse[c]) for c in range(v.c)]
            self.add(0.0, np.inf, [(v.n(t, k, b), p.spec.headroom) for b in range(NB)] + peak)
            self.add(-np.inf, 1.0, [(v.z(t, k, b), 1.0) for b in range(NB)])
            for b in range(NB):
                self.add(0.0, np.inf, [(v.u(t, k, b), 1.0), (v.n(t, k, b), -edges[b])])
                self.add(0.0, np.inf, [(v.n(t, k, b), edges[b + 1]), (v.u(t, k, b), -1.0)])
                self.add(0.0, np.inf, [(v.z(t, k, b), count), (v.n(t, k, b), -1.0)])

    def _fleet(self, t: int) -> None:
        p, v = self.p, self.v
        for k in range(v.k):
            here = [(v.n(t, k, b), -1.0) for b in range(NB)]
            if t:
                self.add(0.0, np.inf, [(v.s(t, k), 1.0), *here, *((v.n(t - 1, k, b), 1.0) for b in range(NB))])
            elif p.before is not None:
                self.add(-float(p.before[k]), np.inf, [(v.s(0, k), 1.0), *here])
        for device, fleet in p.spec.fleet.items():
            own = [(k, kind.devices) for k, kind in enumerate(p.kinds) if kind.device == device]
            terms = [(v.n(t, k, b), float(d)) for k, d in own for b in range(NB)]
            if t + 1 < p.slots:
                terms += [(v.s(t + 1, k), float(d)) for k, d in own]
            self.add(-np.inf, float(fleet.count), terms)
            if t == 0 and p.before is not None:
                busy = sum(int(p.before[k]) * d for k, d in own)
                self.add(-np.inf, float(max(fleet.count - busy, 0)), [(v.s(0, k), float(d)) for k, d in own])

    def _quality(self) -> None:
        p, v = self.p, self.v
        for (c, name), gain in p.gains().items():
            requests = p.mean_hz[c] * p.lengths_s
            total = max(float(requests.sum()), 1e-9)
            terms = [(v.y(t, c, k), float(gain[k] * requests[t] / total)) for t in range(p.slots) for k in range(v.k)]
            banked = p.banked.get((c, name), 0.0) / total
            self.add(min(-banked, float(gain.max())), np.inf, terms)  # a debt beyond the best: do what can be done

    def _constant(self) -> None:
        p, v = self.p, self.v
        for t in range(1, p.slots):
            for k in range(v.k):
                here, first = [(v.n(t, k, b), 1.0) for b in range(NB)], [(v.n(0, k, b), -1.0) for b in range(NB)]
                self.add(0.0, 0.0, here + first)
                for c in range(v.c):
                    self.add(0.0, 0.0, [(v.y(t, c, k), 1.0), (v.y(0, c, k), -1.0)])

    def solution(self, answer: Any) -> Solution:
        """What scipy's answer means."""
        p, v, x = self.p, self.v, answer.x
        cells = x[: v.z0].reshape(p.slots, v.k, NB).sum(axis=2)
        shares = np.clip(x[v.y0 : v.s0].reshape(p.slots, v.c, v.k), 0.0, 1.0)
        shares[shares < 1e-4] = 0.0
        shares /= shares.sum(axis=2, keepdims=True)
        bound = float(getattr(answer, "mip_dual_bound", None) or answer.fun)
        gap = abs(answer.fun - bound) / max(abs(answer.fun), 1e-9)
        whole = np.ceil(cells - 1e-6).astype(np.int64)
        return Solution(whole, shares, answer.fun / SCALE_J + p.off_j, bound / SCALE_J + p.off_j, gap)
