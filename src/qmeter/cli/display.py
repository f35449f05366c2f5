"""The live display of a running study: current cell, stage, progress, time left; plain lines off a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qmeter.record import CellStatus, Quantity, Reason, Record
from qmeter.study.events import CellEnded, Event, Listener, StageStarted, StudyEnded, StudyStarted

_STYLE = {CellStatus.OK: "green", CellStatus.INVALID: "yellow", CellStatus.FAILED: "red"}


@contextmanager
def show_events(as_json: bool, console: Console | None = None) -> Iterator[Listener]:
    """A listener that draws: JSON lines, a live display on a terminal, or plain lines.

    Where nobody reads any more (``| head``), it interrupts the study as Ctrl-C does.
    """
    console = console or Console()
    if as_json:
        yield _heard(lambda event: print(json.dumps(_as_data(event)), file=console.file, flush=True))
    elif console.is_terminal:
        board = _Board()
        with Live(board, console=console, refresh_per_second=4, transient=True):
            yield _heard(lambda event: board.hear(event, console))
    else:
        yield _heard(lambda event: console.print(_line(event), soft_wrap=True, highlight=False))


def print_warnings(warnings: Sequence[Reason], as_json: bool) -> None:
    """Warnings on stderr, each with the next step; JSON lines go to stdout."""
    for warning in warnings:
        message, hint = warning.message, warning.hint
        if as_json:
            typer.echo(json.dumps({"event": "warning", "message": message, "hint": hint}))
        else:
            typer.secho(f"warning: {message}" + (f" ({hint})" if hint else ""), fg="yellow", err=True)


def _heard(draw: Listener) -> Listener:
    """``draw``, with a closed output (rich makes it SystemExit) as an interrupt: it is no fault of the cell's."""

    def hear(event: Event) -> None:
        try:
            draw(event)
        except (BrokenPipeError, SystemExit) as error:
            raise KeyboardInterrupt from error

    return hear


class _Board:
    """What the live display shows now."""

    def __init__(self) -> None:
        self.done, self.cells, self.stage, self.label = 0, 0, "", ""
        self.since_s = self.began_s = time.monotonic()
        self.expected_s: float | None = None
        self.began_done = 0

    def hear(self, event: Event, console: Console) -> None:
        match event:
            case StudyStarted():
                self.cells, self.done, self.began_done = event.cells, event.done, event.done
            case StageStarted():
                self.stage, self.label, self.expected_s = event.stage, event.label, event.expected_s
                self.since_s = time.monotonic()
                return
            case CellEnded():
                self.done += 1
        console.print(_line(event), soft_wrap=True, highlight=False)

    def __rich__(self) -> Table:
        elapsed_s = time.monotonic() - self.since_s
        grid = Table.grid(padding=(0, 2))
        share = self.done / self.cells if self.cells else 0.0
        grid.add_row(_bar(share), f"{self.done}/{self.cells} cells", f"ETA {self._eta()}")
        of = f" of about {self.expected_s:.0f} s" if self.expected_s else ""
        grid.add_row(Text(self.label, style="bold"), self.stage, f"{elapsed_s:.0f} s{of}")
        return grid

    def _eta(self) -> str:
        made = self.done - self.began_done
        if not made:
            return "unknown until a cell has ended"
        left_s = (time.monotonic() - self.began_s) / made * (self.cells - self.done)
        return f"{left_s / 60:.0f} min" if left_s > 90 else f"{left_s:.0f} s"


def _bar(share: float, width: int = 24) -> Text:
    full = round(share * width)
    return Text("━" * full, style="cyan") + Text("─" * (width - full), style="dim")


def _line(event: Event) -> Text:
    match event:
        case StudyStarted():
            again = f", {event.done} done earlier" if event.done else ""
            return Text(f"study {event.study}: {event.cells} cells{again} → {event.folder}")
        case StageStarted():
            return Text(f"  {event.stage}: {event.label}", style="dim")
        case CellEnded():
            status = event.record.status
            line = Text(f"{status.value:>7} ", style=_STYLE[status]) + Text(f"{event.label}  ")
            return line + Text(_facts(event.record), style="dim") + Text(f"  ({event.remaining} left)", style="dim")
        case StudyEnded():
            counts = f"{event.ok} ok, {event.invalid} invalid, {event.failed} failed"
            counts += f"; {event.waiting} wait for a host with more GPUs" if event.waiting else ""
            return Text(f"study ended in {event.wall_s:.0f} s: {counts}", style="bold")


def _facts(record: Record) -> str:
    if record.reasons:
        return "; ".join(f"{r.kind}: {r.message}" for r in record.reasons)
    shown = (("throughput_tok_s", "{:.1f} tok/s", 1.0), ("ttft_p50_s", "TTFT p50 {:.0f} ms", 1e3),
             ("tpot_mean_s", "TPOT {:.1f} ms", 1e3), ("j_per_output_token", "{:.3g} J/tok", 1.0))  # fmt: skip
    known: dict[str, Quantity] = {**record.metrics, **record.energy}
    parts = [
        form.format(value * scale)
        for name, form, scale in shown
        if (q := known.get(name)) is not None and (value := q.value) is not None
    ]
    return ", ".join(parts)


def _as_data(event: Event) -> dict[str, Any]:
    name = {StudyStarted: "study_started", StageStarted: "stage", CellEnded: "cell", StudyEnded: "study_ended"}
    if isinstance(event, CellEnded):
        record = event.record
        return {"event": "cell", "label": event.label, "cell_id": record.cell_id, "status": record.status.value,
                "reasons": [r.model_dump() for r in record.reasons], "remaining": event.remaining}  # fmt: skip
    return {"event": name[type(event)], **vars(event)}
