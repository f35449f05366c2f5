"""``qmeter calibrate-model``: fit the simulator to measured records, and say how well it predicts what it never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from qmeter.errors import AnalysisError, SpecError, UnknownName
from qmeter.record import Record
from qmeter.registry import nearest
from qmeter.simulate.calibrate import DRAWS, Tables, deployment_of
from qmeter.simulate.calibration import Calibration, label_of_deployment, save
from qmeter.simulate.carry import fit_records, physics_data
from qmeter.simulate.heldout import calibrate_checked, load_name, made_by_seed, with_peers
from qmeter.simulate.host import HostPace, host_pace, on_host, require_shared
from qmeter.simulate.physics import PhysicsFit
from qmeter.simulate.validate import Comparison, by_deployment, cached, compare, leave_one_out, percent, scores
from qmeter.store import open_results


def calibrate_model(
    where: Annotated[str, typer.Argument(metavar="DIR", help="Study folder, or a profile's name or folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("calibrations.json"),
    method: Annotated[list[str] | None, typer.Option("--method", help="Only these methods.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    hold: Annotated[
        list[str] | None, typer.Option("--hold", help="Workload to leave out of the fit and to check on; repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Predict every workload from a fit without it.")] = False,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="DIR",
            help="Records made on the host to predict for, of one of the deployments "
            "at least: launches and front end are set to its pace.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=3, max=1000, help="Bootstrap draws kept.")] = DRAWS,
    pictures: Annotated[Path | None, typer.Option("--pictures", help="Folder for SVG pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit step time, power and delays of each deployment from its records, with intervals; write one file.

    Launches and front end go with the host's CPU: with --host, a short run of one deployment there tells its pace for
    all of them.
    """
    results = open_results(where)
    tables = cached(results.tables)
    console = Console(stderr=as_json)
    groups = [g for g in by_deployment(results.records()) if _wanted(g[0], method, model)]
    if not groups:
        raise AnalysisError(f"{where} has no valid measured record that fits", hint=f"look at: qmeter show {where}")
    _require_held(groups, hold or [])
    there = open_results(host) if host is not None else None
    if there is not None:
        require_shared([g[0] for g in groups], there.records(), str(host))
    made, rows, faults = _fit_all(groups, tables, hold or [], check, draws, console)
    if not made:
        raise AnalysisError(f"no deployment could be calibrated: {faults[0]}")
    pace = None
    if there is not None:
        pace = host_pace(made, there.records(), there.tables, str(host))
        made = _all_on_host(made, pace, faults)
    physics, unchecked = _physics(groups, tables), _unchecked(groups)
    save(made, out, physics_data(physics) if physics else None)
    drawn = _pictures(rows, made, pictures) if pictures else []
    if as_json:
        data = {
            "file": str(out),
            "calibrations": [{"id": c.id, "label": c.label, "cell_sigma": c.cell_sigma} for c in made],
            "scores": [asdict(s) for s in scores(rows)],
            "comparisons": [asdict(r) | {"error": r.error, "inside": r.inside} for r in rows],
            "faults": faults,
            "not_checked": unchecked,
            "host": asdict(pace) if pace else None,
        }
        typer.echo(json.dumps(data))
        return
    console.print(_table(made))
    if pace is not None:
        console.print(pace.words, highlight=False)
    if physics:
        e = physics.efficiencies
        console.print(
            f"physics form over {physics.over}: {e.mem:.0%} of memory bandwidth, {e.op:.0%} of the "
            f"matrix rate, {e.kv:.0%} of bandwidth for KV; {physics.off}"
        )
    for fault in faults:
        console.print(f"[yellow]not calibrated[/] {fault}", soft_wrap=True, highlight=False)
    for text in unchecked:
        console.print(f"[yellow]not checked[/] {text}", soft_wrap=True, highlight=False)
    if rows:
        console.print(_rows(rows))
        console.print(_scores(rows))
    console.print("\n         ".join([f"written: {out}", *map(str, drawn)]), highlight=False)


def _all_on_host(made: list[Calibration], pace: HostPace, faults: list[str]) -> list[Calibration]:
    out = []
    for calibration in made:
        try:
            out.append(on_host(calibration, pace))
        except AnalysisError as error:
            faults.append(f"{error.message} ({error.hint})")
    return out


def _wanted(record: Record, methods: list[str] | None, model: str | None) -> bool:
    d = record.cell["deployment"]
    return (not methods or d["method"] in methods) and (model is None or d["model"]["name"] == model)


def _require_held(groups: Sequence[Sequence[Record]], hold: list[str]) -> None:
    """Refuse names of loads to hold out that no record has.

    Raises:
        SpecError: there is one; it names the nearest.
    """
    known = list(dict.fromkeys(load_name(r) for group in groups for r in group))
    unknown = [UnknownName("workload", name, known, nearest(name, known)) for name in hold if name not in known]
    if unknown:
        raise SpecError("no such workload to hold out", faults=[
            ("--hold", f"{error.message}; {error.hint}") for error in unknown])  # fmt: skip


def _unchecked(groups: Sequence[Sequence[Record]]) -> list[str]:
    """The loads that the fit rests on but that it is not checked on, and why."""
    found = ((group, [load_name(r) for r in group if not made_by_seed(r)]) for group in groups)
    return [f"{_title(group)}: {', '.join(dict.fromkeys(names))}: prompts from tasks are not simulated, so the fit "
            "rests on them but is not checked on them" for group, names in found if names]  # fmt: skip


def _fit_all(
    groups: Sequence[Sequence[Record]], tables: Tables, hold: list[str], check: bool, draws: int, console: Console
) -> tuple[list[Calibration], list[Comparison], list[str]]:
    rows: list[Comparison] = []
    faults: list[str] = []
    kept = [[r for r in group if r.cell["workload"]["name"] not in hold] for group in groups]
    fits: dict[int, Calibration] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("calibrating", total=2 * len(groups))
        for n, group in enumerate(kept):
            progress.update(task, description=_title(groups[n]))
            try:
                fits[n] = calibrate_checked(group, tables, draws=draws)
            except AnalysisError as error:
                faults.append(f"{_title(groups[n])}: {error.message}")
            progress.advance(task)
        made = with_peers(list(fits.values()))
        for n, whole in zip(fits, made, strict=True):
            progress.update(task, description=f"{_title(groups[n])}, checked")
            try:
                rows += compare(whole, [r for r in groups[n] if r not in kept[n]], held_out=True)
                if check:
                    rows += leave_one_out(kept[n], tables, peers=[f for m, f in fits.items() if m != n])
            except AnalysisError as error:
                faults.append(f"{_title(groups[n])}: {error.message}")
            progress.advance(task)
    return made, rows, faults


def _title(group: Sequence[Record]) -> str:
    return label_of_deployment(deployment_of(group[0]))


def _physics(groups: Sequence[Sequence[Record]], tables: Tables) -> PhysicsFit | None:
    """The physics form shared by all deployments, where their devices' ceilings are known."""
    try:
        return fit_records(groups, tables)
    except (AnalysisError, UnknownName):
        return None


def _pictures(rows: list[Comparison], made: list[Calibration], folder: Path) -> list[Path]:
    from qmeter.simulate.pictures import draw

    return draw(rows, made, folder)


def _table(made: list[Calibration]) -> Table:
    table = Table(
        Column("deployment", no_wrap=True), "cells", "decode step, 1 / most", "prefill, ms/1k tokens", "run to run",
        "delays, ms", "energy", title="calibrations",
    )  # fmt: skip
    for c in made:
        model = c.step_model(noise=False)
        most = min(c.support.sequences, len(model.decode_s) - 1)
        tokens = min(1000, len(model.mixed_s) - 1)
        table.add_row(
            c.label, str(len(c.cells)), f"{model.decode(1, 0) * 1e3:.2f} / {model.decode(most, 0) * 1e3:.2f} ms",
            f"{model.mixed(0, 0, tokens, tokens**2 / 2, 1) * 1e6 / tokens:.1f}", f"{c.cell_sigma:.1%}",
            f"{c.input_s * 1e3:.1f} in, {c.output_s * 1e3:.1f} out", _energy(c),
        )  # fmt: skip
    return table


def _energy(c: Calibration) -> str:
    if c.energy_series is None:
        return f"unknown: {c.why_no_energy}"
    if c.power_cap_w is None:
        return f"{c.energy_series}; cap unknown: {c.why_no_cap or 'calibrated before it was looked at'}"
    return f"{c.energy_series}; held at {c.power_cap_w:.0f} W"


def _rows(rows: list[Comparison]) -> Table:
    table = Table(
        Column("deployment", no_wrap=True), "workload", "metric", "measured", "predicted", "90% interval", "error",
        "inside", title="held out: measured against predicted",
    )  # fmt: skip
    for r in rows:
        table.add_row(
            r.deployment, r.workload, r.metric, f"{r.measured:.4g}", f"{r.predicted:.4g}",
            f"{r.low:.4g} – {r.high:.4g}", percent(r.error, "+"), "yes" if r.inside else "[red]no[/]",
        )  # fmt: skip
    return table


def _scores(rows: list[Comparison]) -> Table:
    table = Table(
        "metric", "cells", "mean error", "median", "worst", "between loads", "repeats' floor", "intervals held",
        title="errors on held-out loads",
    )  # fmt: skip
    for s in scores(rows):
        table.add_row(s.metric, str(s.cells), percent(s.mean_error), percent(s.median_error), percent(s.worst),
                      _share(s.inner_error), _share(s.floor), f"{s.coverage:.0%}")  # fmt: skip
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
