"""Records "measured" on a deployment whose truth is known: the simulator plays the engine, the fit must find it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from qmeter.analysis.cell import analyse
from qmeter.record import CellStatus, Clock, EffectiveConfig, Provenance, Record, RecordKind
from qmeter.simulate.engine import _sent, at_scheduler, tables_of
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import load_of
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel, piecewise
from qmeter.spec.study import Cell, ClientSpec, Deployment, EngineRef, ModelRef, Parallelism, QualitySpec, TelemetrySpec
from qmeter.spec.workload import WorkloadSpec
from qmeter.workload import Vocabulary, build

RULES = Rules(2048, 64, 3000)
EFFECTIVE = EffectiveConfig(
    kv_blocks=3000, kv_block_tokens=16, token_budget=2048, max_sequences=64, max_model_tokens=4096
)


def truth(noise=0.05, seed=1):
    rng = np.random.default_rng(seed)
    decode = piecewise(np.array([1, 8, 64.0]), np.array([0.006, 0.0065, 0.010]), 64)
    mixed = piecewise(np.array([1, 256, 2048.0]), np.array([0.007, 0.010, 0.05]), 2048)
    pool = rng.lognormal(0, noise, 4001)
    return StepModel(
        decode, mixed, kv_s=4e-8, pair_s=1e-9, decode_j=0.01 * np.arange(65.0), mixed_j=0.02 * np.arange(2049.0),
        kv_j=1e-6, busy_w=250.0, idle_w=80.0, input_s=0.002, output_s=0.0005,
        host_s=0.003, host_mixed_s=0.012, tail_s=0.001,
        noise_decode=pool / pool.mean(), noise_mixed=pool / pool.mean(),
    )  # fmt: skip


def workload(arrivals, window=8.0, **more):
    name = f"{arrivals['kind']}-{arrivals.get('rate', arrivals.get('concurrency'))}".replace("/s", "")
    base = {"name": name, "arrivals": arrivals, "prompt_tokens": {"kind": "uniform", "low": 50, "high": 600},
            "output_tokens": {"kind": "uniform", "low": 20, "high": 150}, "warmup": "2s", "window": f"{window}s",
            "drain": "30s"}  # fmt: skip
    return WorkloadSpec.model_validate(base | more)


LOADS = (
    workload({"kind": "poisson", "rate": "1/s"}), workload({"kind": "poisson", "rate": "6/s"}),
    workload({"kind": "closed", "concurrency": 24}), workload({"kind": "closed", "concurrency": 48}),
)  # fmt: skip
HELD = (workload({"kind": "poisson", "rate": "3/s"}, 30.0), workload({"kind": "closed", "concurrency": 12}, 20.0))


def measured(spec, model=None, seed=7, keep_steps=True, engine="vllm"):
    """``(record, tables)`` of a cell on the true deployment."""
    model = model or truth(seed=seed)
    schedule = build(spec, seed, Vocabulary(size=32000))
    load = load_of(schedule, RULES)
    result = simulate(at_scheduler(load, model), RULES, model, detail=True)
    limit = schedule.warmup_s + schedule.window_s + schedule.drain_s
    tables = tables_of(load, result, _sent(schedule, load, result, model), model, RULES, limit, "gpu0.energy_j")
    if not keep_steps:
        tables = replace(tables, steps=type(tables.steps).empty())
    deployment = Deployment(
        model=ModelRef(name="m", source="synth:llama-3.1-8b", shape="llama-3.1-8b"),
        engine=EngineRef(name=engine, options={"enforce_eager": True}), method="bf16", device="h200",
        parallelism=Parallelism(),
    )  # fmt: skip
    cell = Cell(deployment=deployment, workload=spec, repeat=0, seed=seed, quality=QualitySpec(),
                telemetry=TelemetrySpec(), client=ClientSpec())  # fmt: skip
    found = analyse(tables, spec, (), seed=1)
    record = Record(
        kind=RecordKind.MEASURED, study="s", cell_id=cell.id, deployment_id=deployment.id, status=CellStatus.OK,
        cell=json.loads(cell.model_dump_json()), clock=Clock(origin_monotonic_s=0, origin_unix_s=0),
        effective=EFFECTIVE, metrics=found.metrics, energy=found.energy,
        provenance=Provenance(qmeter_version="0", git_commit=None, started_unix_s=0, host={}, versions={},
                              engine_command=None, engine_env={}, model={}, hashes={}, seed=seed),
    )  # fmt: skip
    return record, tables


def data_parallel(spec, seed=7, told=True):
    """``(record, tables)`` of a cell on two replicas behind one server, each with an iteration log of its own.

    ``told``: the deployment says dp 2 (an attached server need not).
    """
    (record, one), (_, two) = measured(spec, seed=seed), measured(spec, seed=seed + 50)

    def both(name, **changed):
        a, b = getattr(one, name).columns(), getattr(two, name).columns() | changed
        return type(getattr(one, name))(**{n: np.concatenate([a[n], b[n]]) for n in a})

    tokens = both("tokens", request=two.tokens.request + len(one.requests))
    steps = both("steps", replica=np.ones(len(two.steps), dtype=np.int16))
    tables = replace(one, requests=both("requests"), tokens=tokens, steps=steps)
    deployment = record.cell["deployment"] | ({"parallelism": {"tp": 1, "pp": 1, "dp": 2}} if told else {})
    cell = record.cell | {"deployment": deployment}
    return record.model_copy(update={"cell": cell, "deployment_id": "dp2", "cell_id": f"dp2-{seed}"}), tables


def study(loads=LOADS, first_seed=100, **more):
    """Records, and a function that gives their tables."""
    pairs = [measured(spec, seed=first_seed + k, **more) for k, spec in enumerate(loads)]
    kept = {r.cell_id: t for r, t in pairs}
    return [r for r, _ in pairs], lambda r: kept[r.cell_id]
