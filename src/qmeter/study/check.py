"""Checks a study against the catalog, the engines and the host before anything starts.

Faults (the study cannot give what it asks for) are raised together; warnings (it can, but a reader would be misled)
are returned. What needs no catalog is in :mod:`qmeter.spec`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qmeter import catalog
from qmeter.engines.table import ENGINES
from qmeter.errors import SpecError, UnknownName
from qmeter.record import Reason
from qmeter.spec.document import YamlPath, show
from qmeter.spec.explain import unknown
from qmeter.spec.load import Draft, draft_study, draft_text
from qmeter.spec.study import Placement, Study
from qmeter.study import check_client, check_deployments, check_drain, check_energy, check_workloads, simulated
from qmeter.study.findings import Findings, HostFacts
from qmeter.telemetry.table import SAMPLERS


def open_study(
    path: Path, host: HostFacts | None = None, placement: Placement | None = None
) -> tuple[Study, list[Reason]]:
    """Read, validate and check a study file; every fault of every kind is reported at once.

    Args:
        path: the study file.
        host: what to check it against (default: this host).
        placement: where its deployments run, instead of what the file says.

    Returns:
        The study, and what to warn of.

    Raises:
        SpecError: with all faults, each with its YAML path, value, what is valid and its line.
    """
    draft = draft_study(path)
    if placement is not None and draft.study is not None:
        draft.study = draft.study.placed(placement)
    return _finish(draft, host)


def open_study_text(text: str, name: str, host: HostFacts | None = None) -> tuple[Study, list[Reason]]:
    """As :func:`open_study`, from text."""
    return _finish(draft_text(text, name, Path()), host)


def check_study(study: Study, host: HostFacts | None = None) -> list[Reason]:
    """Check a study that is already loaded; returns what to warn of.

    Raises:
        SpecError: with all faults, by path in the expanded study.
    """
    findings = _findings(study, study.model_dump(mode="json"), host)
    if findings.faults:
        count = f"{len(findings.faults)} faults" if len(findings.faults) > 1 else "1 fault"
        raise SpecError(
            f"study {study.name}: {count}; nothing was started",
            faults=[(show(path), message) for path, message in findings.faults],
            hint="correct the study and run the command again",
        )
    return findings.warnings


def _finish(draft: Draft, host: HostFacts | None) -> tuple[Study, list[Reason]]:
    findings = _findings(draft.study, draft.points.data, host)
    for path, message in findings.faults:
        draft.add(path, message)
    return draft.valid(), findings.warnings


def _findings(study: Study | None, data: Any, host: HostFacts | None) -> Findings:
    findings = Findings()
    for path, what, name, known in _named(data):
        if name not in known:
            findings.fault(path, _not_known(what, name, known))
    if study is not None:
        facts = host or HostFacts.of_this_host()
        check_deployments.check(study, facts, findings)
        check_workloads.check(study, facts, findings)
        check_drain.check(study, facts, findings)
        check_energy.check(study, facts, findings)
        simulated.check(study, findings)
        if not findings.faults:
            check_client.check(study, findings)
    return findings


def _named(data: Any) -> Iterator[tuple[YamlPath, str, str, list[str]]]:
    """Every name of a table that stands in the data (which may be wrong otherwise): path, table, name, valid names."""
    tables: tuple[tuple[str, str | None, str, list[str]], ...] = (
        ("methods", None, "method", [m.name for m in catalog.methods()]),
        ("engines", "name", "engine", ENGINES.names()),
        ("models", "shape", "model", [m.name for m in catalog.models()]),
    )
    for key, inner, what, known in tables:
        listed = data.get(key) if isinstance(data, dict) else None
        for i, item in enumerate(listed if isinstance(listed, list | tuple) else ()):
            name = item.get(inner) if inner and isinstance(item, dict) else item
            if isinstance(name, str):
                yield (key, i, inner) if inner else (key, i), what, name, known
    device = data.get("device") if isinstance(data, dict) else None
    if isinstance(device, str):
        yield ("device",), "device", device, ["auto", *(d.name for d in catalog.devices())]
    telemetry = data.get("telemetry") if isinstance(data, dict) else None
    samplers = telemetry.get("samplers") if isinstance(telemetry, dict) else None
    for i, name in enumerate(samplers if isinstance(samplers, list | tuple) else ()):
        if isinstance(name, str):
            yield ("telemetry", "samplers", i), "sampler", name, SAMPLERS.names()


_LOOKUPS: dict[str, Callable[[str], catalog.Method | catalog.ModelShape | catalog.Device]] = {
    "method": catalog.method,
    "model": catalog.model,
    "device": catalog.device,
}


def _not_known(what: str, name: str, known: list[str]) -> str:
    """An alias is refused too, with the right name: two names for one thing would make it two in a record."""
    try:
        if what in _LOOKUPS:
            return f"write {_LOOKUPS[what](name).name!r}: {name!r} is another name of it"
    except UnknownName:
        pass
    return unknown(what, name, known)
