"""``qmeter run``, ``resume`` and ``quickstart``."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from qmeter import catalog
from qmeter.cli.display import print_warnings, show_events
from qmeter.cli.plan_view import print_plan
from qmeter.spec.study import Placement, Study
from qmeter.store import StudyStore
from qmeter.study.check import check_study, open_study, open_study_text
from qmeter.study.events import StudyEnded
from qmeter.study.findings import HostFacts
from qmeter.study.runner import run_study

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a display.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Study folder (default: runs/NAME).")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Measure failed and invalid cells again.")]


def run(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Study file (YAML).", exists=True, dir_okay=False)
    ],
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print commands, memory and time; start nothing.")] = False,
    retry_failed: Retry = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Do not write the report at the end.")] = False,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="For --dry-run: plan for a host with so many GPUs.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="For --dry-run: plan for this device (see qmeter devices).")
    ] = None,
    placement: Annotated[
        Placement | None,
        typer.Option("--placement", help="Run every deployment so, whatever the study says."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a study: every cell that its folder lacks, a record for each, then the report.

    Exit codes: 0 every cell is measured and valid; 1 some are failed or invalid (their records say why), or wait for
    a host with more GPUs; 2 the study is wrong, nothing was started; 3 another error; 130 interrupted (go on with
    resume).
    """
    if (gpus is not None or device is not None) and not dry_run:
        raise typer.BadParameter("--gpus and --device go with --dry-run: a run takes the GPUs that there are")
    host = HostFacts.of_this_host()
    host = host if gpus is None else replace(host, gpus=gpus)
    host = host if device is None else replace(host, device=catalog.device(device).name)
    study, warnings = open_study(study_file, host, placement)
    print_warnings(warnings, as_json)
    if dry_run:
        print_plan(study, host, as_json=as_json)
        return
    text = study_file.read_text(encoding="utf-8-sig")
    if placement is not None:
        text = f"# Run with --placement {placement.value}: study.json says what was run.\n{text}"
    store = StudyStore.create(out or Path("runs") / study.name, study, text)
    _measure(study, store, retry_failed, as_json, report=not no_report)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Study folder.", exists=True, file_okay=False)],
    retry_failed: Retry = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Do not write the report at the end.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a study folder: measure the cells it has no record of. Exit codes as for run."""
    store = StudyStore(folder)
    study = store.study
    print_warnings(check_study(study), as_json)
    _measure(study, store, retry_failed, as_json, report=not no_report)


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Study folder.")] = Path("qmeter-quickstart"),
    as_json: Json = False,
) -> None:
    """Fetch a 98 MB model, measure nine quantization methods on this machine under online load, write the report.

    Needs no GPU; takes a few minutes. Exit codes as for run.
    """
    text = (files("qmeter.study") / "quickstart.yaml").read_text(encoding="utf-8")
    study, _ = open_study_text(text, "quickstart.yaml")
    _measure(study, StudyStore.create(out, study, text), retry_failed=False, as_json=as_json, report=True)


def _measure(study: Study, store: StudyStore, retry_failed: bool, as_json: bool, *, report: bool) -> None:
    try:
        with show_events(as_json) as listener:
            ended = run_study(study, store, listener=listener, retry_failed=retry_failed)
    except KeyboardInterrupt:
        typer.echo(f"\nwhat was measured is kept; to go on: qmeter resume {shlex.quote(str(store.folder))}", err=True)
        raise
    if report:
        from qmeter.report import write_report

        page = write_report(store.folder)
        typer.echo(json.dumps({"event": "report", "path": str(page)}) if as_json else f"report: {page}")
    raise typer.Exit(_exit_code(ended))


def _exit_code(ended: StudyEnded) -> int:
    return 0 if ended.failed == ended.invalid == ended.waiting == 0 else 1
