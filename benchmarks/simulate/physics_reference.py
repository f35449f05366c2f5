"""The physics form against a public table of measured H100 runs (dense Llama and Qwen rows).

    python benchmarks/simulate/physics_reference.py TABLE.csv [--calibrations FILE.json] [--json]

TABLE.csv: backend, model_path, precision, isl, osl, batch_size, tp_size, silicon_ttft_ms, silicon_tpot_ms. Each row is
simulated as a closed loop of its batch size; the first rounds, which begin all at once, are left out. The efficiencies
are those of a calibration file (``qmeter calibrate-model h200-8b-grid -o FILE.json``: one H200, one model), or
the library's own.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from qmeter.catalog import device, model
from qmeter.errors import AnalysisError
from qmeter.simulate.carry import load_physics
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import SimLoad
from qmeter.simulate.physics import Efficiencies, Placement, kv_blocks, step_model
from qmeter.simulate.rules import VLLM_V1

QWEN3_32B = replace(
    model("qwen2.5-32b"), name="qwen3-32b", hf_id="Qwen/Qwen3-32B", heads=64, head_dim=128, intermediate=25600,
    vocab=151936, qkv_bias=False,
)  # fmt: skip
SHAPES = {
    "meta-llama/Llama-3.1-8B-Instruct": model("llama-3.1-8b"),
    "meta-llama/Llama-3.1-70B": model("llama-3.1-70b"),
    "Qwen/Qwen3-32B": QWEN3_32B,
}
ROUNDS, SKIPPED = 8, 2
SPACING_S = 0.002
"""A front end that takes 2 ms a request: without it, equal lengths would keep all requests in step for ever."""


def rows(path: Path) -> list[dict[str, str]]:
    kept = [r for r in csv.DictReader(path.open()) if r["model_path"] in SHAPES and r["mode"] == "agg"]
    return [r for r in kept if r["pp_size"] in ("", "1")]


def placement(row: dict[str, str]) -> Placement:
    shape = SHAPES[row["model_path"]]
    ends = 2 * shape.embedding_params * (1 if shape.tied_embeddings else 2)
    fp8 = row["precision"] == "fp8"
    weights = shape.linear_params * (1 if fp8 else 2) + ends
    return Placement(shape, device("h100-sxm"), weights, shape.kv_bytes_per_token(16), "fp8" if fp8 else "bf16",
                     int(row["tp_size"]))  # fmt: skip


def predicted(row: dict[str, str], e: Efficiencies) -> tuple[float, float]:
    """TTFT and TPOT, means. Units: s."""
    place, batch = placement(row), int(row["batch_size"])
    rules = replace(VLLM_V1, kv_blocks=kv_blocks(place), max_sequences=max(batch, 256))
    n = batch * ROUNDS
    prompt, output = (np.full(n, int(row[k]), dtype=np.int64) for k in ("isl", "osl"))
    run = simulate(
        SimLoad(np.zeros(n), prompt, output, concurrency=batch, spacing_s=SPACING_S), rules, step_model(place, e, rules)
    )
    tpot = (run.end_s - run.first_s) / np.maximum(output - 1, 1)
    late = slice(batch * SKIPPED, None)
    return float(np.mean((run.first_s - run.arrival_s)[late])), float(np.mean(tpot[late]))


def errors(table: list[dict[str, str]], e: Efficiencies) -> list[dict[str, object]]:
    out = []
    for row in table:
        try:
            ttft, tpot = predicted(row, e)
        except AnalysisError:
            continue
        out.append(
            {"backend": row["backend"], "model": row["model_path"].split("/")[-1], "tp": int(row["tp_size"]),
             "ttft": ttft * 1e3 / float(row["silicon_ttft_ms"]) - 1,
             "tpot": tpot * 1e3 / float(row["silicon_tpot_ms"]) - 1}
        )  # fmt: skip
    return out


def summary(found: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    groups = {"all": found}
    for key in ("backend", "tp"):
        for value in sorted({str(f[key]) for f in found}):
            groups[f"{key} {value}"] = [f for f in found if str(f[key]) == value]
    return {
        name: {"rows": len(own)}
        | {f"{k} {s}": float(fn(np.abs([float(str(f[k])) for f in own]))) for k in ("ttft", "tpot")
           for s, fn in (("MAPE", np.mean), ("median", np.median))}
        | {f"{k} bias": float(np.median([float(str(f[k])) for f in own])) for k in ("ttft", "tpot")}
        for name, own in groups.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--calibrations", type=Path, help="file of 'qmeter calibrate-model'")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    e = load_physics(args.calibrations).efficiencies if args.calibrations else Efficiencies()
    found = summary(errors(rows(args.table), e))
    if args.json:
        print(json.dumps({"efficiencies": asdict(e), "errors": found}))
        return
    print(e)
    for name, s in found.items():
        print(f"{name:14s} {s['rows']:4.0f} rows  TTFT MAPE {s['ttft MAPE']:6.1%} median {s['ttft median']:6.1%} "
              f"bias {s['ttft bias']:+6.1%}   TPOT MAPE {s['tpot MAPE']:6.1%} median {s['tpot median']:6.1%} "
              f"bias {s['tpot bias']:+6.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
