"""The page's words around the numbers: facts, notes, provenance, how to read it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import qmeter
from qmeter.analysis.metrics import METRICS, Metric, metric
from qmeter.analysis.summary import StudySummary
from qmeter.record import Quantity, Record, RecordKind
from qmeter.report.evidence import Table, lean
from qmeter.report.numbers import shown
from qmeter.report.views import GroupView, Notes
from qmeter.spec.study import Study

READING = (
    "Every latency counts from the intended send time, so waiting in a client's queue is in it.",
    "A window is the planned one; where it drifts, its beginning is cut, and where it still drifts, the cell says so.",
    "Requests that fail or do not finish count as misses of the SLO. A percentile that they could reach is unknown.",
    "Brackets hold 95% intervals: over repeats where there are two or more, else from within the run (block bootstrap; "
    "Wilson for shares). For energy they are the counter's error bound, plus the spread within the run for ratios.",
    "Unknown is never zero: each unknown says why.",
    "Two methods differ only where their intervals do not overlap, or where paired repeats differ; else they are tied.",
    "A method is dominated if another is better beyond noise on one objective and worse on none.",
)


def page_parts(
    study: Study,
    summary: StudySummary,
    records: Sequence[Record],
    made: Sequence[GroupView],
    notes: Notes,
    tables: Mapping[str, Table],
) -> dict[str, Any]:
    """Everything the template names, but for the charts."""
    return {
        "study": study.name,
        "description": study.description,
        "version": qmeter.__version__,
        "made": time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        "simulated": _simulated(records),
        "facts": _facts(summary, records),
        "groups": made,
        "notes": notes.texts,
        "pareto_notes": _pareto_notes(made),
        "energy_note": _energy_note(summary),
        "quality_notes": _quality_notes(summary),
        "provenance": _provenance(records, study),
        "commands": _commands(records),
        "reading": READING,
        "definitions": _definitions(summary),
        **{name: lean(table) for name, table in tables.items()},
    }


def _simulated(records: Sequence[Record]) -> str:
    kinds = {r.kind for r in records}
    if RecordKind.SIMULATED not in kinds:
        return ""
    origin = ", ".join(_distinct(r.provenance.calibration for r in records)) or "no calibration named"
    some = "Some of these numbers are" if len(kinds) > 1 else "These numbers are"
    return f"{some} simulated, not measured (calibration: {origin})."


def _distinct(texts: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(t) for t in texts if t))


def _facts(summary: StudySummary, records: Sequence[Record]) -> list[tuple[str, str]]:
    if not records:
        return []
    when = [r.provenance.started_unix_s for r in records]
    day = time.strftime("%Y-%m-%d", time.localtime(min(when)))
    valid = f"{summary.valid_cells} of {summary.cells} valid"
    facts = [
        ("Model", ", ".join(_distinct(d.key.model for d in summary.deployments))),
        ("Engine", ", ".join(_distinct(_engine(d.key.engine, records) for d in summary.deployments))),
        ("Host", "; ".join(_distinct(host_text(r.provenance.host) for r in records))),
        ("Methods", str(len({d.key.method for d in summary.deployments}))),
        ("Cells", valid),
        ("Measured" if any(r.kind is RecordKind.MEASURED for r in records) else "Simulated", day),
    ]
    return [(name, text) for name, text in facts if text]


def _engine(name: str, records: Sequence[Record]) -> str:
    mine = [r for r in records if r.cell.get("deployment", {}).get("engine", {}).get("name") == name]
    version = next((r.effective.engine_version for r in mine if r.effective and r.effective.engine_version), None)
    if version is None:
        return name
    return version if name in version else f"{name} {version}"


def host_text(host: Mapping[str, Any]) -> str:
    """A host in a line: GPUs, CPU, threads, memory."""
    gpus = [str(g.get("name", "GPU")) for g in host.get("gpus") or []]
    counted = [f"{gpus.count(n)} × {n}" if gpus.count(n) > 1 else n for n in dict.fromkeys(gpus)]
    cpu = f"{host.get('cpu', 'unknown CPU')}"
    threads = host.get("threads")
    memory = host.get("memory_bytes")
    parts = [*counted, cpu + (f", {threads} threads" if threads else "")]
    if memory:
        parts.append(f"{shown(Quantity.of(float(memory), 'B'))} memory")
    return ", ".join(parts)


def _pareto_notes(made: Sequence[GroupView]) -> list[str]:
    out = []
    for g in made:
        for name, why in g.pareto.left_out.items():
            out.append(f"{metric(name).label} is not among the objectives: {why}.")
    return list(dict.fromkeys(out))


def _energy_note(summary: StudySummary) -> str:
    points = [p for d in summary.deployments for p in d.points]
    if not points:
        return "no cell gave usable numbers"
    unknown = [p.get("energy_j") for p in points if not p.get("energy_j").known]
    if not unknown:
        return ""
    whys = "; ".join(_distinct(q.why for q in unknown))
    lead = "" if len(unknown) == len(points) else f"at {len(unknown)} of {len(points)} load points: "
    return lead + whys


def _quality_notes(summary: StudySummary) -> list[str]:
    notes = _distinct(n for d in summary.deployments for n in d.notes)
    if not any(q.known for d in summary.deployments for q in d.quality.values()):
        whys = _distinct(q.why for d in summary.deployments for q in d.quality.values())
        notes.append("Quality is unknown: " + ("; ".join(whys) or "it was not measured"))
    return [n[:1].upper() + n[1:].rstrip(".") + "." for n in notes]


def _provenance(records: Sequence[Record], study: Study) -> list[tuple[str, str]]:
    if not records:
        return []
    versions: dict[str, list[str]] = {}
    for r in records:
        for name, version in r.provenance.versions.items():
            versions.setdefault(name, []).append(version)
    hashes = _distinct(r.provenance.hashes.get("model_sha256") for r in records)
    return [
        ("qMeter", ", ".join(_distinct(_qmeter(r) for r in records))),
        ("Hosts", "; ".join(_distinct(host_text(r.provenance.host) for r in records))),
        ("Kernel", ", ".join(_distinct(r.provenance.host.get("kernel") for r in records)) or "unknown"),
        ("Versions", ", ".join(f"{n} {'/'.join(_distinct(v))}" for n, v in versions.items())),
        ("Model source", ", ".join(_distinct(r.provenance.model.get("source") for r in records))),
        ("Model sha256", ", ".join(h[:16] for h in hashes) or "not recorded"),
        ("Study seed", str(study.seed)),
        ("Repeats", _repeats(study)),
        ("Cell seeds", ", ".join(_distinct(r.provenance.seed for r in records)[:12])),
    ]


def _repeats(study: Study) -> str:
    if study.repeats == 1 or not study.same_requests:
        return str(study.repeats)
    return f"{study.repeats}, of the same requests: intervals over them leave out what other arrivals would do"


def _qmeter(r: Record) -> str:
    return f"{r.provenance.qmeter_version} ({r.provenance.git_commit or 'no commit'})"


def _commands(records: Sequence[Record]) -> list[tuple[str, str]]:
    out: dict[str, str] = {}
    for r in records:
        if r.provenance.engine_command:
            d = r.cell.get("deployment", {})
            names = (d.get("model", {}).get("name"), d.get("method"), d.get("engine", {}).get("name"))
            out.setdefault(" · ".join(str(n) for n in names), shlex.join(r.provenance.engine_command))
    return list(out.items())


def _definitions(summary: StudySummary) -> list[Metric]:
    used = {n for d in summary.deployments for p in d.points for n in (*p.metrics, *p.energy)}
    used |= {n for d in summary.deployments for n in (*d.quality, *d.memory)}
    return [m for name, m in METRICS.items() if name in used]
