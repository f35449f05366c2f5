"""A made-up study with records in every state: for tests of summaries and reports. Nothing here was measured.

The numbers come from :mod:`qmeter.testing.cells` through the real analysis, so that they have real shapes: intervals,
unknowns with their reasons, overload, a cell that the client spoilt, a method that did not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qmeter.analysis.cell import CellAnalysis, analyse
from qmeter.record import (
    CellStatus,
    CellTables,
    Check,
    ClientProof,
    Clock,
    EffectiveConfig,
    Neighbour,
    Provenance,
    Quantity,
    Reason,
    Record,
    RecordKind,
    Verification,
)
from qmeter.spec.study import Cell, Parallelism, Placement, Study, expand
from qmeter.spec.workload import WorkloadSpec
from qmeter.store import StudyStore
from qmeter.study.placement import Member, plan_groups
from qmeter.testing.cells import MadeServer, made_series, made_tables


@dataclass(frozen=True)
class MadeMethod:
    """One method's made-up behaviour: speed against BF16, power, perplexity ratio, weights, number types."""

    prefill: float
    step: float
    busy_w: float
    ppl_ratio: float
    weight_bytes: int
    types: tuple[str, str, str]


_GB = 10**9
METHODS: dict[str, MadeMethod] = {
    "bf16": MadeMethod(1.0, 1.0, 690, 1.0, int(16.06 * _GB), ("bf16", "bf16", "bf16")),
    "awq-w4a16": MadeMethod(1.25, 0.62, 610, 1.031, int(5.7 * _GB), ("int4", "bf16", "bf16")),
    "gptq-w4a16": MadeMethod(1.22, 0.63, 612, 1.062, int(5.7 * _GB), ("int4", "bf16", "bf16")),
    "smoothquant-w8a8": MadeMethod(0.72, 0.68, 640, 1.012, int(9.1 * _GB), ("int8", "int8", "bf16")),
    "fp8": MadeMethod(0.63, 0.66, 600, 1.006, int(9.1 * _GB), ("fp8", "fp8", "bf16")),
    "fp8-kv8": MadeMethod(0.62, 0.61, 590, 1.009, int(9.1 * _GB), ("fp8", "fp8", "fp8")),
    "w4a8-fp8": MadeMethod(0.7, 0.55, 575, 1.12, int(5.8 * _GB), ("int4", "fp8", "bf16")),
    "nf4": MadeMethod(1.9, 1.15, 560, 1.045, int(5.9 * _GB), ("nf4", "bf16", "bf16")),
}
"""The made-up methods, the reference first."""


def made_study(*, rates: tuple[int, ...] = (4, 12, 24, 36), repeats: int = 1, window: str = "12s") -> Study:
    """A study over :data:`METHODS` with an SLO and several loads, as validated from YAML."""
    return Study.model_validate(
        {
            "qmeter": 1,
            "name": "made-up",
            "description": "Made-up numbers for tests: nothing here was measured.",
            "models": [{"name": "llama-3.1-8b", "source": "synth:llama-3.1-8b", "shape": "llama-3.1-8b"}],
            "engines": [{"name": "vllm"}],
            "methods": list(METHODS),
            "device": "h200",
            "workloads": [
                {
                    "name": f"chat@{rate}",
                    "arrivals": {"kind": "poisson", "rate": f"{rate}/s"},
                    "prompt_tokens": {"kind": "fixed", "tokens": 512},
                    "output_tokens": {"kind": "fixed", "tokens": 64},
                    "warmup": "3s",
                    "window": window,
                    "drain": "10s",
                }
                for rate in rates
            ],
            "slo": {"ttft": "300ms", "tpot": "15ms", "percentile": 0.9},
            "repeats": repeats,
            "quality": {"reference": "bf16"},
        }
    )


PARALLEL_METHODS = ("bf16", "awq-w4a16", "fp8", "w4a8-fp8")


def made_parallel_study(
    *, methods: tuple[str, ...] = PARALLEL_METHODS, rates: tuple[str, ...] = ("4/s", "24/s"), window: str = "8s"
) -> Study:
    """A study over TP 1/2/4, PP 2 and DP 2, open and closed loads; on one GPU also side by side."""
    lengths = {"prompt_tokens": {"kind": "fixed", "tokens": 512}, "output_tokens": {"kind": "fixed", "tokens": 64}}
    times = {"warmup": "3s", "window": window, "drain": "10s"}
    laws = [*({"kind": "poisson", "rate": r} for r in rates), {"kind": "closed", "concurrency": 64}]
    workloads = [
        WorkloadSpec.model_validate({"name": f"w{k}", "arrivals": law, **lengths, **times})
        for k, law in enumerate(laws)
    ]
    degrees: tuple[dict[str, int], ...] = ({}, {"tp": 2}, {"tp": 4}, {"pp": 2}, {"dp": 2})
    several = (("tp", "2"), ("tp", "4"), ("pp", "2"), ("dp", "2"))
    return made_study().model_copy(
        update={
            "name": "made-up-parallel",
            "methods": methods,
            "parallelism": tuple(Parallelism.model_validate(d) for d in degrees),
            "placement": tuple(Placement),
            "exclude": tuple({"placement": "side_by_side", axis: n} for axis, n in several),
            "workloads": tuple(workloads),
        }
    )


def made_records(
    study: Study | None = None,
    *,
    gpus: int = 1,
    kind: RecordKind = RecordKind.MEASURED,
    store: StudyStore | None = None,
) -> list[Record]:
    """Records of the made-up study: ``nf4`` fails to fit, one cell is spoilt by its client, high loads overload.

    Args:
        study: by default :func:`made_study`.
        gpus: cards with power telemetry; 0 makes every energy unknown.
        kind: measured or simulated.
        store: where the records and their tables are written too.
    """
    cells = expand(study or made_study())
    seats = _seats(cells)
    records = []
    for number, cell in enumerate(cells):
        record, tables = _record(cell, METHODS[cell.deployment.method], gpus, kind, spoilt=number == 5)
        record = record.model_copy(update=seats.get(cell.id, {}))
        if store is not None:
            if tables is not None:
                record = record.model_copy(update={"files": store.write_tables(cell.id, tables)})
            store.append(record)
        records.append(record)
    return records


def write_made_study(folder: Path, study: Study | None = None, *, gpus: int = 1) -> StudyStore:
    """A whole study folder of made-up records and tables."""
    made = study or made_study()
    store = StudyStore.create(folder, made, yaml.safe_dump({"note": "made up", "name": made.name}))
    made_records(made, gpus=gpus, store=store)
    return store


def _record(
    cell: Cell, method: MadeMethod, gpus: int, kind: RecordKind, *, spoilt: bool
) -> tuple[Record, CellTables | None]:
    if cell.deployment.method == "nf4":
        return _failed(cell, kind), None
    server = _spread(_server(method, gpus * cell.deployment.parallelism.devices), cell)
    tables = made_tables(cell.workload, server, seed=cell.seed)
    idle = Quantity.of(120.0 * gpus, "W", n=60) if gpus else Quantity.unknown("W", "no power sensor on this host")
    found = analyse(tables, cell.workload, made_series(server), seed=cell.seed, idle_power=idle)
    proof = _proof(cell, spoilt)
    record = _bare(cell, kind, CellStatus.INVALID if proof.failures else CellStatus.OK).model_copy(
        update={
            "reasons": proof.failures,
            "warnings": found.warnings,
            "clock": Clock(origin_monotonic_s=1000.0, origin_unix_s=1.7e9),
            "window": found.window,
            "effective": _effective(method),
            "verification": _verification(method),
            "proof": proof,
            "metrics": found.metrics,
            "energy": found.energy,
            "quality": _quality(cell, method),
            "series": made_series(server),
            "timings": _timings(found),
        }
    )
    return record, tables


def _server(method: MadeMethod, gpus: int) -> MadeServer:
    base = MadeServer(gpus=gpus)
    return replace(
        base,
        prefill_s=base.prefill_s * method.prefill,
        step_s=base.step_s * method.step,
        load_step_s=base.load_step_s * method.step,
        busy_w=method.busy_w,
    )


def _seats(cells: list[Cell]) -> dict[str, dict[str, Any]]:
    """GPUs and neighbours of each cell on a host of eight GPUs, where the study uses more than one."""
    if all(c.deployment.placement is Placement.ALONE and c.deployment.parallelism.devices == 1 for c in cells):
        return {}
    seats: dict[str, dict[str, Any]] = {}
    for group in plan_groups(cells, 8):
        for member in group.members:
            others = [m for m in group.members if m is not member]
            for cell in member.cells:
                neighbours = tuple(n for m in others for n in _beside(m, cell))
                seats[cell.id] = {"devices": member.devices, "neighbours": neighbours}
    return seats


def _beside(other: Member, cell: Cell) -> list[Neighbour]:
    at_once = [c for c in other.cells if (c.workload, c.repeat) == (cell.workload, cell.repeat)]
    named, devices = other.deployment, other.devices or ()
    return [Neighbour(deployment_id=named.id, label=named.label, devices=devices, cell_id=c.id) for c in at_once]


def _spread(server: MadeServer, cell: Cell) -> MadeServer:
    """The server over several GPUs: made-up scaling, worse than ideal; 4% slower beside others."""
    p = cell.deployment.parallelism
    tensor, stages = p.tp**0.7, 1.06 ** (p.pp - 1)
    beside = 1.04 if cell.deployment.placement is Placement.SIDE_BY_SIDE else 1.0
    slow = stages * beside / tensor
    return replace(
        server,
        prefill_s=server.prefill_s * slow,
        step_s=server.step_s * slow,
        load_step_s=server.load_step_s * slow / (p.dp * p.pp**0.8),
        slots=server.slots * p.devices,
        busy_w=server.busy_w * (1.0 if p.devices == 1 else 0.8),
    )


def _bare(cell: Cell, kind: RecordKind, status: CellStatus) -> Record:
    simulated = kind is RecordKind.SIMULATED
    return Record(
        kind=kind,
        study="made-up",
        cell_id=cell.id,
        deployment_id=cell.deployment.id,
        status=status,
        cell=cell.model_dump(mode="json"),
        provenance=Provenance(
            qmeter_version="0.0.0+made-up",
            git_commit=None,
            started_unix_s=1.7e9,
            host={"cpu": "made-up CPU", "threads": 64, "memory_bytes": 512 * _GB, "gpus": [{"name": "made-up H200"}]},
            versions={"python": "3.11", "vllm": "0.25.1"},
            engine_command=("vllm", "serve", "<model>", "--quantization", cell.deployment.method),
            engine_env={},
            model={"source": cell.deployment.model.source, "notes": ["made-up weights: quality is made up too"]},
            hashes={"cell": cell.id, "deployment": cell.deployment.id},
            seed=cell.seed,
            calibration="made-up calibration" if simulated else None,
        ),
    )


def _failed(cell: Cell, kind: RecordKind) -> Record:
    reason = Reason(
        kind="OutOfMemory",
        stage="launch",
        message="the weights (made up) do not fit: 148 GB needed, 141 GB on the device",
        hint="use a smaller weight type, or tp: 2",
    )
    return _bare(cell, kind, CellStatus.FAILED).model_copy(update={"reasons": (reason,)})


def _proof(cell: Cell, spoilt: bool) -> ClientProof:
    late = 0.0134 if spoilt else 0.00011
    failure = Reason(
        kind="client_lateness",
        stage="load",
        message=f"requests left up to {late * 1000:.1f} ms late at p99; the limit is 2 ms",
        hint="give the client a core of its own, or lower the rate",
    )
    rate = getattr(cell.workload.arrivals, "rate", 1.0)
    return ClientProof(
        checks={
            "send_lateness_p50": Quantity.of(late / 4, "s"),
            "send_lateness_p99": Quantity.of(late, "s"),
            "loop_lag_p99": Quantity.of(0.00021, "s"),
            "rate_asked": Quantity.of(rate, "1/s"),
            "rate_achieved": Quantity.of(rate * 0.9998, "1/s"),
            "arrival_ks_p": Quantity.of(0.62, "1"),
            "kernel_stamp_share": Quantity.of(0.997, "1"),
            "cpu_share": Quantity.of(0.21, "1"),
        },
        failures=(failure,) if spoilt else (),
    )


def _effective(method: MadeMethod) -> EffectiveConfig:
    weight, activation, kv = method.types
    return EffectiveConfig(
        engine_version="0.25.1", weight_bytes=method.weight_bytes, weight_type=weight, activation_type=activation,
        kv_type=kv, kernel="MadeUpKernel", kv_blocks=int((125e9 - method.weight_bytes) / 2.1e6), kv_block_tokens=16,
        token_budget=8192, max_sequences=256, sources={"weight_bytes": "log: Model loading took"},
    )  # fmt: skip


def _verification(method: MadeMethod) -> Verification:
    gib = f"{method.weight_bytes / 2**30:.2f} GiB"
    checks = (
        Check(name="weight bytes", expected=gib, seen=gib, passed=True),
        Check(name="weight type", expected=method.types[0], seen=method.types[0], passed=True),
        Check(name="KV type", expected=method.types[2], seen=None, passed=None, why="the engine does not report it"),
    )
    return Verification(checks=checks)


def _quality(cell: Cell, method: MadeMethod) -> dict[str, Quantity]:
    x, n = method.ppl_ratio - 1, 768
    if cell.deployment.method == "bf16":
        exact = Quantity.of(1.0, "1", low=1.0, high=1.0, n=n)
        return {"ppl_ratio": exact, "kl_topk": Quantity.of(0.0, "nat/token", low=0.0, high=0.0, n=n)}
    half = 0.004 + 0.25 * x
    return {
        "ppl_ratio": Quantity.of(1 + x, "1", low=1 + x - half, high=1 + x + half, n=n),
        "logprob_gap": Quantity.of(float(np.log1p(x)), "nat/token", low=x - half, high=x + half, n=n),
        "kl_topk": Quantity.of(1.3 * x, "nat/token", low=1.1 * x, high=1.6 * x, n=n),
        "top1_agreement": Quantity.of(0.995 - 1.4 * x, "1", low=0.985 - 1.4 * x, high=min(1.0, 0.999 - 1.4 * x), n=n),
    }


def _timings(found: CellAnalysis) -> dict[str, float]:
    return {"launch": 41.0, "warmup": 3.1, "load": found.window.end_s + 0.8, "analyse": 0.2, "teardown": 2.0}
