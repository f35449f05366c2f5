"""From the records of one evaluation to the terms of the search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qmeter.analysis.points import a_gpu
from qmeter.record import CellStatus, Quantity, Reason, Record
from qmeter.tune.journal import Outcome
from qmeter.tune.problem import Term


def outcome_of(records: Sequence[Record], terms: Sequence[Term], repeat: int, seconds: float = 0.0) -> Outcome:
    """What the records of one repeat say of every term; a failed or invalid cell makes the evaluation a failure."""
    mine = [r for r in records if int(r.cell.get("repeat", 0)) == repeat]
    bad = [r for r in mine if r.status is not CellStatus.OK]
    if bad or not mine:
        none = Reason(kind="NoRecord", stage="launch", message="the study left no record", hint="see its folder")
        reason = bad[0].reasons[0] if bad and bad[0].reasons else none
        return Outcome({}, reason, seconds)
    by_workload = {str(r.cell["workload"]["name"]): r for r in mine}
    overloaded = tuple(n for n, r in by_workload.items() if any(w.kind == "overloaded" for w in r.warnings))
    return Outcome({t.key: value_of(by_workload.get(t.workload), t) for t in terms}, None, seconds, overloaded)


def value_of(record: Record | None, term: Term) -> Quantity:
    """A term's quantity in a record; unknown, with the reason, where it has none."""
    found = _whole(record, term)
    if record is None or not term.per_gpu:
        return found
    return a_gpu(found, math.prod(int(v) for v in record.cell["deployment"]["parallelism"].values()))


def with_shares(values: Mapping[str, Quantity], terms: Sequence[Term], gpus: int) -> Mapping[str, Quantity]:
    """The values with those a GPU that a journal from before terms counted a GPU lacks."""
    lacking = {t.key: t.whole for t in terms if t.per_gpu and t.key not in values and t.whole in values}
    return {**values, **{key: a_gpu(values[whole], gpus) for key, whole in lacking.items()}}


def _whole(record: Record | None, term: Term) -> Quantity:
    if record is None:
        return Quantity.unknown(term.unit, f"no record of the workload {term.workload}")
    if term.name == "weight_bytes":
        size = record.effective.weight_bytes if record.effective else None
        return Quantity.of(size, "B") if size else Quantity.unknown("B", "the engine does not report it")
    for group in (record.metrics, record.energy, record.quality):
        if term.name in group:
            return group[term.name]
    return Quantity.unknown(term.unit, f"{term.name} is not in the record")
