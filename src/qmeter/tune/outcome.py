"""From the records of one evaluation to the terms of the search."""

from __future__ import annotations

from collections.abc import Sequence

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
    return Outcome({t.key: value_of(by_workload.get(t.workload), t) for t in terms}, None, seconds)


def value_of(record: Record | None, term: Term) -> Quantity:
    """A term's quantity in a record; unknown, with the reason, where it has none."""
    if record is None:
        return Quantity.unknown(term.unit, f"no record of the workload {term.workload}")
    if term.name == "weight_bytes":
        size = record.effective.weight_bytes if record.effective else None
        return Quantity.of(size, "B") if size else Quantity.unknown("B", "the engine does not report it")
    for group in (record.metrics, record.energy, record.quality):
        if term.name in group:
            return group[term.name]
    return Quantity.unknown(term.unit, f"{term.name} is not in the record")
