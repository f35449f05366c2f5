"""Whether a study folder can be gone on with: the same cells, the same models, the same software and host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import qmeter
from qmeter.engines.base import Artifact
from qmeter.errors import IncompatibleRecords
from qmeter.record import Reason, Record, RecordKind
from qmeter.spec.study import Cell, Deployment, cell_names
from qmeter.study import provenance


def require_known_cells(cells: Iterable[Cell], records: Sequence[Record]) -> None:
    """Refuse a folder with measured records of cells that the study does not have: they would be measured twice.

    Raises:
        IncompatibleRecords: there are such records (another version of qMeter names the cells otherwise).
    """
    known = cell_names(cells)
    strange = [r for r in records if r.kind is RecordKind.MEASURED and r.cell_id not in known]
    if strange:
        versions = ", ".join(sorted({r.provenance.qmeter_version for r in strange}))
        raise IncompatibleRecords(
            f"{len(strange)} of {len(records)} records belong to no cell of this study as qMeter {qmeter.__version__} "
            f"names them (they were written by {versions})",
            hint="go on with that version, or measure into a new folder: qmeter run DIR/study.yaml --out NEW",
        )


def require_same_model(deployment: Deployment, artifact: Artifact, records: Sequence[Record]) -> None:
    """Refuse to go on where the model's content is not what the deployment's earlier cells were measured with.

    Raises:
        IncompatibleRecords: the hashes differ.
    """
    names = {deployment.id, deployment.former_id}
    earlier = {r.provenance.hashes.get("model_sha256") for r in records if r.deployment_id in names}
    if artifact.sha256 and (other := earlier - {artifact.sha256, None, ""}):
        raise IncompatibleRecords(
            f"{deployment.model.source} is not the model that {deployment.label} was measured with: its sha256 is now "
            f"{artifact.sha256[:12]}…, it was {min(str(sha) for sha in other)[:12]}…",
            hint="put that model back, or measure into a new folder with --out",
        )


def changes(records: Sequence[Record]) -> list[Reason]:
    """What differs between this run and the earlier ones in the folder, as a warning for the records that follow."""
    now = _facts(qmeter.__version__, provenance.versions(), provenance.host())
    differ: dict[str, str] = {}
    for record in records:
        then = _facts(record.provenance.qmeter_version, record.provenance.versions, record.provenance.host)
        for name in now.keys() & then.keys():
            if now[name] != then[name]:
                differ[name] = f"{name} {then[name]} → {now[name]}"
    if not differ:
        return []
    return [
        Reason(
            kind="changed_since",
            stage="launch",
            message=f"earlier cells of this study were measured with other software or on another host: "
            f"{'; '.join(differ[name] for name in sorted(differ))}",
            hint="compare only cells measured alike, or measure the study anew with --out",
        )
    ]


def _facts(version: str, versions: dict[str, str], host: dict[str, Any]) -> dict[str, str]:
    gpus = host.get("gpus") or []
    facts = {"qmeter": version, **versions}
    facts |= {name: str(host[name]) for name in ("cpu", "threads", "kernel") if name in host}
    if "gpus" in host:
        facts["gpus"] = ", ".join(f"{g.get('name')} (driver {g.get('driver')})" for g in gpus) or "none"
    return facts
