"""GIVEN a study's folder, WHEN it becomes a profile, THEN the same records and tables are read from a few files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_store import record, store, tables  # noqa: F401

from qmeter.errors import StoreError, UnknownName
from qmeter.record import CellStatus, Quantity
from qmeter.store import StudyStore, list_profiles, open_results, write_profile


def filled(made: StudyStore) -> StudyStore:
    for cell in ("a", "b"):
        made.write_tables(cell, tables())
        made.append(record(cell, metrics={"ttft_p50_s": Quantity.of(0.25, "s")}))
    made.append(record("c", CellStatus.FAILED))
    return made


def test_a_profile_reads_like_the_folder(store: StudyStore, tmp_path: Path) -> None:  # noqa: F811
    filled(store)
    profile = open_results(str(write_profile(store, tmp_path / "p", with_tokens=True)))
    assert profile.records() == store.records()
    assert profile.study == store.study
    for name in ("requests", "tokens", "telemetry", "steps"):
        for column, values in getattr(store.tables(record("b")), name).columns().items():
            np.testing.assert_array_equal(getattr(profile.tables(record("b")), name).columns()[column], values)
    answer = profile.query("SELECT cell_id, count(*) FROM requests GROUP BY 1 ORDER BY 1")
    assert answer.rows == (("a", 3), ("b", 3))


def test_without_tokens_they_are_empty_and_the_rest_is_there(store: StudyStore, tmp_path: Path) -> None:  # noqa: F811
    profile = open_results(str(write_profile(filled(store), tmp_path / "p")))
    found = profile.tables(record("a"))
    assert len(found.tokens) == 0 and len(found.requests) == 3 and len(found.telemetry) == 2


@pytest.mark.parametrize(
    ("status", "due", "kept"),
    [
        (["ok", "unsent", "unsent"], [0.0, np.nan, np.nan], 1),
        (["ok", "unsent", "ok"], [0.0, np.nan, 1.0], 3),  # row i stays request i
        (["ok", "unsent", "unsent"], [0.0, 1.0, np.nan], 2),  # due, and not sent: a failure
    ],
)
def test_the_end_of_a_list_that_was_never_due_is_left_out(
    store: StudyStore,  # noqa: F811
    tmp_path: Path,
    status: list[str],
    due: list[float],
    kept: int,
) -> None:
    made = tables()
    requests = type(made.requests)(
        **{**made.requests.columns(), "status": np.array(status, dtype=object), "intended_s": np.array(due)}
    )
    store.write_tables("a", replace(made, requests=requests))
    store.append(record("a"))
    found = open_results(str(write_profile(store, tmp_path / "p"))).tables(record("a")).requests
    assert found.status.tolist() == status[:kept]
    np.testing.assert_array_equal(found.intended_s, due[:kept])


def test_an_existing_folder_is_not_written_over(store: StudyStore, tmp_path: Path) -> None:  # noqa: F811
    filled(store)
    write_profile(store, tmp_path / "p")
    with pytest.raises(StoreError, match="exists"):
        write_profile(store, tmp_path / "p")


def test_profiles_are_found_by_name(
    store: StudyStore,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_profile(filled(store), tmp_path / "qmeter" / "profiles" / "mine")
    assert "mine" in [p.name for p in list_profiles()]
    assert len(open_results("mine").records()) == 3
    with pytest.raises(UnknownName) as caught:
        open_results("mien")
    assert caught.value.nearest == ("mine",)


def test_sql_tells_where_a_cell_ran_and_beside_what() -> None:
    answer = open_results("h100-x2-8b-parallelism").query(
        "SELECT a.gpus, b.gpus, a.method, b.method FROM records a JOIN records b ON a.neighbours = b.cell_id "
        "WHERE a.placement = 'side_by_side' AND a.workload = 'light' ORDER BY 1"
    )
    assert answer.rows == (("0", "1", "bf16", "awq-w4a16"), ("1", "0", "awq-w4a16", "bf16"))
