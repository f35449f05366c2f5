"""Cells analysed again from their tables, as a later qMeter's analysis sees them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qmeter.cli.main import _run
from qmeter.errors import StoreError
from qmeter.record import Quantity, Reason, Record, RecordKind, Window
from qmeter.store import StudyStore
from qmeter.study.again import analyse_study_again
from qmeter.testing.records import made_study, write_made_study


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return write_made_study(tmp_path / "s", made_study(rates=(4, 12)))


def worse(record: Record) -> Record:
    """The record as an analysis with a fault in it might have left it."""
    assert record.window is not None
    idle = Quantity.of(31.0, "degC")
    mine = Reason(kind="few_requests", stage="analyse", message="no longer so")
    other = Reason(kind="engine_was_busy", stage="load", message="still so")
    window = Window(start_s=record.window.start_s - 1, end_s=record.window.end_s, method="older", stationary=True)
    metrics = record.metrics | {"tpot_mean_s": Quantity.of(1.0, "s")}
    return record.model_copy(
        update={
            "window": window,
            "metrics": metrics,
            "energy": record.energy | {"idle_temperature_c": idle},
            "warnings": (other, mine, *record.warnings),
        }
    )


def test_only_what_changes_is_written_and_nothing_is_lost(store: StudyStore) -> None:
    """GIVEN a study one of whose records an older analysis wrote WHEN analysed again THEN that one is as the analysis
    has it now, with what other stages found; its former record stays; the others are told apart."""
    good = next(r for r in store.records() if r.status == "ok")
    store.append(worse(good))
    lines = (store.folder / "records.jsonl").read_text().splitlines()
    found = analyse_study_again(store)
    [again] = found.records
    assert again.cell_id == good.cell_id
    assert (again.window, again.metrics, again.status, again.proof) == (
        good.window, good.metrics, good.status, good.proof,
    )  # fmt: skip
    assert again.energy["idle_temperature_c"].value == 31.0 and again.energy.items() >= good.energy.items()
    assert [w.kind for w in again.warnings] == ["engine_was_busy", *(w.kind for w in good.warnings)]
    assert again.provenance.analysed and good.provenance.analysed is None
    assert (store.folder / "records.jsonl").read_text().splitlines()[:-1] == lines
    latest = {r.cell_id: r for r in store.records()}
    assert latest[good.cell_id] == again
    failed = [r.cell_id for r in latest.values() if r.status == "failed"]
    assert failed and list(found.skipped) == failed and set(found.skipped.values()) == {"it failed"}
    assert len(found.same) == len(latest) - 1 - len(failed)
    # AND once more there is nothing to change
    assert analyse_study_again(store).records == ()


def test_cells_whose_tables_are_gone_are_left_and_told(store: StudyStore) -> None:
    """GIVEN a cell without its token times WHEN analysed again THEN its record stays, and why is said."""
    good = next(r for r in store.records() if r.status == "ok")
    (store.cell_folder(good.cell_id) / "tokens.parquet").unlink()
    assert "token times are gone" in analyse_study_again(store).skipped[good.cell_id]
    assert next(r for r in store.records() if r.cell_id == good.cell_id) == good
    # AND where none is left, that is an error which says so
    shutil.rmtree(store.folder / "cells")
    with pytest.raises(StoreError, match="token times are gone"):
        analyse_study_again(store)


def test_simulated_cells_are_not_analysed_again(store: StudyStore) -> None:
    good = next(r for r in store.records() if r.status == "ok")
    store.append(good.model_copy(update={"kind": RecordKind.SIMULATED}))
    assert "simulated" in analyse_study_again(store).skipped[good.cell_id]


def test_the_command_says_what_moved(store: StudyStore, capsys: pytest.CaptureFixture[str]) -> None:
    good = next(r for r in store.records() if r.status == "ok")
    store.append(worse(good))
    assert _run(["reanalyse", str(store.folder)]) == 0
    told = capsys.readouterr().out
    assert good.cell_id in told and "window 2 to 15 s → 3 to 15 s" in told and "TPOT 1.00 s → " in told
    assert "1 cells changed" in told and "it failed" in told
    assert _run(["reanalyse", str(store.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == []
    assert _run(["reanalyse", "h200-70b"]) == 3
    assert "a profile: it keeps no token times" in capsys.readouterr().err
