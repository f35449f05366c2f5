"""The tuning bar: measurements each search needs for 95% of the true front's hypervolume, median over seeds.

What counts as a measurement: one noisy run of one point on the truth (see grid.py), failed points included; points
that a sampler proposes again cost nothing. What a search knows: the axes and the catalog; `informed` also a low
fidelity of every point. What is compared: hypervolume of the *true* losses of the points measured so far, over the
whole grid's.

    python benchmarks/tune/compare.py --grid /tmp/qmeter_tune_grid.npz --seeds 20 --out found.json
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import grid as world
import numpy as np

from qmeter.analysis.metrics import METRICS
from qmeter.record import Quantity
from qmeter.tune.hypervolume import Partition, front_mask, hypervolume
from qmeter.tune.problem import Problem, Term
from qmeter.tune.samplers.base import make

LIMITS = {"ttft_p90_s": 2.0, "tpot_p90_s": 0.050}
"""What a user of this load would refuse: points beyond do not count, for anybody."""
SHARES = (0.80, 0.90, 0.95, 0.99)
BUDGETS = (25, 50, 100, 200, 400, 800)


class World:
    def __init__(self, path: Path):
        with np.load(path) as data:
            self.truth, self.measured = data["truth"], data["measured"]
            self.low = {"own": data["low_own"], "carried": data["low_carried"]}
        self.space = world.space()
        self.terms = tuple(Term(m, "chat", METRICS[m].better, LIMITS.get(m)) for m in world.METRICS)
        self.losses = np.array([[t.loss(v) for t, v in zip(self.terms, row, strict=True)] for row in self.truth])
        limits = np.array([t.loss(t.limit) if t.limit else np.inf for t in self.terms])
        self.good = np.isfinite(self.losses).all(axis=1) & (self.losses <= limits).all(axis=1)
        good = self.losses[self.good]
        self.front = good[front_mask(good)]
        span = self.front.max(axis=0) - self.front.min(axis=0)
        self.reference = np.minimum(self.front.max(axis=0) + 0.1 * span, limits)
        self.floor = self.front.min(axis=0)
        self.whole = hypervolume(self.front, self.reference, self.floor)

    def problem(self, low: str | None, seed: int, budget: int) -> Problem:
        known: dict[Any, dict[str, float]] = {}
        if low is not None:
            for point, row in zip(self.space.points, self.low[low], strict=True):
                values = {t.key: float(v) for t, v in zip(self.terms, row, strict=True) if np.isfinite(v)}
                if values:
                    known[point] = values
        limits = tuple(t for t in self.terms if t.limit)
        return Problem(self.space, self.terms, limits, known, seed=seed, budget=budget)


def run(job: tuple[str, str, str | None, int, int, float]) -> dict[str, Any]:
    """One search: hypervolume share after each measurement, and seconds of deciding."""
    path, name, low, seed, most, stop = job
    it = World(Path(path))
    problem = it.problem(low, seed, most)
    sampler = make(name, problem)
    rng = np.random.default_rng(10_000 + seed)
    partition = Partition(it.reference, it.floor)
    curve, began = [], time.process_time()
    while len(curve) < most and (point := sampler.ask()) is not None:
        row = it.space.row[point]
        values = it.measured[row, rng.integers(it.measured.shape[1])]
        failed = not np.isfinite(values).all()
        found = {t.key: Quantity.of(float(v), t.unit) for t, v in zip(it.terms, values, strict=True)}
        sampler.tell(problem.seen(point, {} if failed else found, "AnalysisError" if failed else None))
        if it.good[row]:
            partition.add(it.losses[row])
        curve.append(partition.volume / it.whole)
        if curve[-1] >= stop:
            break
    return {"sampler": name, "low": low, "seed": seed, "curve": curve, "cpu_s": time.process_time() - began}


def needed(curve: list[float], share: float, most: int) -> float:
    return next((i + 1.0 for i, v in enumerate(curve) if v >= share), float("inf"))


def table(found: list[dict[str, Any]]) -> str:
    rows = ["| search | low fidelity | " + " | ".join(f"{s:.0%}" for s in SHARES) + " | "
            + " | ".join(f"HV at {b}" for b in BUDGETS) + " | s a decision |"]  # fmt: skip
    rows.append("|" + "---|" * (3 + len(SHARES) + len(BUDGETS)))
    for key in dict.fromkeys((f["sampler"], f["low"]) for f in found):
        mine = [f for f in found if (f["sampler"], f["low"]) == key]
        counts = [[needed(f["curve"], s, 0) for f in mine] for s in SHARES]
        shown = [_count(c) for c in counts]
        at = [np.median([f["curve"][min(b, len(f["curve"])) - 1] for f in mine]) for b in BUDGETS]
        seconds = np.median([f["cpu_s"] / max(1, len(f["curve"])) for f in mine])
        rows.append(f"| {key[0]} | {key[1] or 'none'} | " + " | ".join(shown) + " | "
                    + " | ".join(f"{v:.3f}" for v in at) + f" | {seconds:.2f} |")  # fmt: skip
    return "\n".join(rows)


def _count(values: list[float]) -> str:
    """Median [quartiles]; searches that did not get there count as more than all others."""
    low, middle, high = (np.quantile(values, q, method="closest_observation") for q in (0.25, 0.5, 0.75))
    return " ".join("not reached" if not np.isfinite(v) else f"{v:.0f}" for v in (middle,)) + (
        f" [{low:.0f}, {high:.0f}]" if np.isfinite(high) else ""
    )


ALL = (("random", None, 2592), ("grid", None, 2592), ("nsga2", None, 1000), ("tpe", None, 700),
       ("ehvi", None, 250), ("informed", "carried", 250), ("informed", "own", 250))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=Path, default=Path("/tmp/qmeter_tune_grid.npz"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=None, help="as informed:carried, tpe")
    parser.add_argument("--stop", type=float, default=0.99)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    it = World(args.grid)
    feasible, failed = int(it.good.sum()), int((~np.isfinite(it.losses).all(axis=1)).sum())
    print(f"{len(it.space)} points, {failed} fail, {feasible} keep the limits, {len(it.front)} on the true front")
    chosen = [a for a in ALL if not args.only or a[0] in args.only or f"{a[0]}:{a[1]}" in args.only]
    jobs = [(str(args.grid), n, low, seed, most, args.stop) for n, low, most in chosen for seed in range(args.seeds)]
    if args.workers > 1:
        with ProcessPoolExecutor(args.workers) as pool:
            found = list(pool.map(run, jobs))
    else:
        found = [run(j) for j in jobs]
    print(table(found))
    if args.out:
        args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
