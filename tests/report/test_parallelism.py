"""GIVEN made-up records over several GPUs, WHEN they are reported, THEN speed-up and neighbours show."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qmeter.analysis.interference import interference, ratio
from qmeter.analysis.keys import key_of
from qmeter.analysis.summary import StudySummary, summarise
from qmeter.record import CellStatus, Quantity, Record
from qmeter.report import devices, parallelism, write_report
from qmeter.report.hardware import load_cells
from qmeter.report.palette import REFERENCE, styles
from qmeter.report.pictures import all_labels, pareto_charts
from qmeter.report.views import Notes, groups
from qmeter.report.words import advice
from qmeter.store import StudyStore
from qmeter.testing.records import made_parallel_study, write_made_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = made_parallel_study(methods=("bf16", "fp8"), rates=("6/s",), window="4s")
    return write_made_study(tmp_path_factory.mktemp("parallel") / "study", study).folder


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return StudyStore(folder).records()


@pytest.fixture(scope="module")
def summary(records: list[Record]) -> StudySummary:
    return summarise(records, reference="bf16")


def test_alone_and_side_by_side_are_never_one_point(summary: StudySummary, records: list[Record]) -> None:
    keys = {d.key for d in summary.deployments}
    for method in ("bf16", "fp8"):
        assert {k.beside for k in keys if k.method == method and not k.parallelism} == {False, True}
    for d in summary.deployments:
        for p in d.points:
            mine = [r for r in records if r.cell_id in p.cells]
            assert {bool(r.neighbours) for r in mine} == {d.key.beside}
    assert not any(c.deployment.key.beside for r in summary.recommendations for c in r.candidates)
    assert not any(p.key.beside for s in summary.pareto for p in s.points)


def test_what_only_ever_ran_side_by_side_is_compared_and_says_so(records: list[Record]) -> None:
    # GIVEN a study in which FP8 never ran alone
    some = [r for r in records if r.neighbours or r.cell["deployment"]["method"] == "bf16"]
    found = summarise(some, reference="bf16")
    # THEN it stands in recommendations and pictures under a label that says so, BF16 as it ran alone, with a caveat
    labels = {c.deployment.key.label for r in found.recommendations for c in r.candidates}
    assert "fp8 side by side" in labels and "bf16" in labels and "bf16 side by side" not in labels
    assert "fp8 side by side" in all_labels(found)[0]
    assert any("ran on the host" in c and "fp8 side by side" in c for r in found.recommendations for c in r.caveats)
    assert any("fp8 side by side" in row.label for g in groups(found, Notes()) for row in g.rows)


def test_a_cell_that_lost_its_neighbour_takes_no_other_cell_with_it(records: list[Record]) -> None:
    # GIVEN a study whose deployments were all placed side by side, and cells that failed before any neighbour ran
    some = [r for r in records if r.neighbours]
    lost = [
        some[0].model_copy(update={"cell_id": f"lost-{s}", "status": CellStatus(s), "neighbours": ()})
        for s in ("failed", "invalid")
    ]
    found = summarise([*some, *lost], reference="bf16")
    assert {d.key.label for d in found.compared} == {"bf16", "fp8"} and all(d.points for d in found.compared)
    # and one that failed alone leaves what was measured side by side in its place
    alone = next(r for r in records if not r.neighbours and r.cell["deployment"]["method"] == "fp8")
    failed = alone.model_copy(update={"cell_id": "failed-alone", "status": CellStatus.FAILED})
    mixed = [r for r in records if r.neighbours or r.cell["deployment"]["method"] == "bf16"]
    labels = {d.key.label: len(d.points) for d in summarise([*mixed, failed], reference="bf16").compared}
    assert labels["fp8 side by side"] > 0


def test_devices_are_compared_though_one_was_shared(records: list[Record]) -> None:
    # GIVEN BF16 alone on one device, and only side by side on another
    alone = [r for r in records if not r.neighbours and r.cell["deployment"]["method"] == "bf16"]
    other = [
        r.model_copy(update={"cell": {**r.cell, "deployment": {**r.cell["deployment"], "device": "a100-80g"}}})
        for r in records
        if r.neighbours and r.cell["deployment"]["method"] == "bf16"
    ]
    rows = devices.comparison(summarise([*alone, *other], reference="bf16")).rows
    assert rows and all("(side by side)" in str(row[4]) for row in rows)


def test_labels_are_silent_where_everything_ran_side_by_side(records: list[Record]) -> None:
    found = summarise([r for r in records if r.neighbours], reference="bf16")
    assert {d.key.label for d in found.deployments} == {"bf16", "fp8"} and all(d.key.beside for d in found.deployments)
    assert all(any("not known: all" in c for c in r.caveats) for r in found.recommendations)


def test_more_gpus_are_not_recommended_where_fewer_keep_the_slo(summary: StudySummary) -> None:
    (open_loop, *_) = [r for r in summary.recommendations if "Poisson" in r.family]
    assert open_loop.choice is not None and open_loop.choice.deployment.key.gpus == 1
    assert "on 1 GPU (" in " ".join(advice(open_loop).why)


def test_trade_offs_over_different_gpus_are_a_gpus_and_say_so(summary: StudySummary) -> None:
    (found, view), *_ = [(s, g) for s, g in zip(summary.pareto, groups(summary, Notes()), strict=True)
                         if "Poisson" in s.family]  # fmt: skip
    assert "Goodput a GPU" in [c.head for c in view.columns]
    rates = {p.key.label: p.objectives["goodput_hz"].value for p in found.points}
    whole = {p.key.label: p.point.get("goodput_hz").value for p in found.points}
    assert rates["bf16 tp4"] == pytest.approx(whole["bf16 tp4"] / 4) and rates["bf16"] == whole["bf16"]
    charts = {c.title: c for c in pareto_charts(found, summary.deployments, styles(*all_labels(summary)))}
    speed = charts["Speed against energy"]
    assert '"Goodput a GPU, req/s"' in json.dumps(speed.spec)
    assert {r["method"]: r["y"] for r in speed.rows}["bf16 tp4"] == pytest.approx(whole["bf16 tp4"] / 4)


def test_neighbours_cost_what_was_made_up(summary: StudySummary, records: list[Record]) -> None:
    found = interference(summary.deployments, records)
    assert len(found) >= 3
    for one in found:
        assert one.overlap.value == pytest.approx(1.0)
        assert one.ratios["tpot_mean_s"].value == pytest.approx(1.04, abs=0.05)
        assert one.neighbours == (("fp8",) if one.beside.key.method == "bf16" else ("bf16",))


def test_a_pair_that_hardly_overlapped_is_no_measure(summary: StudySummary, records: list[Record]) -> None:
    late = [
        r.model_copy(update={"clock": r.clock.model_copy(update={"origin_unix_s": r.clock.origin_unix_s + 5.0})})
        if r.clock and r.neighbours and r.cell["deployment"]["method"] == "fp8"
        else r
        for r in records
    ]
    for one in interference(summary.deployments, late):
        assert one.overlap.value is not None and one.overlap.value < 0.9
        assert not one.ratios["tpot_mean_s"].known
        assert "ran for only" in (one.ratios["tpot_mean_s"].why or "")
    gone = [r for r in records if not (r.neighbours and r.cell["deployment"]["method"] == "fp8")]
    assert all(not i.overlap.known for i in interference(summary.deployments, gone) if i.beside.key.method == "bf16")


def test_speed_up_counts_from_each_methods_fewest_gpus(summary: StudySummary) -> None:
    looks = styles(*all_labels(summary))
    made = parallelism.scaling_charts(summary, looks)
    assert any("Speed-up of TPOT" in c.title for c in made) and any("output rate" in c.title for c in made)
    rows = {r["label"]: r for c in made if "TPOT" in c.title for r in c.rows}
    assert rows["bf16"]["y"] == 1.0
    assert rows["bf16 tp4"]["y"] > rows["bf16 tp2"]["y"] > 1.3
    assert rows["bf16 pp2"]["kind"] == "pipeline" and rows["bf16 dp2"]["kind"] == "data"
    # without the cells on one GPU, the speed-up of TP 4 is against TP 2, not against nothing
    tensor = tuple(d for d in summary.deployments if d.key.parallelism in ("tp2", "tp4"))
    fewer = replace(summary, deployments=tensor)
    rows = {r["label"]: r for c in parallelism.scaling_charts(fewer, looks) if "TPOT" in c.title for r in c.rows}
    assert rows["bf16 tp2"]["y"] == 1.0 and rows["bf16 tp4"]["base"] == 2


def test_the_matrix_divides_by_gpus_and_by_energy(summary: StudySummary) -> None:
    whole, per_gpu, per_kj = parallelism.matrices(summary)[:3]
    assert whole.table.columns == ("Method", "one GPU", "tp2 (2 GPUs)", "dp2 (2 GPUs)", "pp2 (2 GPUs)", "tp4 (4 GPUs)")
    row = dict(zip(whole.table.columns, next(r for r in whole.table.rows if r[0] == "bf16"), strict=True))
    each = dict(zip(per_gpu.table.columns, next(r for r in per_gpu.table.rows if r[0] == "bf16"), strict=True))

    def number(text: str) -> float:
        found = re.match(r"[\d.]+", text)
        assert found, text
        return float(found[0])

    assert number(each["tp4 (4 GPUs)"]) == pytest.approx(number(row["tp4 (4 GPUs)"]) / 4, rel=0.02)
    assert all("req/kJ" in c or "SLO" in c or "not measured" in c for r in per_kj.table.rows for c in r[1:])


def test_an_unknown_power_leaves_the_kilojoule_unknown_with_its_reason() -> None:
    found = ratio(Quantity.of(3.0, "1/s"), Quantity.unknown("W", "gpu1 is silent"))
    assert found.value is None and found.why == "gpu1 is silent"
    made = ratio(Quantity.of(3.0, "1", low=2.7, high=3.3), Quantity.of(2.0, "1", low=1.9, high=2.1))
    assert made.value == 1.5 and made.low is not None and 1.3 < made.low < 1.35


def test_the_page_has_the_section_and_its_tables(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmeter.report.write.write_pictures", lambda *_: None)  # slow, and tested elsewhere
    page = write_report(folder, tmp_path / "out")
    text = page.read_text()
    assert 'id="parallelism"' in text and "Side by side against alone" in text
    assert text.count("Goodput a GPU under the SLO") >= 1
    with open(next((tmp_path / "out" / "tables").glob("matrix-0-*.csv"))) as file:
        assert next(csv.reader(file))[0] == "Method"
    with open(tmp_path / "out" / "tables" / "neighbours.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0][3:5] == ["Beside", "GPU"] and len(rows) > 2
    with open(tmp_path / "out" / "tables" / "scaling.csv") as file:
        pairs = [(r["Method"], r["Against"]) for r in csv.DictReader(file)]
    assert ("bf16 tp2", "bf16") in pairs and ("fp8", "bf16 tp4") in pairs and ("bf16", "bf16 tp2") not in pairs


def test_neighbours_are_compared_request_by_request(folder: Path, summary: StudySummary, records: list[Record]) -> None:
    loaded = load_cells(StudyStore(folder), records)
    paired = interference(summary.deployments, records, loaded)
    apart = interference(summary.deployments, records)
    for sharp, wide in zip(paired, apart, strict=True):
        assert sharp.gpus and sharp.gpus_alone == (0,)
        q = sharp.ratios["tpot_mean_s"]
        if sharp.beside.workload == "w1":  # the made-up server is 4% slower beside others, request by request
            assert q.value == pytest.approx(1.04) and q.n and q.low == pytest.approx(1.04, abs=1e-4)
            assert not wide.ratios["tpot_mean_s"].n
        else:  # too few requests to pair
            assert q == wide.ratios["tpot_mean_s"]
    assert any(s.beside.workload == "w1" for s in paired)


def test_a_deployment_that_failed_and_a_limit_that_was_not_seen_are_told(summary: StudySummary) -> None:
    lost = tuple(
        replace(d, points=()) if d.key.method == "fp8" and d.key.parallelism == "dp2" else d
        for d in summary.deployments
    )
    (whole, *_) = parallelism.matrices(replace(summary, deployments=lost))
    row = dict(zip(whole.table.columns, next(r for r in whole.table.rows if r[0] == "fp8"), strict=True))
    assert row["dp2 (2 GPUs)"] == "no usable cell"
    assert "the limit was not seen" in whole.note and "bf16 tp4" in whole.note


def test_methods_keep_their_colour_over_parallelisms() -> None:
    names = ["bf16", "fp8", "bf16 tp2", "fp8 tp2"]
    looks = {s.name: s for s in styles(names, ["bf16", "bf16 tp2"], ["bf16", "fp8", "bf16", "fp8"])}
    assert looks["fp8"].colour == looks["fp8 tp2"].colour != REFERENCE == looks["bf16 tp2"].colour
    assert looks["fp8"].shape != looks["fp8 tp2"].shape


def test_a_study_for_any_device_is_keyed_by_the_device_it_ran_on(records: list[Record]) -> None:
    def on(gpu: str) -> str:
        deployment = {**records[0].cell["deployment"], "device": "auto"}
        host = {**records[0].provenance.host, "gpus": [{"name": gpu}]}
        provenance = records[0].provenance.model_copy(update={"host": host})
        cell = {**records[0].cell, "deployment": deployment}
        return key_of(records[0].model_copy(update={"cell": cell, "provenance": provenance})).device

    assert on("NVIDIA H200") == "h200" and on("NVIDIA H100 80GB HBM3") == "h100-sxm"
    assert on("Some Card") == "Some Card"
