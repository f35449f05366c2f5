"""``qmeter schedule``: a day of load on a fleet at least energy, beside what people do today; a file that runs it."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qmeter.report.schedule import COLUMNS, table_row, write_schedule_report
from qmeter.schedule import words
from qmeter.schedule.solve import NAMES, Answer, solve
from qmeter.schedule.spec import load_spec
from qmeter.schedule.write import answer_data, write_schedule


def schedule(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="Scheduling spec (YAML).", dir_okay=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where schedule.yaml and the report go (default: NAME-schedule).")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Only the schedule file, no HTML.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as one JSON object.")] = False,
) -> None:
    """Schedule a day: which deployment runs when and who serves what, under SLO and quality floors, at least energy.

    Static peak, reactive autoscaling, the rolling-horizon schedule and the clairvoyant optimum are each simulated over
    the whole day, request by request. Writes a schedule file for serve-schedule and a report.
    """
    spec = load_spec(spec_file)
    console = Console(stderr=as_json)
    with _solver_noise_to_stderr() if as_json else nullcontext(), console.status("reading records") as status:
        answer = solve(spec, lambda text: status.update(text))
    folder = out or Path(f"{spec.name}-schedule")
    folder.mkdir(parents=True, exist_ok=True)
    page = None if no_report else write_schedule_report(answer, folder)
    file = folder / "schedule.yaml" if page else write_schedule(answer, folder / "schedule.yaml")
    if as_json:
        print(json.dumps(answer_data(answer)))
        return
    _print(answer, console)
    console.print(f"schedule {file}: qmeter serve-schedule {file} --check", soft_wrap=True, highlight=False)
    if page:
        console.print(f"report {page}", soft_wrap=True, highlight=False)


@contextmanager
def _solver_noise_to_stderr() -> Iterator[None]:
    """HiGHS writes a line to the process's standard output where it repairs a solution: no part of our JSON."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        libc.fflush(None)  # into a pipe C writes when its buffer is full, or at exit: then it would be ours again
        os.dup2(kept, 1)
        os.close(kept)


def _print(answer: Answer, console: Console) -> None:
    console.print(words.headline(answer), style="bold", soft_wrap=True, highlight=False)
    for text in words.reasons(answer):
        console.print(f"  {text}", soft_wrap=True, highlight=False, markup=False)
    table = Table(*COLUMNS, title=f"{answer.spec.name}: simulated")
    for name in NAMES:
        table.add_row(*table_row(answer, name))
    console.print(table)
    for text in words.caveats(answer):
        console.print(f"  [yellow]note[/] {text}", soft_wrap=True, highlight=False)
