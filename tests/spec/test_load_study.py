from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from qmeter.errors import SpecError
from qmeter.spec import Study, expand, load_study, load_study_text
from qmeter.spec.units import parse_bytes, parse_duration_s, parse_rate_hz
from qmeter.spec.workload import GammaArrivals, TraceArrivals

BASE = """\
qmeter: 1
name: t
models: [{name: small, source: "synth:smollm2-135m", shape: smollm2-135m}]
engines: [{name: openvino}]
methods: [f16]
workloads:
  - name: chat
    arrivals: {kind: poisson, rate: RATE}
"""


def _study(rate: str = "4/s", extra: str = "") -> Study:
    return load_study_text(BASE.replace("RATE", rate) + extra)


def test_a_list_of_rates_makes_a_point_each_in_order_with_stable_names() -> None:
    study = _study("[90/min, 4 /s]")
    assert [w.name for w in study.workloads] == ["chat@90/min", "chat@4/s"]
    assert [w.arrivals.rate for w in study.workloads] == [1.5, 4.0]  # type: ignore[union-attr]


def test_concurrency_and_burstiness_make_points_too_and_two_lists_multiply() -> None:
    closed = load_study_text(BASE.replace("kind: poisson, rate: RATE", "kind: closed, concurrency: [1, 8]"))
    assert [w.name for w in closed.workloads] == ["chat@c1", "chat@c8"]
    gamma = load_study_text(
        BASE.replace("kind: poisson, rate: RATE", "kind: gamma, rate: [1/s, 2/s], burstiness: [0.5, 1]")
    )
    assert [w.name for w in gamma.workloads] == ["chat@1/s@b0.5", "chat@1/s@b1", "chat@2/s@b0.5", "chat@2/s@b1"]
    last = gamma.workloads[-1].arrivals
    assert isinstance(last, GammaArrivals) and (last.rate, last.burstiness) == (2.0, 1.0)


def test_a_fault_in_one_point_names_its_place_in_the_list_and_the_right_workload() -> None:
    text = BASE.replace("RATE", "[1/s, 2/s]") + "  - name: other\n    arrivals: {kind: constant, rate: 3}\n"
    with pytest.raises(SpecError) as caught:
        load_study_text(text)
    assert [path for path, _ in caught.value.faults] == ["workloads[1].arrivals.rate"]
    assert "(line 10)" in caught.value.faults[0][1]


def test_a_fault_common_to_all_points_is_said_once() -> None:
    with pytest.raises(SpecError) as caught:
        _study("[1/s, 2/s, 3/s]", "    windw: 3s\n")
    assert [path for path, _ in caught.value.faults] == ["workloads[0].windw"]


def test_a_resolved_study_reads_back_from_json_equal_with_the_same_cell_hashes() -> None:
    study = _study("[0.1/s, 7/min]", "    window: 333ms\nslo: {ttft: 100us}\nrepeats: 2\n")
    again = Study.model_validate_json(study.model_dump_json())
    assert again == study
    assert [c.id for c in expand(again)] == [c.id for c in expand(study)]


def test_bare_numbers_are_taken_from_json_only() -> None:
    data = _study().model_dump(mode="json")
    with pytest.raises(ValidationError, match="needs a unit"):
        Study.model_validate(data)


def test_every_cell_hash_is_unique_and_the_seed_is_the_same_for_every_method() -> None:
    study = load_study_text(BASE.replace("RATE", "[1/s, 2/s]").replace("[f16]", "[f16, w8a8]") + "repeats: 2\n")
    cells = expand(study)
    assert len({c.id for c in cells}) == len(cells) == 8
    seeds = {(c.workload.name, c.repeat): set() for c in cells}  # type: ignore[var-annotated]
    for c in cells:
        seeds[c.workload.name, c.repeat].add(c.seed)
    assert all(len(s) == 1 for s in seeds.values())
    assert len({s for group in seeds.values() for s in group}) == 4


def test_a_trace_path_counts_from_the_study_file_and_its_hash_is_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    trace = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.0,48,10\n"
    (folder / "t.csv").write_bytes(trace)
    (folder / "s.yaml").write_text(BASE.replace("kind: poisson, rate: RATE", "kind: trace, path: t.csv, format: azure"))
    monkeypatch.chdir(tmp_path)
    law = load_study(Path("studies/s.yaml")).workloads[0].arrivals
    assert isinstance(law, TraceArrivals)
    assert law.path == str(folder / "t.csv")
    assert law.sha256 == hashlib.sha256(trace).hexdigest()


def test_yaml_traps_stay_text() -> None:
    study = load_study_text(BASE.replace("RATE", "4/s").replace("name: t\n", "name: 2024-01-01\ndescription: 1:30\n"))
    assert (study.name, study.description) == ("2024-01-01", "1:30")


def test_merge_keys_and_anchors_work_and_are_no_duplicates() -> None:
    text = BASE.replace("RATE", "4/s").replace("  - name: chat", "  - &chat\n    name: chat")
    study = load_study_text(text + "    window: 9s\n  - {<<: *chat, name: long, window: 60s}\n")
    assert [(w.name, w.window) for w in study.workloads] == [("chat", 9.0), ("long", 60.0)]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_duration_s, "250ms", 0.25),
        (parse_duration_s, " 1.5 min ", 90.0),
        (parse_duration_s, "1e3us", 1e-3),
        (parse_rate_hz, "90/min", 1.5),
        (parse_rate_hz, "2Hz", 2.0),
        (parse_bytes, "2GiB", 2**31),
        (parse_bytes, "2GB", 2e9),
    ],
)
def test_units_are_parsed_to_si(parse, text: str, value: float) -> None:  # type: ignore[no-untyped-def]
    assert parse(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    "text", ["", "s", "3", 3, 3.0, True, None, [1], "3 parsecs", "1e999s", "-1s", "nan s", "0x10s", "3s4"]
)
def test_wrong_durations_are_refused_with_the_units(text: object) -> None:
    with pytest.raises(ValueError, match="12s"):
        parse_duration_s(text)
