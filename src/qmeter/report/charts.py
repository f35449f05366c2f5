"""The report's charts as Vega-Lite specs made by Altair: plain data in, a dictionary out.

Every chart colours and shapes methods alike (:mod:`qmeter.report.palette`), fades what is not in focus (parameter
``focus``, set by the page's legend), and leaves text and grid colours to the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qmeter.errors import MissingExtra
from qmeter.report.palette import Style

Row = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: file stem and element id.
        title: what it shows, in a line.
        caption: how to read it, and what is missing from it and why.
        spec: Vega-Lite, with its data inside.
        rows: the data, for the CSV beside it.
        description: for people who cannot see it.
    """

    name: str
    title: str
    caption: str
    spec: Row
    rows: Sequence[Row]
    description: str
    notes: tuple[str, ...] = field(default=())


def altair() -> Any:
    """The Altair module.

    Raises:
        MissingExtra: the report extra is not installed.
    """
    try:
        import altair as module
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingExtra("report", "the HTML report") from error
    return module


HEIGHT = 320


def _log(alt: Any, values: Sequence[float]) -> tuple[Any, list[float]]:
    """A log scale just around ``values``, and its ticks at 1, 2 and 5 of each decade (3 and 7 where that is few)."""
    positive = [v for v in values if v > 0]
    low, high = (min(positive) / 1.15, max(positive) * 1.15) if positive else (0.1, 1.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9), tuple(d / 2 for d in range(2, 20))):
        ticks = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(ticks) >= 3:
            break
    return alt.Scale(type="log", domain=[low, high], nice=False), ticks


REACH = 1.8
"""How far beyond the highest value (on log axes: the lowest too) a curve's intervals may stretch its axis."""


def reach(rows: Sequence[Row], limit: float | None = None) -> tuple[float, float]:
    """Where an axis of curves ends: with the intervals, unless a wide one (two repeats) would flatten every curve."""
    values = [r["y"] for r in rows] + ([limit] if limit else [])
    low = max(min(r["y_low"] for r in rows), min(values) / REACH)
    return low, min(max([r["y_high"] for r in rows] + values), max(values) * REACH)


PLACES = {"ru": ("left", 9, -8), "rd": ("left", 9, 14), "lu": ("right", -9, -8), "ld": ("right", -9, 14)}
"""Where a point's name may stand: alignment and offsets in pixels."""


def placed(rows: Sequence[Row]) -> list[Row]:
    """Rows with ``place``: where each name stands so that names keep clear of each other ("" where none is free)."""
    spans = []
    for axis in ("x", "y"):
        ends = [r[axis + end] for r in rows for end in ("", "_low", "_high")]
        spans.append((min(ends), max(ends) - min(ends) or 1.0))
    (x0, width), (y0, height) = spans
    spots = [(230 * (r["x"] - x0) / width, 230 * (1 - (r["y"] - y0) / height)) for r in rows]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    out = []
    for row, (x, y) in zip(rows, spots, strict=True):
        place = ""
        for name, (align, dx, dy) in PLACES.items():
            span = 6.4 * len(str(row["method"]))
            left = x + dx - (span if align == "right" else 0)
            box = (left, y + dy - 9, left + span, y + dy + 3)
            if box[0] > -40 and all(box[0] > t[2] or box[2] < t[0] or box[1] > t[3] or box[3] < t[1] for t in taken):
                place = name
                taken.append(box)
                break
        out.append(row | {"place": place})
    return out


def _base(rows: Sequence[Row], styles: Sequence[Style]) -> tuple[Any, Any, Any, Any, Any]:
    """``(alt, chart, colour, shape, opacity)``: the parts that every chart by method shares."""
    alt = altair()
    present = {r["method"] for r in rows}
    styles = [s for s in styles if s.name in present]
    names = [s.name for s in styles]
    focus = alt.param(name="focus", value="")
    colour = alt.Color("method:N", title=None, scale=alt.Scale(domain=names, range=[s.colour for s in styles]))
    shape = alt.Shape("method:N", title=None, scale=alt.Scale(domain=names, range=[s.shape for s in styles]))
    shown = alt.condition("focus === '' || datum.method === focus", alt.value(1), alt.value(0.12))
    chart = alt.Chart(alt.Data(values=list(rows))).add_params(focus)
    return alt, chart, colour, shape, shown


def _filled(alt: Any, test: str, colour: Any) -> Any:
    """Fill in the series' colour where ``test`` holds, hollow elsewhere; no legend of its own."""
    fill = colour.copy(deep=True)
    fill.legend = None
    return alt.condition(test, fill, alt.value("transparent"))


def _finish(chart: Any, height: int = HEIGHT) -> Row:
    spec: Row = chart.properties(width="container", height=height).to_dict(validate=False)
    spec.pop("$schema", None)
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def scatter(rows: Sequence[Row], styles: Sequence[Style], x: str, y: str) -> Row:
    """Points with intervals both ways; dominated ones hollow. Rows: method, x, x_low, x_high, y, …, kept, label."""
    named = placed(rows)
    alt, chart, colour, shape, shown = _base(named, styles)
    x_scale = alt.Scale(zero=False, nice=True, padding=16)
    x_axis = alt.X("x:Q", title=x, scale=x_scale, axis=alt.Axis(tickCount=5, labelOverlap=True))
    y_axis = alt.Y("y:Q", title=y, scale=alt.Scale(zero=False, nice=True, padding=16), axis=alt.Axis(tickCount=6))
    across = chart.mark_rule(strokeWidth=1.4).encode(
        x=alt.X("x_low:Q", scale=x_scale, title=x), x2="x_high:Q", y=y_axis, color=colour, opacity=shown
    )
    along = chart.mark_rule(strokeWidth=1.4).encode(
        x=x_axis, y=alt.Y("y_low:Q", scale=alt.Scale(zero=False), title=y), y2="y_high:Q", color=colour, opacity=shown
    )
    dots = chart.mark_point(size=130, strokeWidth=2).encode(
        x=x_axis,
        y=y_axis,
        color=colour,
        shape=shape,
        opacity=shown,
        fill=_filled(alt, "datum.kept", colour),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("x_text:N", title=x),
            alt.Tooltip("y_text:N", title=y),
            alt.Tooltip("label:N", title="Standing"),
        ],
    )
    names = [
        chart.mark_text(align=align, dx=dx, dy=dy, fontSize=11)
        .transform_filter(f"datum.place === '{place}'")
        .encode(x=x_axis, y=y_axis, text="method:N", opacity=shown)
        for place, (align, dx, dy) in PLACES.items()
        if any(r["place"] == place for r in named)
    ]
    return _finish(alt.layer(across, along, dots, *names).resolve_scale(fill="independent"), 340)


def lines(
    rows: Sequence[Row],
    styles: Sequence[Style],
    x: str,
    y: str,
    *,
    log_y: bool = False,
    limit: float | None = None,
    diagonal: bool = False,
) -> Row:
    """Curves over load with intervals; hollow points are overloaded. Rows: method, x, y, y_low, y_high, sound, text."""
    if log_y:
        floor = min((r["y"] for r in rows if r["y"] > 0), default=1e-3) / 1.5
        rows = [r | {k: max(r[k], floor) for k in ("y", "y_low")} for r in rows]
    alt, chart, colour, shape, shown = _base(rows, styles)
    low, high = reach(rows, limit)
    scale, ticks = alt.Scale(zero=True, nice=True, domainMax=high) if high > 0 else alt.Scale(zero=True), None
    if log_y:
        scale, ticks = _log(alt, [low, high, *(r["y"] for r in rows)] + ([limit] if limit else []))
    loads = sorted({float(r["x"]) for r in rows})
    x_ticks = (
        alt.Axis(values=loads, labelExpr="format(datum.value, '~r')") if len(loads) <= 8 else alt.Axis(tickCount=6)
    )
    y_ticks = alt.Axis(tickCount=6) if ticks is None else alt.Axis(values=ticks)
    x_axis = alt.X("x:Q", title=x, scale=alt.Scale(zero=False, nice=False, padding=14), axis=x_ticks)
    y_axis = alt.Y("y:Q", title=y, scale=scale, axis=y_ticks)
    line = chart.mark_line(strokeWidth=1.8).encode(x=x_axis, y=y_axis, color=colour, opacity=shown, detail="method:N")
    bars = chart.mark_rule(strokeWidth=1.4, clip=True).encode(
        x=x_axis, y=alt.Y("y_low:Q", title=y, scale=scale), y2="y_high:Q", color=colour, opacity=shown
    )
    dots = chart.mark_point(size=70, strokeWidth=1.8).encode(
        x=x_axis,
        y=y_axis,
        color=colour,
        shape=shape,
        opacity=shown,
        fill=_filled(alt, "datum.sound", colour),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("load:N", title="Load"),
            alt.Tooltip("text:N", title=y),
            alt.Tooltip("state:N", title="State"),
        ],
    )
    layers = [line, bars, dots]
    if limit is not None:
        data = alt.Chart(alt.Data(values=[{"y": limit, "text": "SLO"}]))
        layers.insert(0, data.mark_rule(strokeDash=[5, 4], strokeWidth=1.2).encode(y="y:Q"))
        text = data.mark_text(align="right", dx=-4, dy=-6, fontSize=11)
        layers.append(text.encode(y="y:Q", x=alt.value("width"), text="text:N"))
    if diagonal:
        ends = sorted({r["x"] for r in rows})
        data = alt.Chart(alt.Data(values=[{"x": v, "y": v} for v in (ends[0], ends[-1])]))
        layers.insert(0, data.mark_line(strokeDash=[5, 4], strokeWidth=1.2).encode(x="x:Q", y="y:Q"))
    return _finish(alt.layer(*layers).resolve_scale(fill="independent"))


def ranges(rows: Sequence[Row], styles: Sequence[Style], x: str) -> Row:
    """Horizontal quantile bars, log scale. Rows: method, p5, p25, p50, p75, p95, p99, text."""
    alt, chart, colour, _, shown = _base(rows, styles)
    order = [s.name for s in styles if any(r["method"] == s.name for r in rows)]
    y = alt.Y("method:N", sort=order, title=None, axis=alt.Axis(labelLimit=220))
    scale, ticks = _log(alt, [r[k] for r in rows for k in ("p5", "p99")])

    def at(name: str) -> Any:
        return alt.X(f"{name}:Q", title=x, scale=scale, axis=alt.Axis(values=ticks))

    tips = [alt.Tooltip("method:N", title="Method"), alt.Tooltip("text:N", title=x)]
    thin = chart.mark_rule(strokeWidth=1.6).encode(
        x=at("p5"), x2="p95:Q", y=y, color=colour, opacity=shown, tooltip=tips
    )
    thick = chart.mark_bar(size=9, cornerRadius=2).encode(
        x=at("p25"), x2="p75:Q", y=y, color=colour, opacity=shown, tooltip=tips
    )
    middle = chart.mark_point(size=70, filled=True, color="white", stroke="#333", strokeWidth=1).encode(
        x=at("p50"), y=y, opacity=shown, tooltip=tips
    )
    tail = chart.mark_tick(thickness=2.5, size=16).encode(x=at("p99"), y=y, color=colour, opacity=shown, tooltip=tips)
    return _finish(alt.layer(thin, thick, middle, tail), max(120, 34 * len(order)))


def dots(rows: Sequence[Row], styles: Sequence[Style], x: str, *, mark: float | None, zero: float | None = None) -> Row:
    """One row a method, a dot with its interval. Rows: method, x, x_low, x_high, text. ``mark`` is a dashed limit."""
    alt, chart, colour, shape, shown = _base(rows, styles)
    order = [s.name for s in styles if any(r["method"] == s.name for r in rows)]
    y = alt.Y("method:N", sort=order, title=None, axis=alt.Axis(labelLimit=220))
    scale = alt.Scale(zero=zero is not None, nice=True)
    tips = [alt.Tooltip("method:N", title="Method"), alt.Tooltip("text:N", title=x)]
    axis = alt.Axis(tickCount=6, labelOverlap=True)
    bars = chart.mark_rule(strokeWidth=2).encode(
        x=alt.X("x_low:Q", title=x, scale=scale, axis=axis),
        x2="x_high:Q",
        y=y,
        color=colour,
        opacity=shown,
        tooltip=tips,
    )
    points = chart.mark_point(size=90, filled=True).encode(
        x=alt.X("x:Q", title=x, scale=scale, axis=axis), y=y, color=colour, shape=shape, opacity=shown, tooltip=tips
    )
    layers = [bars, points]
    for value, dash in ((zero, [1, 0]), (mark, [5, 4])):
        if value is not None:
            data = alt.Chart(alt.Data(values=[{"x": value}]))
            layers.insert(0, data.mark_rule(strokeDash=dash, strokeWidth=1).encode(x="x:Q"))
    return _finish(alt.layer(*layers), max(120, 30 * len(order)))


def growth(rows: Sequence[Row], x: str, y: str) -> Row:
    """One step line that rises. Rows: x, y."""
    alt = altair()
    line = alt.Chart(alt.Data(values=list(rows))).mark_line(interpolate="step-after", strokeWidth=2)
    scale = alt.Scale(zero=True, nice=False)
    return _finish(
        line.encode(
            x=alt.X("x:Q", title=x, scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("y:Q", title=y, scale=scale, axis=alt.Axis(format="%")),
        )
    )


GPU_SHAPES = {"tensor": "circle", "pipeline": "square", "data": "diamond"}
"""Kind of parallelism → shape; mixed ones are triangles."""


def against_gpus(rows: Sequence[Row], styles: Sequence[Style], y: str, *, ideal: bool) -> Row:
    """A value against the number of GPUs: a line through each method's tensor-parallel points, the others beside it.

    Rows: method, kind, label, x, y, y_low, y_high, text. Colour is the method's, shape the kind of parallelism.
    """
    alt = altair()
    methods = list(dict.fromkeys(r["method"] for r in rows))
    colours = [next((s.colour for s in styles if s.name.split(" ")[0] == m), "#7A7F87") for m in methods]
    focus = alt.param(name="focus", value="")
    near = "focus === '' || focus === datum.method || indexof(focus, datum.method + ' ') === 0"
    shown = alt.condition(near, alt.value(1), alt.value(0.12))
    spread = {m: (k - (len(methods) - 1) / 2) * 0.035 for k, m in enumerate(methods)}
    placed_rows = [r | {"at": r["x"] * 2 ** spread[r["method"]]} for r in rows]
    chart = alt.Chart(alt.Data(values=placed_rows)).add_params(focus)
    counts = sorted({int(r["x"]) for r in rows})
    x_scale = alt.Scale(type="log", base=2, domain=[counts[0] * 0.85, counts[-1] * 1.18], nice=False)
    x = alt.X("at:Q", title="GPUs", scale=x_scale, axis=alt.Axis(values=counts, format="d"))
    top = max(reach(rows)[1], counts[-1] / counts[0] if ideal else 0.0)
    scale = alt.Scale(domain=[0.0, top * 1.08], nice=False)
    colour = alt.Color("method:N", title=None, scale=alt.Scale(domain=methods, range=colours))
    kinds = [k for k in GPU_SHAPES if any(r["kind"] == k for r in rows)]
    kinds += sorted({r["kind"] for r in rows} - set(kinds))
    shapes = alt.Scale(domain=kinds, range=[GPU_SHAPES.get(k, "triangle-up") for k in kinds])
    shape = alt.Shape("kind:N", title="Parallelism", scale=shapes, legend=alt.Legend() if len(kinds) > 1 else None)
    y_axis = alt.Y("y:Q", title=y, scale=scale, axis=alt.Axis(tickCount=6))
    line = (
        chart.mark_line(strokeWidth=1.8)
        .transform_filter("datum.kind === 'tensor'")
        .encode(x=x, y=y_axis, color=colour, opacity=shown, detail="method:N")
    )
    bars = chart.mark_rule(strokeWidth=1.4, clip=True).encode(
        x=x, y=alt.Y("y_low:Q", title=y, scale=scale), y2="y_high:Q", color=colour, opacity=shown
    )
    dots = chart.mark_point(size=75, strokeWidth=1.8, filled=True).encode(
        x=x, y=y_axis, color=colour, shape=shape, opacity=shown,
        tooltip=[
            alt.Tooltip("label:N", title="Deployment"),
            alt.Tooltip("x:Q", title="GPUs"),
            alt.Tooltip("text:N", title=y),
        ],
    )  # fmt: skip
    layers = [line, bars, dots]
    if ideal and len(counts) > 1:
        data = alt.Chart(alt.Data(values=[{"at": c, "y": c / counts[0]} for c in counts]))
        dashed = data.mark_line(strokeDash=[5, 4], strokeWidth=1.2, clip=True, color="#7A7F87")
        layers.insert(0, dashed.encode(x=x, y=alt.Y("y:Q", title=y, scale=scale)))
    return _finish(alt.layer(*layers))
