"""Two points of a search on the requests that both served: what arrivals do cancels, which pooled noise cannot see.

A repeat's requests follow from the workload and the repeat's number alone, so every point measured in it got the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from qmeter.analysis.metrics import Better
from qmeter.analysis.paired import Cell, paired_ratios
from qmeter.errors import QMeterError
from qmeter.record import CellStatus, Quantity
from qmeter.store import StudyStore
from qmeter.tune.problem import Term
from qmeter.tune.space import Point
from qmeter.tune.tuner import Tuner

Ratios = Callable[[Point, Point], Mapping[str, Quantity]]
"""(a, b) → quantity@workload → a / b with a 95% interval; empty where they have no repeat in common."""

STANDS_FOR = {"ttft": "ttft_p50_s", "tpot": "tpot_mean_s", "itl": "tpot_mean_s", "throughput": "throughput_tok_s",
              "goodput": "throughput_tok_s", "j_per": "j_per_output_token"}  # fmt: skip
"""First part of a term's name → the paired quantity that speaks for it: percentiles far out are not paired."""


def paired_key(term: Term) -> str | None:
    """The key among :data:`Ratios` that speaks for a term; ``None``: none does."""
    name = next((made for start, made in STANDS_FOR.items() if term.name.startswith(start)), None)
    return f"{name}@{term.workload}" if name else None


def difference(term: Term, ratios: Mapping[str, Quantity]) -> int:
    """1 where the first point is better on this term beyond the pair's interval, -1 where worse, else 0."""
    q = ratios.get(paired_key(term) or "")
    if q is None or q.low is None or q.high is None or q.low <= 1 <= q.high:
        return 0
    return 1 if (q.high < 1) == (term.better is Better.LOWER) else -1


def recorded_ratios(tuner: Tuner, folder: Path) -> Ratios:
    """Pairs from the records and tables that the evaluations left under ``folder``; what is gone is no pair."""
    runs = {e.point: {p.repeat: p.folder for p, o in e.runs if o.failure is None} for e in tuner.evaluated()}

    @cache
    def cells(where: str) -> dict[str, Cell]:
        try:
            store = StudyStore(folder / where)
            good = [r for r in store.records() if r.status is CellStatus.OK]
            return {str(r.cell["workload"]["name"]): (r, store.tables(r)) for r in good}
        except QMeterError:
            return {}

    @cache
    def ratios(a: Point, b: Point) -> Mapping[str, Quantity]:
        both = [(cells(mine), cells(runs[b][k])) for k, mine in sorted(runs.get(a, {}).items()) if k in runs.get(b, {})]
        out: dict[str, Quantity] = {}
        for workload in dict.fromkeys(t.workload for t in tuner.terms):
            pairs = [(x[workload], y[workload]) for x, y in both if workload in x and workload in y]
            out |= {f"{name}@{workload}": q for name, q in (paired_ratios(pairs) if pairs else {}).items()}
        return out

    return ratios
