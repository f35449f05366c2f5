"""GIVEN records made elsewhere, WHEN they are added, THEN they are checked, their origin told, and devices compare."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import duckdb
import pytest

from qmeter.analysis.points import group
from qmeter.cli.main import _run
from qmeter.errors import StoreError
from qmeter.record import CellStatus, Neighbour, Quantity, Record
from qmeter.report import write_report
from qmeter.spec.study import Study
from qmeter.store import StudyStore, list_profiles, open_results, write_profile
from qmeter.store.intake import examine
from qmeter.store.merged import Merged
from qmeter.store.profile import Profile
from qmeter.testing.records import made_records, made_study


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "qmeter" / "profiles"


def study_on(device: str, name: str) -> Study:
    made = made_study(rates=(4,), window="4s")
    return made.model_copy(update={"device": device, "name": name, "methods": ("bf16", "fp8")})


def times(q: Quantity, factor: float) -> Quantity:
    ends = {k: v * factor for k in ("value", "low", "high") if (v := getattr(q, k)) is not None}
    return q.model_copy(update=ends)


def elsewhere(
    folder: Path, gpu: str = "NVIDIA H100 80GB HBM3", name: str = "h100-8b", device: str = "h100-sxm"
) -> StudyStore:
    """A study's folder as another host would have written it; latencies are 1.5 times the made-up H200's."""
    study = study_on(device, name)
    store = StudyStore.create(folder, study, "")
    for record in made_records(study, store=None):
        slower = {name: times(q, 1.5) if name[:4] in ("ttft", "tpot") else q for name, q in record.metrics.items()}
        host = {**record.provenance.host, "gpus": [{"name": gpu, "driver": "580.1"}]}
        provenance = record.provenance.model_copy(update={"host": host})
        store.append(record.model_copy(update={"metrics": slower, "provenance": provenance}))
    return store


def test_a_second_devices_records_are_added_with_their_origin(
    tmp_path: Path, data_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = elsewhere(tmp_path / "run")
    assert _run(["profiles", "add", str(store.folder)]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA H100 80GB HBM3 (driver 580.1)" in out and "vllm 0.25.1" in out and "0.0.0+made-up" in out
    assert "to compare" not in out  # no shipped profile measured these loads
    assert "h100-8b" in [p.name for p in list_profiles()]
    assert _run(["profiles", "add", str(store.folder)]) == 3  # it is there already
    # a third device's records of the same loads are to be compared with them; one that cannot be read is passed over
    (data_home / "broken").mkdir()
    (data_home / "broken" / "records.parquet").write_bytes(b"not parquet")
    third = elsewhere(tmp_path / "third", gpu="NVIDIA A100-SXM4-80GB", name="a100-8b", device="a100-80g")
    assert _run(["profiles", "add", str(third.folder)]) == 0
    assert "to compare: qmeter report h100-8b a100-8b" in capsys.readouterr().out


def test_a_profile_passed_on_is_copied_without_what_lies_beside_it(tmp_path: Path, data_home: Path) -> None:
    folder = write_profile(elsewhere(tmp_path / "run"), tmp_path / "passed-on")
    (folder / "evil.sh").write_text("x")
    (folder / "roofline.json").symlink_to("/etc/hostname")
    assert _run(["profiles", "add", str(folder), "--name", "mine"]) == 0
    assert sorted(p.name for p in (data_home / "mine").iterdir()) == ["records.parquet", "study.json"]
    assert _run(["profiles", "add", str(folder), "--name", "../out"]) == 2


def changed(record: Record, **update: object) -> Record:
    return record.model_copy(update=update)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cell", "its name is not that of the cell in it"),
        ("value", "lies outside its interval"),
        ("proof", "without proof"),
        ("power", "cannot be of 1 GPUs"),
        ("foreign", "is not of the study"),
    ],
)
def test_records_that_were_changed_or_are_foreign_are_refused(
    tmp_path: Path, what: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = elsewhere(tmp_path / "run")
    record = next(r for r in store.records() if r.status is CellStatus.OK)
    if what == "cell":
        store.append(changed(record, cell={**record.cell, "repeat": 7}))
    elif what == "value":
        tpot = Quantity.model_construct(value=0.001, unit="s", low=0.01, high=0.02, n=3)
        store.append(changed(record, metrics={**record.metrics, "tpot_mean_s": tpot}))
    elif what == "proof":
        store.append(changed(record, proof=None))
    elif what == "power":
        store.append(changed(record, energy={**record.energy, "power_mean_w": Quantity.of(9e4, "W")}))
    else:
        other = made_records(study_on("a100-80g", "other"))[0]
        store.append(changed(other, study="h100-8b"))
    assert _run(["profiles", "add", str(store.folder)]) == 3
    assert " ".join(says.split()) in " ".join(capsys.readouterr().err.split())


def test_the_shipped_profile_passes_its_own_check() -> None:
    profile = open_results("h200-8b-grid")
    found = examine(profile.study, profile.records())
    assert not found.faults
    assert found.origin["GPUs"].startswith("NVIDIA H200")


def test_two_devices_are_compared_on_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("altair", reason="the report extra is not installed")
    monkeypatch.setattr("qmeter.report.write.write_pictures", lambda *_: None)
    here = StudyStore.create(tmp_path / "h200", study_on("h200", "h200-8b"), "")
    made_records(here.study, store=here)
    there = write_profile(elsewhere(tmp_path / "h100"), tmp_path / "h100-profile")
    page = write_report(here.folder, tmp_path / "out", [there])
    text = page.read_text()
    assert 'id="devices"' in text and "h200 → h100-sxm" in text
    assert "fp8 on h100-sxm" in text and "fp8 on h200" in text
    with open(tmp_path / "out" / "tables" / "devices.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    changes = {row["Quantity"]: row["Change"] for row in rows if row["Method"] == "fp8"}
    assert {row["Devices"] for row in rows} == {"h200 → h100-sxm"}
    assert changes["TPOT mean"].startswith("+50")
    assert changes["Energy/token"].startswith(("0", "+0")), changes


def started(store: StudyStore, after_s: float) -> StudyStore:
    """The store, its records as of a run so much later. Units: s."""
    for record in store.records():
        at = record.provenance.started_unix_s + after_s
        store.append(changed(record, provenance=record.provenance.model_copy(update={"started_unix_s": at})))
    return store


def same_study(folder: Path) -> StudyStore:
    """A study for whatever device there is: its cells have the same ids everywhere."""
    store = StudyStore.create(folder, study_on("auto", "same"), "")
    made_records(store.study, store=store)
    return store


def test_the_same_study_on_two_devices_does_not_collide(tmp_path: Path) -> None:
    # GIVEN one study run twice, at different times
    stores = [same_study(tmp_path / "a"), started(same_study(tmp_path / "b"), 60.0)]
    # WHEN they are read as one THEN every measurement of both is there
    merged = Merged(stores)
    records = merged.records()
    assert len({r.cell_id for r in records}) == len(records) == 2 * len(stores[0].records())
    assert len(merged.tables(records[-1]).requests) == len(stores[1].tables(stores[1].records()[-1]).requests)
    assert merged.read()[1] == ()


def test_one_measurement_is_counted_once_whatever_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a study's folder, the profile made from it, and the same study run again later
    folder, again = same_study(tmp_path / "run"), started(same_study(tmp_path / "again"), 60.0)
    profile = write_profile(folder, tmp_path / "profile")
    n = len(folder.records())
    # WHEN they are read as one THEN the run counts once, the later one is a repeat
    merged = Merged([Profile(profile), folder, again, folder], ["p", "run", "again", "run"])
    records, warnings = merged.read()
    assert [r.cell_id.partition("@")[2] for r in records] == ["0"] * n + ["2"] * n
    assert [w.message for w in warnings] == [f"{n} records of run: the same measurements as in p, counted once"] * 2
    alone = {p.key: p.metrics for d in group(folder.records())[0] for p in d.points}
    assert {p.key: p.metrics for d in group(Merged([folder, folder]).records())[0] for p in d.points} == alone
    # WHEN the report is asked for THEN command and page say so
    pytest.importorskip("altair", reason="the report extra is not installed")
    monkeypatch.setattr("qmeter.report.write.write_pictures", lambda *_: None)
    out = tmp_path / "out"
    assert _run(["report", str(folder.folder), str(profile), "--out", str(out)]) == 0
    said = f"{n} records of {profile}: the same measurements as in {folder.folder}, counted once"
    assert f"warning: {said} (" in capsys.readouterr().err
    page = (out / "report.html").read_text()
    assert f"{said}." in page and f"of {n} valid" in page


def test_neighbours_of_a_measurement_that_counts_once_are_found(tmp_path: Path) -> None:
    # GIVEN a profile of the first cell alone, and a folder in which that cell ran beside a second one
    store = same_study(tmp_path / "run")
    first, second, *_ = store.records()
    part = StudyStore.create(tmp_path / "part", store.study, "")
    part.append(first)
    beside = Neighbour(deployment_id=first.deployment_id, label="x", devices=(1,), cell_id=first.cell_id)
    store.append(changed(second, neighbours=(beside,)))
    # WHEN they are read as one THEN the second's neighbour is the record that was kept
    records = {r.cell_id: r for r in Merged([part, store]).records()}
    assert f"{first.cell_id}@0" in records and f"{first.cell_id}@1" not in records
    assert [n.cell_id for n in records[f"{second.cell_id}@1"].neighbours] == [f"{first.cell_id}@0"]


def test_the_list_names_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(["profiles", "add", str(elsewhere(tmp_path / "run").folder)])
    capsys.readouterr()
    assert _run(["profiles", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {tuple(r["devices"]) for r in rows} >= {("NVIDIA H100 80GB HBM3",), ("NVIDIA H200",)}


def test_a_profile_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, data_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN one file that is no parquet, one whose records are no records, and one without its study
    (data_home / "broken").mkdir(parents=True)
    (data_home / "broken" / "records.parquet").write_bytes(b"not parquet")
    strange = write_profile(elsewhere(tmp_path / "run"), data_home / "strange")
    write = f"COPY (SELECT '[1]' AS record, 0 AS number) TO '{strange}/records.parquet' (FORMAT parquet)"
    duckdb.connect().execute(write)
    # and one whose record says nothing of its cell
    odd = write_profile(elsewhere(tmp_path / "odd"), data_home / "odd")
    (row, *_) = Profile(odd).records()
    text = row.model_copy(update={"cell": {}}).model_dump_json().replace("'", "''")
    duckdb.connect().execute(
        f"COPY (SELECT '{text}' AS record, 0 AS number) TO '{odd}/records.parquet' (FORMAT parquet)"
    )
    # THEN the list tells every other profile, and each of them with its file
    assert _run(["profiles", "--json"]) == 3
    seen = capsys.readouterr()
    rows = [json.loads(line) for line in seen.out.splitlines()]
    assert {"h200-8b-grid", "h200-70b"} <= {r["name"] for r in rows} and "strange" not in {r["name"] for r in rows}
    assert "odd/records.parquet holds a record that is none of a cell: KeyError: 'deployment'" in seen.err
    assert "broken/records.parquet cannot be read" in seen.err and "strange/records.parquet cannot be read" in seen.err
    assert "Traceback" not in seen.err and "next remove the profile, or add it again" in seen.err
    (strange / "study.json").unlink()
    with pytest.raises(StoreError, match=r"strange/study\.json cannot be read"):
        _ = Profile(strange).study
