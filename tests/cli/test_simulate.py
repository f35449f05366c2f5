"""``qmeter calibrate-model`` and ``qmeter simulate`` on a study folder made by a known deployment."""

import json
import re
import sys
from pathlib import Path

import pytest

from qmeter.cli.main import _run
from qmeter.cli.simulate import _shown
from qmeter.record import Quantity
from qmeter.simulate import load_calibrations
from qmeter.spec.study import EngineRef, ModelRef, Study
from qmeter.store import StudyStore

sys.path.insert(0, str(Path(__file__).parents[1] / "simulate"))
from records import LOADS, measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = Study(qmeter=1, name="s", models=(ModelRef(name="m", source="synth:llama-3.1-8b", shape="llama-3.1-8b"),),
                 engines=(EngineRef(name="vllm"),), methods=("bf16",), workloads=LOADS)  # fmt: skip
    store = StudyStore.create(tmp_path_factory.mktemp("sim") / "study", made, "")
    for k, spec in enumerate(LOADS):
        record, tables = measured(spec, seed=100 + k)
        store.append(record.model_copy(update={"files": store.write_tables(record.cell_id, tables)}))
    return store.folder


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def run(capsys, *argv):
    code = _run([str(a) for a in argv])
    got = capsys.readouterr()
    return code, got.out, got.err


@pytest.fixture
def calibrations(folder, tmp_path, capsys):
    path = tmp_path / "c.json"
    code, out, _ = run(capsys, "calibrate-model", folder, "-o", path, "--hold", LOADS[2].name)
    assert code == 0 and "m/bf16/vllm" in out and "errors on held-out loads" in out
    return path


def test_calibrate_then_simulate(calibrations, capsys):
    code, out, _ = run(capsys, "simulate", calibrations, "--rate", "4/s", "--prompt-tokens", "50-600",
                       "--output-tokens", "20-150", "--window", "20s", "--draws", 5, "--json")  # fmt: skip
    found = json.loads(out)
    assert code == 0 and found["kind"] == "simulated" and found["deployment"] == "m/bf16/vllm"
    tpot = found["metrics"]["tpot_mean_s"]
    assert tpot["low"] < tpot["value"] < tpot["high"]


def test_a_sweep_over_cores_answers_as_one_by_one(calibrations, capsys):
    argv = ["simulate", calibrations, "--rate", "2/s", "--rate", "4/s", "--prompt-tokens", "50-600", "--output-tokens",
            "20-150", "--window", "4s", "--draws", 3, "--json"]  # fmt: skip
    answers = [run(capsys, *argv, "--spread", spread) for spread in ("here", "cores")]
    assert [code for code, _, _ in answers] == [0, 0] and answers[0][1] == answers[1][1]
    code, _, err = run(capsys, *argv, "--spread", "corse")
    assert code == 2 and "cores" in err


def test_a_table_for_people(calibrations, capsys):
    code, out, _ = run(capsys, "simulate", calibrations, "--concurrency", 8, "--prompt-tokens", "50-600",
                       "--output-tokens", "20-150", "--window", "5s", "--draws", 3, "--ttft", "500ms")  # fmt: skip
    assert code == 0 and "simulated" in out and "ttft_p50_s" in out and "goodput_hz" in out


def test_outside_the_calibration_is_refused(calibrations, capsys):
    code, _, err = run(capsys, "simulate", calibrations, "--rate", "1/s", "--prompt-tokens", 3500, "--window", "5s")
    assert code == 3 and "does not cover this question" in err and "next" in err


def test_carried_to_another_device(calibrations, capsys):
    code, out, _ = run(capsys, "simulate", calibrations, "--rate", "2/s", "--window", "5s", "--draws", 3,
                       "--as-device", "h100-sxm", "--as-model", "qwen2.5-14b")  # fmt: skip
    assert code == 0 and "extrapolated" in out and "KV blocks derived" in " ".join(out.split())


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--window", "5s"], 2, "no load was given"),
        (["--rate", "4"], 2, "load is not valid"),
        (["--rate", "4/s", "--prompt-tokens", "many"], 2, "512 or 128-1024"),
        (["--rate", "4/s", "--method", "fp8"], 3, "no calibration for method fp8"),
    ],
)
def test_mistakes_are_named(calibrations, capsys, argv, code, says):
    got, _, err = run(capsys, "simulate", calibrations, *argv)
    assert got == code and says in err


def test_pictures(folder, tmp_path, capsys):
    pytest.importorskip("altair")
    code, out, _ = run(capsys, "calibrate-model", folder, "-o", tmp_path / "c.json", "--hold", LOADS[1].name,
                       "--pictures", tmp_path / "p", "--json")  # fmt: skip
    names = {p.name for p in (tmp_path / "p").iterdir()}
    assert code == 0 and names == {"coverage.svg", "predicted-measured.svg", "step-residuals.svg"}
    assert json.loads(out)["comparisons"]


def test_calibrations_are_moved_to_the_host_of_other_records(folder, tmp_path, capsys):
    """GIVEN records of the very host THEN its pace is 1, and the file says whose; a study without any is refused."""
    path = tmp_path / "c.json"
    code, out, _ = run(capsys, "calibrate-model", folder, "-o", path, "--host", folder)
    assert code == 0 and f"on the host of {folder}" in " ".join(out.split())
    made = load_calibrations(path)[0]
    factor = re.search(r"take ([0-9.]+) times as long", made.host_of)
    assert abs(float(factor[1]) - 1) < 0.1
    code, _, err = run(capsys, "calibrate-model", folder, "-o", path, "--host", "h200-70b")
    assert code == 3 and "does not show its host's pace" in " ".join(err.split()) and "measure one of" in err


LENGTHS = ("--prompt-tokens", "50-600", "--output-tokens", "20-150")


def test_a_load_that_outruns_the_deployment_is_answered_with_the_warning(calibrations, capsys):
    """GIVEN more requests than can be served THEN table and JSON say that it was overloaded."""
    argv = ["simulate", calibrations, "--rate", "80/s", *LENGTHS, "--window", "10s", "--draws", 3, "--extrapolate"]
    code, out, _ = run(capsys, *argv)
    assert code == 0 and "overloaded m/bf16/vllm, poisson@80/s: overloaded:" in out
    code, out, _ = run(capsys, *argv, "--json")
    assert code == 0 and "overloaded" in [w["kind"] for w in json.loads(out)["warnings"]]


def test_one_question_out_of_support_costs_no_other_its_answer(calibrations, capsys):
    """GIVEN a rate that is covered and one that is not THEN the first is answered and the second refused, and only
    where none is answered does the command fail."""
    argv = ["simulate", calibrations, *LENGTHS, "--window", "10s", "--draws", 0]
    code, out, _ = run(capsys, *argv, "--rate", "2/s", "--rate", "300/s")
    assert code == 0 and "poisson@2/s: simulated" in out and "not answered poisson@300/s" in out
    code, out, _ = run(capsys, *argv, "--rate", "2/s", "--rate", "300/s", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [p["kind"] for p in lines] == ["simulated", "refused"]
    assert "does not cover" in lines[1]["message"] and lines[1]["hint"]
    code, out, err = run(capsys, *argv, "--rate", "300/s", "--rate", "400/s", "--json")
    assert code == 3 and len(out.splitlines()) == 2 and "none of 2 questions" in err


@pytest.mark.parametrize("draws", [0, 2])
def test_too_few_draws_are_said_to_make_no_intervals(calibrations, capsys, draws):
    argv = ["simulate", calibrations, "--rate", "2/s", *LENGTHS, "--window", "5s", "--draws", draws]
    code, out, _ = run(capsys, *argv)
    assert code == 0 and "no intervals (they take 3 draws" in " ".join(out.split()) and "90%" not in out
    code, out, _ = run(capsys, *argv, "--json")
    assert all("low" not in q and "high" not in q for q in json.loads(out)["metrics"].values())


def test_printed_intervals_have_the_values_decimals_and_units():
    """GIVEN a goodput that hardly varies, a time and a share THEN the printed interval holds the printed value."""
    assert _shown(Quantity.of(37.85, "1/s", low=37.846, high=37.853)) == "37.9 req/s\n[dim][37.8, 37.9][/]"
    assert _shown(Quantity.of(0.1309, "s", low=0.098, high=1.87)) == "131 ms\n[dim]\\[98, 1,870][/]".replace("\\", "")
    assert _shown(Quantity.of(0.98, "1", low=0.9, high=1.0)).startswith("98.0%")


def test_a_load_to_hold_that_no_record_has_is_refused(folder, tmp_path, capsys):
    """GIVEN --hold with a misspelt workload THEN the nearest is named, and nothing is written."""
    out = tmp_path / "h.json"
    code, _, err = run(capsys, "calibrate-model", folder, "-o", out, "--hold", LOADS[2].name.replace("24", "42"))
    assert code == 2 and "--hold" in err and "did you mean" in err and LOADS[2].name in err
    assert not out.exists()


def test_a_fit_of_one_deployment_is_said_to_be_not_checked(folder, tmp_path, capsys):
    code, out, _ = run(capsys, "calibrate-model", folder, "-o", tmp_path / "c.json")
    assert code == 0 and "not checked: how far a deployment left out is off" in " ".join(out.split())
