"""``qmeter show`` and ``qmeter query``: a study's records in the terminal."""

from __future__ import annotations

import csv
import json
import math
import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qmeter.analysis.keys import DeploymentKey, qualified
from qmeter.record import Quantity, Record
from qmeter.store import open_results

Where = Annotated[str, typer.Argument(metavar="DIR", help="Study folder, or a profile's name or folder.")]
COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("tok/s", "throughput_tok_s", 1.0),
    ("TTFT ms", "ttft_p50_s", 1e3),
    ("TPOT ms", "tpot_mean_s", 1e3),
    ("SLO %", "slo_attainment", 100.0),
    ("J/tok", "j_per_output_token", 1.0),
    ("ppl ×", "ppl_ratio", 1.0),
)
"""Heading, quantity and scale of each column of the overview."""


def show(
    folder: Where,
    cell: Annotated[str | None, typer.Option("--cell", help="One cell in full: its id or the id's beginning.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False,
) -> None:
    """Print a study's records: one line a cell, or one cell in full. Unknown quantities say why."""
    records = open_results(folder).records()
    if cell is not None:
        found = [r for r in records if r.cell_id.startswith(cell)]
        if len(found) != 1:
            raise typer.BadParameter(f"{len(found)} cells begin with {cell!r}; ids: qmeter show {folder}")
        typer.echo(found[0].model_dump_json(indent=2))
    elif as_json:
        for record in records:
            typer.echo(record.model_dump_json())
    else:
        console = Console()
        console.print(_table(records))
        for text in _reasons(records):
            console.print(text, soft_wrap=True)


def query(
    folder: Where,
    sql: Annotated[str, typer.Argument(help="SQL over records, requests, tokens, telemetry, steps.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV.")] = False,
) -> None:
    """Run SQL over a study's records and tables (DuckDB). Try: SELECT * FROM records; DESCRIBE requests."""
    answer = open_results(folder).query(sql)
    if as_json:
        for row in answer.rows:
            typer.echo(json.dumps(dict(zip(answer.columns, map(_plain, row), strict=True)), default=str))
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(answer.columns)
        writer.writerows(answer.rows)
    else:
        table = Table(*map(escape, answer.columns))
        for row in answer.rows:
            table.add_row(*(escape(_shown(v)) for v in row))
        Console().print(table)


def _table(records: list[Record]) -> Table:
    """One line a cell, narrow enough for 80 columns; reasons of failed and invalid cells below."""
    table = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        caption="TTFT: median; ?: unknown; +: beside others; in full: qmeter show DIR --cell ID",
    )
    for heading in ("cell", "", "method", "load"):
        table.add_column(heading, no_wrap=True)
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", min_width=5)
    several = len({r.cell["deployment"]["model"]["name"] for r in records}) > 1
    for record, key in zip(records, qualified(records), strict=True):
        deployment: dict[str, Any] = record.cell["deployment"]
        known = {**record.metrics, **record.energy, **record.quality}
        table.add_row(
            record.cell_id[:6], record.status.value,
            (deployment["model"]["name"] + " " if several else "") + _method(key),
            f"{record.cell['workload']['name']} #{record.cell['repeat']}",
            *(_quantity(known.get(name), scale) for _, name, scale in COLUMNS),
        )  # fmt: skip
    return table


def _method(key: DeploymentKey) -> str:
    """Method, parallelism and knobs that differ; ``+`` marks a cell measured while others ran beside it."""
    return " ".join(part for part in (key.method, key.parallelism, key.knobs, "+" if key.beside else "") if part)


def _reasons(records: list[Record]) -> list[str]:
    """Why cells failed or are invalid: a line each, cells that ended alike together."""
    alike: dict[str, list[str]] = {}
    for record in records:
        for reason in record.reasons:
            text = f"{reason.message} (next: {reason.hint})" if reason.hint else reason.message
            alike.setdefault(f"[red]{escape(reason.kind)}[/] {escape(text)}", []).append(record.cell_id[:6])
    return [f"{', '.join(cells)}: {text}" for text, cells in alike.items()]


def _quantity(quantity: Quantity | None, scale: float) -> str:
    if quantity is None:
        return ""
    if quantity.value is None:
        return "?"
    value = quantity.value * scale
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plain(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
