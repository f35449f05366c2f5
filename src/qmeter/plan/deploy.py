"""A plan as something to deploy: a study for each offer in use, which ``qmeter run`` measures, and engine commands."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qmeter.capacity import Drawn
from qmeter.plan.check import loads
from qmeter.plan.run import PlanResult
from qmeter.spec.load import load_study_text
from qmeter.spec.study import Study
from qmeter.store import open_results
from qmeter.study.dry_run import plan_study

NO_STUDY = "its source is a calibration file, which does not say where the model came from"


@dataclass(frozen=True)
class Deployable:
    """One pool: how many replicas, who is routed to it, a study that checks it, and the command of one replica.

    ``study``, ``command``: ``None`` where ``why`` says why not.
    """

    pool: int
    name: str
    replicas: int
    routing: dict[str, tuple[float, ...]]
    study: str | None
    command: str | None
    why: str | None


def deployables(result: PlanResult) -> list[Deployable]:
    """Every pool in use."""
    return [_one(result, pool, k) for k, pool in enumerate(result.pools)]


def write_spec(result: PlanResult, folder: Path) -> list[Path]:
    """Write ``plan.yaml`` (replicas and routing) and one study a pool into a folder; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    for one in deployables(result):
        row: dict[str, Any] = {"deployment": one.name, "replicas": one.replicas,
                               "routing": {k: [round(v, 6) for v in f] for k, f in one.routing.items()}}  # fmt: skip
        if one.study:
            path = folder / f"pool-{one.pool}.yaml"
            path.write_text(one.study, encoding="utf-8")
            paths.append(path)
            row |= {"study": path.name}
        if one.command:
            row |= {"command": one.command}
        if one.why:
            row |= {"note": one.why}
        rows.append(row)
    demand = result.demand
    head = {"plan": result.spec.name, "objective": result.spec.objective, "period_s": demand.period_s,
            "classes": {c.name: [round(float(r), 6) for r in demand.rate_hz[i]] for i, c in enumerate(demand.classes)},
            "pools": rows}  # fmt: skip
    path = folder / "deployment.yaml"
    path.write_text("# shares of each class's requests that go to each pool, one a period\n" + _yaml(head))
    return [path, *paths]


def _one(result: PlanResult, pool: int, number: int) -> Deployable:
    plan, choice = result.found.solution, result.choice(pool)
    routing = {c.name: tuple(float(v) for v in plan.routing[i, pool]) for i, c in enumerate(result.demand.classes)
               if _any(plan.routing[i, pool])}  # fmt: skip
    common = (pool, choice.offer.name, int(plan.replicas[pool]), routing)
    if choice.offer.calibration.extrapolated:
        return Deployable(*common, None, None, "never measured: measure it before it is deployed")
    if Path(choice.offer.source).is_file():
        return Deployable(*common, None, None, NO_STUDY)
    text = _study(result, pool, number, open_results(choice.offer.source).study)
    study = load_study_text(text)
    first = plan_study(study)[0]
    return Deployable(*common, text, shlex.join(first.command) if first.command else None, first.problem)


def _any(values: Any) -> bool:
    return bool((values > 1e-9).any())


def _study(result: PlanResult, pool: int, number: int, source: Study) -> str:
    """One replica of the pool under its share of each class, in the period that fills it most."""
    offer = result.choice(pool).offer
    flow = loads(result.table, result.found.solution)[:, pool]
    period = int(flow.sum(axis=0).argmax())
    model = next(m for m in source.models if m.name == offer.model)
    engine = next(e for e in source.engines if e.name == offer.engine)
    workloads = []
    for i, one in enumerate(result.demand.classes):
        rate = float(flow[i, period]) / int(result.found.solution.replicas[pool])
        if rate <= 1e-9 or not isinstance(one.lengths, Drawn):
            continue
        slo = {k: f"{v:.6g}s" for k in ("ttft", "tpot", "e2e") if (v := getattr(one.slo, k)) is not None}
        arrivals = {"kind": "poisson", "rate": f"{rate:.6g}/s"}
        if one.burstiness != 1.0:
            arrivals |= {"kind": "gamma", "burstiness": one.burstiness}  # type: ignore[dict-item]
        workloads.append({
            "name": f"{one.name}", "arrivals": arrivals, "warmup": "10s", "window": "60s",
            "prompt_tokens": one.lengths.prompt.model_dump(mode="json", exclude_none=True),
            "output_tokens": one.lengths.output.model_dump(mode="json", exclude_none=True),
            "slo": slo | {"percentile": one.slo.percentile},
        })  # fmt: skip
    p = offer.parallelism
    data = {
        "qmeter": 1, "name": f"{result.spec.name}-pool-{number}",
        "description": f"one replica of {offer.name} under its share of each class of the plan {result.spec.name}",
        "models": [model.model_dump(mode="json", exclude_defaults=True) | {"name": model.name}],
        "engines": [{"name": engine.name, "options": {**engine.options, **offer.knobs}, "args": list(engine.args)}],
        "methods": [offer.method], "parallelism": [{"tp": p.tp, "pp": p.pp, "dp": p.dp}],
        "workloads": workloads, "quality": {"fidelity": False},
    }  # fmt: skip
    return _yaml(data)


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)
