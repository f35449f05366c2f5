"""GIVEN a study folder, WHEN it is written, torn, mixed or queried, THEN nothing is lost and nothing is hidden."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qmeter.errors import IncompatibleRecords, StoreError
from qmeter.record import (
    CellStatus,
    CellTables,
    Provenance,
    Quantity,
    Reason,
    Record,
    RecordKind,
    Requests,
    Steps,
    Telemetry,
    Tokens,
)
from qmeter.spec.study import Study, expand
from qmeter.store import StudyStore
from qmeter.store.database import connect

STUDY = Study.model_validate(
    {
        "qmeter": 1,
        "name": "s",
        "models": [{"name": "m", "source": "x", "shape": "smollm2-135m"}],
        "engines": [{"name": "openvino"}],
        "methods": ["f16"],
        "workloads": [{"name": "w", "arrivals": {"kind": "poisson", "rate": "1/s"}}],
    }
)


def record(cell_id: str, status: CellStatus = CellStatus.OK, **parts: object) -> Record:
    cell = {
        "deployment": {"model": {"name": "m"}, "engine": {"name": "openvino"}, "method": "f16", "device": "cpu",
                       "parallelism": {"tp": 1, "pp": 1, "dp": 1}},
        "workload": {"name": "w"}, "repeat": 0, "seed": 3,
    }  # fmt: skip
    return Record(
        kind=RecordKind.MEASURED, study="s", cell_id=cell_id, deployment_id="d", status=status, cell=cell,
        provenance=Provenance(
            qmeter_version="0", git_commit=None, started_unix_s=0.0, host={}, versions={}, engine_command=None,
            engine_env={}, model={}, hashes={}, seed=3,
        ),
        **parts,  # type: ignore[arg-type]
    )  # fmt: skip


def tables() -> CellTables:
    n = 3
    strings = np.array(["ok", "stalled", "ok"], dtype=object)
    return CellTables(
        requests=Requests(
            intended_s=np.arange(n), sent_s=np.arange(n) + 0.1, first_token_s=np.array([0.5, np.nan, 2.5]),
            last_token_s=np.array([0.9, np.nan, 2.9]), end_s=np.arange(n) + 1.0,
            prompt_tokens_asked=np.full(n, 8), output_tokens_asked=np.full(n, 2), prompt_tokens=np.full(n, 8),
            output_tokens=np.array([2, -1, 2]), status=strings, http_status=np.full(n, 200),
            finish_reason=np.array(["length", None, "length"], dtype=object), task=np.array([None] * n, dtype=object),
            item=np.array([None] * n, dtype=object), text=np.array(["a'b", None, "é\n"], dtype=object),
            error=np.array([None, "silent for 60 s", None], dtype=object),
        ),
        tokens=Tokens(np.array([0, 0, 2, 2]), np.array([0.5, 0.9, 2.5, 2.9]), np.ones(4), np.zeros(4), np.zeros(4)),
        telemetry=Telemetry(np.array(["host.cpu_share"] * 2, dtype=object), np.array([0.0, 0.1]), np.array([0.5, 0.6])),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return StudyStore.create(tmp_path / "study", STUDY, "qmeter: 1\n")


def test_records_come_back_equal(store: StudyStore) -> None:
    made = record("a", metrics={"ttft_p50_s": Quantity.of(0.2, "s", low=0.1, high=0.3, n=40)})
    store.append(made)
    assert store.records() == [made]


def test_the_latest_record_of_a_cell_counts(store: StudyStore) -> None:
    store.append(record("a", CellStatus.FAILED, reasons=(Reason(kind="OutOfMemory", stage="launch", message="no"),)))
    store.append(record("b"))
    store.append(record("a"))
    assert [(r.cell_id, r.status) for r in store.records()] == [("a", CellStatus.OK), ("b", CellStatus.OK)]


@pytest.mark.parametrize("keep", [1, 40, 200])
def test_a_line_torn_by_a_crash_is_set_aside_and_the_next_append_is_whole(store: StudyStore, keep: int) -> None:
    store.append(record("a"))
    journal = store.folder / "records.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:keep])
    assert [r.cell_id for r in store.records()] == ["a"]
    store.append(record("b"))
    assert [r.cell_id for r in store.records()] == ["a", "b"]
    assert (store.folder / "records.torn").read_bytes() == whole[:keep] + b"\n"


def test_a_broken_line_in_the_middle_is_named(store: StudyStore) -> None:
    store.append(record("a"))
    with open(store.folder / "records.jsonl", "ab") as file:
        file.write(b'{"schema_version": 1, "kind": "measured"}\n')
    store.append(record("b"))
    with pytest.raises(StoreError, match=r"records.jsonl, line 2: .*Field required"):
        store.records()


def test_a_newer_schema_is_refused(store: StudyStore) -> None:
    (store.folder / "records.jsonl").write_text('{"schema_version": 99}\n')
    with pytest.raises(IncompatibleRecords, match="schema 99"):
        store.records()


def test_tables_come_back_equal(store: StudyStore) -> None:
    made = tables()
    store.write_tables("a", made)
    back = store.tables(record("a"))
    for name in ("requests", "tokens", "telemetry", "steps"):
        for column, values in getattr(made, name).columns().items():
            found = getattr(back, name).columns()[column]
            assert found.dtype == values.dtype, (name, column)
            np.testing.assert_array_equal(found, values)
    assert len(back.steps) == 0 and isinstance(back.steps, Steps)


def test_a_broken_table_is_named(store: StudyStore) -> None:
    store.write_tables("a", tables())
    (store.cell_folder("a") / "tokens.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(StoreError, match=r"tokens\.parquet"):
        store.tables(record("a"))


def test_sql_sees_records_and_tables_together(store: StudyStore) -> None:
    store.write_tables("a", tables())
    store.append(
        record(
            "a", metrics={"ttft_p50_s": Quantity.of(0.2, "s")}, energy={"energy_j": Quantity.unknown("J", "no counter")}
        )
    )
    answer = store.query(
        "SELECT r.method, r.ttft_p50_s, r.energy_j, count(*) AS n "
        "FROM records r JOIN tokens USING (cell_id) GROUP BY ALL"
    )
    assert answer.columns == ("method", "ttft_p50_s", "energy_j", "n")
    assert answer.rows == (("f16", 0.2, None, 4),)


def test_wrong_sql_is_an_error_with_a_hint(store: StudyStore) -> None:
    with pytest.raises(StoreError, match="nosuch") as caught:
        store.query("SELECT nosuch FROM records")
    assert "DESCRIBE" in (caught.value.hint or "")


def test_another_study_is_not_mixed_in(store: StudyStore) -> None:
    other = STUDY.model_copy(update={"seed": 9})
    with pytest.raises(StoreError, match="different study"):
        StudyStore.create(store.folder, other, "")


def test_a_method_added_to_the_study_goes_on_in_its_folder(store: StudyStore) -> None:
    store.append(record(expand(STUDY)[0].id))
    wider = STUDY.model_copy(update={"methods": ("f16", "int8-wo")})
    again = StudyStore.create(store.folder, wider, "qmeter: 1 # wider\n")
    assert again.study == wider
    assert [r.cell_id for r in again.records()] == [expand(wider)[0].id], "what was measured is there"
    assert (store.folder / "study.yaml").read_text() == "qmeter: 1 # wider\n"
    assert (store.folder / "study.1.yaml").read_text() == "qmeter: 1\n", "the former study is kept"


def test_a_study_that_lacks_what_was_measured_is_refused_and_nothing_changed(store: StudyStore) -> None:
    store.append(record(expand(STUDY)[0].id))
    other = STUDY.model_copy(update={"seed": 9})
    with pytest.raises(StoreError, match="1 of its 1 records belong to no cell"):
        StudyStore.create(store.folder, other, "")
    assert store.study == STUDY
    assert not (store.folder / "study.1.yaml").exists()


def test_a_study_does_not_grow_under_a_run(store: StudyStore) -> None:
    store.append(record(expand(STUDY)[0].id))
    wider = STUDY.model_copy(update={"methods": ("f16", "int8-wo")})
    with store.lock(), pytest.raises(StoreError, match="another run"):
        StudyStore.create(store.folder, wider, "")
    assert store.study == STUDY


def test_foreign_files_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="not empty"):
        StudyStore.create(tmp_path, STUDY, "")


def test_a_second_run_is_refused(store: StudyStore) -> None:
    program = (
        "import sys; from qmeter.store import StudyStore; from qmeter.errors import StoreError\n"
        "try:\n    StudyStore(sys.argv[1]).lock().__enter__()\nexcept StoreError: print('refused')\n"
    )
    with store.lock():
        done = subprocess.run([sys.executable, "-c", program, str(store.folder)], capture_output=True, text=True)
    assert done.stdout.strip() == "refused"


def test_a_kill_while_the_folder_is_made_does_not_spoil_it(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text("qmeter: 1\n")
    (folder / "study.json.4711.tmp").write_text("{")
    assert StudyStore.create(folder, STUDY, "qmeter: 1\n").study == STUDY


def test_a_study_of_an_older_version_without_a_new_key_is_the_same_study(store: StudyStore) -> None:
    resolved = store.folder / "study.json"
    data = json.loads(resolved.read_text())
    del data["client"]
    resolved.write_text(json.dumps(data))
    assert StudyStore.create(store.folder, STUDY, "").records() == []


def test_a_study_that_this_version_does_not_understand_is_said_so(store: StudyStore) -> None:
    (store.folder / "study.json").write_text('{"qmeter": 1, "name": "s", "nosuch": 1}')
    with pytest.raises(IncompatibleRecords, match=r"study\.json"):
        store.study  # noqa: B018


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path, store: StudyStore) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the study folder") as caught:
        StudyStore.create(tmp_path / "file" / "study", STUDY, "")
    assert caught.value.hint
    (store.folder / "cells").write_text("a file where a folder must be")
    with pytest.raises(StoreError, match="cannot write"):
        store.write_tables("a", tables())


def test_a_full_disk_is_an_error_with_a_hint_and_loses_no_earlier_record(store: StudyStore) -> None:
    store.append(record("a"))
    journal = store.folder / "records.jsonl"
    size = journal.stat().st_size
    resource = pytest.importorskip("resource")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(StoreError, match=r"records\.jsonl"):
            store.append(record("b"))
        with pytest.raises(StoreError, match="cannot write"):
            store.write_tables("b", tables())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [r.cell_id for r in store.records()] == ["a"]
    store.append(record("b"))
    assert [r.cell_id for r in store.records()] == ["a", "b"]


def test_a_folder_that_vanished_is_not_made_again(store: StudyStore) -> None:
    store.folder.rename(store.folder.with_name("moved"))
    with pytest.raises(StoreError, match="removed or moved"):
        store.append(record("a"))
    assert not store.folder.exists()


def test_a_query_names_the_tables_that_no_cell_has_yet(store: StudyStore) -> None:
    store.append(record("a"))
    with pytest.raises(StoreError) as caught:
        store.query("SELECT * FROM tokens")
    assert "no cell has" in (caught.value.hint or "")


def test_no_progress_bar_is_drawn_into_the_output() -> None:
    with connect() as database:
        assert database.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)
