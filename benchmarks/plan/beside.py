"""qMeter's plans beside Mélange's formulation and peak provisioning: cost at equal SLO, and how often each breaks it.

    python benchmarks/plan/beside.py [--plans 40] [--out plans.json]

Random plans on the shipped profile: 2 or 3 classes with their own lengths, TTFT and TPOT limits, percentile and rate;
four of its methods on the measured H200, and the same carried to A100 and L40S by the physics form (extrapolated), at
list prices. All three planners choose from the same deployments, calibrations and traffic; every plan is simulated with
the same fresh requests (``watch``, seeds that no planner used).

- **Mélange**: for each class and configuration the highest rate at which the *mean* TPOT keeps its limit; each class's
  peak in 8 slices; an integer program gives each slice to one configuration and counts replicas; no queueing, no tails.
- **peak**: one configuration for everything, the cheapest by saturated throughput of the mix a dollar, and replicas so
  that the peak is 70% of that throughput.

"as planned": cost, and the share of re-simulations (four fresh seeds a plan, one at a time) in which a promise was
broken. "at equal SLO": replicas are added, one at a time to the pools that broke a promise, until every promise is kept
in all four; then cost.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np
from scipy import optimize

from qmeter.capacity import Mix, Pool, sample
from qmeter.errors import QMeterError
from qmeter.plan.check import watch
from qmeter.plan.demand import Demand, demand_of
from qmeter.plan.load import load_plan_text
from qmeter.plan.model import Solution
from qmeter.plan.search import Stuck, search
from qmeter.plan.spec import PlanSpec
from qmeter.plan.supply import Choice, choices_of
from qmeter.plan.table import Measurer, PoolKind, Table, table_of

METHODS = ("bf16", "fp8", "gptq-w4a16", "fp8-kv8", "smoothquant-w8a8", "w4a8-fp8")
PRICES = {"h200": 3.8, "a100-80g": 1.8, "l40s": 0.9}
FRESH_SEED = 777_000
SLICES = 8
FULL = 0.7
RUNS = 4


def random_plan(seed: int) -> PlanSpec:
    rng = np.random.default_rng(seed)
    classes = []
    for i in range(int(rng.integers(2, 4))):
        prompt, output = int(rng.integers(100, 400)), int(rng.integers(20, 110))
        classes.append(
            f"  - {{name: c{i}, rate: {rng.uniform(10, 150):.1f}/s, "
            f"prompt_tokens: {{kind: lognormal, median: {prompt}, "
            f"sigma: 0.4, high: 500}}, output_tokens: {{kind: lognormal, median: {output}, sigma: 0.4, high: 130}}, "
            f"slo: {{ttft: {rng.uniform(150, 1000):.0f}ms, tpot: {rng.uniform(12, 60):.0f}ms, "
            f"percentile: {rng.choice([0.9, 0.95, 0.99])}}}}}"
        )
    methods = ", ".join(rng.choice(METHODS, 4, replace=False))
    common = f"source: h200-8b-grid, methods: [{methods}]"
    fleet = [f"  - {{{common}, price_usd_h: {PRICES['h200']}}}"]
    fleet += [f"  - {{{common}, price_usd_h: {PRICES[d]}, carry: {{device: {d}}}}}" for d in ("a100-80g", "l40s")]
    text = "\n".join(["qmeter: 1", f"name: random-{seed}", f"seed: {seed}", "extrapolate: true", "classes:", *classes,
                      "fleet:", *fleet])  # fmt: skip
    return load_plan_text(text)


def mean_tpot_rate(choice: Choice, demand: Demand, group: int) -> float:
    """Highest rate a replica at which the mean TPOT keeps the limit, below saturation (Mélange's profile)."""
    one = demand.classes[group]
    requests = sample(Mix((one,)), 2000, 5)
    pool = Pool.of(choice.offer, seed=5)
    high = len(requests) / float(pool.serve_times(np.zeros(len(requests)), requests).e2e_s.max())
    low = 0.0
    limit = one.slo.tpot or np.inf
    if float(np.nanmean(pool.serve(requests, 0.98 * high).tpot_s)) <= limit:
        return 0.98 * high
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        good = float(np.nanmean(pool.serve(requests, middle).tpot_s)) <= limit
        low, high = (middle, high) if good else (low, middle)
    return low


def flat_table(choices: list[Choice], demand: Demand, capacity: np.ndarray) -> Table:
    """One pool a configuration, taking every class, at the loosest of the promises."""
    loosest = max((c.slo for c in demand.classes), key=lambda s: s.tpot or 0.0)
    nothing = np.full(len(choices), np.nan)
    pools = tuple(PoolKind(k, loosest) for k in range(len(choices)))
    return Table(choices, demand, pools, capacity, nothing, nothing, ())


def melange(choices: list[Choice], demand: Demand) -> tuple[Table, Solution] | None:
    capacity = np.array([[mean_tpot_rate(k, demand, c) for c in range(len(demand.classes))] for k in choices])
    prices = np.array([k.offer.price_usd_h or 0.0 for k in choices])
    classes, kinds = len(demand.classes), len(choices)
    arcs = [(c, s, k) for c in range(classes) for s in range(SLICES) for k in range(kinds) if capacity[k, c] > 0]
    width = kinds + len(arcs)
    cover, room = np.zeros((classes * SLICES, width)), np.zeros((kinds, width))
    for a, (c, s, k) in enumerate(arcs):
        cover[c * SLICES + s, kinds + a] = 1.0
        room[k, kinds + a] = demand.rate_hz[c].max() / SLICES / capacity[k, c]
    room[:, :kinds] = -np.eye(kinds)
    answer = optimize.milp(
        np.concatenate([prices, np.zeros(len(arcs))]), integrality=np.ones(width),
        constraints=[optimize.LinearConstraint(cover, 1, 1), optimize.LinearConstraint(room, -np.inf, 0)],
        bounds=optimize.Bounds(0, np.concatenate([np.full(kinds, 1000), np.ones(len(arcs))])),
        options={"mip_rel_gap": 0.005, "time_limit": 10},
    )  # fmt: skip
    if answer.x is None:
        return None
    routing = np.zeros((classes, kinds, 1))
    for a, (c, _, k) in enumerate(arcs):
        routing[c, k, 0] += answer.x[kinds + a] / SLICES
    replicas = np.round(answer.x[:kinds]).astype(np.int64)
    return flat_table(choices, demand, capacity), plan_of(replicas, routing, prices)


def peak(choices: list[Choice], demand: Demand) -> tuple[Table, Solution]:
    rates = demand.rate_hz.max(axis=1)
    requests = sample(Mix(demand.classes, tuple(rates)), 3000, 5)
    full = []
    for choice in choices:
        run = Pool.of(choice.offer, seed=5).serve_times(np.zeros(len(requests)), requests)
        full.append(len(requests) / float(run.e2e_s.max()))
    prices = np.array([k.offer.price_usd_h or 0.0 for k in choices])
    best = int(np.argmax(np.array(full) / prices))
    replicas = np.zeros(len(choices), dtype=np.int64)
    replicas[best] = int(np.ceil(rates.sum() / (FULL * full[best])))
    routing = np.zeros((len(rates), len(choices), 1))
    routing[:, best] = 1.0
    capacity = np.tile(np.array(full)[:, None], (1, len(rates)))
    return flat_table(choices, demand, capacity), plan_of(replicas, routing, prices)


def plan_of(replicas: np.ndarray, routing: np.ndarray, prices: np.ndarray) -> Solution:
    value = float(prices @ replicas)
    return Solution(replicas, routing, value, value, 1.0, 0.0)


def cost(table: Table, plan: Solution) -> float:
    offers = [table.choices[p.choice].offer for p in table.pools]
    return float(sum((o.price_usd_h or 0.0) * n for o, n in zip(offers, plan.replicas, strict=True)))


def judged(spec: PlanSpec, table: Table, plan: Solution) -> dict[str, float | None]:
    """Cost and how often it broke as planned; cost when replicas are added until it holds (None: it never does)."""
    once = [bool(watch(spec, table, plan, seed=FRESH_SEED + 100 * k, fresh=1).broken) for k in range(RUNS)]
    out: dict[str, float | None] = {"cost": cost(table, plan), "broke": float(np.mean(once)), "equal": None}
    seen = watch(spec, table, plan, seed=FRESH_SEED)
    for _ in range(60):
        if not seen.broken:
            out["equal"] = cost(table, plan)
            break
        more = plan.replicas.copy()
        more[list(seen.guilty)] = np.maximum(more[list(seen.guilty)] + 1, np.ceil(more[list(seen.guilty)] * 1.03))
        plan = replace(plan, replicas=more)
        seen = watch(spec, table, plan, seed=FRESH_SEED)
    return out


def main(plans: int, out: str | None) -> None:
    rows = []
    for seed in range(plans):
        spec = random_plan(seed)
        demand, choices = demand_of(spec), choices_of(spec)
        began = time.perf_counter()
        table = table_of(spec, choices, demand, Measurer(spec))
        if table.unserved():
            continue
        try:
            found = search(spec, table)
        except QMeterError as error:
            print(json.dumps({"seed": seed, "fault": error.message}), flush=True)
            continue
        seconds = time.perf_counter() - began
        if isinstance(found, Stuck):
            continue
        row = {"seed": seed, "seconds": seconds, "qmeter": judged(spec, table, found.solution)}
        try:
            row["peak"] = judged(spec, *peak(choices, demand))
            other = melange(choices, demand)
            row["melange"] = judged(spec, *other) if other else None
        except QMeterError as error:
            row["fault"] = error.message
        rows.append(row)
        print(json.dumps(row), flush=True)
        if out:
            with open(out, "w", encoding="utf-8") as file:
                json.dump(rows, file)
    table_text(rows)


def table_text(rows: list[dict]) -> None:
    print(f"\n{len(rows)} plans\n\n| planner | broke a promise, as planned | cost as planned | cost at equal SLO | "
          "never kept, however many replicas |\n|---|---|---|---|---|")  # fmt: skip
    for name in ("qmeter", "melange", "peak"):
        own = [r for r in rows if r.get(name)]
        both = [r for r in own if r[name]["equal"] and r["qmeter"]["equal"]]
        planned = np.mean([r[name]["cost"] / r["qmeter"]["cost"] for r in own])
        equal = np.mean([r[name]["equal"] / r["qmeter"]["equal"] for r in both]) if both else float("nan")
        broke = np.mean([r[name]["broke"] for r in own])
        never = np.mean([r[name]["equal"] is None for r in own])
        print(f"| {name} | {broke:.0%} | {planned:.2f} | {equal:.2f} ({len(both)}) | {never:.0%} |")
    print(f"seconds a plan, median: {np.median([r['seconds'] for r in rows]):.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=40)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    main(arguments.plans, arguments.out)
