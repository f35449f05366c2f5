"""Simulate a plan: every pool of it behind its router, in every period, with fresh requests; and what it would hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import Capacity, Mix, Pool, Precision, kept, sample, sustain
from qmeter.plan.model import Solution
from qmeter.plan.spec import PlanSpec
from qmeter.plan.table import Table

F64 = NDArray[np.float64]

LARGEST_POOL = 8
"""Replicas simulated together when a pool's limit is looked for; a larger pool holds no less a replica."""
FRESH = 4
REQUESTS = 8000
LIGHT = 0.5
"""Below this share of a pool's capacity a period is simulated once, briefly; above it, with every fresh seed."""
BRIEF = 2000


@dataclass(frozen=True)
class Kept:
    """One class in one period: share of its requests, over all pools, that met its promise (the worst fresh seed's)."""

    group: int
    period: int
    asked: float
    share: float

    @property
    def broken(self) -> bool:
        """Whether the promise was broken."""
        return self.share < self.asked


@dataclass(frozen=True)
class PoolLimit:
    """What a used pool holds of the mixture that it gets in its fullest period.

    Attributes:
        pool, period: which.
        rate_hz: what each replica gets. found: what it would sustain, with calibration draws where asked.
        factor: sustained / asked; below 1 the pool is too full.
        linear: sustained / what the linear rule gives for this mixture.
    """

    pool: int
    period: int
    rate_hz: float
    found: Capacity
    factor: float
    linear: float


@dataclass(frozen=True)
class Watched:
    """A whole plan, simulated. ``power_w`` (P, T): of all replicas of a pool; NaN where energy is unknown."""

    kept: tuple[Kept, ...]
    guilty: tuple[int, ...]
    power_w: F64
    requests: int

    @property
    def broken(self) -> tuple[Kept, ...]:
        """Promises that were broken."""
        return tuple(k for k in self.kept if k.broken)


def loads(table: Table, plan: Solution) -> F64:
    """(C, P, T) requests a second of each class to each pool."""
    return np.asarray(plan.routing * table.demand.rate_hz[:, None, :], dtype=np.float64)


def limits(
    spec: PlanSpec, table: Table, plan: Solution, *, seed: int, draws: int = 0, precision: Precision | None = None
) -> list[PoolLimit]:
    """For each used pool, the rate of its own mixture that it sustains, in the period that fills it most."""
    out = []
    flow = loads(table, plan)
    for pool in np.flatnonzero(plan.replicas):
        fill = fullness(table, flow, int(pool)) / plan.replicas[pool]
        if not fill.max() > 0:
            continue
        period = int(np.argmax(fill))
        mix, rate = mixture(table, flow[:, pool, period])
        each = rate / float(plan.replicas[pool])
        offer = table.choices[table.pools[pool].choice].offer
        found = sustain(
            offer, mix, replicas=int(min(plan.replicas[pool], LARGEST_POOL)), seed=seed, draws=draws, near=each,
            curve=False, precision=precision, allow_extrapolation=spec.extrapolate,
        )  # fmt: skip
        factor = held(found, spec.certainty) / each
        out.append(PoolLimit(int(pool), period, each, found, factor, factor * float(fill[period])))
    return out


def held(found: Capacity, certainty: float | None) -> float:
    """The rate that counts: the fitted one, or the one that a share ``certainty`` of the draws sustains."""
    if certainty is None or not found.draws_hz:
        return found.rate_hz.value or 0.0
    return float(np.quantile(found.draws_hz, 1 - certainty))


def fullness(table: Table, flow: F64, pool: int) -> F64:
    """(T,) replicas' worth of load by the linear rule."""
    capacity = table.capacity_hz[pool]
    use = np.where(capacity > 0, 1 / np.where(capacity > 0, capacity, 1.0), 0.0)
    return np.asarray(use @ flow[:, pool, :], dtype=np.float64)


def mixture(table: Table, rates: F64) -> tuple[Mix, float]:
    """The classes that a pool gets, with their own promises, and the total rate."""
    groups = np.flatnonzero(rates > 1e-9 * max(float(rates.max()), 1e-12))
    classes = tuple(table.demand.classes[g] for g in groups)
    return Mix(classes, tuple(float(rates[g]) for g in groups)), float(rates[groups].sum())


def watch(spec: PlanSpec, table: Table, plan: Solution, *, seed: int, fresh: int = FRESH) -> Watched:
    """Simulate every period of a plan with fresh requests: does every class keep its promise?

    A class's share is over all the pools that serve it, weighted by its requests. ``guilty``: pools that fell below
    a promise in a period in which it was broken.
    """
    flow = loads(table, plan)
    classes, pools, periods = flow.shape
    power = np.zeros((pools, periods))
    met: dict[tuple[int, int, int], list[tuple[float, float, int]]] = {}
    count = 0
    for pool in np.flatnonzero(plan.replicas):
        fill = fullness(table, flow, int(pool)) / plan.replicas[pool]
        offer = table.choices[table.pools[pool].choice].offer
        replicas = int(min(plan.replicas[pool], LARGEST_POOL))
        ready = [Pool.of(offer, replicas, seed=seed + run) for run in range(fresh)]
        for t in range(periods):
            if flow[:, pool, t].sum() <= 0:
                idle = table.choices[table.pools[pool].choice].offer.idle_w.value
                power[pool, t] = plan.replicas[pool] * (float("nan") if idle is None else idle)
                continue
            same = [s for s in range(t) if np.array_equal(flow[:, pool, s], flow[:, pool, t])]
            if same:
                power[pool, t] = power[pool, same[0]]
                for key in [k for k in met if k[1] == same[0]]:
                    met.setdefault((key[0], t, key[2]), []).extend(x for x in met[key] if x[2] == pool)
                continue
            for run in range(fresh if fill[t] > LIGHT else 1):
                each = REQUESTS if fill[t] > LIGHT else BRIEF
                shares, watts, n = _period(
                    table, ready[run], flow[:, pool, t], int(plan.replicas[pool]), each, seed + run
                )
                power[pool, t] = watts
                count += n
                for group, share in shares:
                    met.setdefault((group, t, run), []).append((share, float(flow[group, pool, t]), int(pool)))
    return Watched(*_promises(table, met, classes, periods), power, count)


Shares = list[tuple[int, float]]


def _period(table: Table, pool: Pool, rates: F64, replicas: int, least: int, seed: int) -> tuple[Shares, float, int]:
    """Shares of each class that kept its promise, power of all replicas, and requests simulated."""
    mix, rate = mixture(table, rates)
    groups = [g for g in range(len(rates)) if table.demand.classes[g] in mix.classes]
    requests = sample(mix, max(least, least * pool.replicas // 4), seed)
    served = pool.serve(requests, rate / replicas)
    shares = [(g, k.share) for g, k in zip(groups, kept(served, mix.classes), strict=True)]
    return shares, served.power_w * replicas, len(requests)


def _promises(
    table: Table, met: dict[tuple[int, int, int], list[tuple[float, float, int]]], classes: int, periods: int
) -> tuple[tuple[Kept, ...], tuple[int, ...]]:
    found, guilty = [], set()
    for group in range(classes):
        asked = table.demand.classes[group].slo.percentile
        for t in range(periods):
            runs = sorted(r for g, at, r in met if g == group and at == t)
            if not runs:
                continue
            once = met[group, t, 0]
            shares = []
            for r in runs:
                parts = {pool: (s, w) for s, w, pool in once} | {pool: (s, w) for s, w, pool in met[group, t, r]}
                weight = sum(w for _, w in parts.values())
                share = sum(s * w for s, w in parts.values()) / weight
                shares.append(share)
                if share < asked:
                    guilty |= {pool for pool, (s, _) in parts.items() if s < asked}
            found.append(Kept(group, t, asked, min(shares)))
    return tuple(found), tuple(sorted(guilty))


def draws_of(found: Sequence[PoolLimit]) -> F64:
    """How much all rates could rise, one value a calibration draw: the least over the pools. Empty: no draws."""
    rows = [np.asarray(one.found.draws_hz) / one.rate_hz for one in found if one.found.draws_hz]
    return np.min(rows, axis=0) if rows else np.zeros(0)
