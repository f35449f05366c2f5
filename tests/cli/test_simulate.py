"""``qmeter calibrate-model`` and ``qmeter simulate`` on a study folder made by a known deployment."""

import json
import re
import sys
from pathlib import Path

import pytest

from qmeter.cli.main import _run
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
