"""Capacities of a plan: what one replica of each pool sustains of each class, from simulation at the tail SLO.

A pool is an offer with a promise (a *level*): everybody it serves gets latencies within the level's limits. A class
may go to any pool whose level is at least as tight as its own promise. Capacities of classes at one level combine
nearly linearly, since each pure load keeps the very same limits; what is left of the difference, the loop of
:mod:`qmeter.plan.search` finds by simulating the mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import Capacity, ClassLoad, Mix, Precision, sustain
from qmeter.errors import AnalysisError
from qmeter.plan.demand import Demand
from qmeter.plan.model import Problem, Tie
from qmeter.plan.spec import PlanSpec
from qmeter.plan.supply import Choice
from qmeter.record import Quantity
from qmeter.spec.workload import SLO

F64 = NDArray[np.float64]
LIMITS = ("ttft", "tpot", "e2e")
J_KWH = 3.6e6


@dataclass(frozen=True)
class PoolKind:
    """An offer (index of the choices) at a level."""

    choice: int
    level: SLO


@dataclass(frozen=True)
class Exclusion:
    """Why an offer cannot serve a class: ``kind`` is quality, slo, power or support."""

    choice: int
    group: int
    kind: str
    text: str


@dataclass
class Measurer:
    """Finds capacities, each once: the same question of another plan or variant is answered from memory."""

    spec: PlanSpec
    on_step: Callable[[str], None] | None = None
    known: dict[tuple[str, str, str], Capacity | str] = field(default_factory=dict)

    def capacity(self, choice: Choice, one: ClassLoad, level: SLO) -> Capacity | str:
        """One class alone at a level, on one replica; or why it is not known."""
        key = (choice.offer.name, f"{one.lengths!r}{one.burstiness}", level.model_dump_json())
        if key not in self.known:
            if self.on_step:
                self.on_step(f"{choice.offer.method}: {one.name}")
            load = ClassLoad(one.name, one.lengths, level, one.burstiness)
            try:
                self.known[key] = sustain(choice.offer, Mix((load,)), seed=self.spec.seed,
                                          precision=Precision(requests=4000),
                                          allow_extrapolation=self.spec.extrapolate)  # fmt: skip
            except AnalysisError as error:
                self.known[key] = error.message
        return self.known[key]


@dataclass(frozen=True)
class Table:
    """Pools and capacities.

    Attributes:
        pools: (P,) offers at levels.
        capacity_hz: (P, C) requests a second a replica; 0: does not serve the class.
        base_w, slope_w: (P,) power of a replica, and what a full load adds, fitted to the power curve's upper part.
        exclusions: which offer cannot serve which class, and why.
    """

    choices: Sequence[Choice]
    demand: Demand
    pools: tuple[PoolKind, ...]
    capacity_hz: F64
    base_w: F64
    slope_w: F64
    exclusions: tuple[Exclusion, ...]

    def offer_name(self, pool: int) -> str:
        """Name of a pool's offer."""
        return self.choices[self.pools[pool].choice].offer.name

    def label(self, choice: int) -> str:
        """Short name of a choice: its method, after its model where the fleet has several."""
        offer = self.choices[choice].offer
        return f"{offer.model}/{offer.method}" if len({c.offer.model for c in self.choices}) > 1 else offer.method

    def unserved(self) -> list[int]:
        """Classes that no pool serves."""
        return [c for c in range(len(self.demand.classes)) if not np.any(self.capacity_hz[:, c] > 0)]


def needs_energy(spec: PlanSpec) -> bool:
    """Whether the objective or a constraint rests on power."""
    return spec.objective != "cost" or spec.power_budget_w is not None or spec.electricity.price_usd_kwh > 0


def table_of(spec: PlanSpec, choices: Sequence[Choice], demand: Demand, measure: Measurer) -> Table:
    """Every pool that may be of use, with its capacities."""
    pools: list[PoolKind] = []
    rows: list[list[float]] = []
    power: list[tuple[float, float]] = []
    out: list[Exclusion] = []
    for k, choice in enumerate(choices):
        allowed = []
        for c, floors in enumerate(demand.floors):
            missed = choice.offer.misses(floors)
            if missed:
                out.append(Exclusion(k, c, "quality", _missed(choice, floors, missed)))
            else:
                allowed.append(c)
        if needs_energy(spec) and choice.offer.idle_w.value is None:
            out += [Exclusion(k, c, "energy", choice.offer.idle_w.why or "no energy counter") for c in allowed]
            continue
        for level in _levels([demand.classes[c].slo for c in allowed]):
            found = {c: measure.capacity(choice, demand.classes[c], level) for c in allowed
                     if within(level, demand.classes[c].slo)}  # fmt: skip
            own = {c: level == demand.classes[c].slo for c in found}
            out += [Exclusion(k, c, _kind(f), f if isinstance(f, str) else f.binds) for c, f in found.items()
                    if own[c] and (isinstance(f, str) or not f.rate_hz.value)]  # fmt: skip
            good = {c: f for c, f in found.items() if isinstance(f, Capacity) and f.rate_hz.value}
            if not good:
                continue
            pools.append(PoolKind(k, level))
            rows.append([good[c].rate_hz.value or 0.0 if c in good else 0.0 for c in range(len(demand.classes))])
            power.append(_power(list(good.values()), choice))
    width = len(demand.classes)
    return Table(choices, demand, tuple(pools), np.array(rows).reshape(-1, width), np.array([p[0] for p in power]),
                 np.array([p[1] for p in power]), tuple(out))  # fmt: skip


def problem_of(spec: PlanSpec, table: Table, factor: F64) -> Problem:
    """The program over a table, each pool's capacities times its ``factor`` (P,)."""
    demand = table.demand
    offers = [table.choices[p.choice].offer for p in table.pools]
    capacity = table.capacity_hz * factor[:, None]
    with np.errstate(divide="ignore"):
        use = np.where(capacity > 0, 1 / np.where(capacity > 0, capacity, 1.0), np.inf)
    kwh = spec.electricity.pue * demand.period_s / J_KWH
    per_kwh = {"cost": np.full(len(demand.carbon_g_kwh), spec.electricity.price_usd_kwh), "energy": np.full(
        len(demand.carbon_g_kwh), J_KWH), "carbon": demand.carbon_g_kwh}[spec.objective]  # fmt: skip
    price = np.array([(o.price_usd_h or 0.0) if spec.objective == "cost" else 0.0 for o in offers])
    base, slope = (np.nan_to_num(v) for v in (table.base_w, table.slope_w))
    counts = [f.count for f in spec.fleet] + [d.count for d in spec.devices.values()]
    return Problem(
        demand_hz=demand.rate_hz, use=use,
        fixed=price * demand.horizon_h + base * kwh * per_kwh.sum(),
        marginal=slope[:, None] * kwh * per_kwh[None, :],
        devices=np.array([float(o.devices) for o in offers]),
        kind=np.array([device_kind(spec, table.choices[p.choice]) for p in table.pools], dtype=np.int64),
        counts=np.array([np.inf if c is None else float(c) for c in counts]),
        power_w=base + slope, budget_w=spec.power_budget_w or float("inf"),
    )  # fmt: skip


def tie_of(spec: PlanSpec, table: Table) -> Tie:
    """What chooses among plans of equal value: least energy, or least cost where energy (or its carbon) is the value.

    Where the energy of a pool is unknown: the least load on all replicas together, so the most headroom. Plans of fewer
    kinds are preferred where another kind saves next to nothing.
    """
    demand = table.demand
    shape = (len(table.pools), len(demand.carbon_g_kwh))
    kind = np.array([p.choice for p in table.pools], dtype=np.int64)
    if spec.objective != "cost":
        prices = [table.choices[p.choice].offer.price_usd_h or 0.0 for p in table.pools]
        return Tie(np.array(prices) * demand.horizon_h, np.zeros(shape), kind)
    if np.all(np.isfinite(table.base_w)):
        joules = np.repeat(table.slope_w[:, None], shape[1], axis=1) * demand.period_s
        return Tie(table.base_w * demand.period_s * shape[1], joules, kind)
    return Tie(np.zeros(shape[0]), np.ones(shape), kind)


def device_kind(spec: PlanSpec, choice: Choice) -> int:
    """Which count limits a choice: its fleet entry's, or after those its device's where the plan lists that."""
    listed = list(spec.devices)
    return len(spec.fleet) + listed.index(choice.offer.device) if choice.offer.device in listed else choice.fleet


def within(level: SLO, promise: SLO) -> bool:
    """Whether keeping ``level`` keeps ``promise``."""
    tight = all(_limit(level, n) <= _limit(promise, n) for n in LIMITS)
    return tight and level.percentile >= promise.percentile


def quantity_text(q: Quantity | None) -> str:
    """A quality for a reason."""
    if q is None:
        return "not measured"
    if q.value is None:
        return f"unknown ({q.why})"
    ends = "" if q.low is None or q.high is None else f" [{q.low:.4g}, {q.high:.4g}]"
    return f"{q.value:.4g}{ends}"


def _limit(slo: SLO, name: str) -> float:
    value = getattr(slo, name)
    return float("inf") if value is None else float(value)


def _levels(promises: Sequence[SLO]) -> list[SLO]:
    """The promises themselves, and the one that keeps all of them."""
    if not promises:
        return []
    joint = {n: min(_limit(p, n) for p in promises) for n in LIMITS}
    ttft, tpot, e2e = (None if np.isinf(joint[n]) else joint[n] for n in LIMITS)
    most = max(p.percentile for p in promises)
    everyone = SLO.model_construct(ttft=ttft, tpot=tpot, e2e=e2e, percentile=most)
    found: list[SLO] = []
    for one in [*promises, everyone]:
        if one not in found:
            found.append(one)
    return found


def _missed(choice: Choice, floors: dict[str, float], missed: Sequence[str]) -> str:
    parts = [f"{n} {quantity_text(choice.offer.quality.get(n))}, asked {floors[n]:g}" for n in missed]
    return f"{choice.offer.method}: {'; '.join(parts)}"


def _kind(found: Capacity | str) -> str:
    if isinstance(found, str):
        return "support"
    return "power" if found.binds.startswith("power") else "slo"


def _power(found: Sequence[Capacity], choice: Choice) -> tuple[float, float]:
    """``(base, slope)`` of power over the share of a full load, from idle's successors on the curve, mean of classes.

    Power is concave in the load: a straight line through the loads that a plan runs at (a quarter to all) is closer
    than one from idle. NaN where energy is unknown.
    """
    lines = []
    for one in found:
        points = [p for p in one.curve if p.fraction > 0 and np.isfinite(p.power_w)]
        if len(points) > 1:
            slope, base = np.polyfit([p.fraction for p in points], [p.power_w for p in points], 1)
            lines.append((float(base), max(float(slope), 0.0)))
    if not lines:
        return float("nan"), float("nan")
    return float(np.mean([b for b, _ in lines])), float(np.mean([s for _, s in lines]))
