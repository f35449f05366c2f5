"""Prints what ``qmeter run --dry-run`` would do."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape

from qmeter.spec.study import Study
from qmeter.study.dry_run import DeploymentPlan, plan_study


def print_plan(study: Study, *, as_json: bool) -> None:
    """Every deployment's command, devices, expected memory and time; the whole study's time at the end."""
    plans = plan_study(study)
    if as_json:
        for plan in plans:
            typer.echo(json.dumps(asdict(plan) | {"seconds": plan.seconds}, default=str))
        return
    console = Console(highlight=False, soft_wrap=True)
    for plan in plans:
        _print_one(console, plan)
    cells = sum(len(p.cells) for p in plans)
    minutes = sum(p.seconds for p in plans) / 60
    console.print(f"[bold]{len(plans)} deployments, {cells} cells, about {minutes:.0f} min[/] (nothing was started)")


def _print_one(console: Console, plan: DeploymentPlan) -> None:
    devices = ", ".join(map(str, plan.devices))
    console.print(f"[bold]{escape(plan.label)}[/] ({plan.deployment_id}), device {devices}, about {plan.seconds:.0f} s")
    console.print(
        f"  $ {escape(shlex.join(plan.command))}" if plan.command else f"  [red]{escape(plan.problem or '')}[/]"
    )
    if plan.fit:
        need, style = plan.fit.needed_bytes / 2**30, {True: "green", False: "red", None: "yellow"}[plan.fit.fits]
        console.print(f"  memory: needs about {need:.1f} GiB a device; [{style}]{escape(plan.fit.reason)}[/]")
        for warning in plan.fit.warnings:
            console.print(f"  [yellow]{escape(warning)}[/]")
    for cell in plan.cells:
        console.print(f"  · {escape(cell.label)}  [dim]{cell.cell_id}, {cell.seconds:.0f} s or more[/]")
