"""Records made elsewhere, checked before they are kept: that they are what they say, and where they come from.

A fault (the records contradict themselves, or were changed) refuses them; a doubt is told, and they are kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from qmeter.errors import StoreError
from qmeter.record import CellStatus, Record, RecordKind
from qmeter.spec.identity import digest, former_digest
from qmeter.spec.study import Study, cell_names, expand

NEEDED = ("clock", "window", "proof", "effective", "verification")
"""Parts without which a measured record that counts as valid is not one that qMeter wrote."""
MOST_W = 3000.0
"""Mean power of one GPU above which a reading is taken for a fault. Units: W."""


@dataclass
class Intake:
    """What was found: ``faults`` refuse the records, ``doubts`` do not; ``origin`` is their provenance, by name."""

    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)


def examine(study: Study, records: Sequence[Record]) -> Intake:
    """Every fault and doubt of a study's records, and where they come from."""
    found = Intake(origin=_origin(records))
    _names(study, records, found)
    for record in records:
        where = f"cell {record.cell_id}"
        if record.status is CellStatus.OK and record.kind is RecordKind.MEASURED:
            lacking = [part for part in NEEDED if getattr(record, part) is None]
            if lacking:
                found.faults.append(f"{where}: valid, but without {', '.join(lacking)}")
            if record.proof is not None and record.proof.failures:
                found.faults.append(f"{where}: valid, though its client failed its proof")
            if record.verification is not None and record.verification.failed:
                found.faults.append(f"{where}: valid, though its method was contradicted")
        if record.kind is RecordKind.SIMULATED and not record.provenance.calibration:
            found.faults.append(f"{where}: simulated, but names no calibration")
        found.faults += [f"{where}: {text}" for text in _numbers(record)]
    _doubts(records, found)
    return found


def require_sound(study: Study, records: Sequence[Record], where: str) -> Intake:
    """:func:`examine`, raising the faults.

    Raises:
        StoreError: with the first faults and their number.
    """
    found = examine(study, records)
    if not any(r.status is CellStatus.OK for r in records):
        raise StoreError(f"{where} has no valid record", hint="a profile needs at least one cell that was measured")
    if found.faults:
        more = f" (and {len(found.faults) - 3} more)" if len(found.faults) > 3 else ""
        raise StoreError(
            f"{where} is not as qMeter wrote it: {'; '.join(found.faults[:3])}{more}",
            hint="take the records from the host that measured them, unchanged: qmeter profiles add DIR there",
        )
    return found


def _names(study: Study, records: Iterable[Record], found: Intake) -> None:
    """Each record's name must be the hash of its own cell, once, and the cell one of the study's."""
    known = cell_names(expand(study))
    twice = [name for name, count in Counter(r.cell_id for r in records).items() if count > 1]
    found.faults += [f"cell {name} stands twice" for name in twice]
    for record in records:
        if record.cell_id not in (digest(record.cell), former_digest(record.cell)):
            found.faults.append(f"cell {record.cell_id}: its name is not that of the cell in it: one was changed")
        elif record.cell_id not in known:
            found.faults.append(f"cell {record.cell_id} is not of the study {study.name}")


def _numbers(record: Record) -> list[str]:
    faults = []
    groups = {"metrics": record.metrics, "energy": record.energy, "quality": record.quality}
    for group, quantities in groups.items():
        for name, q in quantities.items():
            if q.value is not None and not math.isfinite(q.value):
                faults.append(f"{group}.{name} is not a finite number")
            elif q.value is not None and q.low is not None and q.high is not None and not q.low <= q.value <= q.high:
                faults.append(f"{group}.{name} = {q.value:.4g} lies outside its interval [{q.low:.4g}, {q.high:.4g}]")
    power = record.energy.get("power_mean_w")
    gpus = len(record.devices) if record.devices else max(1, len(record.provenance.host.get("gpus") or []))
    if power is not None and power.value is not None and not 0 < power.value <= MOST_W * gpus:
        faults.append(f"energy.power_mean_w = {power.value:.4g} W cannot be of {gpus} GPUs")
    return faults


def _doubts(records: Sequence[Record], found: Intake) -> None:
    counted = [r for r in records if r.status is CellStatus.OK]
    unverified = [r for r in counted if r.verification is not None and not r.verification.verified]
    if unverified:
        methods = sorted({str(r.cell["deployment"]["method"]) for r in unverified})
        found.doubts.append(f"{len(unverified)} cells whose method was not shown to be in effect: {', '.join(methods)}")
    silent = [r for r in counted if (e := r.energy.get("energy_j")) is None or not e.known]
    if silent:
        found.doubts.append(f"{len(silent)} cells without energy")
    replayed = [r for r in counted if any(w.kind == "replayed_telemetry" for w in r.warnings)]
    if replayed:
        found.doubts.append(f"{len(replayed)} cells whose telemetry was played back: their energy is not their own")
    for name in ("GPUs", "engine", "qMeter"):
        if " | " in found.origin.get(name, ""):
            found.doubts.append(f"measured with several: {name} {found.origin[name]}")


def _origin(records: Sequence[Record]) -> dict[str, str]:
    def several(texts: Iterable[str | None]) -> str:
        return " | ".join(dict.fromkeys(t for t in texts if t)) or "not recorded"

    statuses = Counter(f"{r.kind.value} {r.status.value}" for r in records)
    return {
        "cells": ", ".join(f"{n} {kind}" for kind, n in statuses.most_common()),
        "GPUs": several(_gpus(r) for r in records),
        "CPU": several(str(r.provenance.host.get("cpu") or "") for r in records),
        "engine": several(_engine(r) for r in records),
        "qMeter": several(f"{r.provenance.qmeter_version} ({r.provenance.git_commit or 'no commit'})" for r in records),
        "model": several(str(r.provenance.model.get("source") or "") for r in records),
    }


def _gpus(record: Record) -> str:
    names = Counter(
        f"{g.get('name')} (driver {g.get('driver', '?')})" for g in record.provenance.host.get("gpus") or []
    )
    return ", ".join(f"{n} × {name}" if n > 1 else name for name, n in names.items()) or "none"


def _engine(record: Record) -> str | None:
    name = str(record.cell.get("deployment", {}).get("engine", {}).get("name", "?"))
    version = record.effective.engine_version if record.effective else None
    return f"{name} {version}" if version else None
