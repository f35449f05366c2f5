"""Seconds to solve 100 configurations x 10 classes x 24 hours to a 1% gap.

    python benchmarks/plan/speed.py [--runs 5]

Random instances: capacities in proportion to price with spread, a quarter of the pairs not allowed, each class with
its own daily curve (peak to trough about 6), five kinds of device of limited number; ``scale`` sets the fleet's size.
``cost``: only replicas cost; ``energy``: load costs too, at another price in each hour, so that no hour is left out.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from qmeter.plan.model import Problem, solve


def instance(seed: int, scale: float, marginal: bool, pools: int = 100, classes: int = 10, hours: int = 24) -> Problem:
    rng = np.random.default_rng(seed)
    size = rng.uniform(5, 50, pools)
    price = size**0.9 * np.exp(rng.normal(0, 0.15, pools)) / 10
    capacity = size[:, None] * rng.uniform(0.2, 1.5, classes) * np.exp(rng.normal(0, 0.3, (pools, classes)))
    use = 1 / capacity
    use[rng.random((pools, classes)) < 0.25] = np.inf
    use[0] = 1 / capacity[0]
    peak = rng.uniform(0, 24, classes)[:, None]
    curve = 1 + 0.7 * np.sin(2 * np.pi * (np.arange(hours) - peak) / 24)
    load = price[:, None] * 0.3 * rng.uniform(0.5, 1.5, hours) if marginal else np.zeros((pools, hours))
    return Problem(
        demand_hz=rng.uniform(10, 200, classes)[:, None] * scale * curve, use=use, fixed=price * hours, marginal=load,
        devices=np.ones(pools), kind=rng.integers(0, 5, pools), counts=np.full(5, max(12.0, 60 * scale)),
        power_w=np.full(pools, 500.0),
    )  # fmt: skip


def main(runs: int) -> None:
    print("| objective | fleet | replicas | seconds, median (worst) | gap, worst |\n|---|---|---|---|---|")
    for marginal in (False, True):
        for scale in (0.1, 1.0, 10.0):
            rows = []
            for seed in range(runs):
                problem = instance(seed, scale, marginal)
                began = time.perf_counter()
                found = solve(problem, gap=0.01, time_limit_s=60)
                assert found is not None
                rows.append((time.perf_counter() - began, found.gap, int(found.replicas.sum())))
            seconds, gaps, replicas = (np.array(v) for v in zip(*rows, strict=True))
            print(f"| {'energy' if marginal else 'cost'} | x{scale:g} | {int(np.median(replicas))} | "
                  f"{np.median(seconds):.2f} ({seconds.max():.2f}) | {gaps.max():.2%} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    main(parser.parse_args().runs)
