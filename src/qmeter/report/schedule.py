"""The page of a schedule: what it saves and why, the load, the replicas and the power over the day, the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qmeter
from qmeter.report.charts import Chart, altair
from qmeter.report.export import write_csv, write_pictures
from qmeter.report.page import render_template, runtime
from qmeter.report.palette import COLOURS, REFERENCE, Style
from qmeter.schedule import words
from qmeter.schedule.solve import NAMES, Answer, timeline
from qmeter.schedule.write import write_schedule
from qmeter.store import write_atomic

COLUMNS = ("Policy", "Energy, kWh a day", "Saved over static peak", "Share of the oracle's saving",
           "Requests beyond their SLO", "Starts a day", "TTFT p99, ms", "TPOT p99, ms")  # fmt: skip
HEIGHT = 220
Row = dict[str, Any]


def write_schedule_report(answer: Answer, out: Path) -> Path:
    """Write ``report.html``, ``charts/``, ``tables/policies.csv`` and ``schedule.yaml`` into ``out``; returns the page.

    Raises:
        MissingExtra: the report extra is not installed.
    """
    altair()
    out.mkdir(parents=True, exist_ok=True)
    file = write_schedule(answer, out / "schedule.yaml")
    charts = _charts(answer)
    rows = [table_row(answer, name) for name in NAMES]
    parts = {
        "version": qmeter.__version__, "study": answer.spec.name, "description": answer.spec.description,
        "headline": words.headline(answer), "why": words.reasons(answer), "caveats": words.caveats(answer),
        "facts": _facts(answer), "columns": COLUMNS, "rows": rows, "kind_columns": _kind_columns(answer),
        "kind_rows": _kind_rows(answer), "days": len(answer.days), "schedule_text": file.read_text(),
        "legends": {"load": _classes(answer), "replicas": _kinds(answer), "power": _policies(answer)},
    }  # fmt: skip
    page = out / "report.html"
    write_atomic(page, render_template("schedule.html.j2", parts, {c.name: [c] for c in charts}, [], runtime()))
    write_csv(out / "tables" / "policies.csv", [COLUMNS, *rows])
    write_pictures(out / "charts", charts)
    return page


def table_row(answer: Answer, name: str) -> list[str]:
    """One policy's row."""
    outcomes = answer.outcomes[name]
    columns = [(o.starts, o.ttft_p99_s * 1e3, o.tpot_p99_s * 1e3) for o in outcomes]
    mean = [sum(values) / len(outcomes) for values in zip(*columns, strict=True)]
    saving = "" if name == "static" else words.percent(answer.saving(name))
    closed = "" if name == "static" else words.percent(answer.closed(name))
    return [outcomes[0].course.title, words.kwh(answer.energy_j(name)), saving, closed,
            words.percent(answer.violations(name)), f"{mean[0]:.0f}", f"{mean[1]:.0f}", f"{mean[2]:.1f}"]  # fmt: skip


def _facts(answer: Answer) -> list[tuple[str, str]]:
    spec = answer.spec
    fleet = ", ".join(f"{f.count} × {name}" for name, f in spec.fleet.items())
    slo = "; ".join(f"{c.name}: {_slo(c.slo)}" for c in spec.classes)
    horizon = "the rest of the day" if spec.forecast.horizon is None else f"{spec.forecast.horizon / 3600:g} h"
    return [("Fleet", fleet), ("Requests a day", f"{len(answer.days[0]):,}"), ("SLO", slo),
            ("Slots", f"{spec.slots} of {spec.slot / 60:g} min"),
            ("Forecast", f"error {spec.forecast.error:.0%}, horizon {horizon}"),
            ("Records", ", ".join(Path(s.source).name for s in spec.sources))]  # fmt: skip


def _slo(slo: Any) -> str:
    limits = [f"{name.upper()} {value * 1e3:g} ms" for name in ("ttft", "tpot", "e2e")
              if (value := getattr(slo, name)) is not None]  # fmt: skip
    return f"{', '.join(limits)} for {slo.percentile:.0%}"


def _kind_columns(answer: Answer) -> list[str]:
    metrics = sorted({name for k in answer.choice.kinds for name in k.quality})
    rates = [f"{c.name}, req/s a replica, as planned" for c in answer.spec.classes]
    quality = [f"{name} (worse end)" for name in metrics]
    return ["Deployment", *rates, "Idle, W", "Full, W", "Start, s", *quality, "Served by the schedule"]


def _kind_rows(answer: Answer) -> list[list[str]]:
    metrics = sorted({name for k in answer.choice.kinds for name in k.quality})
    served = answer.outcomes["schedule"][0].served
    return [[k.name, *(f"{r:.1f}" for r in k.capacity_hz), f"{k.power_w[0]:.0f}", f"{k.power_w[-1]:.0f}",
             f"{k.load_s:.0f}", *(f"{k.quality[m]:.4g}" if m in k.quality else "unknown" for m in metrics),
             f"{served[i]:.0%}"] for i, k in enumerate(answer.choice.kinds)]  # fmt: skip


def _styles(names: list[str]) -> list[Style]:
    return [Style(name, COLOURS[i % len(COLOURS)], "square") for i, name in enumerate(names)]


def _classes(answer: Answer) -> list[Style]:
    return _styles([c.name for c in answer.spec.classes])


def _kinds(answer: Answer) -> list[Style]:
    return _styles([k.name for k in answer.choice.kinds])


def _policies(answer: Answer) -> list[Style]:
    colours = (REFERENCE, COLOURS[4], COLOURS[0], COLOURS[2])
    return [
        Style(answer.outcomes[n][0].course.title, colour, "square") for n, colour in zip(NAMES, colours, strict=True)
    ]


def _charts(answer: Answer) -> list[Chart]:
    spec, day = answer.spec, answer.days[0]
    hours = [t * spec.slot / 3600 for t in range(spec.slots)]
    width = spec.slot / 3600
    load = [{"x": h, "x2": h + width, "y": float(day.mean_hz[c, t]), "series": one.name}
            for c, one in enumerate(spec.classes) for t, h in enumerate(hours)]  # fmt: skip
    mine = timeline(spec, answer.choice, day, answer.outcomes["schedule"][0].course)
    replicas = [{"x": h, "x2": h + width, "y": float(mine.replicas[t, k]), "series": kind.name}
                for k, kind in enumerate(answer.choice.kinds) for t, h in enumerate(hours)]  # fmt: skip
    power = []
    for name in NAMES:
        outcome = answer.outcomes[name][0]
        line = timeline(spec, answer.choice, day, outcome.course)
        power += [{"x": h, "y": float(line.power_w[t]), "series": outcome.course.title} for t, h in enumerate(hours)]
        power.append({"x": 24.0, "y": float(line.power_w[-1]), "series": outcome.course.title})
    return [
        Chart("load", "Load", "Mean rate of each class in each slot, stacked.",
              _bars(load, _classes(answer), "Requests a second"), load, "Load over the day by class"),
        Chart("replicas", "Replicas by deployment", "What the rolling schedule has up, stacked.",
              _bars(replicas, _kinds(answer), "Replicas"), replicas, "Replicas over the day by deployment"),
        Chart("power", "Power", "Of the whole fleet by the deployments' measured power curves, empty devices included; "
              "the table's energies come from the simulation of every request.",
              _steps(power, _policies(answer), "Watts"), power, "Power over the day by policy"),
    ]  # fmt: skip


def _hours(alt: Any) -> Any:
    axis = alt.Axis(values=list(range(0, 25, 3)), tickCount=9)
    return alt.X("x:Q", title="Hour of the day", scale=alt.Scale(domain=[0, 24], nice=False), axis=axis)


def _bars(rows: list[Row], looks: list[Style], title: str) -> Row:
    """Each hour's series one above the other. (Vega-Lite stacks no bars that have an end of their own in x.)"""
    height: dict[float, float] = {}
    stacked = []
    for row in rows:
        bottom = height.get(row["x"], 0.0)
        height[row["x"]] = bottom + row["y"]
        stacked.append({**row, "bottom": bottom, "top": height[row["x"]]})
    chart = _over_the_day(stacked, looks, ("Series", title, ".2f")).mark_rect(strokeWidth=0)
    return _finished(chart.encode(x2="x2:Q", y=altair().Y("top:Q", title=title), y2="bottom:Q"))


def _steps(rows: list[Row], looks: list[Style], title: str) -> Row:
    chart = _over_the_day(rows, looks, ("Policy", title, ".0f")).mark_line(interpolate="step-after", strokeWidth=2)
    return _finished(chart.encode(y=altair().Y("y:Q", title=title)))


def _over_the_day(rows: list[Row], looks: list[Style], told: tuple[str, str, str]) -> Any:
    """Rows by the hour, a colour a series; ``told``: what a series is, what the value is, and its format."""
    alt, (series, value, digits) = altair(), told
    scale = alt.Scale(domain=[s.name for s in looks], range=[s.colour for s in looks])
    tips = [alt.Tooltip("series:N", title=series), alt.Tooltip("x:Q", title="Hour", format=".1f"),
            alt.Tooltip("y:Q", title=value, format=digits)]  # fmt: skip
    colour = alt.Color("series:N", legend=None, scale=scale)
    return alt.Chart(alt.Data(values=rows)).encode(x=_hours(alt), color=colour, tooltip=tips)


def _finished(chart: Any) -> Row:
    spec: Row = chart.properties(width="container", height=HEIGHT).to_dict(validate=False)
    spec.pop("$schema", None)
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec
