"""A plan in plain words and plain rows: what the terminal, the page and the JSON show."""

from __future__ import annotations

from typing import Any

import numpy as np

from qmeter.plan.check import PoolLimit
from qmeter.plan.run import NoPlan, PlanResult
from qmeter.plan.table import PoolKind
from qmeter.record import Quantity
from qmeter.spec.workload import SLO

UNITS = {"cost": "USD", "energy": "J", "carbon": "g"}


def promise(slo: SLO) -> str:
    """``TTFT 0.3 s, TPOT 0.02 s for 0.9 of requests``."""
    limits = [f"{n.upper()} {v:.4g} s" for n in ("ttft", "tpot", "e2e") if (v := getattr(slo, n)) is not None]
    return f"{', '.join(limits)} for {slo.percentile:.4g} of requests"


def rows(result: PlanResult) -> list[dict[str, Any]]:
    """One row a pool in use."""
    plan, out = result.found.solution, []
    for pool in result.pools:
        kind: PoolKind = result.table.pools[pool]
        offer = result.choice(pool).offer
        limit = next((one for one in result.limits if one.pool == pool), None)
        serves = [c.name for i, c in enumerate(result.demand.classes) if plan.routing[i, pool].max() > 1e-6]
        watts = result.found.watched.power_w[pool]
        out.append({
            "pool": pool, "deployment": offer.name, "method": offer.method,
            "label": result.label(pool), "device": offer.device,
            "replicas": int(plan.replicas[pool]), "devices": int(plan.replicas[pool]) * offer.devices,
            "serves": serves, "level": promise(kind.level),
            "rate_hz": limit.rate_hz if limit else 0.0,
            "sustains_hz": limit.found.rate_hz.model_dump(exclude_none=True) if limit else None,
            "used": limit.rate_hz / (limit.found.rate_hz.value or 1.0) if limit else 0.0,
            "binds": limit.found.binds if limit else "nothing: idle",
            "bounded_by_measured": (limit.found.bounded or None) if limit else None,
            "power_mean_w": _finite(float(watts.mean())),
            "usd_h": None if offer.price_usd_h is None else offer.price_usd_h * int(plan.replicas[pool]),
            "extrapolated": offer.calibration.extrapolated,
            "notes": list(limit.found.notes) if limit else [],
        })  # fmt: skip
    return out


def promises(result: PlanResult) -> list[dict[str, Any]]:
    """One row a class: what was promised and the worst that the simulation saw, over periods and fresh seeds."""
    out = []
    for i, one in enumerate(result.demand.classes):
        own = [k for k in result.found.watched.kept if k.group == i]
        worst = min(own, key=lambda k: k.share, default=None)
        out.append({
            "class": one.name, "promise": promise(one.slo), "peak_hz": float(result.demand.rate_hz[i].max()),
            "asked": one.slo.percentile, "worst": None if worst is None else worst.share,
            "period": None if worst is None else worst.period, "floors": dict(result.demand.floors[i]),
        })  # fmt: skip
    return out


def reason(result: PlanResult) -> list[str]:
    """Why this plan, in sentences."""
    said = []
    total = int(result.found.solution.replicas.sum())
    kinds = len({result.choice(p).offer.name for p in result.pools})
    many = "s" if kinds > 1 else ""
    said.append(
        f"{total} replicas of {kinds} deployment{many} keep every promise at the least {result.spec.objective} that "
        "was found; when simulated with fresh requests, none was broken."
    )
    for choice in sorted({result.table.pools[p].choice for p in result.pools}):
        said.append(_chosen(result, choice))
    tightest = max(result.limits, key=_used, default=None)
    if tightest is not None:
        first = (f"the rate there is bounded by {tightest.found.binds}, it may sustain more" if tightest.found.bounded
                 else f"what would break first there is {tightest.found.binds}")  # fmt: skip
        said.append(f"The fullest pool ({result.label(tightest.pool)}) runs at {_used(tightest):.0%} of what it "
                    f"sustains; {first}.")  # fmt: skip
    held = result.headroom.certainty
    if held.value is not None:
        more = "." if held.value >= 0.9 else "; ask for more with 'certainty: 0.9', or calibrate better."
        said.append(f"It holds in {held.value:.0%} of the {held.n} draws of the calibrations' errors{more}")
    return said


def _chosen(result: PlanResult, choice: int) -> str:
    """What an offer is chosen for: what a replica sustains for the money, beside the best of the others."""
    table = result.table
    own = [p for p in result.pools if table.pools[p].choice == choice]
    flow = result.found.solution.routing[:, own].sum(axis=1) * result.demand.rate_hz
    group = int(np.argmax(flow.max(axis=1)))
    offer, name = table.choices[choice].offer, result.demand.classes[group].name
    best = _best(table, choice, group)
    others = [(k, _best(table, k, group)) for k in range(len(table.choices)) if k != choice]
    rivals = [(k, v) for k, v in others if v > 0]
    text = f"{table.label(choice)} on {offer.device}: one replica sustains {best:.3g} requests/s of {name}"
    if not rivals:
        return f"{text}; nothing else in the fleet may serve that class."

    def worth(k: int, value: float) -> float:
        price = table.choices[k].offer.price_usd_h
        return value / price if price else value

    rival, value = max(rivals, key=lambda r: worth(*r))
    other = table.choices[rival].offer
    money, theirs = (f" for {o.price_usd_h:.3g} USD/h" if o.price_usd_h else "" for o in (offer, other))
    beside = f"{table.label(rival)} on {other.device}"
    if worth(rival, value) < worth(choice, best):
        return f"{text}{money}; the best of the others, {beside}, {value:.3g}{theirs}."
    if result.spec.objective == "cost" and other.price_usd_h == offer.price_usd_h:
        same = "price" if result.spec.electricity.price_usd_kwh else "cost"
        draws = _draws(result, choice, rival, group)
        return f"{text}{money}; equal in {same} with {beside} ({value:.3g}{theirs}){draws}."
    return f"{text}{money}; beside it, {beside}, {value:.3g}{theirs}."


def _draws(result: PlanResult, choice: int, rival: int, group: int) -> str:
    """How much more a replica of a rival would draw with the choice's load of a class; empty: no more, or unknown."""
    table, plan = result.table, result.found.solution
    own = max((p for p in result.pools if table.pools[p].choice == choice),
              key=lambda p: float(plan.routing[group, p] @ result.demand.rate_hz[group]))  # fmt: skip
    rate = float((plan.routing[group, own] * result.demand.rate_hz[group]).max() / plan.replicas[own])
    theirs = max((p for p, k in enumerate(table.pools) if k.choice == rival), key=lambda p: table.capacity_hz[p, group])
    mine, more = (float(table.base_w[p] + table.slope_w[p] * min(rate / table.capacity_hz[p, group], 1.0))
                  for p in (own, theirs))  # fmt: skip
    return f", which draws {more / mine - 1:.0%} more power at {rate:.3g}/s" if more > mine else ""


def _best(table: Any, choice: int, group: int) -> float:
    return max((float(table.capacity_hz[p, group]) for p, k in enumerate(table.pools) if k.choice == choice), default=0)


def _used(one: PoolLimit) -> float:
    return one.rate_hz / (one.found.rate_hz.value or 1.0)


def data(result: PlanResult | NoPlan) -> dict[str, Any]:
    """Everything, as plain data."""
    spec = result.spec
    head: dict[str, Any] = {"kind": "plan", "name": spec.name, "objective": spec.objective, "seed": spec.seed}
    if isinstance(result, NoPlan):
        c = result.conflict
        return head | {
            "feasible": False, "served": c.served,
            "conflict": [{"field": k.field, "says": k.says} for k in c.constraints],
            "ways_out": [{"field": w.field, "says": w.says, "change": w.change} for w in c.ways],
            "nearest": nearest(result),
        }  # fmt: skip
    found = result.found
    return head | {
        "feasible": True, "value": found.solution.value, "unit": UNITS[spec.objective],
        "horizon_h": result.demand.horizon_h, "milp_gap": found.solution.gap, "gap": found.gap, "bound": found.bound,
        "cost": _plain(result.cost_usd_h), "energy": _plain(result.energy_j), "carbon": _plain(result.carbon_g),
        "headroom": {"growth": _plain(result.headroom.growth), "certainty": _plain(result.headroom.certainty)},
        "pools": rows(result), "promises": promises(result), "reason": reason(result),
        "routing": {c.name: {result.choice(p).offer.name + f"#{p}": [round(float(v), 6) for v in
                    found.solution.routing[i, p]] for p in result.pools}
                    for i, c in enumerate(result.demand.classes)},
        "savings": [{"field": s.field, "change": s.change, "saves": s.saves} for s in result.savings],
        "next_best": [{"without": n.without, "value": n.value} for n in result.next_best],
        "left_out": left_out(result),
        "rounds": [{"value": r.value, "factor": r.factor, "broken": r.broken, "kept": r.kept} for r in found.rounds],
        "simulated_requests": found.watched.requests,
    }  # fmt: skip


def left_out(result: PlanResult | NoPlan) -> list[dict[str, str]]:
    """Which deployment may not serve which class, and why."""
    table = result.table
    return [{"deployment": table.choices[e.choice].offer.name, "class": result.demand.classes[e.group].name,
             "why": e.text} for e in table.exclusions]  # fmt: skip


def nearest(result: NoPlan) -> list[dict[str, Any]]:
    """Pools of the nearest plan."""
    plan = result.conflict.nearest
    if plan is None:
        return []
    table = result.table
    return [{"deployment": table.offer_name(int(p)), "replicas": int(plan.replicas[p])}
            for p in np.flatnonzero(plan.replicas)]  # fmt: skip


def _plain(q: Quantity) -> dict[str, Any]:
    return q.model_dump(mode="json", exclude_none=True)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
