"""GIVEN a study on the fake engine, WHEN it runs, fails, crashes or is killed, THEN every cell ends as one record."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from qmeter.engines import standby
from qmeter.errors import EngineError, StoreError
from qmeter.record import CellStatus, Record, Steps
from qmeter.spec.study import Study, expand
from qmeter.store import StudyStore
from qmeter.study.events import CellEnded, Event, StageStarted
from qmeter.study.runner import run_study
from qmeter.testing.fake_engine import FakeEngine

sys.path.insert(0, str(Path(__file__).parent))
import fake_study as fakes


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fakes.install(monkeypatch)
    yield


def run(folder: Path, study: Study, **options: bool) -> tuple[StudyStore, list[Event]]:
    store, events = StudyStore.create(folder, study, fakes.TEXT), []
    run_study(study, store, listener=events.append, **options)
    return store, events


def measured(record: Record) -> bool:
    """Whether the cell was measured. A busy test host may make the client late: then INVALID is the right answer."""
    late = record.status is CellStatus.INVALID and all(r.stage == "load" for r in record.reasons)
    return record.status is CellStatus.OK or late


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyStore, list[Event]]:
    """One run, read by several tests: two methods, of which the quantized one answers a little wrong."""
    study = fakes.fake_study("noise: 0.1")
    with fakes.installed():
        return study, *run(tmp_path_factory.mktemp("noisy") / "s", study)


def test_every_cell_is_measured_and_told(noisy: tuple[Study, StudyStore, list[Event]]) -> None:
    study, store, events = noisy
    records = store.records()
    assert [r.cell_id for r in records] == [c.id for c in expand(study)]
    assert all(measured(r) for r in records), [r.reasons for r in records]
    assert sum(isinstance(e, CellEnded) for e in events) == 4
    stages = [e.stage for e in events if isinstance(e, StageStarted)]
    one_deployment = ["source", "idle", "launch", "verify", "warmup", "quality", *["load", "analyse"] * 2, "teardown"]
    assert stages == one_deployment * 2
    for record in records:
        assert record.verification is not None and record.verification.verified
        assert record.metrics["ttft_p50_s"].value == pytest.approx(0.010, abs=0.05)
        assert record.metrics["tpot_mean_s"].value == pytest.approx(0.002, abs=0.01)
        assert record.energy["energy_j"].value is None and record.energy["energy_j"].why
        assert record.quality["ppl_ratio"].value is not None
        assert record.provenance.engine_command and record.provenance.seed
        tables = store.tables(record)
        assert len(tables.requests) > 10 and len(tables.tokens) >= 8 * 10
        assert len(tables.telemetry.of("engine.running")[0]) > 5


def test_methods_see_the_same_requests(noisy: tuple[Study, StudyStore, list[Event]]) -> None:
    _, store, _ = noisy
    first, _, third, _ = (store.tables(r).requests for r in store.records())
    assert first.intended_s == pytest.approx(third.intended_s, abs=1e-6)
    assert first.prompt_tokens_asked.tolist() == third.prompt_tokens_asked.tolist()


def test_quantization_noise_shows_in_the_fidelity(noisy: tuple[Study, StudyStore, list[Event]]) -> None:
    _, store, _ = noisy
    reference, _, quantized, _ = store.records()
    assert reference.quality["ppl_ratio"].value == pytest.approx(1.0, abs=1e-6)
    assert (quantized.quality["ppl_ratio"].value or 0) > 1.02


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("wrong-method", "MethodNotApplied"), ("out-of-memory", "OutOfMemory"), ("refuse", "MethodUnsupported")],
)
def test_a_deployment_that_fails_costs_its_own_cells_alone(tmp_path: Path, fault: str, kind: str) -> None:
    store, _ = run(tmp_path / "s", fakes.fake_study(f"fault: {fault}, fault_method: w8a16"))
    records = store.records()
    assert [measured(r) for r in records] == [True, True, False, False]
    assert [r.status for r in records[2:]] == [CellStatus.FAILED] * 2
    assert {r.reasons[0].kind for r in records[2:]} == {kind}
    assert all(r.reasons[0].hint and r.reasons[0].stage for r in records[2:])


def test_an_engine_that_crashes_under_load_is_started_again_once(tmp_path: Path) -> None:
    store, events = run(tmp_path / "s", fakes.fake_study("fault: crash, crash_after: 30, fault_method: w8a16"))
    records = store.records()
    assert all(measured(r) for r in records[:2])
    assert [r.reasons[0].kind for r in records[2:]] == ["EngineCrashed"] * 2
    launches = [e for e in events if isinstance(e, StageStarted) and e.stage == "launch"]
    assert len(launches) == 3


@pytest.mark.parametrize("keep", [False, True])
def test_what_was_started_ahead_is_ended_unless_the_caller_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(standby, "discard_all", lambda: ended.append(True))
    store = StudyStore.create(tmp_path / "s", one_method(), fakes.TEXT)
    run_study(one_method(), store, keep_standby=keep)
    assert bool(ended) is not keep


def one_method() -> Study:
    study = fakes.fake_study()
    return study.model_copy(update={"methods": ("f16",)})


def test_what_was_seen_of_a_crashed_engine_is_kept_even_if_its_log_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(launch: object, origin_s: float) -> Steps:
        raise EngineError("cannot read the iteration log: connection refused")

    mapping = FakeEngine().metrics_map()
    monkeypatch.setattr(FakeEngine, "metrics_map", lambda self: replace(mapping, steps=gone))
    store, events = run(tmp_path / "s", fakes.fake_study("fault: crash, crash_after: 30, fault_method: w8a16"))
    fine, crashed = store.records()[:2], store.records()[2:]
    assert all(measured(r) for r in fine)
    assert all("no_steps" in [w.kind for w in r.warnings] for r in fine)
    assert [r.reasons[0].kind for r in crashed] == ["EngineCrashed"] * 2
    assert sum(isinstance(e, StageStarted) and e.stage == "launch" for e in events) == 3
    assert crashed[0].files and crashed[0].proof and crashed[0].clock
    assert len(store.tables(crashed[0]).requests)


def test_a_fault_while_scoring_costs_the_quality_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = tmp_path / "gpu.csv"
    recording.write_text("series,t_s,value\n" + "".join(f"gpu0.power_w,{i / 10},100\n" for i in range(20)))
    monkeypatch.setattr("qmeter.study.deployment.measure_fidelity", lambda *_: 1 / 0)
    study = one_method()
    study = study.model_copy(update={"telemetry": study.telemetry.model_copy(update={"replay": str(recording)})})
    store, _ = run(tmp_path / "s", study)
    for record in store.records():
        assert measured(record)
        assert "ZeroDivisionError" in (record.quality["ppl_ratio"].why or "")
        assert {"Unexpected.ZeroDivisionError", "replayed_telemetry"} <= {w.kind for w in record.warnings}
        assert record.energy["power_mean_w"].value == pytest.approx(100.0), "the recording is played back"
    assert "ZeroDivisionError" in next(store.folder.glob("deployments/*/errors.log")).read_text()


def test_a_record_that_cannot_be_kept_ends_the_study_and_resume_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, calls = StudyStore.append, []

    def full_disk_once(self: StudyStore, record: Record) -> None:
        calls.append(record)
        if len(calls) == 2:
            raise StoreError("cannot write: no space left on device", hint="free disk space")
        append(self, record)

    monkeypatch.setattr(StudyStore, "append", full_disk_once)
    study = one_method()
    with pytest.raises(StoreError, match="no space"):
        run(tmp_path / "s", study)
    assert len(StudyStore(tmp_path / "s").records()) == 1 and not engines_alive()
    store, _ = run(tmp_path / "s", study)
    assert len(calls) == 3 and all(measured(r) for r in store.records())


def test_a_finished_study_is_not_measured_again_and_failures_only_on_request(tmp_path: Path) -> None:
    study = fakes.fake_study("fault: refuse, fault_method: w8a16")
    store, _ = run(tmp_path / "s", study)
    late = sum(r.status is CellStatus.INVALID for r in store.records())
    lines = (store.folder / "records.jsonl").read_text().count("\n")
    run(tmp_path / "s", study)
    assert (store.folder / "records.jsonl").read_text().count("\n") == lines == 4
    run(tmp_path / "s", study, retry_failed=True)
    assert (store.folder / "records.jsonl").read_text().count("\n") == 6 + late


def engines_alive() -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "qmeter.testing.fake_engine" in " ".join(process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def test_kill_9_at_random_moments_loses_and_repeats_nothing_and_leaves_no_engine(tmp_path: Path) -> None:
    program, folder = [sys.executable, str(Path(fakes.__file__)), str(tmp_path / "s")], tmp_path / "s"
    rng, kills = random.Random(7), 0
    for _ in range(25):
        runner = subprocess.Popen(program)
        try:
            runner.wait(timeout=rng.uniform(2.0, 14.0))
            assert runner.returncode == 0
            break
        except subprocess.TimeoutExpired:
            done = StudyStore(folder).records() if (folder / "study.json").exists() else []
            runner.kill()
            runner.wait()
            kills += 1
            after = StudyStore(folder).records() if (folder / "study.json").exists() else []
            assert [r.cell_id for r in after][: len(done)] == [r.cell_id for r in done], "a completed cell was lost"
    else:
        pytest.fail("the study never ended")
    deadline = time.monotonic() + 15
    while engines_alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not engines_alive()
    assert kills >= 1
    store = StudyStore(folder)
    ids = [r.cell_id for r in store._journal.read()]
    assert sorted(ids) == sorted(c.id for c in expand(fakes.fake_study())), "a cell is missing or was measured twice"
