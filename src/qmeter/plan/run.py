"""From a plan file to a plan that holds, with its headroom, reasons and alternatives; or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import Pool, sample
from qmeter.plan.check import PoolLimit, draws_of, limits, loads, mixture
from qmeter.plan.demand import Demand, demand_of
from qmeter.plan.explain import Conflict, NextBest, Saving, conflict, next_best, savings
from qmeter.plan.refuse import refuse_unserved
from qmeter.plan.search import DRAWS, LOOK, Found, Stuck, search
from qmeter.plan.spec import PlanSpec
from qmeter.plan.supply import Choice, choices_of
from qmeter.plan.table import Measurer, Table, table_of
from qmeter.record import Quantity

F64 = NDArray[np.float64]
Progress = Callable[[str], None]

POWER_DRAWS = 8


@dataclass(frozen=True)
class Headroom:
    """How far the plan is from breaking.

    Attributes:
        growth: factor by which all rates could rise with this routing; its interval is over the calibration's draws.
        certainty: share of the draws in which every pool holds what it gets.
    """

    growth: Quantity
    certainty: Quantity


@dataclass(frozen=True)
class PlanResult:
    """A plan that kept every promise in simulation.

    Attributes:
        limits: its pools' own limits, with calibration draws.
        cost_usd_h, energy_j, carbon_g: of the whole fleet; energy and carbon over the horizon, as simulated.
        savings, next_best: by the model; empty where they were not asked for.
    """

    spec: PlanSpec
    demand: Demand
    table: Table
    found: Found
    limits: tuple[PoolLimit, ...]
    headroom: Headroom
    cost_usd_h: Quantity
    energy_j: Quantity
    carbon_g: Quantity
    savings: tuple[Saving, ...]
    next_best: tuple[NextBest, ...]

    @property
    def pools(self) -> list[int]:
        """Indices of the pools in use."""
        return [int(p) for p in np.flatnonzero(self.found.solution.replicas)]

    def choice(self, pool: int) -> Choice:
        """The choice of a pool."""
        return self.table.choices[self.table.pools[pool].choice]

    def label(self, pool: int) -> str:
        """Short name of a pool's deployment."""
        return self.table.label(self.table.pools[pool].choice)


@dataclass(frozen=True)
class NoPlan:
    """There is no plan, and why."""

    spec: PlanSpec
    demand: Demand
    table: Table
    conflict: Conflict


def make_plan(
    spec: PlanSpec, *, what_if: bool = True, cache: Path | None = None, on_step: Progress | None = None
) -> PlanResult | NoPlan:
    """Plan, simulate, repeat; then look around.

    Raises:
        SpecError: the file names what is not there, or a class that nothing in the fleet can serve.
        MissingExtra: scipy is not installed.
    """
    demand = demand_of(spec)
    choices = choices_of(spec, cache=cache, on_step=on_step)
    measure = Measurer(spec, on_step)
    table = table_of(spec, choices, demand, measure)
    refuse_unserved(spec, table, measure)
    found = search(spec, table, on_step=on_step)
    if isinstance(found, Stuck):
        return NoPlan(spec, demand, table, conflict(spec, choices, demand, measure, table, found.factor))
    if on_step:
        on_step("headroom under calibration error")
    own = list(found.limits)
    if spec.certainty is None:
        own = limits(spec, table, found.solution, seed=spec.seed, draws=DRAWS, precision=LOOK)
    return PlanResult(
        spec, demand, table, found, tuple(own), _headroom(own), *_sums(spec, table, found),
        savings(spec, choices, demand, measure, table, found, on_step) if what_if else (),
        next_best(spec, table, found) if what_if else (),
    )  # fmt: skip


def _headroom(own: list[PoolLimit]) -> Headroom:
    point = min((one.found.rate_hz.value or 0.0) / one.rate_hz for one in own)
    draws = draws_of(own)
    if not len(draws):
        return Headroom(Quantity.of(point, "1"), Quantity.unknown("1", "the calibrations have no draws"))
    low, high = (float(v) for v in np.quantile(draws, [0.05, 0.95]))
    share = float(np.mean(draws >= 1))
    half = float(np.sqrt(max(share * (1 - share), 0.25 / len(draws)) / len(draws)))
    return Headroom(
        Quantity.of(point, "1", low=min(low, point), high=max(high, point), n=len(draws)),
        Quantity.of(share, "1", low=max(0.0, share - 1.645 * half), high=min(1.0, share + 1.645 * half), n=len(draws)),
    )


def _sums(spec: PlanSpec, table: Table, found: Found) -> tuple[Quantity, Quantity, Quantity]:
    """Cost an hour, energy and carbon over the horizon, from the simulated power; intervals from calibration draws."""
    plan, demand = found.solution, table.demand
    watts = found.watched.power_w
    pue, kwh_usd = spec.electricity.pue, spec.electricity.price_usd_kwh
    used = np.flatnonzero(plan.replicas)
    prices = [table.choices[table.pools[p].choice].offer.price_usd_h for p in used]
    joules = float(watts.sum() * demand.period_s * pue)
    if not np.isfinite(joules):
        energy = Quantity.unknown("J", "a deployment in use has no energy counter in its records")
        carbon = Quantity.unknown("g", energy.why or "")
    else:
        spread = _power_spread(table, found)
        energy = _around(joules, "J", spread)
        grams = float((watts.sum(axis=0) * demand.carbon_g_kwh).sum() * demand.period_s * pue / 3.6e6)
        known = bool(np.any(demand.carbon_g_kwh))
        carbon = _around(grams, "g", spread) if known else Quantity.unknown("g", "no carbon_g_kwh was given")
    if any(p is None for p in prices):
        return Quantity.unknown("USD/h", "a device's price_usd_h was not given"), energy, carbon
    devices = float(sum(float(plan.replicas[p]) * (c or 0.0) for p, c in zip(used, prices, strict=True)))
    if kwh_usd and energy.value is None:
        return Quantity.unknown("USD/h", energy.why or "energy is unknown"), energy, carbon
    if not kwh_usd:
        return Quantity.of(devices, "USD/h"), energy, carbon
    power = [v / 3.6e6 / demand.horizon_h * kwh_usd if v else 0.0 for v in (energy.value, energy.low, energy.high)]
    return Quantity.of(devices + power[0], "USD/h", low=devices + power[1], high=devices + power[2]), energy, carbon


def _around(value: float, unit: str, spread: tuple[float, float]) -> Quantity:
    return Quantity.of(value, unit, low=value * spread[0], high=value * spread[1])


def _power_spread(table: Table, found: Found) -> tuple[float, float]:
    """Fleet's power over calibration draws, as factors of the fitted one, at each pool's fullest period."""
    plan = found.solution
    flow = loads(table, plan)
    totals = np.zeros(POWER_DRAWS + 1)
    for one in found.limits:
        offer = table.choices[table.pools[one.pool].choice].offer
        mix, _ = mixture(table, flow[:, one.pool, one.period])
        requests = sample(mix, 2000, 1)
        for k in range(POWER_DRAWS + 1):
            pool = Pool.of(offer, draw=k - 1 if k else None, seed=1)
            totals[k] += plan.replicas[one.pool] * pool.serve(requests, one.rate_hz).power_w
    ratio = totals[1:] / totals[0]
    return min(1.0, float(np.quantile(ratio, 0.05))), max(1.0, float(np.quantile(ratio, 0.95)))
