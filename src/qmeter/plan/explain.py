"""Why a plan is what it is: what relaxing each constraint saves, what the next plan costs; or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.plan.demand import Demand
from qmeter.plan.model import Problem, Solution, most_served, solve
from qmeter.plan.search import Found
from qmeter.plan.spec import PlanSpec
from qmeter.plan.supply import Choice
from qmeter.plan.table import LIMITS, Measurer, Table, problem_of, table_of

F64 = NDArray[np.float64]

LOOSER = 1.25
"""Latency limits are relaxed by this factor to see what it would save."""
STEPS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
TIME_S = 20.0


@dataclass(frozen=True)
class Constraint:
    """Something that limits the plan: its field in the file, what it says, and how to take it away.

    ``change`` describes the relaxation; ``relax`` gives the plan and traffic without it.
    """

    field: str
    says: str
    change: str
    relax: Callable[[PlanSpec, Demand], tuple[PlanSpec, Demand]]


@dataclass(frozen=True)
class Saving:
    """What relaxing one constraint would save of the objective, by the model (not simulated again)."""

    field: str
    change: str
    saves: float


@dataclass(frozen=True)
class NextBest:
    """The best plan that does without one of this plan's offers; ``value`` ``None``: there is none."""

    without: str
    value: float | None


@dataclass(frozen=True)
class WayOut:
    """The least change of one constraint that makes a plan possible, alone; ``change`` ``None``: it does not help."""

    field: str
    says: str
    change: str | None


@dataclass(frozen=True)
class Conflict:
    """Why there is no plan.

    Attributes:
        constraints: a set that no plan keeps together, though one exists without any of them.
        ways: the least change of each.
        served: the largest share of all traffic that can be served under every constraint, and the plan that does.
    """

    constraints: tuple[Constraint, ...]
    ways: tuple[WayOut, ...]
    served: float
    nearest: Solution | None


class Factors:
    """The loop's corrections of capacities, for tables of variants: by offer and level, else by offer."""

    def __init__(self, table: Table, factor: F64, used: Sequence[int]):
        self._exact = {(p.choice, p.level.model_dump_json()): float(f)
                       for p, f in zip(table.pools, factor, strict=True)}  # fmt: skip
        own: dict[int, list[float]] = {}
        for k in used:
            own.setdefault(table.pools[k].choice, []).append(float(factor[k]))
        self._offer = {choice: float(np.mean(f)) for choice, f in own.items()}

    def of(self, table: Table) -> F64:
        """(P,) factors of another table's pools."""
        return np.array([self._exact.get((p.choice, p.level.model_dump_json()), self._offer.get(p.choice, 1.0))
                         for p in table.pools])  # fmt: skip


def constraints(spec: PlanSpec, demand: Demand, looser: float | None) -> Iterator[Constraint]:
    """Every constraint; latency limits are relaxed by the factor ``looser``, or taken away (``None``)."""
    for i, fleet in enumerate(spec.fleet):
        if fleet.count is not None:
            yield Constraint(f"fleet[{i}].count", f"{fleet.count} devices", "more devices", _count(i))
    for name, device in spec.devices.items():
        if device.count is not None:
            yield Constraint(f"devices.{name}.count", f"{device.count} devices", "more devices", _device_count(name))
    if spec.power_budget_w is not None:
        yield Constraint("power_budget_w", f"{spec.power_budget_w:,.0f} W", "no power budget", _budget)
    for c, floors in enumerate(demand.floors):
        for name, floor in floors.items():
            yield Constraint(f"classes[{c}].quality.{name}", f"{name} {floor:g} for {demand.names[c]}", "no floor",
                             _floor(c, name))  # fmt: skip
    for c, one in enumerate(demand.classes):
        for limit in LIMITS:
            value = getattr(one.slo, limit)
            if value is not None:
                change = f"{value:.4g} s → {value * looser:.4g} s" if looser else "no limit"
                yield Constraint(f"classes[{c}].slo.{limit}", f"{limit.upper()} {value:.4g} s for {one.name}", change,
                                 _slo(c, limit, looser))  # fmt: skip


def savings(
    spec: PlanSpec, choices: Sequence[Choice], demand: Demand, measure: Measurer, table: Table, found: Found,
    on_step: Callable[[str], None] | None = None,
) -> tuple[Saving, ...]:  # fmt: skip
    """What relaxing each constraint alone would save, most first; what saves nothing is left out."""
    factors = Factors(table, found.factor, [int(p) for p in np.flatnonzero(found.solution.replicas)])
    out = []
    for one in constraints(spec, demand, LOOSER):
        if on_step:
            on_step(f"relaxing {one.field}")
        loose, traffic = one.relax(spec, demand)
        other = table_of(loose, choices, traffic, measure)
        plan = solve(problem_of(loose, other, factors.of(other)), gap=spec.gap / 2, time_limit_s=TIME_S)
        saves = 0.0 if plan is None else found.solution.value - plan.value
        if saves > 1e-3 * found.solution.value:
            out.append(Saving(one.field, one.change, saves))
    return tuple(sorted(out, key=lambda s: -s.saves))


def next_best(spec: PlanSpec, table: Table, found: Found) -> tuple[NextBest, ...]:
    """For each offer in use, the best plan without it, the cheapest first (by the model)."""
    out = []
    problem = problem_of(spec, table, found.factor)
    for choice in sorted({table.pools[p].choice for p in np.flatnonzero(found.solution.replicas)}):
        own = np.array([p.choice == choice for p in table.pools])
        without = replace(problem, use=np.where(own[:, None], np.inf, problem.use))
        plan = solve(without, gap=spec.gap / 2, time_limit_s=TIME_S)
        out.append(NextBest(table.choices[choice].offer.name, plan.value if plan else None))
    return tuple(sorted(out, key=lambda n: float("inf") if n.value is None else n.value))


@dataclass(frozen=True)
class _Question:
    """Whether, and with how much, a relaxed plan is feasible at the capacities that the loop ended with."""

    choices: Sequence[Choice]
    measure: Measurer
    factors: Factors

    def problem(self, spec: PlanSpec, demand: Demand) -> Problem | None:
        """The program; ``None`` where a class can be served by nothing."""
        table = table_of(spec, self.choices, demand, self.measure)
        return None if table.unserved() else problem_of(spec, table, self.factors.of(table))

    def feasible(self, spec: PlanSpec, demand: Demand) -> bool:
        """Whether there is a plan."""
        problem = self.problem(spec, demand)
        return problem is not None and solve(problem, gap=0.5, time_limit_s=TIME_S) is not None

    def least(self, spec: PlanSpec, demand: Demand, weight: Callable[[Problem], F64]) -> float | None:
        """The least of a quantity of the replicas that a plan needs."""
        problem = self.problem(spec, demand)
        if problem is None:
            return None
        amount = np.asarray(weight(problem), dtype=np.float64)
        bare = replace(problem, fixed=amount, marginal=np.zeros_like(problem.marginal))
        plan = solve(bare, gap=0.0, time_limit_s=TIME_S)
        return None if plan is None else float(amount @ plan.replicas)


def conflict(
    spec: PlanSpec, choices: Sequence[Choice], demand: Demand, measure: Measurer, table: Table, factor: F64
) -> Conflict:
    """An irreducible set of constraints that conflict (deletion filter), and the least change of each.

    Each constraint is taken away in turn: where there is still no plan without it, it plays no part and stays away.
    """
    ask = _Question(choices, measure, Factors(table, factor, range(len(table.pools))))
    every = list(constraints(spec, demand, None))
    gone: list[Constraint] = []
    for one in every:
        if not ask.feasible(*_without(spec, demand, [*gone, one])):
            gone.append(one)
    core = tuple(c for c in every if c not in gone)
    ways = tuple(_way(spec, demand, ask, one) for one in core)
    nearest = most_served(problem_of(spec, table, factor), time_limit_s=TIME_S)
    return Conflict(core, ways, nearest.served, nearest)


def _without(spec: PlanSpec, demand: Demand, gone: Sequence[Constraint]) -> tuple[PlanSpec, Demand]:
    for one in gone:
        spec, demand = one.relax(spec, demand)
    return spec, demand


def _way(spec: PlanSpec, demand: Demand, ask: _Question, one: Constraint) -> WayOut:
    """The least change of one constraint with which there is a plan, the others as they are."""
    kind = one.field.rpartition(".")[2]
    index = int(one.field.split("[")[1].split("]")[0]) if "[" in one.field else 0
    change: str | None = None
    if kind == "count":
        named = one.field.removeprefix("devices.").removesuffix(".count")
        counted = len(spec.fleet) + list(spec.devices).index(named) if named in spec.devices else index
        least = ask.least(*one.relax(spec, demand), lambda p: np.where(p.kind == counted, p.devices, 0.0))
        change = None if least is None else f"at least {least:.0f} devices"
    elif kind == "power_budget_w":
        least = ask.least(*one.relax(spec, demand), lambda p: p.power_w)
        change = None if least is None else f"at least {least:,.0f} W"
    elif kind in LIMITS:
        value = float(getattr(demand.classes[index].slo, kind))
        good = (f for f in STEPS if ask.feasible(*_slo(index, kind, f)(spec, demand)))
        first = next(good, None)
        change = None if first is None else f"{value * first:.4g} s"
    elif ask.feasible(*one.relax(spec, demand)):
        change = "without this floor"
    return WayOut(one.field, one.says, change)


def _count(index: int) -> Callable[[PlanSpec, Demand], tuple[PlanSpec, Demand]]:
    def relax(spec: PlanSpec, demand: Demand) -> tuple[PlanSpec, Demand]:
        fleet = tuple(f.model_copy(update={"count": None}) if i == index else f for i, f in enumerate(spec.fleet))
        return spec.model_copy(update={"fleet": fleet}), demand

    return relax


def _device_count(name: str) -> Callable[[PlanSpec, Demand], tuple[PlanSpec, Demand]]:
    def relax(spec: PlanSpec, demand: Demand) -> tuple[PlanSpec, Demand]:
        free = spec.devices[name].model_copy(update={"count": None})
        return spec.model_copy(update={"devices": {**spec.devices, name: free}}), demand

    return relax


def _budget(spec: PlanSpec, demand: Demand) -> tuple[PlanSpec, Demand]:
    return spec.model_copy(update={"power_budget_w": None}), demand


def _floor(group: int, name: str) -> Callable[[PlanSpec, Demand], tuple[PlanSpec, Demand]]:
    def relax(spec: PlanSpec, demand: Demand) -> tuple[PlanSpec, Demand]:
        floors = tuple({k: v for k, v in f.items() if not (c == group and k == name)}
                       for c, f in enumerate(demand.floors))  # fmt: skip
        return spec, replace(demand, floors=floors)

    return relax


def _slo(group: int, limit: str, factor: float | None) -> Callable[[PlanSpec, Demand], tuple[PlanSpec, Demand]]:
    def relax(spec: PlanSpec, demand: Demand) -> tuple[PlanSpec, Demand]:
        one = demand.classes[group]
        value = getattr(one.slo, limit)
        looser = None if value is None or factor is None else value * factor
        slo = one.slo.model_copy(update={limit: looser})
        if slo.ttft is None and slo.tpot is None and slo.e2e is None:
            slo = slo.model_copy(update={"e2e": 1e6})
        classes = tuple(replace(c, slo=slo) if i == group else c for i, c in enumerate(demand.classes))
        return spec, replace(demand, classes=classes)

    return relax
