"""The physics form against a public table of measured H100 runs (dense Llama and Qwen rows).

    python benchmarks/simulate/physics_reference.py TABLE.csv [--calibrations FILE.json] [--load steady] [--json]

TABLE.csv: backend, model_path, precision, isl, osl, batch_size, tp_size, silicon_ttft_ms, silicon_tpot_ms. The
efficiencies and the front end (delays, its time a request and a token) are those of a calibration file (``qmeter
calibrate-model h200-8b-grid -o FILE.json``: one H200, one model), or the library's own. Nothing is fitted to the table.

Each row is the mean over a whole closed-loop run, begun with all requests at once, so it is simulated as one. How its
load was made and its server configured is public: :class:`Harness` says what, and where it is written. ``--load
steady`` is what this script did before: vLLM's defaults for every engine, the first rounds left out.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmeter.catalog import device, model
from qmeter.errors import AnalysisError
from qmeter.simulate.calibration import Calibration, load_calibrations
from qmeter.simulate.carry import load_physics
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import SimLoad
from qmeter.simulate.physics import Efficiencies, Placement, kv_blocks, step_model
from qmeter.simulate.rules import VLLM_V1, Rules
from qmeter.simulate.steptime import StepModel

Row = dict[str, str]
QWEN3_32B = replace(
    model("qwen2.5-32b"), name="qwen3-32b", hf_id="Qwen/Qwen3-32B", heads=64, head_dim=128, intermediate=25600,
    vocab=151936, qkv_bias=False,
)  # fmt: skip
SHAPES = {
    "meta-llama/Llama-3.1-8B-Instruct": model("llama-3.1-8b"),
    "meta-llama/Llama-3.1-70B": model("llama-3.1-70b"),
    "Qwen/Qwen3-32B": QWEN3_32B,
}
SPACING_S = 0.002
"""Of ``--load steady``: a front end of 2 ms a request, so that equal lengths leave step at all."""
SEATS, MARGIN_TOKENS = 128, 1500


@dataclass(frozen=True)
class Harness:
    """How one source of rows made its load and configured its servers.

    Attributes:
        rounds: requests, in multiples of the concurrency; the mean is over all but the first ``skipped`` rounds.
        shortest: lengths are uniform from this share of the asked length up to it (1: all equal).
        budget: the server's tokens a step; ``None``: seats + prompt + 1500.
        seats: its sequence limit; ``None``: the row's concurrency.
        chunked, mixed: as in :class:`qmeter.simulate.rules.Rules`.
        kv_bits: of the cache beside FP8 weights.
        spacing_s: pause between two sends.
    """

    rounds: int = 10
    skipped: int = 0
    shortest: float = 1.0
    budget: int | None = None
    seats: int | None = SEATS
    chunked: bool = True
    mixed: bool = True
    kv_bits: int = 16
    spacing_s: float = 0.0

    def rules(self, row: Row) -> Rules:
        """The server's scheduler."""
        many, isl = int(row["batch_size"]), int(row["isl"])
        seats = many if self.seats is None else max(self.seats, many)
        budget = seats + isl + MARGIN_TOKENS if self.budget is None else self.budget
        return replace(
            VLLM_V1, token_budget=budget, max_sequences=seats, chunked_prefill=self.chunked, mixed=self.mixed
        )


AICONFIGURATOR = Harness()
"""aiconfigurator's runs: ``src/aiconfigurator/eval/benchmarks`` asks for 10 requests a user after a warm-up, standard
deviations 0; its generator gives vLLM max_num_tokens = max_batch_size + isl + 1500, max_batch_size 128 by default."""
HARNESSES = {
    "vllm": AICONFIGURATOR,
    "trtllm": replace(AICONFIGURATOR, chunked=False, kv_bits=8),
    "sglang": replace(AICONFIGURATOR, budget=8192, mixed=False),
    "inferencemax": Harness(shortest=0.8, budget=8192, seats=None),
}
"""trtllm: its template leaves chunked prefill off; FP8 checkpoints keep an FP8 cache (a 16-bit one could not hold the
requests in flight). sglang: its own defaults, prompts in steps of their own, chunks of 8192. inferencemax: its README:
num-prompts 10 x concurrency, random-range-ratio 0.8, max-num-batched-tokens 8192, max-num-seqs the concurrency."""
STEADY = Harness(rounds=8, skipped=2, budget=8192, seats=256, spacing_s=SPACING_S)


def rows(path: Path) -> list[Row]:
    kept = [r for r in csv.DictReader(path.open()) if r["model_path"] in SHAPES and r["mode"] == "agg"]
    return [r for r in kept if r["pp_size"] in ("", "1")]


def harness(row: Row) -> Harness:
    """Which source the row is from: InferenceMAX's dumps name no path."""
    own = row["silicon_data_source"].startswith("source_file=/")
    return HARNESSES[row["backend"] if own else "inferencemax"]


def placement(row: Row, kv_bits: int) -> Placement:
    shape = SHAPES[row["model_path"]]
    ends = 2 * shape.embedding_params * (1 if shape.tied_embeddings else 2)
    fp8 = row["precision"] == "fp8"
    weights = shape.linear_params * (1 if fp8 else 2) + ends
    return Placement(shape, device("h100-sxm"), weights, shape.kv_bytes_per_token(kv_bits if fp8 else 16),
                     "fp8" if fp8 else "bf16", int(row["tp_size"]))  # fmt: skip


def behind(front: Calibration | None, steps: StepModel) -> StepModel:
    """The step model behind a calibrated front end."""
    if front is None:
        return steps
    return replace(steps, input_s=front.input_s, output_s=front.output_s, output_seq_s=front.output_seq_s,
                   input_each_s=front.input_each_s)  # fmt: skip


def nearest_front(row: Row, fronts: Sequence[Calibration]) -> Calibration | None:
    """The calibration of the row's method, else the first."""
    method = row["precision"] or "bf16"
    return next((c for c in fronts if c.deployment["method"] == method), fronts[0] if fronts else None)


def lengths(asked: int, n: int, shortest: float, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(int(asked * shortest), asked, size=n, endpoint=True)


def predicted(row: Row, how: Harness, e: Efficiencies, front: Calibration | None = None) -> tuple[float, float]:
    """TTFT and TPOT, means over the run's requests. Units: s.

    Raises:
        AnalysisError: the weights do not fit the row's devices.
    """
    place, many = placement(row, how.kv_bits), int(row["batch_size"])
    rules = replace(how.rules(row), kv_blocks=kv_blocks(place))
    steps, rng, n = behind(front, step_model(place, e, rules)), np.random.default_rng(0), many * how.rounds
    prompt, output = (lengths(int(row[k]), n, how.shortest, rng) for k in ("isl", "osl"))
    between = steps.input_s + steps.output_s
    load = SimLoad(np.zeros(n), prompt, output, concurrency=many, think_s=between, spacing_s=how.spacing_s)
    run = simulate(load, rules, steps)
    counted = slice(many * how.skipped, None)
    tpot = (run.end_out_s - run.first_out_s) / np.maximum(output - 1, 1)
    ttft = run.first_out_s - run.arrival_s + between
    return float(np.mean(ttft[counted])), float(np.mean(tpot[counted]))


def errors(
    table: Sequence[Row], e: Efficiencies, fronts: Sequence[Calibration] = (), steady: bool = False
) -> list[dict[str, object]]:
    out = []
    for row in table:
        try:
            front = None if steady else nearest_front(row, fronts)
            ttft, tpot = predicted(row, STEADY if steady else harness(row), e, front)
        except AnalysisError:
            continue
        out.append(
            {"backend": row["backend"], "model": row["model_path"].split("/")[-1], "tp": int(row["tp_size"]),
             "requests": int(row["batch_size"]),
             "ttft": ttft * 1e3 / float(row["silicon_ttft_ms"]) - 1,
             "tpot": tpot * 1e3 / float(row["silicon_tpot_ms"]) - 1}
        )  # fmt: skip
    return out


def summary(found: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    groups = {"all": found}
    for key in ("backend", "model", "tp", "requests"):
        for value in sorted({f[key] for f in found}, key=lambda v: (str(type(v)), v)):  # type: ignore[return-value]
            groups[f"{key} {value}"] = [f for f in found if f[key] == value]
    return {
        name: {"rows": len(own)}
        | {f"{k} {s}": float(fn(np.abs([float(str(f[k])) for f in own]))) for k in ("ttft", "tpot")
           for s, fn in (("MAPE", np.mean), ("median", np.median))}
        | {f"{k} bias": float(np.median([float(str(f[k])) for f in own])) for k in ("ttft", "tpot")}
        for name, own in groups.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--calibrations", type=Path, help="file of 'qmeter calibrate-model'")
    parser.add_argument("--load", choices=("as-made", "steady"), default="as-made")
    parser.add_argument("--every", type=int, default=1, help="only every n-th row")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    e = load_physics(args.calibrations).efficiencies if args.calibrations else Efficiencies()
    fronts = load_calibrations(args.calibrations) if args.calibrations else []
    found = summary(errors(rows(args.table)[:: args.every], e, fronts, args.load == "steady"))
    if args.json:
        print(json.dumps({"efficiencies": asdict(e), "errors": found}))
        return
    print(e)
    for name, s in found.items():
        print(f"{name:28s} {s['rows']:4.0f} rows  TTFT MAPE {s['ttft MAPE']:6.1%} median {s['ttft median']:6.1%} "
              f"bias {s['ttft bias']:+6.1%}   TPOT MAPE {s['tpot MAPE']:6.1%} median {s['tpot median']:6.1%} "
              f"bias {s['tpot bias']:+6.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
