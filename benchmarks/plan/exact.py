"""The program against exhaustive search on random small instances.

    python benchmarks/plan/exact.py [--instances 200]

Each instance has 2 to 3 pools, 1 to 3 classes, 1 to 3 periods, up to 5 replicas a pool, device counts and a power
budget. Exhaustive search tries every vector of replicas, the cheapest first; whether the traffic fits is one linear
program a period, written here apart from the planner's.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
from scipy.optimize import linprog

from qmeter.plan.model import Problem, solve

MOST = 5


def instance(rng: np.random.Generator) -> Problem:
    pools, classes, periods = int(rng.integers(2, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    use = 1 / rng.uniform(4, 30, (pools, classes))
    use[rng.random((pools, classes)) < 0.25] = np.inf
    return Problem(
        demand_hz=rng.uniform(0, 40, (classes, periods)) * (rng.random((classes, periods)) < 0.9), use=use,
        fixed=rng.uniform(1, 5, pools).round(1), marginal=np.zeros((pools, periods)),
        devices=rng.integers(1, 3, pools).astype(float), kind=rng.integers(0, 2, pools),
        counts=np.array([rng.integers(2, 9), np.inf]), power_w=rng.uniform(300, 700, pools),
        budget_w=float(rng.choice([2500.0, 5000.0, np.inf])),
    )  # fmt: skip


def fits(p: Problem, replicas: np.ndarray) -> bool:
    """Least largest overload of each period, by a linear program of its own."""
    pools, classes, periods = p.shape
    for t in range(periods):
        arcs = [(c, q) for c in range(classes) for q in range(pools) if np.isfinite(p.use[q, c])]
        wanted = [c for c in range(classes) if p.demand_hz[c, t] > 0]
        if any(not any(a[0] == c for a in arcs) for c in wanted):
            return False
        if not wanted:
            continue
        room = np.zeros((pools, len(arcs)))
        cover = np.zeros((classes, len(arcs)))
        for k, (c, q) in enumerate(arcs):
            room[q, k], cover[c, k] = p.use[q, c], 1.0
        answer = linprog(np.zeros(len(arcs)), A_ub=room, b_ub=replicas + 1e-9, A_eq=cover, b_eq=p.demand_hz[:, t])
        if answer.status != 0:
            return False
    return True


def exhaustive(p: Problem) -> float | None:
    """The least objective over every vector of replicas; ``None``: none fits."""
    every = np.array(list(itertools.product(range(MOST + 1), repeat=p.shape[0])))
    allowed = every @ p.power_w <= p.budget_w + 1e-9
    for k, count in enumerate(p.counts):
        allowed &= every[:, p.kind == k] @ p.devices[p.kind == k] <= count
    every = every[allowed]
    for replicas in every[np.argsort(every @ p.fixed, kind="stable")]:
        if fits(p, replicas):
            return float(replicas @ p.fixed)
    return None


def main(instances: int) -> int:
    wrong, infeasible, spent = 0, 0, 0.0
    for seed in range(instances):
        p = instance(np.random.default_rng(seed))
        truth = exhaustive(p)
        began = time.perf_counter()
        found = solve(p, gap=0.0)
        spent += time.perf_counter() - began
        larger = found is not None and int(found.replicas.max(initial=0)) > MOST
        if truth is None:
            infeasible += found is None
            wrong += found is not None and not larger
        elif found is None or (abs(found.value - truth) > 1e-6 and not (larger and found.value < truth)):
            wrong += 1
            print(f"instance {seed}: exhaustive {truth}, planner {None if found is None else found.value}")
    print(f"{instances} instances ({infeasible} infeasible in both), {wrong} differ; "
          f"{1e3 * spent / instances:.1f} ms each for the planner")  # fmt: skip
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=200)
    raise SystemExit(1 if main(parser.parse_args().instances) else 0)
