"""``qmeter report``: a study's page."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from qmeter.cli.display import print_warnings


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Study folder, or a profile's name or folder.")],
    others: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="More of them, to compare devices or engines.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report [default: report/ in the study's folder].")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's path as JSON.")] = False,
) -> None:
    """Write a study's report: one self-contained HTML page, charts as SVG, PNG and CSV, tables as CSV."""
    from qmeter.report import write_report

    page = write_report(folder, out, others or (), lambda warning: print_warnings([warning], as_json))
    typer.echo(json.dumps({"event": "report", "path": str(page)}) if as_json else f"report: {page}")
    if show:
        webbrowser.open(page.resolve().as_uri())
