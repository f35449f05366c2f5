"""``qmeter roofline``: what this host's GPU reaches: copy bandwidth, and matrix rate by number type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qmeter.telemetry.roofline import measure, to_json


def roofline(
    device: Annotated[int, typer.Option("--device", min=0, help="GPU, as torch counts them.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write it as JSON to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the GPU's roofline: copy bandwidth and matrix rate by number type. Takes seconds and 16 GiB."""
    found = measure(device)
    if out:
        out.write_text(to_json(found))
    if as_json:
        print(to_json(found))
        return
    table = Table("ceiling", "measured", "spread", "ridge, op/byte", title=f"{found.device} ({found.capability})")
    for ceiling in found.ceilings:
        value = f"{ceiling.value / 1e12:.2f} T{ceiling.unit}" if ceiling.value else f"unknown: {ceiling.why}"
        spread = f"{ceiling.spread:.1%}" if ceiling.spread is not None else ""
        ridge = found.ridge(ceiling.name) if ceiling.unit != "B/s" else None
        table.add_row(ceiling.name, value, spread, f"{ridge:.0f}" if ridge else "")
    Console().print(table)
