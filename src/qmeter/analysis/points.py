"""Records grouped for reading: deployments, the load points measured on each, and the cells that gave no numbers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from qmeter.analysis.compare import Relation, paired_relation, relation
from qmeter.analysis.energy import scaled
from qmeter.analysis.keys import DeploymentKey, qualified
from qmeter.analysis.metrics import Better
from qmeter.analysis.repeats import over_repeats
from qmeter.analysis.window_length import REPEAT_TOLERANCE
from qmeter.record import CellStatus, EffectiveConfig, Quantity, Reason, Record, Verification
from qmeter.spec.workload import SLO


class SLOVerdict(StrEnum):
    """Whether a point keeps the SLO. LIKELY and UNLIKELY: the share's interval holds the promised share."""

    MET = "met"
    LIKELY = "met within noise"
    UNLIKELY = "missed within noise"
    MISSED = "missed"
    UNKNOWN = "unknown"

    @property
    def counts(self) -> bool:
        """Whether the point estimate keeps the promise."""
        return self in (SLOVerdict.MET, SLOVerdict.LIKELY)


@dataclass(frozen=True)
class Load:
    """How hard a workload drives: requests a second, concurrency, or a trace's time scale."""

    value: float
    unit: str
    law: str


@dataclass(frozen=True)
class Point:
    """One deployment under one workload, over its valid repeats.

    Attributes:
        family: what the workload shares with others that differ only in load: points of a family form a curve.
        slo, verdict: the promise and whether it is kept; an overloaded point misses, since a longer window would.
        cells: ids of the valid cells; ``invalid`` counts those left out.
        by_repeat: quantity → repeat → value, for comparisons that pair repeats.
        warnings: of all its cells, one of each kind.
    """

    key: DeploymentKey
    workload: str
    family: str
    load: Load
    slo: SLO | None
    verdict: SLOVerdict
    overloaded: bool
    cells: tuple[str, ...]
    invalid: int
    metrics: Mapping[str, Quantity]
    energy: Mapping[str, Quantity]
    quality: Mapping[str, Quantity]
    warnings: tuple[Reason, ...]
    by_repeat: Mapping[str, Mapping[int, float]]

    @property
    def sound(self) -> bool:
        """Whether it is stationary: neither overloaded nor drifting."""
        return not self.overloaded and all(w.kind != "not_stationary" for w in self.warnings)

    def get(self, name: str) -> Quantity:
        """A metric, energy or quality quantity by name; unknown where the records do not have it."""
        for group in (self.metrics, self.energy, self.quality):
            if name in group:
                return group[name]
        return Quantity.unknown("1", "not in the records")


@dataclass(frozen=True)
class Problem:
    """A cell without usable numbers, and why."""

    key: DeploymentKey
    workload: str
    repeat: int
    status: CellStatus
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Deployment:
    """One deployment with everything measured on it.

    ``quality`` and ``memory`` belong to the deployment; ``points`` are in order of family and load.
    """

    key: DeploymentKey
    points: tuple[Point, ...]
    quality: Mapping[str, Quantity]
    memory: Mapping[str, Quantity]
    verification: Verification | None
    effective: EffectiveConfig | None
    is_reference: bool
    notes: tuple[str, ...]


def compared(deployments: Iterable[Deployment]) -> list[Deployment]:
    """Those that stand beside each other in recommendations and curves: one that also ran alone counts as it ran alone,
    one that only ever ran side by side with others counts as that (its label says so)."""
    rows = list(deployments)
    alone = {d.key for d in rows if d.points and not d.key.beside}
    return [d for d in rows if not d.key.beside or replace(d.key, beside=False) not in alone]


def load_of(workload: Mapping[str, Any]) -> Load:
    """The load of a resolved workload (rates in 1/s, as stored)."""
    law = workload["arrivals"]
    kind = str(law["kind"])
    fields = {"closed": ("concurrency", "concurrent"), "ramp": ("end", "1/s"), "trace": ("time_scale", "× trace speed")}
    field, unit = fields.get(kind, ("rate", "1/s"))
    return Load(float(law[field]), unit, kind)


def family_of(workload: Mapping[str, Any]) -> str:
    """A label for everything about the workload but its load: lengths or tasks, and the arrival law."""
    law = workload["arrivals"]
    prompts = workload.get("prompts", {})
    if prompts.get("kind") == "tasks":
        what = "tasks " + ", ".join(prompts["tasks"])
    else:
        what = f"{_length(workload['prompt_tokens'])} → {_length(workload['output_tokens'])} tokens"
        if prompts.get("shared_prefix"):
            what += f", {prompts['shared_prefix']:.0%} shared prefix"
    names = {"closed": "closed loop", "poisson": "Poisson", "trace": f"trace {str(law.get('path', '')).split('/')[-1]}"}
    how = names.get(law["kind"], law["kind"])
    if law["kind"] == "gamma":
        how += f" burstiness {law['burstiness']:g}"
    return f"{what}, {how}"


def _length(law: Mapping[str, Any]) -> str:
    kind = law["kind"]
    if kind == "fixed":
        return str(law["tokens"])
    if kind == "uniform":
        return f"{law['low']}–{law['high']}"
    return f"~{law['median']:g}" if kind == "lognormal" else "trace"


def verdict(attainment: Quantity | None, slo: SLO | None, overloaded: bool) -> SLOVerdict:
    """Whether the promised share of requests met the SLO, as far as the interval tells."""
    if slo is None or attainment is None or attainment.value is None:
        return SLOVerdict.UNKNOWN
    if overloaded:
        return SLOVerdict.MISSED
    low = attainment.value if attainment.low is None else attainment.low
    high = attainment.value if attainment.high is None else attainment.high
    if low >= slo.percentile:
        return SLOVerdict.MET
    if high < slo.percentile:
        return SLOVerdict.MISSED
    return SLOVerdict.LIKELY if attainment.value >= slo.percentile else SLOVerdict.UNLIKELY


def group(records: Iterable[Record], confidence: float = 0.95) -> tuple[list[Deployment], list[Problem]]:
    """Deployments in order of first appearance, and the cells that gave no numbers."""
    by_key: dict[DeploymentKey, list[Record]] = defaultdict(list)
    problems = []
    rows = list(records)
    for record, key in zip(rows, qualified(rows), strict=True):
        by_key[key].append(record)
        if record.status is not CellStatus.OK:
            workload, repeat = record.cell.get("workload", {}).get("name", "?"), int(record.cell.get("repeat", 0))
            problems.append(Problem(key, str(workload), repeat, record.status, record.reasons))
    return [_deployment(key, rows, confidence) for key, rows in by_key.items()], problems


def _deployment(key: DeploymentKey, records: Sequence[Record], confidence: float) -> Deployment:
    by_workload: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_workload[json.dumps(record.cell["workload"], sort_keys=True)].append(record)
    points = [_point(key, rows, confidence) for rows in by_workload.values()]
    measured = [p for p in points if p is not None]
    measured.sort(key=lambda p: (p.family, p.load.value))
    last = records[-1]
    verified = next((r.verification for r in reversed(records) if r.verification), None)
    effective = next((r.effective for r in reversed(records) if r.effective), None)
    notes = tuple(dict.fromkeys(str(n) for r in records for n in r.provenance.model.get("notes", ())))
    notes = (*notes, *_unlike(key, records))
    asked = last.cell.get("quality", {}).get("reference")
    return Deployment(
        key=key,
        points=tuple(measured),
        quality=_quality(records),
        memory=_memory(records, effective),
        verification=verified,
        effective=effective,
        is_reference=asked is not None and asked == key.method,
        notes=notes,
    )


SHARED = ("engine_version", "kernel", "weight_type", "activation_type", "kv_type", "token_budget", "max_sequences")
"""What the engine reports of itself that cells taken for one deployment should share."""


def _unlike(key: DeploymentKey, records: Sequence[Record]) -> list[str]:
    """What the engine reported differently in cells of one deployment, which are pooled all the same, in words."""
    out = []
    for name in SHARED:
        seen = Counter(str(v) for r in records if r.effective and (v := getattr(r.effective, name)) is not None)
        if len(seen) > 1:
            each = ", ".join(f"{value} in {n} cell{'s' if n > 1 else ''}" for value, n in seen.most_common())
            out.append(f"the cells of {key.label} were not served alike: {name.replace('_', ' ')} {each}")
    return out


def _point(key: DeploymentKey, records: Sequence[Record], confidence: float) -> Point | None:
    valid = [r for r in records if r.status is CellStatus.OK]
    if not valid:
        return None
    workload = valid[0].cell["workload"]
    slo = SLO.model_construct(**workload["slo"]) if workload.get("slo") else None
    warnings = {w.kind: w for r in valid for w in r.warnings}
    overloaded = "overloaded" in warnings
    metrics = _combined([r.metrics for r in valid], confidence)
    return Point(
        key=key,
        workload=str(workload["name"]),
        family=family_of(workload),
        load=load_of(workload),
        slo=slo,
        verdict=verdict(metrics.get("slo_attainment"), slo, overloaded),
        overloaded=overloaded,
        cells=tuple(r.cell_id for r in valid),
        invalid=len(records) - len(valid),
        metrics=metrics,
        energy=_combined([r.energy for r in valid], confidence),
        quality=_combined([r.quality for r in valid], confidence),
        warnings=tuple(warnings.values()),
        by_repeat=_by_repeat(valid),
    )


def _by_repeat(records: Sequence[Record]) -> dict[str, dict[int, float]]:
    out: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        for name, q in {**record.metrics, **record.energy}.items():
            if q.value is not None:
                out[name][int(record.cell.get("repeat", 0))] = q.value
    return dict(out)


PAIRED_OVER_LOADS = ("j_per_", "ttft_", "tpot_", "itl_", "e2e_")
"""Quantities that exist at every load, so that two deployments compare over all loads they share; by prefix."""


Ratios = Callable[[str, str, str], Quantity | None]
"""Two cells' ids and a quantity's name → first / second, compared request by request; ``None`` where that cannot be."""

ALIKE = Quantity.of(1.0, "1", low=1 - REPEAT_TOLERANCE, high=1 + REPEAT_TOLERANCE)
"""Ratios that two starts of one deployment may show: one from within a run must leave all of it out to count."""


def stand(
    a: Point, b: Point, name: str, better: Better, peers: tuple[Sequence[Point], Sequence[Point]],
    ratios: Ratios | None = None,
) -> Relation:  # fmt: skip
    """How point ``a`` stands to ``b`` on a quantity: by pairs where there are two or more, else by their intervals.

    A pair is one repeat of one workload. Latency and energy pair over all sound loads that both deployments have
    (``peers``: the points of each), the rest over the repeats of the two points where these share their workload.
    Where that leaves a tie and each point is one cell, ``ratios`` compares the two request by request: what their
    arrivals have in common cancels, and the ratio's interval must leave out all of :data:`ALIKE`.
    """
    if name.startswith(PAIRED_OVER_LOADS):
        mine, others = (_paired_values(points, name) for points in peers)
    elif a.workload == b.workload:
        mine, others = (_paired_values([p], name) for p in (a, b))
    else:
        return relation(a.get(name), b.get(name), better)
    apart = paired_relation(mine, others, better)
    if apart is Relation.UNKNOWN:
        apart = relation(a.get(name), b.get(name), better)
    single = a.workload == b.workload and len(a.cells) == len(b.cells) == 1
    if apart is not Relation.TIED or ratios is None or not single:
        return apart
    ratio = ratios(a.cells[0], b.cells[0], name)
    return apart if ratio is None else relation(ratio, ALIKE, better)


def per_gpu(point: Point, name: str) -> Point:
    """The point with a rate shared out over its deployment's GPUs."""
    gpus = point.key.gpus
    repeats = {k: v / gpus for k, v in point.by_repeat.get(name, {}).items()}
    return replace(point, metrics={**point.metrics, name: a_gpu(point.get(name), gpus)},
                   by_repeat={**point.by_repeat, name: repeats})  # fmt: skip


def a_gpu(rate: Quantity, gpus: int) -> Quantity:
    """A rate of ``gpus`` GPUs as one GPU's."""
    return scaled(rate, 1 / gpus, rate.unit)


def _paired_values(points: Sequence[Point], name: str) -> dict[tuple[str, int], float]:
    sound = [p for p in points if p.sound]
    return {(p.workload, k): v for p in sound for k, v in p.by_repeat.get(name, {}).items()}


def _combined(groups: Sequence[Mapping[str, Quantity]], confidence: float) -> dict[str, Quantity]:
    names = dict.fromkeys(name for g in groups for name in g)
    return {name: over_repeats(name, [g[name] for g in groups if name in g], confidence) for name in names}


def _quality(records: Sequence[Record]) -> dict[str, Quantity]:
    """The deployment's quality: each name's last known value (it is scored once a server start, not once a cell)."""
    out: dict[str, Quantity] = {}
    for record in records:
        for name, q in record.quality.items():
            if not name.startswith("task.") and (q.known or name not in out):
                out[name] = q
    return out


def _memory(records: Sequence[Record], effective: EffectiveConfig | None) -> dict[str, Quantity]:
    weight = effective.weight_bytes if effective else None
    blocks = effective.kv_blocks if effective else None
    each = effective.kv_block_tokens if effective else None
    peaks = [r.metrics["memory_peak_bytes"] for r in records if "memory_peak_bytes" in r.metrics]
    known = [p for p in peaks if p.value is not None]
    silent = "the engine does not report it" if effective else "the engine never became ready"
    return {
        "weight_bytes": Quantity.of(weight, "B") if weight is not None else Quantity.unknown("B", silent),
        "kv_capacity_tokens": Quantity.of(blocks * each, "token")
        if blocks is not None and each is not None
        else Quantity.unknown("token", silent),
        "memory_peak_bytes": max(known, key=lambda q: q.value or 0.0)
        if known
        else (peaks[0] if peaks else Quantity.unknown("B", "no cell was measured")),
    }
