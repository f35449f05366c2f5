"""The live view of a search: progress, the front as it grows, and what is measured now; plain lines off a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qmeter.record import Quantity
from qmeter.study.events import Event, StageStarted
from qmeter.tune.advise import Advice, advise, shown
from qmeter.tune.journal import Outcome, Proposal
from qmeter.tune.tuner import Tuner


class SearchView:
    """Draws a search; every method returns at once."""

    def __init__(self, tuner: Tuner, console: Console, as_json: bool):
        self._tuner, self._console, self._json = tuner, console, as_json
        self._now = ""
        self._stage = ""
        self._board: Table | None = None

    def asked(self, proposal: Proposal) -> None:
        """A measurement begins."""
        self._now = f"{proposal.number}: {proposal.point.label}"
        if self._json:
            print(json.dumps({"event": "asked", "number": proposal.number, "point": proposal.point.as_dict(),
                              "repeat": proposal.repeat, "why": proposal.why}), flush=True)  # fmt: skip

    def study_event(self, event: Event) -> None:
        """What the study runner does."""
        if isinstance(event, StageStarted):
            self._stage = event.stage

    def told(self, proposal: Proposal, outcome: Outcome) -> None:
        """A measurement ended."""
        values = {k: q.value for k, q in outcome.values.items()}
        if self._json:
            failure = outcome.failure.model_dump() if outcome.failure else None
            print(json.dumps({"event": "told", "number": proposal.number, "values": values, "failure": failure,
                              "seconds": round(outcome.seconds, 2)}), flush=True)  # fmt: skip
            return
        self._console.print(_line(self._tuner, proposal, outcome), soft_wrap=True, highlight=False)
        self._board = front_table(self._tuner, advise(self._tuner))

    def __rich__(self) -> Group:
        budget = self._tuner.tuning.spec.search.evaluations
        head = Text(f"{self._tuner.done}/{budget} evaluations  ", style="bold") + Text(f"{self._now} {self._stage}")
        return Group(*([self._board] if self._board else []), head)


@contextmanager
def show_search(tuner: Tuner, as_json: bool) -> Iterator[SearchView]:
    """A view that draws: JSON lines, a live table on a terminal, or plain lines."""
    console = Console()
    view = SearchView(tuner, console, as_json)
    if as_json or not console.is_terminal:
        yield view
        return
    with Live(view, console=console, refresh_per_second=2, transient=True):
        yield view


def front_table(tuner: Tuner, advice: Advice, most: int = 20) -> Table:
    """The front with 95% intervals."""
    table = Table(title=f"Pareto front: {len(advice.rows)} of {len(tuner.evaluated())} points measured")
    table.add_column("")
    table.add_column("point")
    for term in tuner.tuning.objectives:
        table.add_column(f"{term.label}\n[dim]{escape(term.workload)}[/]", justify="right")
    table.add_column("sure", justify="right")
    for row in advice.rows[:most]:
        s = row.standing
        more = f"\n[dim]and {len(row.equals)} equal within noise[/]" if row.equals else ""
        table.add_row("→" if row.recommended else "", escape(s.measured.point.label) + more,
                      *(_cell(row.values[t.key]) for t in tuner.tuning.objectives),
                      f"{s.chance:.0%}\n[dim]n={s.measured.repeats}[/]",
                      style="bold" if row.recommended else "")  # fmt: skip
    if len(advice.rows) > most:
        table.caption = f"and {len(advice.rows) - most} more"
    return table


def _cell(q: Quantity) -> str:
    if q.low is None or q.high is None:
        return shown(q)
    ends = [shown(Quantity.of(v, q.unit)) for v in (q.low, q.high)]
    return f"{shown(q)}\n[dim]{ends[0]} – {ends[1]}[/]"


def _line(tuner: Tuner, proposal: Proposal, outcome: Outcome) -> Text:
    head = Text(f"{proposal.number:>4} {proposal.point.label}  ")
    if outcome.failure:
        return head + Text(f"{outcome.failure.kind}: {outcome.failure.message}", style="red")
    parts = [f"{t.label} {shown(outcome.values[t.key])}" for t in tuner.tuning.objectives]
    broken = [t for t in tuner.tuning.limits
              if (v := outcome.values[t.key].value) is None or t.violation(v) > 0]  # fmt: skip
    tail = Text(f"  breaks {', '.join(t.label for t in broken)}", style="yellow") if broken else Text("")
    return head + Text(", ".join(parts), style="dim") + tail
