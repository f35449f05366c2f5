"""Prints what ``qmeter run --dry-run`` would do."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape

from qmeter.spec.study import Study
from qmeter.study.dry_run import DeploymentPlan, Totals, plan_study, totals
from qmeter.study.findings import HostFacts


def print_plan(study: Study, host: HostFacts, *, as_json: bool) -> None:
    """Every deployment's command, GPUs, expected memory and time; the whole study's time and what of it measures."""
    plans = plan_study(study, host)
    whole = totals(plans, host.gpus)
    if as_json:
        for plan in plans:
            typer.echo(json.dumps(asdict(plan) | {"seconds": plan.seconds}, default=str))
        typer.echo(json.dumps({"event": "totals", **asdict(whole)}))
        return
    console = Console(highlight=False, soft_wrap=True)
    sizes = {p.group: sum(q.group == p.group for q in plans) for p in plans}
    shown: set[int] = set()
    for plan in plans:
        if sizes[plan.group] > 1 and plan.group not in shown:
            console.print(f"[bold cyan]{sizes[plan.group]} deployments side by side:[/]")
            shown.add(plan.group)
        _print_one(console, plan)
    _print_totals(console, whole, host)


def _print_totals(console: Console, whole: Totals, host: HostFacts) -> None:
    count = f"{whole.deployments} deployments, {whole.cells} cells, about {whole.seconds / 60:.0f} min"
    console.print(f"[bold]{count}[/] (nothing was started)")
    text = f"inside windows and warm-up: {whole.share:.0%} of that time"
    if whole.gpu_share is not None and host.gpus and host.gpus > 1:
        text += f", {whole.gpu_share:.0%} of the GPU time of all {host.gpus} GPUs"
    console.print(text)
    if whole.waiting:
        console.print(f"[yellow]{whole.waiting} cells wait for a host with more GPUs[/]")


def _print_one(console: Console, plan: DeploymentPlan) -> None:
    names = "GPU" if len(plan.devices) == 1 else "GPUs"
    where = f"{names} {', '.join(map(str, plan.devices))}" if plan.devices else "CPU"
    console.print(
        f"[bold]{escape(plan.label)}[/] ({plan.deployment_id}), {where}, about {plan.seconds:.0f} s "
        f"(start {plan.start_s:.0f} s, {plan.start_from})"
    )
    if plan.waits:
        console.print(f"  [yellow]waits: {escape(plan.waits)}[/]")
    env = " ".join(f"{name}={shlex.quote(value)}" for name, value in plan.env.items())
    if plan.command:
        console.print(f"  $ {escape(' '.join(part for part in (env, shlex.join(plan.command)) if part))}")
    if plan.problem:
        console.print(f"  [{'yellow' if plan.command else 'red'}]{escape(plan.problem)}[/]")
    if plan.fit:
        need, style = plan.fit.needed_bytes / 2**30, {True: "green", False: "red", None: "yellow"}[plan.fit.fits]
        console.print(f"  memory: needs about {need:.1f} GiB a device; [{style}]{escape(plan.fit.reason)}[/]")
        for warning in plan.fit.warnings:
            console.print(f"  [yellow]{escape(warning)}[/]")
    for cell in plan.cells:
        console.print(f"  · {escape(cell.label)}  [dim]{cell.cell_id}, {cell.seconds:.0f} s or more[/]")
