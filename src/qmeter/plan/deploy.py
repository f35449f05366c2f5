"""A plan as something to deploy: a study for each offer in use, which ``qmeter run`` measures, and engine commands."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from qmeter.capacity import ClassLoad, Drawn, sample
from qmeter.plan.check import loads, mixture
from qmeter.plan.run import PlanResult
from qmeter.spec.load import load_study
from qmeter.spec.study import Study
from qmeter.spec.workload import SLO
from qmeter.store import open_results
from qmeter.study.dry_run import plan_study

NO_STUDY = "its source is a calibration file, which does not say where the model came from"


WARMUP_S, WINDOW_S = 10.0, 60.0


@dataclass(frozen=True)
class Deployable:
    """One pool as it would run.

    Attributes:
        routing: class → share of its requests that goes here, one a period.
        study: path of the study that measures one replica; command: of one replica's engine; either may be ``None``,
            and ``why`` then says why.
    """

    pool: int
    name: str
    replicas: int
    routing: dict[str, tuple[float, ...]]
    study: Path | None
    command: str | None
    why: str | None


def write_spec(result: PlanResult, folder: Path) -> list[Path]:
    """Write ``deployment.yaml`` (replicas, routing, commands), and a study with its trace for each pool, into a folder.

    A pool's study sends one replica what it gets in the period that fills it most: the whole mixture as a trace, under
    the pool's level, and each class alone under its own promise. Returns the paths, ``deployment.yaml`` first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = [_one(result, pool, k, folder) for k, pool in enumerate(result.pools)]
    demand = result.demand
    rates = {c.name: [round(float(r), 6) for r in demand.rate_hz[i]] for i, c in enumerate(demand.classes)}
    head = {"plan": result.spec.name, "objective": result.spec.objective, "period_s": demand.period_s,
            "classes": rates, "pools": [_row(one) for one in made]}  # fmt: skip
    path = folder / "deployment.yaml"
    comment = "# classes: requests a second in each period; routing: share of each class's requests to this pool\n"
    path.write_text(comment + _yaml(head), encoding="utf-8")
    studies = [one.study for one in made if one.study]
    return [path, *studies]


def _row(one: Deployable) -> dict[str, Any]:
    routing = {name: [round(v, 6) for v in shares] for name, shares in one.routing.items()}
    row: dict[str, Any] = {"deployment": one.name, "replicas": one.replicas, "routing": routing}
    named = {"study": one.study.name if one.study else None, "command": one.command, "note": one.why}
    return row | {k: v for k, v in named.items() if v}


def _one(result: PlanResult, pool: int, number: int, folder: Path) -> Deployable:
    plan, choice = result.found.solution, result.choice(pool)
    routing = {c.name: tuple(float(v) for v in plan.routing[i, pool]) for i, c in enumerate(result.demand.classes)
               if _any(plan.routing[i, pool])}  # fmt: skip
    common = (pool, choice.offer.name, int(plan.replicas[pool]), routing)
    if choice.offer.calibration.extrapolated:
        return Deployable(*common, None, None, "never measured: measure it before it is deployed")
    if Path(choice.offer.source).is_file():
        return Deployable(*common, None, None, NO_STUDY)
    path = folder / f"pool-{number}.yaml"
    path.write_text(_study(result, pool, number, open_results(choice.offer.source).study, folder), encoding="utf-8")
    command, why = _command(load_study(path))
    return Deployable(*common, path, command, why)


def _command(study: Study) -> tuple[str | None, str | None]:
    """The engine's command for one replica; the engine need not be on the host that plans."""
    engine = study.engines[0]
    if engine.name == "vllm" and engine.binary is None:  # the program of the host that serves, where that will do
        named = study.model_copy(update={"engines": (engine.model_copy(update={"binary": "vllm"}),)})
        if command := plan_study(named)[0].command:
            return shlex.join(command), None
    first = plan_study(study)[0]
    if first.command is None:
        return None, first.problem
    return shlex.join("python3" if word == sys.executable else word for word in first.command), None


def _any(values: Any) -> bool:
    return bool((values > 1e-9).any())


def _study(result: PlanResult, pool: int, number: int, source: Study, folder: Path) -> str:
    """One replica of the pool under its share of each class, in the period that fills it most."""
    offer = result.choice(pool).offer
    flow = loads(result.table, result.found.solution)[:, pool]
    period = int(flow.sum(axis=0).argmax())
    model = next(m for m in source.models if m.name == offer.model)
    engine = next(e for e in source.engines if e.name == offer.engine)
    each = flow[:, period] / int(result.found.solution.replicas[pool])
    workloads = [_mixture(result, pool, each, folder / f"pool-{number}.csv")] if _any(each) else []
    workloads += [_alone(one, float(each[i])) for i, one in enumerate(result.demand.classes)
                  if each[i] > 1e-9 and isinstance(one.lengths, Drawn)]  # fmt: skip
    p = offer.parallelism
    data = {
        "qmeter": 1, "name": f"{result.spec.name}-pool-{number}",
        "description": f"one replica of {offer.name} under its share of the plan {result.spec.name}",
        "models": [model.model_dump(mode="json", exclude_defaults=True) | {"name": model.name}],
        "engines": [{"name": engine.name, "options": {**engine.options, **offer.knobs}, "args": list(engine.args)}],
        "methods": [offer.method], "parallelism": [{"tp": p.tp, "pp": p.pp, "dp": p.dp}],
        "workloads": workloads, "quality": {"fidelity": False},
    }  # fmt: skip
    return _yaml(data)


def _mixture(result: PlanResult, pool: int, each: Any, path: Path) -> dict[str, Any]:
    """The mixture as a trace file in Azure's format, long enough for warm-up and window."""
    mix, rate = mixture(result.table, each)
    requests = sample(mix, int(rate * (WARMUP_S + WINDOW_S) * 1.2) + 50, result.spec.seed)
    start = datetime(2000, 1, 1)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for at, prompt, output in zip(requests.sent_unit / rate, requests.prompt, requests.output, strict=True):
        stamp = (start + timedelta(seconds=float(at))).isoformat(sep=" ", timespec="microseconds")
        lines.append(f"{stamp},{prompt},{output}")
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    level = result.table.pools[pool].level
    return {
        "name": "mixture", "arrivals": {"kind": "trace", "path": path.name, "format": "azure"},
        "prompt_tokens": {"kind": "trace"}, "output_tokens": {"kind": "trace"}, **_phases(level),
    }  # fmt: skip


def _alone(one: ClassLoad, rate: float) -> dict[str, Any]:
    assert isinstance(one.lengths, Drawn)
    arrivals: dict[str, Any] = {"kind": "poisson", "rate": f"{rate:.6g}/s"}
    if one.burstiness != 1.0:
        arrivals |= {"kind": "gamma", "burstiness": one.burstiness}
    return {
        "name": one.name, "arrivals": arrivals,
        "prompt_tokens": one.lengths.prompt.model_dump(mode="json", exclude_none=True),
        "output_tokens": one.lengths.output.model_dump(mode="json", exclude_none=True), **_phases(one.slo),
    }  # fmt: skip


def _phases(slo: SLO) -> dict[str, Any]:
    limits = {k: f"{v:.6g}s" for k in ("ttft", "tpot", "e2e") if (v := getattr(slo, k)) is not None}
    return {"warmup": f"{WARMUP_S:g}s", "window": f"{WINDOW_S:g}s", "slo": limits | {"percentile": slo.percentile}}


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)
