"""The mixed-integer program: whole replicas of pools, and fractions of each class routed to them in each period.

    least   sum_p fixed_p n_p + sum_cpt marginal_pt demand_ct use_pc y_cpt
    with    sum_p y_cpt = 1                               every class, every period
            sum_c demand_ct use_pc y_cpt <= n_p           every pool, every period
            sum_p devices_p n_p <= count                  every kind of device
            sum_p power_p n_p <= budget

``use`` is the replicas that one request a second takes: 1 / capacity. HiGHS solves it (through SciPy), with its gap.
Periods whose demand changes nothing are left out and looked at again afterwards; pools that another one betters in
every respect are left out. Of plans of equal value a second objective chooses: the program is solved again for it, with
the first held at the value found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import AnalysisError, MissingExtra
from qmeter.solver import milp

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

FEASIBLE = 1e-7
FIRST_PERIODS = 3
EQUAL = 5e-4
"""Relative difference of values up to which two plans are equal: what would be shown as +0.0%."""
ROW = 1e-5
"""The solver keeps its rows to 1e-6."""
TIE_NODES = 100
"""Nodes of the search tree for choosing among equal plans (so that the answer is the same on a busy host)."""
TIE_S = 2.0
"""And seconds, as a stop: past them the choice among equals may depend on the host, the value does not."""


@dataclass(frozen=True)
class Problem:
    """What is to be decided, as arrays over pools (P), classes (C), periods (T) and kinds of device (D).

    Attributes:
        demand_hz: (C, T).
        use: (P, C) replicas a request a second; ``inf``: the pool does not serve the class.
        fixed: (P,) objective of having one replica throughout.
        marginal: (P, T) objective of one replica's worth of load in a period, beyond ``fixed``.
        devices: (P,) devices a replica takes, of kind ``kind`` (P,); ``counts`` (D,): devices there are (inf: any).
        power_w: (P,) most power of a replica; ``budget_w``: of all together (inf: any).
    """

    demand_hz: F64
    use: F64
    fixed: F64
    marginal: F64
    devices: F64
    kind: I64
    counts: F64
    power_w: F64
    budget_w: float = float("inf")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pools, classes, periods."""
        return len(self.fixed), self.demand_hz.shape[0], self.demand_hz.shape[1]


@dataclass(frozen=True)
class Tie:
    """What chooses among plans of equal value: least of it, in any unit.

    Attributes:
        fixed: (P,) of one replica throughout. marginal: (P, T) of one replica's worth of load in a period, beyond it.
        kind: (P,) number of the pool's kind of deployment. Each kind in use counts as ``kind_share`` of the sum:
            another one must save that much.
    """

    fixed: F64
    marginal: F64
    kind: I64
    kind_share: float = 0.02


@dataclass(frozen=True)
class _Held:
    """What another program keeps: an objective, ``fixed`` (P,) and ``marginal`` (P, T), of at most ``most``; and a toll
    on each ``kind`` (P,) in use."""

    fixed: F64
    marginal: F64
    most: float
    kind: I64
    toll: float


@dataclass(frozen=True)
class Solution:
    """An answer.

    Attributes:
        replicas: (P,) whole numbers.
        routing: (C, P, T) share of a class's requests that go to a pool; 0 where the class sends nothing.
        value, bound: of the objective, and what no plan can beat in this model; ``gap`` = (value - bound) / value.
        served: share of all traffic that is served (below 1 only from :func:`most_served`).
        seconds: time it took.
    """

    replicas: I64
    routing: F64
    value: float
    bound: float
    served: float
    seconds: float

    @property
    def gap(self) -> float:
        """Relative optimality gap."""
        return 0.0 if self.value <= 0 else max(0.0, (self.value - self.bound) / self.value)


def solve(
    problem: Problem, *, gap: float = 0.01, time_limit_s: float = 60.0, tie: Tie | None = None
) -> Solution | None:
    """The least-objective plan to within ``gap``; ``None`` where none is feasible.

    Args:
        tie: chooses among plans of equal value, as far as TIE_NODES nodes suffice.

    Raises:
        AnalysisError: no plan was found within the time limit, and none was excluded.
        MissingExtra: scipy is not installed.
    """
    started = time.monotonic()
    until = started + time_limit_s
    if not np.any(problem.demand_hz > 0):
        nobody = np.zeros((problem.shape[1], problem.shape[0], problem.shape[2]))
        return Solution(np.zeros(problem.shape[0], dtype=np.int64), nobody, 0.0, 0.0, 1.0, 0.0)
    keep = _undominated(problem)
    if not len(keep):
        return None
    small = _pools(problem, keep)
    every = np.arange(problem.shape[2])
    active = every if np.any(small.marginal) else _peaks(small)
    first = _replicas(small, active, gap, until)
    if first is None:
        return None
    best = _whole(problem, keep, first)
    if tie is not None:
        best = _settled(problem, tie, active, best, gap, min(until, time.monotonic() + TIE_S))
    return replace(best, seconds=time.monotonic() - started)


def _replicas(p: Problem, active: I64, gap: float, until: float, held: _Held | None = None) -> Solution | None:
    """The program over the periods ``active``, and over more of them until every period's demand fits."""
    while True:
        row = None if held is None else replace(held, marginal=held.marginal[:, active])
        found = _milp(_periods(p, active), gap, until - time.monotonic(), held=row)
        if found is None:
            return None
        missing = [t for t in range(p.shape[2]) if t not in active and not _routable(p, found.replicas, t)]
        if not missing:
            return found
        active = np.sort(np.append(active, missing[:FIRST_PERIODS]))


def _whole(problem: Problem, keep: I64, found: Solution) -> Solution:
    """A plan of some of the pools as one of all, each period routed anew."""
    small = _pools(problem, keep)
    replicas = np.zeros(problem.shape[0], dtype=np.int64)
    replicas[keep] = found.replicas
    routing = np.zeros((problem.shape[1], problem.shape[0], problem.shape[2]))
    for t in range(problem.shape[2]):
        routing[:, keep, t] = _route(small, found.replicas, t)
    value = objective(problem, replicas, routing)
    return Solution(replicas, routing, value, min(found.bound, value), 1.0, found.seconds)


def _settled(problem: Problem, tie: Tie, active: I64, first: Solution, gap: float, until: float) -> Solution:
    """Of the plans of no greater value than ``first``, one of least ``tie``: the load outside of the periods looked at
    is taken to be routed as in them."""
    keep = _undominated(problem, tie)
    small = _pools(problem, keep)
    outside = problem.demand_hz.sum() / problem.demand_hz[:, active].sum()
    second = replace(small, fixed=tie.fixed[keep], marginal=tie.marginal[keep] * outside)
    most = first.value * (1 + EQUAL)
    toll = tie.kind_share * _worth(problem, tie, first)
    kind = np.unique(tie.kind[keep], return_inverse=True)[1]
    try:
        found = _replicas(second, active, gap, until, _Held(small.fixed, small.marginal, most, kind, toll))
    except AnalysisError:
        return first
    if found is None:
        return first
    other = _whole(problem, keep, replace(found, bound=first.bound))
    mine, theirs = (_worth(problem, tie, s) + toll * len(set(tie.kind[s.replicas > 0])) for s in (first, other))
    return other if other.value <= most * (1 + ROW) and theirs < mine * (1 - ROW) else first


def _worth(problem: Problem, tie: Tie, plan: Solution) -> float:
    return objective(replace(problem, fixed=tie.fixed, marginal=tie.marginal), plan.replicas, plan.routing)


def most_served(problem: Problem, *, time_limit_s: float = 30.0) -> Solution:
    """The plan that serves the largest equal share of every class's traffic; of those, about the cheapest."""
    started = time.monotonic()
    found = _milp(problem, 0.01, time_limit_s, elastic=True)
    if found is None:
        raise AnalysisError("no plan serves any traffic", hint="add devices, or raise the power budget")
    cut = replace(problem, demand_hz=problem.demand_hz * max(found.served - 1e-6, 0.0))
    again = solve(cut, time_limit_s=time_limit_s) if found.served > 1e-4 else None
    best = again or found
    return replace(best, served=found.served, seconds=time.monotonic() - started)


def objective(problem: Problem, replicas: I64, routing: F64) -> float:
    """The model's objective of a plan."""
    use = np.where(np.isfinite(problem.use), problem.use, 0.0)
    load = np.einsum("cpt,ct,pc->pt", routing, problem.demand_hz, use)
    return float(problem.fixed @ replicas + (problem.marginal * load).sum())


def _undominated(p: Problem, tie: Tie | None = None) -> I64:
    """Pools that no other one betters (or equals, the first of equals stays)."""
    more = [] if tie is None else [tie.fixed, tie.marginal]
    score = np.column_stack([p.fixed, p.devices, p.power_w, p.use, p.marginal, *more])
    gone = np.zeros(len(score), dtype=bool)
    for b in range(len(score)):
        if not np.any(np.isfinite(p.use[b])):
            gone[b] = True
            continue
        better = (p.kind == p.kind[b]) & np.all(score <= score[b], axis=1) & ~gone
        better[b] = False
        equal = np.all(score == score[b], axis=1)
        gone[b] = bool(np.any(better & (~equal | (np.arange(len(score)) < b))))
    return np.flatnonzero(~gone)


def _pools(p: Problem, keep: I64) -> Problem:
    return replace(p, use=p.use[keep], fixed=p.fixed[keep], marginal=p.marginal[keep], devices=p.devices[keep],
                   kind=p.kind[keep], power_w=p.power_w[keep])  # fmt: skip


def _periods(p: Problem, keep: I64) -> Problem:
    return replace(p, demand_hz=p.demand_hz[:, keep], marginal=p.marginal[:, keep])


def _peaks(p: Problem) -> I64:
    """Periods to begin with: those that need the most replicas if every class had its best pool."""
    best = np.where(np.isfinite(p.use), p.use, np.inf).min(axis=0)
    need = np.where(np.isfinite(best), best, 0.0) @ p.demand_hz
    rows = [int(np.argmax(p.demand_hz[c])) for c in range(p.shape[1])]
    first = np.argsort(-need, kind="stable")[:FIRST_PERIODS]
    return np.unique(np.concatenate([first, rows]))


def _arcs(p: Problem) -> tuple[I64, I64, I64]:
    """``(class, pool, period)`` of every routing variable."""
    c, q, t = np.nonzero(np.isfinite(p.use).T[:, :, None] & (p.demand_hz > 0)[:, None, :])
    return c, q, t


def _milp(
    p: Problem, gap: float, time_limit_s: float, *, elastic: bool = False, held: _Held | None = None
) -> Solution | None:
    optimize, sparse = _scipy()
    pools, classes, periods = p.shape
    c, q, t = _arcs(p)
    n, started = len(c), time.monotonic()
    served = np.zeros((classes, periods), dtype=bool)
    served[c, t] = True
    if np.any((p.demand_hz > 0) & ~served):
        return None
    load = p.demand_hz[c, t] * p.use[q, c]
    at = np.arange(n)
    number = np.cumsum(served.ravel()).reshape(served.shape) - 1
    rows = int(served.sum())
    last = pools + n
    kinds = 0 if held is None else int(held.kind.max()) + 1
    width = last + 1 + kinds
    cover = sparse.csr_matrix((np.ones(n), (number[c, t], pools + at)), shape=(rows, width))
    share = sparse.csr_matrix((np.full(rows, -1.0), (np.arange(rows), np.full(rows, last))), shape=(rows, width))
    room = sparse.csr_matrix((load, (q * periods + t, pools + at)), shape=(pools * periods, width))
    room = room - sparse.csr_matrix(
        (np.ones(pools * periods), (np.arange(pools * periods), np.repeat(np.arange(pools), periods))),
        shape=(pools * periods, width),
    )  # fmt: skip
    parts = [(cover + share, np.zeros(rows), np.zeros(rows)),
             (room, np.full(pools * periods, -np.inf), np.zeros(pools * periods))]  # fmt: skip
    for k, count in enumerate(p.counts):
        own = np.flatnonzero(p.kind == k)
        if np.isfinite(count) and len(own):
            row = sparse.csr_matrix((p.devices[own], (np.zeros(len(own)), own)), shape=(1, width))
            parts.append((row, np.array([-np.inf]), np.array([count])))
    if np.isfinite(p.budget_w):
        row = sparse.csr_matrix((p.power_w, (np.zeros(pools), np.arange(pools))), shape=(1, width))
        parts.append((row, np.array([-np.inf]), np.array([p.budget_w])))
    filled = np.bincount(q * periods + t, weights=load, minlength=pools * periods).reshape(pools, periods)
    most = np.ceil(filled.max(axis=1, initial=0.0) - FEASIBLE)
    cost = np.concatenate([p.fixed, p.marginal[q, t] * load, np.zeros(1 + kinds)])
    if held is not None:
        unit = held.most if held.most > 0 else 1.0
        spent = np.concatenate([held.fixed, held.marginal[q, t] * load, np.zeros(1 + kinds)]) / unit
        parts.append((sparse.csr_matrix(spent[None, :]), np.array([-np.inf]), np.array([held.most / unit])))
        each = np.arange(pools)
        use = sparse.csr_matrix((np.concatenate([np.ones(pools), -most]), (np.concatenate([each, each]),
                                 np.concatenate([each, last + 1 + held.kind]))), shape=(pools, width))  # fmt: skip
        parts.append((use, np.full(pools, -np.inf), np.zeros(pools)))
        cost[last + 1 :] = held.toll
    if elastic:
        scale = max(float(np.abs(cost).sum()), 1e-9)
        cost = cost * (1e-4 / scale)
        cost[last] = -1.0
    nodes = {} if held is None else {"node_limit": TIE_NODES}
    result = milp(
        cost,
        constraints=[optimize.LinearConstraint(a, low, high) for a, low, high in parts],
        integrality=np.concatenate([np.ones(pools), np.zeros(n + 1), np.ones(kinds)]),
        bounds=optimize.Bounds(np.concatenate([np.zeros(last), [0.0 if elastic else 1.0], np.zeros(kinds)]),
                               np.concatenate([most, np.ones(n + 1 + kinds)])),
        options={"mip_rel_gap": gap, "time_limit": max(time_limit_s, 0.1)} | nodes,
    )  # fmt: skip
    if result.status == 2:
        return None
    if result.x is None:
        raise AnalysisError(f"no plan was found in {time_limit_s:.0f} s",
                            hint="allow more time, or give fewer configurations")  # fmt: skip
    replicas = np.round(result.x[:pools]).astype(np.int64)
    routing = np.zeros((classes, pools, periods))
    routing[c, q, t] = result.x[pools:last]
    bound = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
    return Solution(replicas, routing, float(result.fun), float(bound), float(result.x[last]),
                    time.monotonic() - started)  # fmt: skip


def _routable(p: Problem, replicas: I64, t: int) -> bool:
    """Whether a period's demand fits the replicas: quickly by each class's best pool, else by a linear program."""
    return _overload(p, replicas, t)[0] <= 1 + FEASIBLE


def _route(p: Problem, replicas: I64, t: int) -> F64:
    """Routing of one period, (C, P): least marginal objective; where that does not matter, the evenest load."""
    classes, pools = p.shape[1], p.shape[0]
    if not np.any(p.marginal[:, t]):
        return _overload(p, replicas, t)[1]
    optimize, sparse = _scipy()
    one = _periods(p, np.array([t]))
    c, q, _ = _arcs(one)
    load = one.demand_hz[c, 0] * one.use[q, c]
    at = np.arange(len(c))
    cover = sparse.csr_matrix((np.ones(len(c)), (c, at)), shape=(classes, len(c)))
    room = sparse.csr_matrix((load, (q, at)), shape=(pools, len(c)))
    answer = optimize.linprog(one.marginal[q, 0] * load, A_ub=room, b_ub=replicas * (1 + FEASIBLE), A_eq=cover,
                              b_eq=(one.demand_hz[:, 0] > 0).astype(float), bounds=(0, 1))  # fmt: skip
    if answer.status != 0:
        return _overload(p, replicas, t)[1]
    out = np.zeros((classes, pools))
    out[c, q] = answer.x
    return out


def _overload(p: Problem, replicas: I64, t: int) -> tuple[float, F64]:
    """``(most loaded pool's load over its replicas, routing)`` of the evenest routing of one period."""
    optimize, sparse = _scipy()
    classes, pools = p.shape[1], p.shape[0]
    there = replicas > 0
    one = replace(_periods(p, np.array([t])), use=np.where(there[:, None], p.use, np.inf))
    c, q, _ = _arcs(one)
    out = np.zeros((classes, pools))
    wanted = p.demand_hz[:, t] > 0
    if set(c.tolist()) != set(np.flatnonzero(wanted).tolist()):
        return np.inf, out
    if not wanted.any():
        return 0.0, out
    n = len(c)
    load = one.demand_hz[c, 0] * one.use[q, c]
    cover = sparse.csr_matrix((np.ones(n), (c, np.arange(n))), shape=(classes, n + 1))
    room = sparse.csr_matrix((load, (q, np.arange(n))), shape=(pools, n + 1)) - sparse.csr_matrix(
        (replicas.astype(float), (np.arange(pools), np.full(pools, n))), shape=(pools, n + 1)
    )
    answer = optimize.linprog(np.append(np.zeros(n), 1.0), A_ub=room, b_ub=np.zeros(pools), A_eq=cover,
                              b_eq=wanted.astype(float), bounds=(0, None))  # fmt: skip
    if answer.status != 0:
        return np.inf, out
    out[c, q] = answer.x[:n]
    return float(answer.x[-1]), out


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import optimize, sparse
    except ImportError as error:
        raise MissingExtra("plan", "planning") from error
    return optimize, sparse
