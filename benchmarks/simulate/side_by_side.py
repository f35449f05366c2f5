"""Scheduler iterations a second: qMeter's closed form, its step-by-step mode, and Vidur, on the same trace in one run.

    python benchmarks/simulate/side_by_side.py TRACE.csv --vidur DIR --vidur-python PYTHON [--requests 400] [--rate 6]

TRACE.csv: Azure's (TIMESTAMP, ContextTokens, GeneratedTokens); its first requests, sped up to ``--rate`` a second on
one replica (Llama-2-7B on an A100, so that Vidur has a profile). An iteration is one step of the batch; steps that
qMeter advances in closed form count one each.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qmeter.catalog import device, model
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import SimLoad, SimResult
from qmeter.simulate.physics import Efficiencies, Placement, step_model
from qmeter.simulate.reference import simulate_steps
from qmeter.simulate.rules import Rules

LONGEST = 4096


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrival times from 0, prompt and output tokens of Azure's trace."""
    rows = list(csv.DictReader(path.open()))
    at = np.array([dt.datetime.fromisoformat(r["TIMESTAMP"][:26]).timestamp() for r in rows])
    prompt, output = (np.array([max(1, int(r[k])) for r in rows]) for k in ("ContextTokens", "GeneratedTokens"))
    return at - at[0], prompt, output


def loaded(path: Path, requests: int, rate: float) -> SimLoad:
    at, prompt, output = (a[:requests] for a in read(path))
    output = np.minimum(output, LONGEST // 2)
    return SimLoad(at * (requests / at[-1]) / rate, np.minimum(prompt, LONGEST - output), output)


def timed(run: Callable[[], SimResult], least_s: float = 1.0) -> dict[str, float]:
    """Iterations a second of one core: repeated until ``least_s`` CPU seconds are spent."""
    run()
    done, wall, cpu = 0, time.perf_counter(), time.process_time()
    while True:
        result = run()
        done += 1
        if time.process_time() - cpu > least_s:
            break
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"iterations": result.steps, "cpu_rate": result.steps * done / cpu, "wall_rate": result.steps * done / wall,
            "simulated_s": result.end_of_work_s}  # fmt: skip


def vidur(load: SimLoad, folder: Path, python: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        trace, out = Path(temporary) / "trace.csv", Path(temporary) / "out.json"
        lines = [f"{a:.6f},{p},{o}" for a, p, o in zip(load.arrival_s, load.prompt, load.output, strict=True)]
        trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + "\n".join(lines) + "\n")
        script = Path(__file__).with_name("vidur_rate.py").resolve()
        subprocess.run([python, str(script), str(out), str(trace), str(len(load))], cwd=folder, check=True,
                       env={"PYTHONPATH": str(folder.resolve()), "PATH": "/usr/bin:/bin", "WANDB_MODE": "disabled"},
                       stdout=sys.stderr)  # fmt: skip
        found = json.loads(out.read_text())
    return {"iterations": found["iterations"], "cpu_rate": found["iterations"] / found["cpu_s"],
            "wall_rate": found["iterations"] / found["wall_s"], "simulated_s": found["simulated_s"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--vidur", type=Path)
    parser.add_argument("--vidur-python", default="python3")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rate", type=float, default=6.0)
    args = parser.parse_args()
    shape = model("llama-2-7b")
    place = Placement(shape, device("a100-80g"), 2.0 * shape.params, shape.kv_bytes_per_token(16))
    rules = Rules(token_budget=4096, max_sequences=128, kv_blocks=7000, async_scheduling=False)
    steps = step_model(place, Efficiencies(), rules)
    load = loaded(args.trace, args.requests, args.rate)
    rates = {"qMeter, closed form": timed(lambda: simulate(load, rules, steps))}
    if args.vidur:
        rates["Vidur"] = vidur(load, args.vidur, args.vidur_python)
    rates["qMeter, closed form, again"] = timed(lambda: simulate(load, rules, steps))
    rates["qMeter, every token and step kept"] = timed(lambda: simulate(load, rules, steps, detail=True))
    rates["qMeter, step-by-step reference"] = timed(lambda: simulate_steps(load, rules, steps))
    tokens = float(load.output.sum())
    for name, r in rates.items():
        versus = f", {r['cpu_rate'] / rates['Vidur']['cpu_rate']:,.0f} x Vidur" if "Vidur" in rates else ""
        print(f"{name:36s} {r['cpu_rate']:14,.0f} iterations/s of CPU ({r['wall_rate']:,.0f} of wall){versus}; "
              f"{r['iterations']:,.0f} iterations, mean batch {tokens / r['iterations']:.1f}, "
              f"{r['simulated_s']:,.0f} s simulated")  # fmt: skip


if __name__ == "__main__":
    main()
