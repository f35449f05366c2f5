"""A day of the Azure conversation trace over 1,000 replicas: wall time, requests, scheduler iterations.

    python benchmarks/simulate/azure_day.py TRACE.csv [--replicas 1000] [--scale 1] [--router least-loaded]

The trace holds about one hour: it is repeated 24 times; ``--scale`` s adds s - 1 more copies, each shifted by a random
part of an hour. A router that looks at the replicas needs one process for the whole fleet; with round robin each
replica is a run of its own, spread over ``--workers`` processes.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
from side_by_side import read

from qmeter.catalog import device, model
from qmeter.simulate.fast import simulate
from qmeter.simulate.fleet import Fleet, ReplicaKind, run_fleet
from qmeter.simulate.load import SimLoad
from qmeter.simulate.physics import Efficiencies, Placement, kv_blocks, step_model
from qmeter.simulate.rules import Rules
from qmeter.simulate.spread import Cores
from qmeter.simulate.steptime import StepModel

HOUR, HOURS = 3600.0, 24


def day(path: Path, scale: int) -> SimLoad:
    at, prompt, output = read(path)
    shifts = np.concatenate([[0.0], np.random.default_rng(1).uniform(0, HOUR, scale - 1)])
    times = np.concatenate([(at + shift) % HOUR + h * HOUR for shift in shifts for h in range(HOURS)])
    order = np.argsort(times, kind="stable")
    copies = scale * HOURS
    return SimLoad(times[order], np.tile(prompt, copies)[order], np.tile(output, copies)[order])


def own_share(load: SimLoad, rules: Rules, steps: StepModel, turn: tuple[int, int]) -> tuple[int, int, float]:
    """Steps, requests served and summed TTFT of every ``turn[1]``-th request from ``turn[0]`` on."""
    own = slice(turn[0], None, turn[1])
    run = simulate(SimLoad(load.arrival_s[own], load.prompt[own], load.output[own]), rules, steps)
    return run.steps, int(np.isfinite(run.end_s).sum()), float((run.first_s - run.arrival_s).sum())


_LOADS: dict[tuple[Path, int], SimLoad] = {}


def chunk(path: Path, scale: int, rules: Rules, steps: StepModel, replicas: int, mine: range) -> tuple[int, int, float]:
    """Some replicas in one process, which makes the day's load once."""
    if (path, scale) not in _LOADS:
        _LOADS[path, scale] = day(path, scale)
    parts = [own_share(_LOADS[path, scale], rules, steps, (r, replicas)) for r in mine]
    return sum(p[0] for p in parts), sum(p[1] for p in parts), sum(p[2] for p in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--router", default="least-loaded")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    shape = model("llama-3.1-8b")
    place = Placement(shape, device("h200"), 2.0 * shape.params, shape.kv_bytes_per_token(16))
    rules = Rules(token_budget=8192, max_sequences=256, kv_blocks=kv_blocks(place))
    steps = step_model(place, Efficiencies(), rules)
    simulate(SimLoad(np.zeros(1), np.ones(1, dtype=np.int64), np.ones(1, dtype=np.int64)), rules, steps)  # compile
    began = time.perf_counter()
    if args.router == "round-robin":
        lots = [range(k, min(k + 25, args.replicas)) for k in range(0, args.replicas, 25)]
        work = partial(chunk, args.trace, args.scale, rules, steps, args.replicas)
        found = list(Cores(args.workers).map(work, lots))
        iterations, served, waits = (sum(f[i] for f in found) for i in range(3))
        requests, mean_ttft = served, waits / served
    else:
        load = day(args.trace, args.scale)
        run = run_fleet(Fleet((ReplicaKind("8b", rules, steps),), (0,) * args.replicas, router=args.router), load)
        iterations, served, requests = int(run.steps.sum()), int(np.isfinite(run.end_s).sum()), len(load)
        mean_ttft = float(np.nanmean(run.first_s - run.arrival_s))
    wall = time.perf_counter() - began
    print(f"{args.router}, {args.replicas} replicas, scale {args.scale}: {wall:.1f} s wall, {served:,} of {requests:,} "
          f"requests served, {iterations:,} scheduler iterations ({iterations / wall / 1e6:,.1f} M/s), "
          f"mean TTFT {mean_ttft * 1e3:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
