"""A plan's page: one self-contained HTML file with its pictures inline, and the pictures as SVG beside it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from qmeter import __version__
from qmeter.plan.check import fullness, loads
from qmeter.plan.run import PlanResult
from qmeter.plan.words import UNITS, left_out, promises, reason, rows
from qmeter.record import Quantity
from qmeter.report.charts import altair
from qmeter.report.numbers import share, shown
from qmeter.report.palette import styles

Row = dict[str, Any]

POOLS = (
    "pools",
    "How full each pool is",
    "Load in replicas' worth at the tail promise, against the replicas there are (dashed), period by period.",
)
ALTERNATIVES = (
    "alternatives",
    "This plan beside others",
    "The objective of this plan, of the best plans without one of its deployments, and with one constraint relaxed "
    "(by the model, not simulated).",
)
POOL_HEAD = ("deployment", "replicas", "serves", "gets, req/s", "sustains", "used", "binds", "power, W", "USD/h")


@dataclass(frozen=True)
class Picture:
    """One picture: its file's stem, what it shows, how to read it, and its SVG."""

    name: str
    title: str
    caption: str
    svg: str


def write_page(result: PlanResult, folder: Path) -> list[Path]:
    """Write ``plan.html`` and its pictures as SVG into a folder; returns the paths, the page first.

    Raises:
        MissingExtra: the report extra is not installed.
    """
    pictures = draw(result)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "plan.html"
    page.write_text(html(result, pictures), encoding="utf-8")
    paths = [page]
    for one in pictures:
        path = folder / f"{one.name}.svg"
        path.write_text(one.svg, encoding="utf-8")
        paths.append(path)
    return paths


def draw(result: PlanResult) -> list[Picture]:
    """The pictures: how full each pool is over the periods, and what the alternatives cost."""
    made = [(*POOLS, _pools(result)), (*ALTERNATIVES, _alternatives(result))]
    return [Picture(n, t, c, _svg(chart)) for n, t, c, chart in made if chart is not None]


def html(result: PlanResult, pictures: list[Picture]) -> str:
    """The page."""
    import jinja2
    from markupsafe import Markup

    folder = files("qmeter.report.templates")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)  # fmt: skip
    template = environment.from_string((folder / "plan.html.j2").read_text(encoding="utf-8"))
    plan = result.found.solution
    pools = " + ".join(f"{int(plan.replicas[p])} × {result.label(p)}" for p in result.pools)
    notes = [f"{r['deployment']}: {r['extrapolated']}" for r in rows(result) if r["extrapolated"]]
    notes += [f"{r['deployment']}: {n}" for r in rows(result) for n in r["notes"]]
    return template.render(
        name=result.spec.name, objective=result.spec.objective, headline=f"Serve with {pools}.",
        reason=reason(result), facts=_facts(result), notes=notes, tables=_tables(result),
        pictures=[{"title": p.title, "caption": p.caption, "svg": Markup(p.svg)} for p in pictures],
        css=Markup((folder / "report.css").read_text(encoding="utf-8")), version=__version__, seed=result.spec.seed,
    )  # fmt: skip


def _facts(result: PlanResult) -> list[tuple[str, str]]:
    found = result.found
    sums = [("cost", result.cost_usd_h), (f"energy in {result.demand.horizon_h:g} h", result.energy_j),
            (f"carbon in {result.demand.horizon_h:g} h", result.carbon_g)]  # fmt: skip
    return [
        *((name, str(shown(q))) for name, q in sums if q.value is not None),
        ("rates may rise by ×", str(shown(result.headroom.growth))),
        ("holds in calibration draws", str(share(result.headroom.certainty))),
        ("solver gap", f"{found.solution.gap:.2%}"),
        ("above the model's bound", f"{found.gap:.2%}"),
        ("requests simulated", f"{found.watched.requests:,}"),
    ]


def _tables(result: PlanResult) -> list[Row]:
    value, unit = result.found.solution.value, UNITS[result.spec.objective]
    pools = [
        [r["deployment"], r["replicas"], ", ".join(r["serves"]), f"{r['rate_hz']:.3g}",
         str(shown(Quantity(**r["sustains_hz"]))) if r["sustains_hz"] else "", f"{r['used']:.0%}", r["binds"],
         "unknown" if r["power_mean_w"] is None else f"{r['power_mean_w']:,.0f}",
         "" if r["usd_h"] is None else f"{r['usd_h']:.4g}"]
        for r in rows(result)
    ]  # fmt: skip
    kept = [[r["class"], r["promise"], f"{r['peak_hz']:.4g}", f"{r['asked']:.1%}",
             "" if r["worst"] is None else f"{r['worst']:.2%}", r["period"]] for r in promises(result)]  # fmt: skip
    others = [[f"without {n.without}", "no plan" if n.value is None else f"{n.value:,.4g} {unit}",
               "" if n.value is None else f"{n.value / value - 1:+.1%}"] for n in result.next_best]  # fmt: skip
    others += [[f"{s.field}: {s.change}", f"{value - s.saves:,.4g} {unit}", f"−{s.saves / value:.1%}"]
               for s in result.savings]  # fmt: skip
    out: list[Row] = [
        {"title": "Pools", "caption": "Rates of one replica in the pool's fullest period; 90% intervals over the "
         "calibration's draws.", "head": POOL_HEAD, "rows": pools},
        {"title": "Promises", "caption": "The worst share over all periods and fresh seeds of the simulation.",
         "head": ["class", "promise", "peak, req/s", "asked", "worst seen", "in period"], "rows": kept},
    ]  # fmt: skip
    if others:
        out.append({"title": "Alternatives", "caption": "By the model, at the capacities that the simulation found; "
                    "not simulated again.", "head": ["change", f"{result.spec.objective}", "difference"],
                    "rows": others})  # fmt: skip
    gone = [[r["deployment"], r["class"], r["why"]] for r in left_out(result)]
    if gone:
        out.append({"title": "Left out", "caption": "", "head": ["deployment", "class", "why"], "rows": gone})
    return out


def _pools(result: PlanResult) -> Any:
    alt = altair()
    flow = loads(result.table, result.found.solution)
    names = {p: f"{result.label(p)} #{p}" for p in result.pools}
    data, caps = [], []
    for p in result.pools:
        full = fullness(result.table, flow, p) / result.found.factor[p]
        data += [{"pool": names[p], "period": t, "load": float(v)} for t, v in enumerate(full)]
        caps.append({"pool": names[p], "replicas": int(result.found.solution.replicas[p])})
    looks = styles(list(names.values()))
    colour = alt.Color("pool:N", legend=None, scale=alt.Scale(domain=[s.name for s in looks],
                                                              range=[s.colour for s in looks]))  # fmt: skip
    bars = alt.Chart(alt.Data(values=data)).mark_bar(opacity=0.85).encode(
        x=alt.X("period:O", title="period", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("load:Q", title="replicas' worth of load"), color=colour,
    )  # fmt: skip
    lines = alt.Chart(alt.Data(values=caps)).mark_rule(strokeDash=[5, 4], strokeWidth=1.4).encode(y="replicas:Q")
    size = alt.Step(16) if result.demand.rate_hz.shape[1] > 8 else alt.Step(40)
    panels = [
        alt.layer(
            bars.transform_filter(f"datum.pool === '{n}'"), lines.transform_filter(f"datum.pool === '{n}'")
        ).properties(width=size, height=150, title=n)
        for n in names.values()
    ]
    return alt.concat(*panels, columns=2 if result.demand.rate_hz.shape[1] > 8 else 4).resolve_scale(y="independent")


def _alternatives(result: PlanResult) -> Any:
    alt = altair()
    value = result.found.solution.value
    data = [{"plan": "this plan", "value": value, "kind": "this"}]
    data += [{"plan": f"without {n.without}", "value": n.value, "kind": "next best"} for n in result.next_best
             if n.value is not None]  # fmt: skip
    data += [
        {"plan": f"{s.field}: {s.change}", "value": value - s.saves, "kind": "relaxed"} for s in result.savings[:8]
    ]
    if len(data) < 2 or not np.isfinite(value):
        return None
    looks = styles(["this", "next best", "relaxed"])
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=[s.name for s in looks],
                                                             range=[s.colour for s in looks]))  # fmt: skip
    title = f"{result.spec.objective}, {UNITS[result.spec.objective]} over {result.demand.horizon_h:g} h"
    return alt.Chart(alt.Data(values=data)).mark_bar().encode(
        x=alt.X("value:Q", title=title), color=colour,
        y=alt.Y("plan:N", sort=None, title=None, axis=alt.Axis(labelLimit=420)),
    ).properties(width=460)  # fmt: skip


def _svg(chart: Any) -> str:
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(chart.to_dict(validate=False))
    return svg
