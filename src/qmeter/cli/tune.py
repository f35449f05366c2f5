"""``qmeter tune``: search a space of configurations, each measured by the study runner, for what is worth deploying."""

from __future__ import annotations

import json
import math
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from qmeter.cli.tune_measure import Measurer
from qmeter.cli.tune_view import front_table, show_search
from qmeter.errors import SpecError, StoreError
from qmeter.record import Reason
from qmeter.simulate.identity import simulator_hash
from qmeter.spec.units import parse_duration_s
from qmeter.spec.write import study_yaml
from qmeter.store import write_atomic
from qmeter.study.check import check_study
from qmeter.study.dry_run import plan_study
from qmeter.tune.advise import Advice, advise
from qmeter.tune.fidelity import Known, calibrations, kind_of, screen
from qmeter.tune.pairs import recorded_ratios
from qmeter.tune.space import Point
from qmeter.tune.spec import Tuning, load_tune
from qmeter.tune.terms import require_knowable
from qmeter.tune.tuner import Tuner

FILE, LOW = "tune.yaml", "low_fidelity.json"


def tune(
    file: Annotated[Path, typer.Argument(metavar="TUNE", help="Tune file (YAML), or a search's folder to go on with.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The search's folder (default: runs/NAME).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the space and what is known; start nothing.")
    ] = False,
    allow_power_cap: Annotated[
        bool, typer.Option("--allow-power-cap", help="Let the axis power_cap_w cap this host's GPUs.")
    ] = False,
    evaluations: Annotated[
        int | None,
        typer.Option("--evaluations", "-n", min=0, help="Instead of the file's; 0: only make the folder ready."),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option("--within", help="Start none that would end later, by the median so far (13min)."),
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no HTML report.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a display.")] = False,
) -> None:
    """Search method × engine knobs × parallelism for the best trade-offs; go on where an earlier call stopped.

    Ends with the Pareto front, a recommended point with the reason, and deploy.yaml, a study of that point alone.
    Exit codes: 0 a point keeps every limit; 1 none does; 2 the file is wrong, nothing was started; 3 another error;
    130 interrupted (the same command goes on).
    """
    console = Console(stderr=as_json)
    if file.is_dir():
        file, out = file / FILE, file
    tuning = with_evaluations(load_tune(file), evaluations)
    end_s = _end_s(within)
    warnings = _check(tuning, allow_power_cap)
    known = _known(tuning, tuning.spec.measure.source) if tuning.spec.measure.kind == "simulator" else None
    require_knowable(tuning, known)
    for reason in warnings:
        console.print(f"[yellow]warning[/] {escape(reason.message)}", soft_wrap=True, highlight=False)
    folder = out or Path("runs") / tuning.spec.tune
    if dry_run:
        low = _low(tuning, known, None, console)
        _print_space(tuning, low, console)
        return
    _open(folder, file, tuning)
    low = _low(tuning, known, folder / LOW, console)
    if evaluations == 0:
        console.print(f"ready: {len(low)} points simulated; next: qmeter tune {shlex.quote(str(folder))}",
                      soft_wrap=True, highlight=False)  # fmt: skip
        return
    tuner = Tuner(tuning, folder, low)
    try:
        advice = _search(tuner, tuning, folder, known, allow_power_cap, as_json, report=not no_report, end_s=end_s)
    except KeyboardInterrupt:
        typer.echo(f"\nwhat was measured is kept; to go on: qmeter tune {shlex.quote(str(folder))}", err=True)
        raise
    _write_choice(tuning, advice, folder)
    _tell(tuner, advice, folder, as_json, console)
    raise typer.Exit(0 if advice.choice else 1)


def _search(
    tuner: Tuner, tuning: Tuning, folder: Path, known: Known | None, allow_power_cap: bool, as_json: bool, *,
    report: bool, end_s: float,
) -> Advice:  # fmt: skip
    """Ask, measure, tell, until the budget or the time is up; the report grows with it. Returns what to deploy."""
    page, written_s, every_s = None, -math.inf, 0.0
    if report:
        from qmeter.report.tuning import REFRESH_S, write_tuning

        page, every_s = write_tuning, REFRESH_S
    with (
        show_search(tuner, as_json) as view,
        Measurer(tuning, folder, known, view.study_event, allow_power_cap) as measurer,
    ):
        while time.monotonic() + tuner.typical_s < end_s and (proposal := tuner.ask()) is not None:
            view.asked(proposal)
            outcome = measurer.measure(proposal)
            tuner.tell(proposal, outcome)
            view.told(proposal, outcome)
            if page is not None and time.monotonic() - written_s >= every_s:
                page(tuner, folder, advise(tuner), running=True)
                written_s = time.monotonic()
    advice = advise(tuner, recorded_ratios(tuner, folder))
    if page is not None:
        page(tuner, folder, advice, running=False)
    return advice


def _check(tuning: Tuning, allow_power_cap: bool) -> list[Reason]:
    """The base study with every method, checked as ``qmeter run`` would (not where a simulation is the measure)."""
    if "power_cap_w" in tuning.space.axes and tuning.spec.measure.kind == "engine" and not allow_power_cap:
        raise SpecError("space.power_cap_w: caps change the GPUs for everyone on the host",
                        faults=[("space.power_cap_w", "pass --allow-power-cap, or leave the axis out")])  # fmt: skip
    if tuning.spec.measure.kind == "simulator":
        return []
    return [w for w in check_study(tuning.all_methods()) if w.kind != "one_repeat"]


def with_evaluations(tuning: Tuning, evaluations: int | None) -> Tuning:
    """The tuning with another budget, where one is given; the file stays as it is."""
    if not evaluations:
        return tuning
    search = tuning.spec.search.model_copy(update={"evaluations": evaluations})
    return replace(tuning, spec=tuning.spec.model_copy(update={"search": search}))


def _end_s(within: str | None) -> float:
    """When the last evaluation must have ended, on the monotonic clock. Units: s."""
    try:
        return math.inf if within is None else time.monotonic() + parse_duration_s(within)
    except ValueError as error:
        raise SpecError(f"--within: {error}", faults=[("--within", str(error))]) from error


def _known(tuning: Tuning, source: str | None) -> Known:
    assert source is not None
    return calibrations(source, {kind_of(tuning, p) for p in tuning.space.points})


def _open(folder: Path, file: Path, tuning: Tuning) -> None:
    """The search's folder, with the tune file in it; another search's folder is refused."""
    text = file.read_text(encoding="utf-8-sig")
    kept, data = folder / FILE, _with_absolute_paths(yaml.safe_load(text), file.parent, tuning)
    if kept.exists():
        if yaml.safe_load(kept.read_text()) != data:
            raise StoreError(f"{folder} holds another search", hint="choose another folder with --out")
        return
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty and holds no search", hint="choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    unchanged = data == yaml.safe_load(text)
    write_atomic(kept, text if unchanged else str(yaml.safe_dump(data, sort_keys=False)))


def _with_absolute_paths(data: Any, folder: Path, tuning: Tuning) -> Any:
    """The file's data with paths made absolute, so that the search's folder can be gone on with alone."""

    def absolute(written: str) -> str:
        path = (folder / written).resolve()
        return str(path) if path.exists() else written

    if isinstance(data["study"], str):
        return {**data, "study": absolute(data["study"])}
    study = dict(data["study"])
    study["models"] = [m.model_dump(mode="json", exclude_defaults=True) for m in tuning.base.models]
    workloads = []
    for given in study["workloads"]:
        law = given["arrivals"]
        workloads.append({**given, "arrivals": {**law, "path": absolute(law["path"])}} if "path" in law else given)
    data = {**data, "study": {**study, "workloads": workloads}}
    for part in ("low_fidelity", "measure"):
        if isinstance(source := (data.get(part) or {}).get("source"), str):
            data[part] = {**data[part], "source": _found(source, folder)}
    return data


def _found(source: str, folder: Path) -> str:
    """A calibration's source as an absolute path where it is one, from the working directory or the file's folder."""
    return next((str(p.resolve()) for p in (Path(source), folder / source) if p.exists()), source)


def _low(tuning: Tuning, known: Known | None, kept: Path | None, console: Console) -> dict[Point, dict[str, float]]:
    """The low fidelity's answers, from an earlier call where they are there. ``known``: the measure's, if simulated."""
    source = tuning.spec.low_fidelity.source if tuning.spec.low_fidelity else None
    if source is None:
        return {}
    points = tuning.space.points
    made_by = simulator_hash()
    if kept is not None and kept.exists():
        rows = json.loads(kept.read_text())
        if rows.get("made_by") == made_by:
            return {p: rows["rows"][p.id] for p in points if p.id in rows["rows"]}
        console.print("another version of the simulator answered before: simulating the space anew")
    known = known if known and source == known.source else _known(tuning, source)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("simulating the space", total=len(points))
        found = screen(tuning, known, lambda done, _: progress.update(task, completed=done))
    if kept is not None:
        write_atomic(kept, json.dumps({"made_by": made_by, "rows": {p.id: v for p, v in found.items()}}))
    return found


def _print_space(tuning: Tuning, low: dict[Point, dict[str, float]], console: Console) -> None:
    space = tuning.space
    console.print(f"[bold]{len(space)} points[/]: " + " × ".join(f"{n} ({len(v)})" for n, v in space.axes.items()))
    for reason, n in space.excluded.items():
        console.print(f"  left out: {n}: {escape(reason)}")
    if low:
        console.print(f"  the simulator answers for {len(low)} of them")
    console.print(f"  sampler {tuning.spec.search.sampler}, {tuning.spec.search.evaluations} evaluations")
    console.print("objectives: " + ", ".join(f"{t.key} ({t.better.value} is better)" for t in tuning.objectives))
    for t in tuning.limits:
        console.print(f"limit: {t.key} {'at most' if t.better.value == 'lower' else 'at least'} {t.limit:g} {t.unit}")
    if tuning.spec.measure.kind == "engine":
        one = plan_study(tuning.study(space.points[0], 0))
        minutes = sum(p.seconds for p in one) * tuning.spec.search.evaluations / 60
        console.print(f"about {minutes:.0f} min (nothing was started)")


def _write_choice(tuning: Tuning, advice: Advice, folder: Path) -> None:
    """``deploy.yaml``: a study of the recommended point, for ``qmeter run``; its ``--dry-run`` shows the command."""
    if advice.choice is None:
        return
    point = advice.choice.standing.measured.point
    study = tuning.study(point, 0).model_copy(update={"exclude": (), "name": f"{tuning.spec.tune}-deploy"})
    head = f"# {advice.headline}\n" + "".join(f"# {line}\n" for line in (*advice.why, *advice.caveats))
    write_atomic(folder / "deploy.yaml", head + study_yaml(study))


def _tell(tuner: Tuner, advice: Advice, folder: Path, as_json: bool, console: Console) -> None:
    if as_json:
        typer.echo(json.dumps({
            "event": "search_ended", "evaluations": tuner.done, "headline": advice.headline, "why": advice.why,
            "caveats": advice.caveats, "deploy": str(folder / "deploy.yaml") if advice.choice else None,
            "front": [{"point": r.standing.measured.point.as_dict(), "chance": r.standing.chance,
                       "repeats": r.standing.measured.repeats, "folder": r.folder, "recommended": r.recommended,
                       "values": {k: q.model_dump(mode="json", exclude_none=True) for k, q in r.values.items()}}
                      for r in advice.rows],
        }))  # fmt: skip
        return
    console.print(front_table(tuner, advice))
    console.print(f"[bold]{escape(advice.headline)}[/]", soft_wrap=True)
    for line in advice.why:
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    for line in advice.caveats:
        console.print(f"  [yellow]{escape(line)}[/]", soft_wrap=True, highlight=False)
    if advice.choice:
        console.print(f"spec: {folder / 'deploy.yaml'}", soft_wrap=True, highlight=False)
