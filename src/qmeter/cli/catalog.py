"""``qmeter methods|models|devices|engines``: the catalog's tables, and what runs where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from qmeter import catalog
from qmeter.cli import catalog_rows as rows
from qmeter.engines.table import ENGINES, availability
from qmeter.errors import UnknownName
from qmeter.registry import nearest

WIDE = 110
"""Columns of a terminal that show every column of the methods."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON array.")]


def methods(
    engine: Annotated[str | None, typer.Option("--engine", help="Only what this engine runs.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Only what runs on this device.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Weight and KV bytes for this model.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that do not run there, and why not.")] = False,
    as_json: AsJson = False,
) -> None:
    """List quantization methods. With --engine and --device: those that run there; --all says why others do not."""
    if engine is not None and engine not in ENGINES.names():
        raise UnknownName("engine", engine, ENGINES.names(), nearest(engine, ENGINES.names()))
    where = catalog.device(device) if device else None
    shape = catalog.model(model) if model else None
    listed = [(m, catalog.why_not(m, engine, where)) for m in catalog.methods()]
    shown = [(m, why) for m, why in listed if every or why is None]
    if as_json:
        _print_json([rows.method_data(m, why, shape, engine) for m, why in shown])
        return
    columns = rows.method_columns(shape, every)
    console = Console()
    narrow = console.width < WIDE
    kept = [k for k, name in enumerate(columns) if not (narrow and name in rows.WIDE_ONLY)]
    table = _table([columns[k] for k in kept])
    table.row_styles = ("", "dim") if not every else ()
    for m, why in shown:
        row = rows.method_row(m, why, shape, engine, every)
        table.add_row(*(row[k] for k in kept))
    console.print(table)
    if len(kept) < len(columns):
        left_out = ", ".join(name for name in columns if name in rows.WIDE_ONLY)
        console.print(f"not shown in {console.width} columns: {left_out} (a wider terminal or --json has them)")
    hidden = len(listed) - len(shown)
    if hidden:
        console.print(f"{len(shown)} methods; {hidden} do not run there: add --all to see why")


def models(as_json: AsJson = False) -> None:
    """List model shapes: sizes, parameters, bytes at 16 bits and KV cache a token."""
    if as_json:
        _print_json([rows.model_data(m) for m in catalog.models()])
        return
    table = _table(rows.MODEL_COLUMNS)
    for shape in catalog.models():
        table.add_row(*rows.model_row(shape))
    Console().print(table)


def devices(as_json: AsJson = False) -> None:
    """List devices: memory, bandwidth, dense rates, power, each with its source."""
    if as_json:
        _print_json([rows.device_data(d) for d in catalog.devices()])
        return
    table = _table(rows.DEVICE_COLUMNS)
    for device in catalog.devices():
        table.add_row(*rows.device_row(device))
    Console().print(table)


def engines(as_json: AsJson = False) -> None:
    """List engines, whether this host has them and, if not, what to do."""
    found = [availability(name) for name in ENGINES.names()]
    if as_json:
        _print_json([{**vars(a), "methods": rows.methods_of(a.name)} for a in found])
        return
    table = Table("engine", "what", "here", "found or missing", "what to do", "methods")
    for a in found:
        mark = "[green]yes[/]" if a.available else "[red]no[/]"
        said, advice = escape(a.found or a.why or ""), escape(a.advice or "")
        table.add_row(a.name, escape(a.title), mark, said, advice, str(len(rows.methods_of(a.name))))
    Console().print(table)


def _table(columns: Sequence[str]) -> Table:
    """A table whose first column, the name that other commands take, is never cut."""
    return Table(Column(columns[0], no_wrap=True), *columns[1:])


def _print_json(data: list[dict[str, Any]]) -> None:
    typer.echo(json.dumps(data, indent=2))
