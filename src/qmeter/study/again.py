"""Analysing a study's tables again: what a later qMeter corrects in its analysis reaches the cells already measured."""

from __future__ import annotations

from dataclasses import dataclass

from qmeter import __version__
from qmeter.analysis.cell import analyse
from qmeter.errors import StoreError
from qmeter.record import CellStatus, Record, RecordKind
from qmeter.simulate.heldout import workload_of
from qmeter.store import StudyStore
from qmeter.study.provenance import git_commit

STAGE = "analyse"


@dataclass(frozen=True)
class Again:
    """What came of it: the new ``records``, as appended; the ids ``same`` as before; of those ``skipped``, why."""

    records: tuple[Record, ...]
    same: tuple[str, ...]
    skipped: dict[str, str]


def analyse_study_again(store: StudyStore) -> Again:
    """Analyse each measured cell's tables again; what changes is appended, the former record stays in the journal.

    Status, proof, verification, quality and what other stages warned of stay as they were.

    Raises:
        StoreError: another run holds the folder, or none of its cells could be analysed.
    """
    made, same, skipped = [], [], {}
    with store.lock():
        for record in store.records():
            if (why := _unfit(store, record)) is not None:
                skipped[record.cell_id] = why
                continue
            again = analysed_again(store, record)
            if again == record.model_copy(update={"provenance": again.provenance}):
                same.append(record.cell_id)
            else:
                store.append(again)
                made.append(again)
    if not made and not same:
        why = "; ".join(sorted(set(skipped.values()))) or "it has no records"
        raise StoreError(f"{store.folder}: no cell can be analysed again: {why}", hint="name a study folder")
    return Again(tuple(made), tuple(same), skipped)


def analysed_again(store: StudyStore, record: Record) -> Record:
    """The record as this qMeter's analysis writes it."""
    workload = workload_of(record)
    idle = {name: q for name, q in record.energy.items() if name.startswith("idle_")}
    found = analyse(
        store.tables(record), workload, record.series,
        seed=record.cell["seed"], idle_power=idle.get("idle_power_w"),
    )  # fmt: skip
    others = tuple(w for w in record.warnings if w.stage != STAGE)
    by = f"{__version__} {git_commit() or ''}".strip()
    return record.model_copy(
        update={
            "window": found.window,
            "metrics": found.metrics,
            "energy": {**found.energy, **{k: q for k, q in idle.items() if k not in found.energy}},
            "warnings": (*others, *found.warnings),
            "provenance": record.provenance.model_copy(update={"analysed": by}),
        }
    )


def _unfit(store: StudyStore, record: Record) -> str | None:
    if record.kind is not RecordKind.MEASURED:
        return "simulated cells are predicted again by the study"
    if record.status is CellStatus.FAILED or record.window is None:
        return "it failed"
    if not (store.cell_folder(record.cell_id) / "tokens.parquet").is_file():
        return "its token times are gone (cells/ID/tokens.parquet)"
    return None
