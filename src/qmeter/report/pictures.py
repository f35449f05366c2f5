"""From a study's summary to its charts: which quantity on which axis, in which unit, with which caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qmeter.analysis.latency import gaps
from qmeter.analysis.points import Deployment, Point
from qmeter.analysis.recommend import Recommendation
from qmeter.analysis.summary import ParetoSet, StudySummary
from qmeter.record import CellTables, Quantity, Window
from qmeter.report import charts
from qmeter.report.charts import Chart, Row
from qmeter.report.numbers import change, shown
from qmeter.report.palette import Style
from qmeter.report.words import load_text

QUANTILES = (5, 25, 50, 75, 95, 99)


def slug(text: str) -> str:
    """A name fit for files and element ids."""
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def _span(prefix: str, q: Quantity, factor: float = 1.0, shift: float = 0.0) -> Row:
    value = q.value or 0.0
    ends = {"": value, "_low": value if q.low is None else q.low, "_high": value if q.high is None else q.high}
    return {prefix + end: (v - shift) * factor for end, v in ends.items()}


def pareto_charts(found: ParetoSet, deployments: Sequence[Deployment], styles: Sequence[Style]) -> list[Chart]:
    """Quality against performance, energy against performance, quality against energy: those whose axes are known."""
    by_key = {d.key: d for d in deployments}
    performance, name = _performance_axis(found)
    axes: dict[str, tuple[str, str, float, float]] = {
        "performance": (
            performance,
            name,
            1000.0 if performance.endswith("_s") and "tok" not in performance else 1.0,
            0.0,
        ),
        "energy": ("j_per_output_token", "Energy per output token, J", 1.0, 0.0),
        "quality": ("ppl_ratio", "Perplexity against the reference, %", 100.0, 1.0),
        "memory": ("weight_bytes", "Weights, GB", 1e-9, 0.0),
    }
    out = []
    for x, y, title in (
        ("quality", "performance", "Speed against quality"),
        ("energy", "performance", "Speed against energy"),
        ("quality", "energy", "Energy against quality"),
        ("memory", "quality", "Quality against memory"),
    ):
        rows = []
        for p in found.points:
            values = {a: _objective(by_key[p.key], p.point, axes[a][0]) for a in (x, y)}
            if not all(q.known for q in values.values()):
                continue
            row: Row = {"method": p.key.label, "kept": p.dominated_by is None}
            row["label"] = "not dominated" if p.dominated_by is None else f"dominated by {p.dominated_by.label}"
            for axis, short in ((x, "x"), (y, "y")):
                quantity, _, factor, shift = axes[axis]
                row |= _span(short, values[axis], factor, shift)
                row[f"{short}_text"] = str(change(values[axis]) if quantity == "ppl_ratio" else shown(values[axis]))
            rows.append(row)
        if len(rows) < 2:
            continue
        out.append(
            Chart(
                name=slug(f"pareto-{x}-{y}-{found.model}"),
                title=title,
                caption="Filled: not dominated beyond noise. Hollow: another method is better on one objective beyond "
                "noise and worse on none (performance, energy and quality together). Bars are 95% intervals.",
                spec=charts.scatter(rows, styles, axes[x][1], axes[y][1]),
                rows=rows,
                description=f"{title}: {len(rows)} methods.",
            )
        )
        if len(out) == 3:
            break
    return out


def _performance_axis(found: ParetoSet) -> tuple[str, str]:
    name = next((a.name for a in found.axes if a.name in ("goodput_hz", "throughput_tok_s")), "goodput_hz")
    values = [p.objectives[name].value or 0.0 for p in found.points]
    if values and (max(values) - min(values)) < 0.05 * max(values):
        return "e2e_mean_s", "E2E latency at the best load, mean, ms"
    return name, "Goodput, req/s" if name == "goodput_hz" else "Output rate, token/s"


def _objective(d: Deployment, p: Point, name: str) -> Quantity:
    if name == "weight_bytes":
        return d.memory[name]
    if name == "ppl_ratio":
        return d.quality.get(name, Quantity.unknown("1", "not measured"))
    return p.get(name)


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
        caption = "Hollow points: overloaded or not stationary, so the value depends on the window's length."
        if unknown:
            caption += f" Some points are unknown (see the table of cells): {', '.join(unknown)}."
        unit = points[0].load.unit
        load = {"1/s": "Requests due, req/s", "concurrent": "Requests in flight"}.get(unit, unit)
        out.append(
            Chart(
                name=slug(f"{name}-{r.model}-{r.family}"),
                title=title,
                caption=caption,
                spec=charts.lines(
                    rows, styles, load, axis, log_y=log, limit=None if limit is None else limit * factor,
                    diagonal=name == "goodput_hz" and unit == "1/s",
                ),
                rows=rows,
                description=f"{title} over load for {len({p.key for p in points})} deployments.",
            )
        )  # fmt: skip
    return out


def _curve_row(p: Point, name: str, factor: float) -> Row:
    q = p.get(name)
    sound = not p.overloaded and not any(w.kind == "not_stationary" for w in p.warnings)
    row: Row = {
        "method": p.key.label,
        "x": p.load.value,
        "load": load_text(p.load),
        "sound": sound,
        "text": str(shown(q)),
    }
    row["state"] = "overloaded" if p.overloaded else "stationary" if sound else "not stationary"
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


def all_labels(summary: StudySummary) -> tuple[list[str], list[str]]:
    """``(labels, references)`` of every deployment that appears in a chart, in order of first appearance."""
    labels = list(dict.fromkeys(d.key.label for d in summary.deployments))
    references = list(dict.fromkeys(d.key.label for d in summary.deployments if d.is_reference))
    return labels, references
