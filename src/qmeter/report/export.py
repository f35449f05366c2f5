"""Files beside the page: charts as SVG, PNG and CSV; every quantity as CSV."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qmeter.analysis.summary import StudySummary
from qmeter.report.charts import Chart

WIDTH = 620
PNG_SCALE = 2.0

_CONFIG: dict[str, Any] = {
    "background": "white",
    "padding": 12,
    "font": "sans-serif",
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 15, "offset": 14},
    "axis": {
        "gridColor": "#e6e9ed", "domain": False, "ticks": False, "labelColor": "#4a525c", "titleColor": "#4a525c",
        "labelFontSize": 12, "titleFontSize": 12, "labelPadding": 6,
    },
    "legend": {"orient": "right", "labelFontSize": 12, "symbolStrokeWidth": 2},
    "rule": {"color": "#8a93a0"},
    "line": {"color": "#8a93a0"},
    "tick": {"color": "#8a93a0"},
    "text": {"color": "#4a525c"},
}  # fmt: skip


def write_pictures(folder: Path, charts: Sequence[Chart]) -> None:
    """Write every chart as SVG, PNG (twice the size) and its data as CSV."""
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        vega = vl_convert.vegalite_to_vega(standalone(chart))
        svg = vl_convert.vega_to_svg(vega)
        (folder / f"{chart.name}.svg").write_text(svg, encoding="utf-8")
        (folder / f"{chart.name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=PNG_SCALE))
        columns = list(dict.fromkeys(name for row in chart.rows for name in row))
        write_csv(folder / f"{chart.name}.csv", [columns, *([row.get(c, "") for c in columns] for row in chart.rows)])


def standalone(chart: Chart) -> dict[str, Any]:
    """The chart's spec for a file of its own: fixed width, a legend, a title, a light theme."""
    spec = copy.deepcopy(chart.spec)
    spec |= {"width": WIDTH, "autosize": {"type": "pad"}, "config": _CONFIG, "title": chart.title}
    return spec


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV, the first being the heading. Text that a spreadsheet would run as a formula is quoted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in rows:
            writer.writerow([_inert(v) for v in row])


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "@", "\t", "\r") else value


_QUANTITY_COLUMNS = (
    "kind", "model", "engine", "method", "parallelism", "workload", "quantity", "value", "low", "high", "unit", "n",
    "why",
)  # fmt: skip


def write_quantities(path: Path, summary: StudySummary) -> None:
    """Every quantity of every load point and deployment, one row each, with interval and reason."""
    rows: list[Sequence[Any]] = [_QUANTITY_COLUMNS]
    for d in summary.deployments:
        k = d.key
        who = (k.kind.value, k.model, k.engine, k.method, k.parallelism)
        own = ("", {**d.quality, **d.memory})
        for workload, group in [own, *((p.workload, {**p.metrics, **p.energy}) for p in d.points)]:
            for name, q in group.items():
                rows.append((*who, workload, name, q.value, q.low, q.high, q.unit, q.n, q.why))
    write_csv(path, rows)
