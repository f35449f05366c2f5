"""From a study's summary to its charts: which quantity on which axis, in which unit, with which caption."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qmeter.analysis.latency import gaps
from qmeter.analysis.points import Deployment, Point
from qmeter.analysis.recommend import Recommendation
from qmeter.analysis.summary import ParetoPoint, ParetoSet, StudySummary
from qmeter.record import CellTables, Quantity, Window
from qmeter.report import charts
from qmeter.report.charts import Chart, Row
from qmeter.report.numbers import change, shown
from qmeter.report.palette import Style
from qmeter.report.views import common_workload
from qmeter.report.words import load_text

QUANTILES = (5, 25, 50, 75, 95, 99)


def slug(text: str) -> str:
    """A name fit for files and element ids."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


def _span(prefix: str, q: Quantity, factor: float = 1.0, shift: float = 0.0) -> Row:
    value = q.value or 0.0
    ends = {"": value, "_low": value if q.low is None else q.low, "_high": value if q.high is None else q.high}
    return {prefix + end: (v - shift) * factor for end, v in ends.items()}


Axis = tuple[str, Callable[[ParetoPoint], Quantity], float, float]
"""Title, where the quantity comes from, factor and shift to the shown unit."""


def pareto_charts(found: ParetoSet, deployments: Sequence[Deployment], styles: Sequence[Style]) -> list[Chart]:
    """Quality against performance, energy against performance, quality against energy: those whose axes are known."""
    by_key = {d.key: d for d in deployments}

    def own(name: str) -> Callable[[ParetoPoint], Quantity]:
        return lambda p: by_key[p.key].quality.get(name) or by_key[p.key].memory.get(name) or p.point.get(name)

    axes: dict[str, Axis] = {
        "performance": _performance(found, deployments),
        "energy": ("Energy per output token, J", own("j_per_output_token"), 1.0, 0.0),
        "quality": ("Perplexity against the reference, %", own("ppl_ratio"), 100.0, 1.0),
        "memory": ("Weights, GB", own("weight_bytes"), 1e-9, 0.0),
    }
    wanted = (
        ("quality", "performance", "Speed against quality"),
        ("energy", "performance", "Speed against energy"),
        ("quality", "energy", "Energy against quality"),
        ("memory", "quality", "Quality against memory"),
    )
    made = [(_trade_rows(found, axes[x], axes[y]), x, y, title) for x, y, title in wanted]
    return [
        Chart(
            name=slug(f"pareto-{x}-{y}-{found.model}-{found.family}"),
            title=title,
            caption="",
            spec=charts.scatter(rows, styles, axes[x][0], axes[y][0]),
            rows=rows,
            description=f"{title}: {len(rows)} methods.",
        )
        for rows, x, y, title in made
        if len(rows) > 1
    ][:3]


def _trade_rows(found: ParetoSet, x: Axis, y: Axis) -> list[Row]:
    rows = []
    for p in found.points:
        row: Row = {"method": p.key.label, "kept": p.dominated_by is None}
        row["label"] = "not dominated" if p.dominated_by is None else f"dominated by {p.dominated_by.label}"
        for short, (title, of, factor, shift) in (("x", x), ("y", y)):
            q = of(p)
            if q.known:
                row |= _span(short, q, factor, shift)
                row[f"{short}_text"] = str(change(q) if title.startswith("Perplexity") else shown(q))
        if "x" in row and "y" in row:
            rows.append(row)
    return rows


def _performance(found: ParetoSet, deployments: Sequence[Deployment]) -> Axis:
    """Goodput (no SLO: output rate) at each method's best load; where it ties for most, latency at one common load.

    Where they take different numbers of GPUs it is a GPU's, and never latency, which more GPUs shorten.
    """
    axis = next((a for a in found.axes if a.name in ("goodput_hz", "throughput_tok_s")), None)
    name, each = (axis.name, axis.per_gpu) if axis else ("goodput_hz", False)
    best = [p.objectives[name].value or 0.0 for p in found.points]
    tied = sum(v >= 0.98 * max(best) for v in best) if best else 0
    common = common_workload(deployments, found.family)
    if tied > len(best) / 2 and common is not None and not each:
        mine = {p.key: p for d in deployments for p in d.points if p.workload == common.workload}
        none = Quantity.unknown("s", "no usable cell at this load")
        at = load_text(common.load)
        return f"E2E mean at {at}, ms", lambda p: mine[p.key].get("e2e_mean_s") if p.key in mine else none, 1000.0, 0.0
    word, unit = ("Goodput", "req/s") if name == "goodput_hz" else ("Output rate", "token/s")
    return f"{word}{' a GPU' if each else ''}, {unit}", lambda p: p.objectives[name], 1.0, 0.0


CURVES = (
    ("ttft_p90_s", "Time to first token, p90", "TTFT p90, ms", 1000.0, True, "ttft"),
    ("tpot_mean_s", "Time per output token, mean", "TPOT mean, ms", 1000.0, False, "tpot"),
    ("goodput_hz", "Goodput", "Goodput, req/s", 1.0, False, ""),
    ("throughput_tok_s", "Output rate", "Output tokens/s", 1.0, False, ""),
)
ENERGY_CURVES = (
    ("j_per_output_token", "Energy per output token", "J per output token", 1.0, True, ""),
    ("power_mean_w", "Mean power", "W", 1.0, False, ""),
)


def load_charts(
    r: Recommendation,
    deployments: Sequence[Deployment],
    styles: Sequence[Style],
    curves: Sequence[tuple[str, str, str, float, bool, str]] = CURVES,
) -> list[Chart]:
    """Quantities over load for one model and family; a curve that no point knows is left out."""
    points = [p for d in deployments if d.key.model == r.model for p in d.points if p.family == r.family]
    out = []
    for name, title, axis, factor, log, limit_of in curves:
        rows = [_curve_row(p, name, factor) for p in points if p.get(name).known]
        unknown = sorted({p.key.label for p in points if not p.get(name).known})
        if not rows:
            continue
        limit = getattr(r.slo, limit_of, None) if r.slo and limit_of else None
        notes = [f"Some points are unknown (see every load point): {', '.join(unknown)}."] if unknown else []
        alone = len({row["x"] for row in rows}) == 1
        if not alone and any(row["y_high"] > charts.reach(rows)[1] for row in rows):
            notes.append("Intervals wider than the picture are cut at its edge; the tables have them in full.")
        unit = points[0].load.unit
        load = {"1/s": "Requests due, req/s", "concurrent": "Requests in flight"}.get(unit, unit)
        out.append(
            Chart(
                name=slug(f"{name}-{r.model}-{r.family}"),
                title=title,
                caption=" ".join(notes),
                spec=_at_one_load(rows, styles, axis, limit, factor) if alone else charts.lines(
                    rows, styles, load, axis, log_y=log, limit=None if limit is None else limit * factor,
                    diagonal=name == "goodput_hz" and unit == "1/s",
                ),
                rows=rows,
                description=f"{title} over load for {len({p.key for p in points})} deployments.",
            )
        )  # fmt: skip
    return out


def _at_one_load(rows: Sequence[Row], styles: Sequence[Style], axis: str, limit: float | None, factor: float) -> Row:
    """A row a method instead of curves, where there is only one load."""
    turned = [r | {"x": r["y"], "x_low": r["y_low"], "x_high": r["y_high"]} for r in rows]
    where = rows[0]["load"]
    return charts.dots(turned, styles, f"{axis} at {where}", mark=None if limit is None else limit * factor)


def _curve_row(p: Point, name: str, factor: float) -> Row:
    q = p.get(name)
    row: Row = {"method": p.key.label, "x": p.load.value, "load": load_text(p.load), "text": str(shown(q))}
    row |= {"sound": p.sound, "state": "overloaded" if p.overloaded else "stationary" if p.sound else "not stationary"}
    return row | _span("y", q, factor)


def itl_chart(found: Mapping[str, Sequence[float]], styles: Sequence[Style], where: str, name: str) -> Chart | None:
    """ITL quantiles by method at one load; ``found`` maps a method's label to its quantiles in seconds."""
    rows = []
    for label, values in found.items():
        row: Row = {"method": label} | {f"p{q}": 1000 * v for q, v in zip(QUANTILES, values, strict=True)}
        row["text"] = f"p5 {row['p5']:.3g}, p50 {row['p50']:.3g}, p95 {row['p95']:.3g}, p99 {row['p99']:.3g} ms"
        rows.append(row)
    if not rows:
        return None
    return Chart(
        name=slug(f"itl-{name}"),
        title=f"Inter-token latency at {where}",
        caption="Dot: median; thick bar: p25 to p75; thin line: p5 to p95; tick: p99. Gaps between tokens of one "
        "request that end in the window.",
        spec=charts.ranges(rows, styles, "Inter-token latency, ms"),
        rows=rows,
        description=f"Quantiles of inter-token latency for {len(rows)} deployments at {where}.",
    )


def itl_quantiles(tables: CellTables, window: Window) -> list[float] | None:
    """ITL quantiles (:data:`QUANTILES`) of one cell, or ``None`` where its token times are not kept."""
    seconds = gaps(tables, window).seconds
    if len(seconds) < 100:
        return None
    values = np.quantile(seconds, [q / 100 for q in QUANTILES])
    return [max(float(v), 1e-7) for v in values]


def quality_chart(
    deployments: Sequence[Deployment], styles: Sequence[Style], model: str, tolerance: float
) -> Chart | None:
    """Perplexity change against the reference, a row a method."""
    rows: list[Row] = []
    for d in deployments:
        q = d.quality.get("ppl_ratio")
        if d.key.model == model and q is not None and q.known:
            rows.append({"method": d.key.label, "text": str(change(q))} | _span("x", q, 100.0, 1.0))
    if not rows:
        return None
    return Chart(
        name=slug(f"quality-{model}"),
        title="Perplexity against the reference",
        caption=f"Right is worse. Dashed: the {tolerance:.0%} that a recommendation lets pass. Bars are 95% intervals, "
        "paired by continuation.",
        spec=charts.dots(rows, styles, "Change of perplexity, %", mark=100 * tolerance, zero=0.0),
        rows=rows,
        description=f"Change of perplexity for {len(rows)} deployments.",
    )


def all_labels(summary: StudySummary) -> tuple[list[str], list[str], list[str]]:
    """``(labels, references, methods)`` of every deployment in a chart, in order of first appearance.

    What was measured alone and side by side with others is in a table of its own, and in curves as it was alone.
    """
    mine = {d.key.label: d for d in summary.compared}
    references = [label for label, d in mine.items() if d.is_reference]
    return list(mine), references, [d.key.method for d in mine.values()]
