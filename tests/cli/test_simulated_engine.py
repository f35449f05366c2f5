"""``engine: simulated`` in a study: the same command, folder, record type and report as a measurement."""

import json
import sys
from pathlib import Path

import pytest

from qmeter.cli.main import _run
from qmeter.engines import table
from qmeter.record import CellStatus, RecordKind
from qmeter.simulate import calibrate, save
from qmeter.store import StudyStore

sys.path.insert(0, str(Path(__file__).parents[1] / "simulate"))
from records import LOADS, measured

TEXT = """
qmeter: 1
name: predicted
models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
engines: [{name: simulated, options: {calibration: CALIBRATION, draws: 4}}]
methods: [bf16]
workloads:
  - {name: four, arrivals: {kind: poisson, rate: 4/s}, prompt_tokens: {kind: uniform, low: 50, high: 600},
     output_tokens: {kind: uniform, low: 20, high: 150}, warmup: 1s, window: 5s, drain: 30s}
  - {name: far, arrivals: {kind: poisson, rate: 1/s}, prompt_tokens: {kind: fixed, tokens: 3000},
     output_tokens: {kind: fixed, tokens: 20}, warmup: 1s, window: 3s, drain: 30s}
slo: {ttft: 500ms, tpot: 50ms}
"""


@pytest.fixture(scope="module")
def calibration():
    pairs = [measured(spec, seed=100 + k) for k, spec in enumerate(LOADS[:3])]
    kept = {r.cell_id: t for r, t in pairs}
    return calibrate([r for r, _ in pairs], lambda r: kept[r.cell_id], draws=8)


def study(folder, calibration, text=TEXT):
    path = save([calibration], folder / "c.json")
    (folder / "study.yaml").write_text(text.replace("CALIBRATION", json.dumps(str(path))))
    return folder / "study.yaml"


def run(capsys, *argv):
    code = _run([str(a) for a in argv])
    got = capsys.readouterr()
    return code, got.out, got.err


def test_a_study_is_predicted_recorded_and_reported(calibration, tmp_path, capsys):
    code, out, _ = run(capsys, "run", study(tmp_path, calibration), "--out", tmp_path / "s")
    assert code == 1  # the cell beyond the calibration failed, and says why
    store = StudyStore(tmp_path / "s")
    good, far = store.records()
    assert good.kind is far.kind is RecordKind.SIMULATED and good.provenance.calibration == calibration.id
    assert good.status is CellStatus.OK and far.status is CellStatus.FAILED
    assert far.reasons[0].kind == "AnalysisError" and "does not cover this question" in far.reasons[0].message
    tpot = good.metrics["tpot_mean_s"]
    assert tpot.low < tpot.value < tpot.high and good.energy["j_per_output_token"].value > 0
    assert good.metrics["slo_attainment"].value is not None
    assert good.quality["ppl_ratio"].value is None and "simulated" in good.quality["ppl_ratio"].why
    tables = store.tables(good)
    assert len(tables.requests) > 10 and len(tables.tokens) and len(tables.steps)
    assert good.effective.kv_blocks == calibration.effective["kv_blocks"] and good.proof is None
    page = (tmp_path / "s" / "report" / "report.html").read_text()
    assert "simulated, not measured" in page and calibration.id in page
    code, out, _ = run(capsys, "query", tmp_path / "s", "SELECT kind, workload, tpot_mean_s FROM records", "--json")
    assert code == 0 and "simulated" in out


def test_the_same_study_predicts_the_same(calibration, tmp_path, capsys):
    values = []
    for name in ("a", "b"):
        run(capsys, "run", study(tmp_path, calibration), "--out", tmp_path / name, "--no-report")
        values.append(StudyStore(tmp_path / name).records()[0].metrics["ttft_p50_s"])
    assert values[0] == values[1]


def test_another_calibration_is_not_mixed_in(calibration, tmp_path, capsys):
    path = study(tmp_path, calibration)
    run(capsys, "run", path, "--out", tmp_path / "s", "--no-report")
    save([calibration.model_copy(update={"cell_sigma": 0.4})], tmp_path / "c.json")
    code, _, err = run(capsys, "resume", tmp_path / "s", "--retry-failed", "--no-report")
    assert code == 3 and "rest on calibration" in err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("calibration: CALIBRATION, ", "", "name a calibration file"),
        ("draws: 4", "max_sequences: 4", "limits are the calibration's own"),
        ("methods: [bf16]", "methods: [bf16]\nparallelism: [{dp: 2}]", "simulated takes pp and tp, found dp 2"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(old, new, says, calibration, tmp_path, capsys):
    code, _, err = run(capsys, "run", study(tmp_path, calibration, TEXT.replace(old, new)), "--out", tmp_path / "s")
    assert code == 2 and says in " ".join(err.split())


def test_a_method_that_was_never_calibrated_is_a_failed_record(calibration, tmp_path, capsys):
    path = study(tmp_path, calibration, TEXT.replace("[bf16]", "[fp8]"))
    assert run(capsys, "run", path, "--out", tmp_path / "s", "--no-report")[0] == 1
    reasons = {r.reasons[0].message for r in StudyStore(tmp_path / "s").records()}
    assert len(reasons) == 1 and "no calibration for" in reasons.pop()


def test_a_dry_run_says_that_nothing_is_started(calibration, tmp_path, capsys):
    code, out, _ = run(capsys, "run", study(tmp_path, calibration), "--dry-run")
    assert code == 0 and "nothing is started" in " ".join(out.split())


def test_what_is_predicted_is_told_by_the_engines_row_not_by_its_name(calibration, tmp_path, capsys, monkeypatch):
    """GIVEN another row that says predicted THEN its cells are predicted, and its options are the calibration's."""
    monkeypatch.setitem(table.TRAITS, "oracle", table.TRAITS["simulated"])
    monkeypatch.setitem(table.ENGINES._rows, "oracle", table.TRAITS["simulated"].adapter)
    text = TEXT.replace("name: simulated", "name: oracle")
    assert run(capsys, "run", study(tmp_path, calibration, text), "--out", tmp_path / "s", "--no-report")[0] == 1
    good, far = StudyStore(tmp_path / "s").records()
    assert good.kind is far.kind is RecordKind.SIMULATED and good.provenance.calibration == calibration.id
    assert good.status is CellStatus.OK
    code, _, err = run(capsys, "run", study(tmp_path, calibration, text.replace("draws: 4", "threads: 4")), "--dry-run")
    assert code == 2 and "engine oracle takes calibration" in " ".join(err.split())
