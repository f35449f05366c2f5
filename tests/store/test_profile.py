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


def test_requests_that_were_never_due_are_left_out(store: StudyStore, tmp_path: Path) -> None:  # noqa: F811
    # GIVEN a closed loop's list, whose rest was never due, and a request that was due and not sent
    made = tables()
    columns = made.requests.columns()
    status = np.array(["ok", "unsent", "unsent"], dtype=columns["status"].dtype)
    due = np.array([0.0, np.nan, 2.0])
    requests = type(made.requests)(**{**columns, "status": status, "intended_s": due})
    store.write_tables("a", replace(made, requests=requests))
    store.append(record("a"))
    kept = open_results(str(write_profile(store, tmp_path / "p"))).tables(record("a")).requests
    assert kept.status.tolist() == ["ok", "unsent"] and kept.intended_s.tolist() == [0.0, 2.0]


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
