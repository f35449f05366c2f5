"""What neighbours cost: the same cells run alone and side by side, compared point by point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qmeter.analysis.compare import bounds
from qmeter.analysis.paired import COMPARED, Cell, paired_ratios
from qmeter.analysis.points import Deployment, Point
from qmeter.record import Neighbour, Quantity, Record

LEAST_OVERLAP = 0.9
"""Share of the window during which a neighbour must have been under load for the pair to count."""


@dataclass(frozen=True)
class Interference:
    """One load point beside others against the same point alone.

    Attributes:
        alone, beside: the two points.
        neighbours: what ran beside it: method and parallelism, and the model where it is another.
        gpus, gpus_alone: GPUs that the points ran on. Cards differ by a few percent in power and heat: where they are
            not the same, that is in the ratios too.
        overlap: least share of a window with every neighbour under load; unknown where a neighbour's record is missing.
        ratios: name of :data:`COMPARED` → beside / alone, as :func:`point_ratios` gives them.
    """

    alone: Point
    beside: Point
    neighbours: tuple[str, ...]
    gpus: tuple[int, ...]
    gpus_alone: tuple[int, ...]
    overlap: Quantity
    ratios: Mapping[str, Quantity]


def point_ratios(a: Point, b: Point, loaded: Mapping[str, Cell] | None = None) -> dict[str, Quantity]:
    """``a / b`` for each of :data:`COMPARED`.

    Paired by request where ``loaded`` (cell id → record and tables) shows that both served the same ones; else with an
    interval from both intervals taken as independent.
    """
    paired: dict[str, Quantity] = {}
    if loaded is not None:
        mine, other = ({int(loaded[c][0].cell["repeat"]): loaded[c] for c in p.cells if c in loaded} for p in (a, b))
        paired = paired_ratios([(mine[k], other[k]) for k in mine if k in other])
    return {name: paired.get(name) or ratio(a.get(name), b.get(name)) for name in COMPARED}


def interference(
    deployments: Sequence[Deployment], records: Sequence[Record], loaded: Mapping[str, Cell] | None = None
) -> list[Interference]:
    """Every point measured side by side that was also measured alone."""
    by_id = {r.cell_id: r for r in records}
    alone = {(d.key, p.workload): p for d in deployments if not d.key.beside for p in d.points}
    out = []
    for deployment in deployments:
        for point in deployment.points if deployment.key.beside else ():
            twin = alone.get((replace(deployment.key, beside=False), point.workload))
            if twin is None:
                continue
            mine = [by_id[c] for c in point.cells if c in by_id]
            names = dict.fromkeys(_short(n, deployment.key.model) for r in mine for n in r.neighbours if n.cell_id)
            overlap = _overlap(mine, by_id)
            close = overlap.value is None or overlap.value >= LEAST_OVERLAP
            why = f"the neighbours ran for only {overlap.value or 0.0:.0%} of the window"
            ratios = point_ratios(point, twin, loaded) if close else dict.fromkeys(COMPARED, Quantity.unknown("1", why))
            gpus, gpus_alone = _gpus(point, by_id), _gpus(twin, by_id)
            out.append(Interference(twin, point, tuple(names), gpus, gpus_alone, overlap, ratios))
    return out


def _gpus(point: Point, by_id: Mapping[str, Record]) -> tuple[int, ...]:
    return tuple(sorted({g for c in point.cells if c in by_id for g in by_id[c].devices or ()}))


def _short(neighbour: Neighbour, model: str) -> str:
    other, method, _, *rest = [*neighbour.label.split("/"), ""]
    degrees = [part for part in rest if part and part != "side by side"]
    return " ".join([*([other] if other != model else []), method, *degrees])


def ratio(a: Quantity, b: Quantity) -> Quantity:
    """``a / b`` with an interval from both, their relative half-widths added in quadrature (independent errors)."""
    if a.value is None or b.value is None:
        return Quantity.unknown("1", (a.why if a.value is None else b.why) or "unknown")
    if b.value <= 0 or a.value < 0:
        return Quantity.unknown("1", "the quantity it is compared with is 0")
    value = a.value / b.value
    if a.value == 0 or any(q.low is None or q.high is None for q in (a, b)):
        return Quantity.of(value, "1")
    (a_low, a_high), (b_low, b_high) = bounds(a), bounds(b)
    down = math.hypot(1 - a_low / a.value, b_high / b.value - 1)
    up = math.hypot(a_high / a.value - 1, 1 - b_low / b.value)
    return Quantity.of(value, "1", low=value * max(0.0, 1 - down), high=value * (1 + up))


def _overlap(records: Sequence[Record], by_id: Mapping[str, Record]) -> Quantity:
    shares = []
    for record in records:
        for neighbour in record.neighbours:
            if neighbour.cell_id is None:
                continue
            other = by_id.get(neighbour.cell_id)
            if other is None or other.clock is None or record.clock is None or record.window is None:
                return Quantity.unknown("1", f"no record of {neighbour.label} tells when it ran")
            shift_s = other.clock.origin_unix_s - record.clock.origin_unix_s
            load = other.cell["workload"]
            end_s = shift_s + float(load["warmup"]) + float(load["window"])
            both_s = min(record.window.end_s, end_s) - max(record.window.start_s, shift_s)
            shares.append(max(0.0, both_s) / record.window.length_s)
    return Quantity.of(min(shares), "1", n=len(shares)) if shares else Quantity.unknown("1", "no neighbour under load")
