"""The plan as a schedule file that ``qmeter serve-schedule`` runs, and the whole answer as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qmeter.errors import QMeterError
from qmeter.router.file import ScheduleFile
from qmeter.schedule import words
from qmeter.schedule.kinds import Kind
from qmeter.schedule.solve import NAMES, Answer
from qmeter.schedule.spec import DAY_S
from qmeter.store import open_results, write_atomic

STARTUP_SLACK = 1.5
"""Replicas start this many times their measured start ahead of their slot."""

HEAD = """# Made by qmeter schedule from the forecast of {name}; run it on the host that has the devices:
#   qmeter serve-schedule {file} --by-clock
# Models stand as the records name them: put your own source, checkpoints and gpus where they differ.
"""


def schedule_data(answer: Answer) -> dict[str, Any]:
    """The planned course as a schedule file's data; slots in which nothing changes are joined."""
    spec, course, kinds = answer.spec, answer.plan, answer.choice.kinds
    most = course.n.max(axis=0)
    slots: list[dict[str, Any]] = []
    for t, at in enumerate(course.at_s):
        up = {k.name: int(n) for k, n in zip(kinds, course.n[t], strict=True) if n}
        shares = {c.name: _shares(kinds, course.shares[t, i], up) for i, c in enumerate(spec.classes)}
        caps = {k.name: k.power_cap_w for k in kinds if k.name in up and k.power_cap_w}
        slot = {"at": f"{at:.0f}s", "up": up, "shares": shares} | ({"power_caps": caps} if caps else {})
        if not slots or any(slot[key] != slots[-1].get(key) for key in slot if key != "at"):
            slots.append(slot)
    deployments = [_deployment(k, int(most[i])) for i, k in enumerate(kinds) if most[i]]
    return {"qmeter_schedule": 1, "name": spec.name, "description": spec.description,
            "classes": [c.name for c in spec.classes], "deployments": deployments, "slots": slots,
            "length": f"{DAY_S:.0f}s", "repeat": True}  # fmt: skip


def _shares(kinds: tuple[Kind, ...], shares: Any, up: dict[str, int]) -> dict[str, float]:
    """Shares of the kinds that are up, rounded so that they add up to 1."""
    raw = {k.name: round(float(s), 4) for k, s in zip(kinds, shares, strict=True) if s > 0 and k.name in up}
    raw = raw or {max(up, key=lambda n: up[n]): 1.0}
    largest = max(raw, key=lambda n: raw[n])
    raw[largest] = round(raw[largest] + 1.0 - sum(raw.values()), 4)
    return raw


def _deployment(kind: Kind, replicas: int) -> dict[str, Any]:
    """As the records' own study named it; where the source keeps no study, what the calibration knows."""
    d = kind.offer.calibration.deployment
    known = _in_records(kind.offer.source, str(d["id"])) or {
        "model": {"name": d["model"], "source": f"synth:{d['shape']}", "shape": d["shape"]},
        "engine": {"name": d["engine"], "options": {}}, "parallelism": dict(d["parallelism"]),
    }  # fmt: skip
    engine = {key: value for key, value in known["engine"].items() if value not in (None, (), [], {})}
    engine.pop("ready_timeout", None)
    model = {key: value for key, value in known["model"].items() if value not in (None, {})}
    return {"name": kind.name, "model": model, "engine": engine, "method": kind.offer.method,
            "device": kind.offer.device, "parallelism": known["parallelism"], "replicas": replicas,
            "startup": f"{kind.load_s * STARTUP_SLACK:.0f}s"}  # fmt: skip


def _in_records(source: str, deployment_id: str) -> dict[str, Any] | None:
    try:
        records = open_results(source).records()
    except QMeterError:
        return None
    return next((dict(r.cell["deployment"]) for r in records if r.deployment_id == deployment_id), None)


def write_schedule(answer: Answer, path: Path) -> Path:
    """Write the schedule file; it is checked as ``serve-schedule`` will check it."""
    data = schedule_data(answer)
    ScheduleFile.model_validate(data)
    text = HEAD.format(name=answer.spec.name, file=path.name)
    write_atomic(path, text + yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return path


def answer_data(answer: Answer) -> dict[str, Any]:
    """Everything found, for ``--json``."""
    kinds = [
        {"name": k.name, "deployment": k.offer.name, "capacity_hz": dict(zip([c.name for c in answer.spec.classes],
         k.capacity_hz, strict=True)), "power_w": list(k.power_w), "draw": list(k.draw), "load_s": k.load_s,
         "load_j": k.load_j, "quality": dict(k.quality), "power_cap_w": k.power_cap_w}
        for k in answer.choice.kinds
    ]  # fmt: skip
    return {"kind": "simulated", "name": answer.spec.name, "headline": words.headline(answer),
            "reasons": words.reasons(answer), "caveats": words.caveats(answer), "kinds": kinds,
            "off_w": dict(answer.choice.off_w), "requests": [len(d) for d in answer.days],
            "policies": {name: _policy(answer, name) for name in NAMES}, "schedule": schedule_data(answer),
            "seconds": answer.seconds}  # fmt: skip


def _policy(answer: Answer, name: str) -> dict[str, Any]:
    outcomes = answer.outcomes[name]
    first = outcomes[0]
    numbers = {"energy": answer.energy_j(name), "slo_violations": answer.violations(name),
               "saving_over_static": answer.saving(name), "oracle_saving_closed": answer.closed(name)}  # fmt: skip
    return {
        "title": first.course.title,
        **{key: q.model_dump(mode="json", exclude_none=True) for key, q in numbers.items()},
        "days": [
            {"energy_j": o.energy_j, "load_j": o.load_j, "idle_j": o.idle_j, "off_j": o.off_j, "starts": o.starts,
             "slo_violations": o.violations, "by_class": dict(zip([c.name for c in answer.spec.classes], o.by_class,
             strict=True)), "lost": o.lost, "ttft_p99_s": o.ttft_p99_s, "tpot_p99_s": o.tpot_p99_s,
             "quality": {f"{cls}.{metric}": v for (cls, metric), v in o.quality.items()},
             "served": {k.name: s for k, s in zip(answer.choice.kinds, o.served, strict=True)},
             "optimality_gap": o.course.gap, "optimising_s": o.course.seconds}
            for o in outcomes
        ],
    }  # fmt: skip
