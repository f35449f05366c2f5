"""How far predictions of loads held out are off, over whole profiles at once: the table of ``docs/simulator.md``.

    python benchmarks/simulate/held_out.py [PROFILE ...] [--draws 24] [--json FILE] [--each METRIC]

The same as ``qmeter calibrate-model PROFILE --check``, deployment by deployment over the cores of this host, without
calibration files. ``--draws 0`` skips the intervals (point predictions of the fitted numbers): a minute for everything.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from qmeter.errors import AnalysisError
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.heldout import calibrate_checked, without_draws
from qmeter.simulate.spread import Cores
from qmeter.simulate.validate import (
    Comparison,
    by_deployment,
    cached,
    compare,
    leave_one_out,
    load_name,
    percent,
    scores,
)
from qmeter.store import open_results

PROFILES = ("h200-8b-grid", "h200-70b", "h200-models", "h100-x2-8b-parallelism", "h100-models", "h100-8b-grid")
SHOWN = ("tpot_mean_s", "ttft_p50_s", "ttft_p99_s", "throughput_tok_s", "j_per_output_token", "power_mean_w")


def groups_of(profile: str) -> list[str]:
    """Ids of the profile's deployments."""
    return [g[0].deployment_id for g in by_deployment(open_results(profile).records())]


def fit(job: tuple[str, str]) -> Calibration | None:
    """The deployment's fit with its errors, for the peers' sake."""
    profile, name = job
    results = open_results(profile)
    own = next(g for g in by_deployment(results.records()) if g[0].deployment_id == name)
    try:
        return calibrate_checked(own, cached(results.tables), draws=3)
    except AnalysisError:
        return None


def check(job: tuple[str, str, int, tuple[Calibration, ...]]) -> list[Comparison]:
    """Each load of a deployment from a fit without it; nothing where it cannot be calibrated."""
    profile, name, draws, peers = job
    results = open_results(profile)
    own = next(g for g in by_deployment(results.records()) if g[0].deployment_id == name)
    tables = cached(results.tables)
    try:
        if draws:
            return leave_one_out(own, tables, draws=draws, peers=peers)
        rows = []
        for load in dict.fromkeys(load_name(r) for r in own):
            rest = [r for r in own if load_name(r) != load]
            left = [r for r in own if load_name(r) == load]
            if rest:
                rows += compare(without_draws(rest, tables), left, held_out=True, draws=0)
        return rows
    except AnalysisError as error:
        print(f"{profile} {name}: {error.message}")
        return []


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", default=PROFILES)
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--each", default=None)
    args = parser.parse_args(argv)
    began = time.monotonic()
    names = {p: groups_of(p) for p in args.profiles}
    jobs = [(p, n) for p, own in names.items() for n in own]
    fits = list(Cores().map(fit, jobs)) if args.draws else [None] * len(jobs)
    todo = []
    for k, (profile, name) in enumerate(jobs):
        peers = tuple(f for m, f in enumerate(fits) if f is not None and m != k and jobs[m][0] == profile)
        todo.append((profile, name, args.draws, peers))
    found: dict[str, list[Comparison]] = {p: [] for p in args.profiles}
    for job, rows in zip(todo, Cores().map(check, todo), strict=True):
        found[job[0]] += rows
    for profile, rows in found.items():
        show(profile, rows, args.each)
    print(f"{time.monotonic() - began:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({p: [asdict(r) for r in rows] for p, rows in found.items()}))


def show(profile: str, rows: list[Comparison], each: str | None) -> None:
    """One profile's table, and each cell of one metric."""
    print(f"\n{profile} ({len({(r.deployment, r.workload) for r in rows})} points)")
    for s in scores(rows):
        if s.metric in SHOWN:
            inner = "" if s.inner_error is None else f"between {s.inner_error:6.1%}"
            floor = "" if s.floor is None else f"floor {s.floor:.1%}"
            mean, median, worst = (f"{percent(e):>6s}" for e in (s.mean_error, s.median_error, s.worst))
            print(f"  {s.metric:20s} {s.cells:3d} mean {mean} median {median} worst {worst} "
                  f"held {s.coverage:4.0%} {inner} {floor}")  # fmt: skip
    for r in rows:
        if each and r.metric == each:
            print(f"    {r.deployment:40s} {r.workload:24s} {r.measured:9.4g} {r.predicted:9.4g} "
                  f"{percent(r.error, '+'):>7s} {'' if r.inside else 'outside'}")  # fmt: skip


if __name__ == "__main__":
    main()
