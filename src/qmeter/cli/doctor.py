"""``qmeter doctor``: what this host can measure and what makes it noisy."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qmeter.study.host_check import Verdict, examine_host

_STYLE = {Verdict.GOOD: "green", Verdict.NOISY: "yellow", Verdict.MISSING: "red", Verdict.INFO: "dim"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a finding.")] = False) -> None:
    """Say what this host can measure (counters, engines) and what makes its measurements noisy."""
    findings = examine_host()
    if as_json:
        for finding in findings:
            typer.echo(json.dumps(vars(finding)))
        return
    table = Table("what", "", "found", "what to do")
    for finding in findings:
        style = _STYLE[finding.verdict]
        table.add_row(finding.topic, f"[{style}]{finding.verdict.value}[/]", escape(finding.text),
                      escape(finding.advice or ""))  # fmt: skip
    Console().print(table)
