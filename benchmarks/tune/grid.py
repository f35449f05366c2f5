"""The whole simulated grid behind the tuning bar: every point's true losses, one noisy measurement of it, and what the
two low fidelities say. The truth is another world than the low fidelity's: another bootstrap draw of every calibration
(step times, host times and energy each off by their own run-to-run deviation), noisy steps, and other arrivals.

    python benchmarks/tune/grid.py --out /tmp/tune_grid.npz
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qmeter import catalog
from qmeter.errors import AnalysisError
from qmeter.simulate import Calibration, calibrate, load_calibrations, save
from qmeter.simulate.carry import Target, carry, fit_records, with_joules_of
from qmeter.simulate.knobs import with_knobs
from qmeter.simulate.load import load_of
from qmeter.simulate.quick import quick
from qmeter.simulate.validate import by_deployment
from qmeter.spec.workload import WorkloadSpec
from qmeter.store import open_results
from qmeter.tune.space import Point, Space
from qmeter.workload import Vocabulary, build

PROFILE = "h200-8b-grid"
AXES: dict[str, tuple[Any, ...]] = {
    "method": ("bf16", "fp8", "awq-w4a16", "smoothquant-w8a8", "w4a8-fp8", "gptq-w4a16", "fp8-kv8", "kv-fp8",
               "gptq-w8a16"),
    "max_sequences": (16, 24, 32, 48, 64, 96, 128, 192, 256),
    "token_budget": (256, 384, 512, 768, 1024, 2048, 4096, 8192),
    "chunked_prefill": (True, False),
    "prefix_cache": (True, False),
}  # fmt: skip
WORKLOAD = {
    "name": "chat", "arrivals": {"kind": "poisson", "rate": "40/s"},
    "prompt_tokens": {"kind": "lognormal", "median": 450, "sigma": 0.6, "low": 32, "high": 2048},
    "output_tokens": {"kind": "lognormal", "median": 120, "sigma": 0.5, "low": 8, "high": 512},
    "prompts": {"kind": "synthetic", "shared_prefix": 0.3},
    "warmup": "5s", "window": "20s", "drain": "60s",
}  # fmt: skip
METRICS = ("ttft_p90_s", "tpot_p90_s", "j_per_output_token", "weight_bytes")
WEIGHTS = {
    m: float(catalog.method(m).expected_weight_bytes(catalog.model("llama-3.1-8b"), "vllm")) for m in AXES["method"]
}
REPEATS = 5
"""Runs behind the true value of a point: fresh arrivals and fresh step noise each."""
TRUTH_DRAW = 17


def space() -> Space:
    return Space(AXES, catalog.model("llama-3.1-8b"), "vllm")


def calibrations(cache: Path) -> tuple[dict[str, Calibration], dict[str, Calibration]]:
    """Those of every method as measured, and all of them carried from BF16's records alone by the physics form."""
    measured, carried = cache / "measured.json", cache / "carried.json"
    if not carried.exists():
        results = open_results(PROFILE)
        groups = by_deployment(results.records())
        found = [calibrate(g, results.tables) for g in groups]
        save(found, measured)
        first = [g for g in groups if g[0].cell["deployment"]["method"] == "bf16"]
        fit = fit_records(first, results.tables, hold_out=False)
        bf16 = next(c for c in found if c.deployment["method"] == "bf16")
        others = []
        for method in AXES["method"]:
            moved = carry(fit, bf16, Target("llama-3.1-8b", method, "h200"))
            # BF16's joules and cap stand in for the others': the physics form has none of its own.
            others.append(with_joules_of(moved, bf16))
        save([bf16, *others[1:]], carried)
    by_method = [{c.deployment["method"]: c for c in load_calibrations(p)} for p in (measured, carried)]
    return by_method[0], by_method[1]


def one(calibration: Calibration, point: Point, **how: Any) -> list[float]:
    """Its metrics, or NaN where it cannot run."""
    seed = how.pop("arrivals")
    knobs = {k: v for k, v in point.values if k != "method"}
    try:
        made, _ = with_knobs(calibration, knobs)
        found = quick(made, WORK, schedule(seed), load=load(seed, made), **how)
        found["weight_bytes"] = WEIGHTS[str(point.get("method"))]
        return [found.get(m, float("nan")) for m in METRICS]
    except AnalysisError:
        return [float("nan")] * len(METRICS)


_SCHEDULES: dict[int, Any] = {}
_LOADS: dict[tuple[int, bool, int], Any] = {}
WORK = WorkloadSpec.model_validate(WORKLOAD)


def load(seed: int, calibration: Calibration) -> Any:
    rules = calibration.scheduler()
    key = (seed, rules.prefix_cache, rules.block_tokens)
    if key not in _LOADS:
        _LOADS[key] = load_of(schedule(seed), rules)
    return _LOADS[key]


def schedule(seed: int) -> Any:
    if seed not in _SCHEDULES:
        _SCHEDULES[seed] = build(WORK, seed, Vocabulary(size=32000))
    return _SCHEDULES[seed]


def evaluate(job: tuple[str, list[int]]) -> dict[str, list[Any]]:
    """Truth, measurements and low fidelities of some points of one method."""
    cache, rows = Path(job[0]), job[1]
    kept = cache / f"part-{rows[0]}.npz"
    if kept.exists():
        with np.load(kept) as known:
            return {k: list(known[k]) for k in known.files}
    measured, carried = calibrations(cache)
    points = space().points
    out: dict[str, list[Any]] = {"truth": [], "measured": [], "low_own": [], "low_carried": []}
    for row in rows:
        point = points[row]
        method = str(point.get("method"))
        own = int(hashlib.sha256(method.encode()).hexdigest()[:6], 16)
        runs = [
            one(measured[method], point, draw=TRUTH_DRAW + own % 40, seed=own + 7 * r, noise=True, arrivals=100 + r)
            for r in range(REPEATS)
        ]
        out["truth"].append(np.exp(np.log(np.array(runs)).mean(axis=0)))
        out["measured"].append(runs)
        out["low_own"].append(one(measured[method], point, arrivals=1))
        out["low_carried"].append(one(carried[method], point, arrivals=1))
    np.savez(kept, **{k: np.array(v, dtype=float) for k, v in out.items()})
    return out


def make(out: Path, workers: int) -> None:
    cache = out.parent / f"{out.stem}_calibrations"
    cache.mkdir(parents=True, exist_ok=True)
    calibrations(cache)
    began = time.monotonic()
    n = len(space())
    parts = np.array_split(np.arange(n), max(1, n // 96))
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(evaluate, [(str(cache), p.tolist()) for p in parts]))
    names = ("truth", "measured", "low_own", "low_carried")
    arrays = {k: np.concatenate([np.array(f[k], dtype=float) for f in found]) for k in names}
    seconds = time.monotonic() - began
    np.savez(out, **arrays, axes=json.dumps({k: list(v) for k, v in AXES.items()}), metrics=list(METRICS))
    print(f"{n} points x {REPEATS} runs and two low fidelities in {seconds:.0f} s -> {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("/tmp/qmeter_tune_grid.npz"))
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    make(args.out, args.workers)
