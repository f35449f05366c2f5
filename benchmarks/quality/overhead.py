"""What measuring quality under load costs: 200 graded task items against the same arrivals with random prompts.

    python benchmarks/quality/overhead.py [--repeats 3]

One deployment of the quickstart's model (w8a8) on the embedded engine; two workloads in turn with one arrival law, the
random one with the items' own mean prompt length and largest answer. A cell's time is its record's: load, analysis,
grading. Prints each pair and the median ratio; exits 1 above 10%.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from qmeter.record import CellStatus
from qmeter.spec.load import load_study_text
from qmeter.spec.study import Study
from qmeter.store import StudyStore
from qmeter.study.runner import run_study

LIMIT = 0.10
ITEMS, RATE_HZ, PROMPT_TOKENS, OUTPUT_TOKENS = 200, 4.0, 52, 12


def study(repeats: int) -> Study:
    """Facts and arithmetic in turn, and random tokens of the same size, at the same rate."""
    base = load_study_text((files("qmeter.study") / "quickstart.yaml").read_text(encoding="utf-8"))
    fixed = "{{kind: fixed, tokens: {}}}".format
    size = f"prompt_tokens: {fixed(PROMPT_TOKENS)}, output_tokens: {fixed(OUTPUT_TOKENS)}"
    law = f"arrivals: {{kind: poisson, rate: {RATE_HZ:g}/s}}, warmup: 1s, window: {ITEMS / RATE_HZ:g}s, drain: 30s"
    text = f"""
qmeter: 1
name: overhead
models: [{{name: smol, source: "{base.models[0].source}", sha256: {base.models[0].sha256}, shape: smollm2-135m}}]
engines: [{{name: openvino, options: {{max_model_tokens: 1024}}}}]
methods: [w8a8]
workloads:
  - {{name: tasks, prompts: {{kind: tasks, tasks: [facts, arithmetic]}}, ignore_eos: false, {size}, {law}}}
  - {{name: random, {size}, {law}}}
repeats: {repeats}
quality: {{fidelity: false}}
"""
    return load_study_text(text)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    asked = study(options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        store = StudyStore.create(Path(folder) / "study", asked, "")
        run_study(asked, store)
        times: dict[tuple[str, int], float] = {}
        for record in store.records():
            name, repeat = record.cell["workload"]["name"], record.cell["repeat"]
            times[name, repeat] = record.timings["load"] + record.timings["analyse"]
            graded = {k: q.n for k, q in record.quality.items() if k.startswith("task.")}
            state = "" if record.status is CellStatus.OK else f", {record.status}"
            print(f"#{repeat} {name:7} load {record.timings['load']:.2f} s, analyse and grade "
                  f"{record.timings['analyse']:.2f} s, items graded {graded}{state}")  # fmt: skip
    ratios = [times["tasks", k] / times["random", k] - 1 for k in range(options.repeats)]
    found = statistics.median(ratios)
    print(f"tasks over random: {', '.join(f'{100 * r:+.1f}%' for r in ratios)}; median {100 * found:+.1f}% "
          f"(bar: below {100 * LIMIT:.0f}%)")  # fmt: skip
    sys.exit(found >= LIMIT)


if __name__ == "__main__":
    main()
