"""GIVEN two studies, WHEN their cells are named, THEN names differ just where results could."""

from __future__ import annotations

from pathlib import Path

from qmeter.record import CellStatus
from qmeter.spec import load_study
from qmeter.spec.study import Placement, Study, expand
from qmeter.store import StudyStore
from qmeter.store.profile import open_results
from qmeter.study.runner import missing_cells

TEXT = """
qmeter: 1
name: s
models: [{name: m, source: ./m.gguf, shape: smollm2-135m, tokenizer: ./tok, checkpoints: {w8a16: ./m8.gguf}}]
engines: [{name: llamacpp, READY}]
methods: [f16, w8a16]
workloads:
  - {name: w, arrivals: {kind: poisson, rate: 2/s}, prompt_tokens: {kind: fixed, tokens: 9},
     output_tokens: {kind: fixed, tokens: 9}, window: 10s}
"""


def study_in(folder: Path, ready: str = "ready_timeout: 600s") -> Study:
    folder.mkdir()
    for name in ("m.gguf", "m8.gguf", "tok"):
        (folder / name).touch()
    (folder / "s.yaml").write_text(TEXT.replace("READY", ready))
    return load_study(folder / "s.yaml")


def ids(study: Study) -> list[str]:
    return [cell.id for cell in expand(study)]


def test_the_folder_and_the_ready_timeout_do_not_name_a_cell(tmp_path: Path) -> None:
    here, there = study_in(tmp_path / "a"), study_in(tmp_path / "b", "ready_timeout: 20min")
    assert here.models[0].source != there.models[0].source
    assert ids(here) == ids(there)
    assert [c.deployment.id for c in expand(here)] == [c.deployment.id for c in expand(there)]
    assert [c.former_id for c in expand(here)] != [c.former_id for c in expand(there)]


def test_a_moved_study_goes_on_in_its_folder(tmp_path: Path) -> None:
    made = StudyStore.create(tmp_path / "run", study_in(tmp_path / "a"), "")
    again = StudyStore.create(tmp_path / "run", study_in(tmp_path / "b"), "")
    assert made.folder == again.folder


def test_what_affects_a_result_names_it(tmp_path: Path) -> None:
    study = study_in(tmp_path / "a")
    engine = study.engines[0]
    seen = {tuple(ids(study))}
    for other in (
        engine.model_copy(update={"options": {"threads": 2}}),
        engine.model_copy(update={"binary": "/opt/one/bin/llama-server"}),
        engine.model_copy(update={"binary": "/opt/two/bin/llama-server"}),
        engine.model_copy(update={"args": ("--x",)}),
    ):
        seen.add(tuple(ids(study.model_copy(update={"engines": (other,)}))))
    model = study.models[0].model_copy(update={"source": str(tmp_path / "other.gguf")})
    seen.add(tuple(ids(study.model_copy(update={"models": (model,)}))))
    seen.add(tuple(ids(study.model_copy(update={"placement": (Placement.SIDE_BY_SIDE,)}))))
    assert len(seen) == 7
    both = study.model_copy(update={"placement": tuple(Placement)})
    assert len(set(ids(both))) == 4
    assert set(ids(study)) < set(ids(both))


def test_records_under_their_former_names_count_as_measured(tmp_path: Path) -> None:
    study = study_in(tmp_path / "a", "ready_timeout: 20min")
    first, second = expand(study)[:2]
    record = open_results("h200-8b-grid").records()[0]
    former = record.model_copy(update={"cell_id": first.former_id, "status": CellStatus.OK})
    assert first.id != first.former_id
    assert missing_cells([first, second], [former], retry_failed=False) == [second]


def test_a_deployments_folder_is_taken_over_from_its_former_name(tmp_path: Path) -> None:
    store = StudyStore.create(tmp_path / "run", study_in(tmp_path / "a"), "")
    (store.deployment_folder("former") / "reference.npz").write_text("x")
    store.adopt_deployment("former", "now")
    assert (store.deployment_folder("now") / "reference.npz").read_text() == "x"
    store.adopt_deployment("former", "now")


def test_every_cell_of_the_shipped_profile_keeps_its_name() -> None:
    profile = open_results("h200-8b-grid")
    known = set(ids(profile.study))
    assert {record.cell_id for record in profile.records()} <= known
