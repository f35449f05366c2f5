"""The study in one value: deployments with their load points, problems, Pareto sets and recommendations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from qmeter import catalog
from qmeter.analysis.compare import Axis, Relation, counts_per_gpu, log_gain, pareto, relation
from qmeter.analysis.keys import DeploymentKey, qualified
from qmeter.analysis.metrics import Better
from qmeter.analysis.paired import Cell, cell_ratios
from qmeter.analysis.points import (
    Deployment,
    Point,
    Problem,
    Ratios,
    compared,
    group,
    per_gpu,
    stand,
)
from qmeter.analysis.recommend import QUALITY_TOLERANCE, Recommendation, recommend
from qmeter.catalog import MethodClass
from qmeter.record import Quantity, Record


@dataclass(frozen=True)
class ParetoPoint:
    """One deployment among its peers: its best load point's objectives, and who dominates it (``None``: nobody)."""

    key: DeploymentKey
    point: Point
    objectives: Mapping[str, Quantity]
    dominated_by: DeploymentKey | None


@dataclass(frozen=True)
class ParetoSet:
    """The trade-off of one model on one family of workloads.

    ``axes`` are the objectives compared (known for at least one deployment); ``left_out`` names the others and why.
    Where deployments take different numbers of GPUs, goodput (output rate) counts a GPU, and its axis says so.
    """

    model: str
    family: str
    axes: tuple[Axis, ...]
    points: tuple[ParetoPoint, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class StudySummary:
    """Everything a reader of a study needs, as plain data. ``labels`` maps a cell's id to its deployment's label."""

    studies: tuple[str, ...]
    deployments: tuple[Deployment, ...]
    problems: tuple[Problem, ...]
    pareto: tuple[ParetoSet, ...]
    recommendations: tuple[Recommendation, ...]
    cells: int
    valid_cells: int
    labels: Mapping[str, str]

    @property
    def compared(self) -> list[Deployment]:
        """The deployments that recommendations and curves are of (:func:`qmeter.analysis.points.compared`)."""
        return compared(self.deployments)

    def families(self, model: str) -> list[str]:
        """The families of workloads measured on a model, in order of first appearance."""
        return list(dict.fromkeys(p.family for d in self.deployments if d.key.model == model for p in d.points))


def summarise(
    records: Iterable[Record],
    *,
    reference: str | None = None,
    tolerance: float = QUALITY_TOLERANCE,
    confidence: float = 0.95,
    loaded: Mapping[str, Cell] | None = None,
) -> StudySummary:
    """Summarise a study's records.

    Args:
        records: the latest of each cell; failed and invalid ones included.
        reference: method that quality is measured against; by default what the records' study says, else the
            first that quantizes nothing. Without one nothing is the reference.
        tolerance: perplexity increase, as a share, that a recommendation lets pass.
        confidence: of the intervals over repeats.
        loaded: record and tables by cell. With them methods whose intervals overlap are compared request by request.
    """
    rows = list(records)
    ratios = cell_ratios(loaded, confidence) if loaded else None
    deployments, problems = group(rows, confidence)
    deployments = _with_reference(deployments, reference)
    own = compared(deployments)
    pairs = [(m, f) for m in dict.fromkeys(d.key.model for d in deployments) for f in _families(own, m)]
    return StudySummary(
        studies=tuple(dict.fromkeys(r.study for r in rows)),
        deployments=tuple(deployments),
        problems=tuple(problems),
        pareto=tuple(pareto_set(own, m, f, ratios) for m, f in pairs),
        recommendations=tuple(recommend(own, m, f, tolerance=tolerance, ratios=ratios) for m, f in pairs),
        cells=len(rows),
        valid_cells=len(rows) - len(problems),
        labels={r.cell_id: k.label for r, k in zip(rows, qualified(rows), strict=True)},
    )


def _families(deployments: list[Deployment], model: str) -> list[str]:
    return list(dict.fromkeys(p.family for d in deployments if d.key.model == model for p in d.points))


def _with_reference(deployments: list[Deployment], reference: str | None) -> list[Deployment]:
    if reference is None and any(d.is_reference for d in deployments):
        return deployments
    name = reference or next((d.key.method for d in deployments if _unquantized(d.key.method)), None)
    return [replace(d, is_reference=d.key.method == name) for d in deployments]


def _unquantized(method: str) -> bool:
    return any(m.name == method and m.kind is MethodClass.NONE for m in catalog.methods())


def best_point(deployment: Deployment, family: str) -> Point | None:
    """The point that stands for a deployment: most goodput under the SLO, else (no SLO) most throughput."""
    mine = [p for p in deployment.points if p.family == family]
    slo = any(p.slo for p in mine)
    name = "goodput_hz" if slo else "throughput_tok_s"
    known = [p for p in mine if p.get(name).value is not None]
    return max(known, key=lambda p: (not slo or p.verdict.counts, p.get(name).value or 0.0), default=None)


def pareto_set(deployments: list[Deployment], model: str, family: str, ratios: Ratios | None = None) -> ParetoSet:
    """Who dominates whom on performance, energy a token and quality, at each deployment's best point."""
    mine = [(d, p) for d in deployments if d.key.model == model and (p := best_point(d, family)) is not None]
    performance = "goodput_hz" if any(p.slo for _, p in mine) else "throughput_tok_s"
    shared = counts_per_gpu(performance, (d.key.gpus for d, _ in mine))
    shown = [per_gpu(p, performance) if shared else p for _, p in mine]
    wanted = (
        Axis(performance, Better.HIGHER, shared),
        Axis("j_per_output_token", Better.LOWER),
        Axis("ppl_ratio", Better.LOWER),
    )
    rows = [{a.name: _objective(d, p, a.name) for a in wanted} for (d, _), p in zip(mine, shown, strict=True)]
    axes = tuple(a for a in wanted if any(r[a.name].known for r in rows))
    left_out = {a.name: rows[0][a.name].why or "unknown" for a in wanted if rows and a not in axes}
    loads = [[p for p in d.points if p.family == family] for d, _ in mine]

    def relations(i: int, j: int) -> list[Relation]:
        return [
            relation(rows[i][a.name], rows[j][a.name], a.better)
            if a.name == "ppl_ratio"
            else stand(shown[i], shown[j], a.name, a.better, (loads[i], loads[j]), ratios)
            for a in axes
        ]

    def gain(i: int, j: int) -> float:
        """Over the axes on which row i is better beyond noise."""
        return sum(
            log_gain(rows[i][a.name], rows[j][a.name], a.better)
            for a, apart in zip(axes, relations(i, j), strict=True)
            if apart is Relation.BETTER
        )

    beaten = pareto(len(mine), relations, gain)
    points = tuple(
        ParetoPoint(d.key, p, row, None if by is None else mine[by][0].key)
        for (d, p), row, by in zip(mine, rows, beaten, strict=True)
    )
    return ParetoSet(model, family, axes, points, left_out)


def _objective(deployment: Deployment, point: Point, name: str) -> Quantity:
    if name == "ppl_ratio":
        unknown = Quantity.unknown("1", "quality was not measured")
        return deployment.quality.get(name, unknown)
    return point.get(name)
