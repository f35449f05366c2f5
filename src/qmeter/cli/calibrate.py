"""``qmeter calibrate``: this host's load-client limits, measured against the ground truth and kept for studies."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qmeter.errors import LoadError

if TYPE_CHECKING:
    from qmeter.testing.calibration import Point

_WIDTHS = (8, 8, 9, 9, 9, 9, 5, 9)
_NAMES = ("asked/s", "sent/s", "TTFT avg", "TTFT p99", "ITL p99", "late p99", "CPU", "server")


def calibrate(
    seconds: Annotated[float, typer.Option(help="Length of each point.", min=0.5, max=60)] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a point, then the limits.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Measure, but keep nothing.")] = False,
) -> None:
    """Measure this host's load-client limits against a ground-truth server and keep them.

    Runs a server that streams tokens at exactly known times and qMeter's client against it, each on a core of its own,
    at rising rates of 64-token requests, until the client no longer holds the rate or its TTFT error reaches 0.5 ms at
    p99. A study then warns before it starts when a cell asks for more. Takes about a minute; run it on a quiet machine.
    """
    from qmeter.load.limits import save_limits
    from qmeter.testing.calibration import calibrate as measure

    def show(point: Point) -> None:
        if as_json:
            typer.echo(json.dumps(asdict(point) | {"held": point.held}))
        else:
            typer.echo(_line(point))

    if not as_json:
        typer.echo("errors against the ground truth and, last, the ground truth's own lateness at p99; all in ms")
        typer.echo(" ".join(name.rjust(width) for name, width in zip(_NAMES, _WIDTHS, strict=True)))
    limits, points = measure(seconds, show)
    if limits is None:
        why = "; ".join(points[-1].failures) or f"TTFT error {points[-1].ttft_p99_s * 1e3:.2f} ms at p99"
        raise LoadError(
            f"the client did not hold even {points[-1].rate_hz:.0f} requests/s here: {why}", stage="load",
            hint="run it on a quiet machine: see 'qmeter doctor' for what makes it noisy",
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"limits": asdict(limits)}))
    else:
        missed = [p for p in points if p.rate_hz > limits.requests_hz and not p.held]
        note = ""
        if any(p.disturbed for p in missed):
            note = " (this host was disturbed while higher rates were tried: on a quiet one the client may hold more)"
        elif any(p.server_bound for p in missed):
            note = " (there the ground truth itself was at its limit: the client may hold more)"
        typer.echo(
            f"one client process holds {limits.requests_hz:.0f} requests/s, {limits.events_hz:.0f} token events/s{note}"
        )
    if not dry_run:
        path = save_limits(limits)
        if not as_json:
            typer.echo(f"kept in {path}")


def _line(point: Point) -> str:
    ms = (point.ttft_mean_s, point.ttft_p99_s, point.itl_p99_s, point.lateness_p99_s)
    cells = [f"{point.rate_hz:.1f}", f"{point.sent_hz:.1f}", *(f"{s * 1e3:.3f}" for s in ms), f"{point.cpu_share:.0%}",
             f"{point.server_late_p99_s * 1e3:.3f}"]  # fmt: skip
    row = " ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    if point.held:
        return row
    lost = f"{point.lost} requests lost" if point.lost else "its rate or its TTFT error is over the limit"
    host = f"; the host was disturbed: {point.host}" if point.disturbed else ""
    return f"{row}\n  not held: {'; '.join(point.failures) or lost}{host}"
