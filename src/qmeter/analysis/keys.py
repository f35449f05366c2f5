"""What a deployment is called: its identity among the records that are read together, and its label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from qmeter.catalog import device_from_nvml
from qmeter.record import Record, RecordKind
from qmeter.spec.study import Placement


@dataclass(frozen=True, order=True)
class DeploymentKey:
    """What identifies a deployment for a reader. Measured and simulated never share a key.

    ``qualifier`` names the engine and the device where the records hold several, ``knobs`` what the engine was set to
    where that differs; ``beside``: placed side by side with other deployments of the host, which is never the
    same point as alone (``all_beside``: every deployment of the records was, so that no label need say it).
    """

    model: str
    engine: str
    method: str
    parallelism: str
    device: str
    kind: RecordKind
    qualifier: str = ""
    beside: bool = False
    knobs: str = ""
    all_beside: bool = False

    @property
    def gpus(self) -> int:
        """Devices that it takes: the product of its degrees."""
        return math.prod(int(part[2:]) for part in self.parallelism.split())

    @property
    def label(self) -> str:
        """Method, parallelism where it is not 1, side by side, qualifier, knobs, and a mark where it is simulated."""
        placed = "side by side" if self.beside and not self.all_beside else ""
        parts = [self.method, self.parallelism, placed, self.qualifier, self.knobs]
        parts.append("(simulated)" if self.kind is RecordKind.SIMULATED else "")
        return " ".join(p for p in parts if p)


def qualified(records: Sequence[Record]) -> list[DeploymentKey]:
    """Each record's key, told apart by engine or device where its model has several, and by the engine's knobs where
    they differ: two settings of one method are never repeats of each other."""
    keys, knobs = [key_of(r) for r in records], [_knobs(r) for r in records]
    several: dict[str, list[str]] = {}
    differing: dict[tuple[str, str], list[str]] = {}
    for model, engine in dict.fromkeys((k.model, k.engine) for k in keys):
        peers = [k for k in keys if k.model == model]
        several[model] = [part for part in ("engine", "device") if len({getattr(k, part) for k in peers}) > 1]
        mine = [own for k, own in zip(keys, knobs, strict=True) if (k.model, k.engine) == (model, engine)]
        names = dict.fromkeys(name for own in mine for name in own)
        differing[model, engine] = [n for n in names if len({own.get(n, "default") for own in mine}) > 1]
    out = []
    all_beside = all(k.beside for k in keys)
    for key, own in zip(keys, knobs, strict=True):
        where = " ".join(f"on {getattr(key, part)}" for part in several[key.model])
        how = " ".join(f"{name}={own.get(name, 'default')}" for name in differing[key.model, key.engine])
        out.append(replace(key, qualifier=where, knobs=how, all_beside=all_beside))
    return out


def _knobs(record: Record) -> dict[str, str]:
    """What a record's engine was set to, as text: its program, host, arguments and options."""
    engine = record.cell.get("deployment", {}).get("engine", {})
    named = {"binary": engine.get("binary"), "args": " ".join(engine.get("args") or ())}
    named["url"] = urlsplit(engine.get("url") or "").netloc.rpartition("@")[2]
    return {k: str(v) for k, v in named.items() if v} | {
        str(k): str(v) for k, v in (engine.get("options") or {}).items()
    }


def key_of(record: Record) -> DeploymentKey:
    """The deployment that a record belongs to, without a qualifier."""
    d = record.cell.get("deployment", {})
    p = d.get("parallelism", {})
    parallel = " ".join(f"{k}{p[k]}" for k in ("tp", "pp", "dp") if p.get(k, 1) > 1)
    return DeploymentKey(
        model=str(d.get("model", {}).get("name", "?")),
        engine=str(d.get("engine", {}).get("name", "?")),
        method=str(d.get("method", "?")),
        parallelism=parallel,
        device=device_of(record),
        kind=record.kind,
        beside=d.get("placement") == Placement.SIDE_BY_SIDE or any(n.cell_id for n in record.neighbours),
    )


def device_of(record: Record) -> str:
    """The device that a record was made on: the study's, or for ``auto`` what its host had, by the catalog's name."""
    named = str(record.cell.get("deployment", {}).get("device", "?"))
    if named != "auto":
        return named
    gpus = record.provenance.host.get("gpus") or []
    name = str(gpus[0].get("name", "GPU")) if gpus else "cpu"
    found = device_from_nvml(name)
    return found.name if found else name
