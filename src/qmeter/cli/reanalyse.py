"""``qmeter reanalyse``: a study folder's cells, analysed again by this version."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

import typer
from rich.console import Console

from qmeter.errors import StoreError
from qmeter.record import Record
from qmeter.report.numbers import shown
from qmeter.store import StudyStore, open_results
from qmeter.study.again import analyse_study_again

SHOWN = (("throughput_tok_s", "output"), ("tpot_mean_s", "TPOT"))
"""Metrics whose change is printed, and their titles."""


def reanalyse(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Study folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Analyse a study's measured cells again, from the tables they left; nothing is measured, no record is lost."""
    store = open_results(folder)
    if not isinstance(store, StudyStore):
        raise StoreError(f"{folder} is a profile: it keeps no token times", hint="name the study folder it came from")
    before = {r.cell_id: r for r in store.records()}
    found = analyse_study_again(store)
    if as_json:
        changed = [r.cell_id for r in found.records]
        typer.echo(json.dumps({"changed": changed, "same": list(found.same), "skipped": found.skipped}))
        return
    console = Console(highlight=False)
    for record in found.records:
        console.print(_line(before[record.cell_id], record), soft_wrap=True, markup=False)
    console.print(f"{len(found.records)} cells changed, {len(found.same)} as before", markup=False)
    for why, count in Counter(found.skipped.values()).items():
        console.print(f"{count} left as they are: {why}", markup=False)


def _line(old: Record, new: Record) -> str:
    parts = [new.cell_id]
    if old.window and new.window and old.window != new.window:
        spans = [f"{w.start_s:.4g} to {w.end_s:.4g} s" for w in (old.window, new.window)]
        parts.append(f"window {spans[0]} → {spans[1]}" if spans[0] != spans[1] else f"window: {new.window.method}")
    for name, title in SHOWN:
        values = [shown(r.metrics[name]) for r in (old, new) if name in r.metrics]
        if len(values) == 2 and values[0] != values[1]:
            parts.append(f"{title} " + " → ".join(f"{v.value} {v.unit}".strip() for v in values))
    kinds = {w.kind for w in new.warnings} - {w.kind for w in old.warnings}
    return "; ".join([*parts, *(f"new warning {kind}" for kind in sorted(kinds))])
