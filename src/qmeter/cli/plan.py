"""``qmeter plan``: replicas and routing for given traffic at least cost, energy or carbon, simulated until it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table

from qmeter.plan.deploy import write_spec
from qmeter.plan.load import load_plan
from qmeter.plan.run import NoPlan, PlanResult, make_plan
from qmeter.plan.words import UNITS, data, left_out, nearest, promises, reason, rows
from qmeter.record import Quantity
from qmeter.report.numbers import shown

EXIT_NO_PLAN = 1
LEFT_OUT_SHOWN = 12


PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file (YAML).", exists=True, dir_okay=False)]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for page, picture and deployable spec.")]
WhatIf = Annotated[bool, typer.Option("--what-if/--no-what-if", help="What relaxing each limit would save.")]
Certainty = Annotated[
    float | None, typer.Option("--certainty", min=0.5, max=0.999, help="Hold in this share of calibration draws.")
]


def plan(
    plan_file: PlanFile,
    out: Out = None,
    what_if: WhatIf = True,
    certainty: Certainty = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Choose deployments, replicas and routing that keep every promise, and show why, with headroom and alternatives.

    Exit codes: 0 a plan that holds; 1 there is none (what conflicts, and the nearest, is shown); 2 the file is wrong.
    """
    spec = load_plan(plan_file)
    if certainty is not None:
        spec = spec.model_copy(update={"certainty": certainty})
    console = Console(stderr=as_json)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as progress:
        task = progress.add_task("planning", total=None)
        result = make_plan(spec, what_if=what_if, on_step=lambda text: progress.update(task, description=text))
    written = _write(result, out) if out is not None and isinstance(result, PlanResult) else []
    if as_json:
        typer.echo(json.dumps(data(result) | {"written": [str(p) for p in written]}))
    elif isinstance(result, PlanResult):
        _show(console, result)
        for path in written:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
    else:
        _show_none(console, result)
    if isinstance(result, NoPlan):
        raise typer.Exit(EXIT_NO_PLAN)


def _write(result: PlanResult, out: Path) -> list[Path]:
    from qmeter.report.plan_page import write_page

    return [*write_page(result, out), *write_spec(result, out)]


def _show(console: Console, result: PlanResult) -> None:
    console.print(_pools(result))
    console.print(_promises(result))
    for line in [*_sums(result), *reason(result), *_others(result)]:
        console.print(escape(line), soft_wrap=True, highlight=False)
    for row in left_out(result)[:LEFT_OUT_SHOWN]:
        text = f"left out for {row['class']}: {row['deployment']}: {row['why']}"
        console.print(f"[dim]{escape(text)}[/]", soft_wrap=True, highlight=False)
    for row in rows(result):
        notes = [f"extrapolated: {row['extrapolated']}"] if row["extrapolated"] else []
        for note in [*notes, *row["notes"]]:
            text = escape(f"{row['deployment']}: {note}")
            console.print(f"[yellow]near the edge[/] {text}", soft_wrap=True, highlight=False)


def _sums(result: PlanResult) -> list[str]:
    found, lines = result.found, []
    for name, q in (("cost", result.cost_usd_h), ("energy", result.energy_j), ("carbon", result.carbon_g)):
        if q.value is not None or name == result.spec.objective:
            over = "" if name == "cost" else f" over {result.demand.horizon_h:g} h"
            lines.append(f"{name}: {_text(q)}{over}")
    ends = " or what was measured ends" if any(one.found.bounded for one in result.limits) else ""
    lines.append(f"headroom: all rates × {_text(result.headroom.growth)} before a promise breaks{ends}; holds in "
                 f"{_text(result.headroom.certainty, share=True)} of calibration draws")  # fmt: skip
    work = f"{len(found.rounds)} rounds, {found.watched.requests:,} requests simulated in the last"
    gaps = f"solver gap {found.solution.gap:.2%}; {found.gap:.2%} above the bound of the linear model"
    lines.append(f"optimality: {gaps} ({work})")
    return lines


def _others(result: PlanResult) -> list[str]:
    unit, value, lines = UNITS[result.spec.objective], result.found.solution.value, []
    for one in result.next_best:
        cost = "no plan" if one.value is None else f"{one.value:,.4g} {unit} ({one.value / value - 1:+.1%})"
        lines.append(f"next best without {one.without}: {cost}")
    for s in result.savings:
        lines.append(f"relaxing {s.field} ({s.change}) would save {s.saves:,.4g} {unit} ({s.saves / value:.1%}), "
                     "by the model")  # fmt: skip
    return lines


def _pools(result: PlanResult) -> Table:
    many = len({r["device"] for r in rows(result)}) > 1 or len({c.offer.device for c in result.table.choices}) > 1
    table = Table(
        Column("deployment", overflow="fold"), "replicas", "serves", "gets, req/s", "sustains", "binds", "W", "USD/h",
        title=f"{result.spec.name}: least {result.spec.objective}; rates of one replica, 90% intervals",
    )  # fmt: skip
    for row in rows(result):
        q = Quantity(**row["sustains_hz"]) if row["sustains_hz"] else None
        offer = result.choice(row["pool"]).offer
        knobs = "".join(f" {k}={v}" for k, v in offer.knobs.items())
        table.add_row(
            escape(f"{row['label']}{' @ ' + row['device'] if many else ''}{knobs}"), str(row["replicas"]),
            ", ".join(row["serves"]), f"{row['rate_hz']:.3g}", str(shown(q)).removesuffix(" req/s") if q else "",
            row["binds"], "unknown" if row["power_mean_w"] is None else f"{row['power_mean_w']:,.0f}",
            "" if row["usd_h"] is None else f"{row['usd_h']:.4g}",
        )  # fmt: skip
    return table


def _promises(result: PlanResult) -> Table:
    table = Table("class", "promise", "peak, req/s", "asked", "worst seen", "in period", title="promises, simulated")
    for row in promises(result):
        worst: Any = row["worst"]
        table.add_row(row["class"], row["promise"], f"{row['peak_hz']:.4g}", f"{row['asked']:.1%}",
                      "" if worst is None else f"{worst:.2%}", str(row["period"]))  # fmt: skip
    return table


def _show_none(console: Console, result: NoPlan) -> None:
    c = result.conflict
    core = "; ".join(f"{k.field} ({k.says})" for k in c.constraints)
    console.print(f"[bold red]no plan[/] keeps these together: {escape(core)}", soft_wrap=True, highlight=False)
    for way in c.ways:
        text = f"{way.change} would do, the rest as it is" if way.change else "changing it alone does not help"
        console.print(f"  [bold]{escape(way.field)}[/]: {escape(text)}", soft_wrap=True, highlight=False)
    pools = ", ".join(f"{r['replicas']} × {r['deployment']}" for r in nearest(result))
    console.print(f"nearest: {c.served:.1%} of all traffic can be served under every limit"
                  + (f", with {escape(pools)} (by the model, not simulated)" if pools else ""), soft_wrap=True,
                  highlight=False)  # fmt: skip


def _text(q: Quantity, share: bool = False) -> str:
    from qmeter.report.numbers import share as as_share

    if q.value is None:
        return f"unknown ({q.why})"
    return str(as_share(q) if share else shown(q))
