"""GIVEN a study whose prompts are a task's items WHEN it is run THEN records and report say what each method scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_study import TEXT, fake_study, installed

from qmeter.analysis.summary import summarise
from qmeter.load import Target
from qmeter.quality.answering import changed_under_load
from qmeter.quality.client import Answer, Completions
from qmeter.quality.tasks import Grades, task_items
from qmeter.quality.tasks.grading import Graded
from qmeter.report.palette import styles
from qmeter.report.pictures import all_labels
from qmeter.report.tasks import graded, merged, task_charts, task_tables
from qmeter.spec.study import expand
from qmeter.spec.workload import TaskPrompts
from qmeter.store import Profile, StudyStore, write_profile
from qmeter.study.runner import run_study
from qmeter.workload import Vocabulary, build

pytest.importorskip("altair", reason="needs the report extra")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    study = fake_study("noise: 0.1, tpot_ms: 1, ttft_ms: 2")
    prompts = TaskPrompts(tasks=("arithmetic", "instructions"), alone=4)
    workload = study.workloads[1].model_copy(update={"prompts": prompts, "ignore_eos": False})
    study = study.model_copy(update={"workloads": (workload,)})
    made = StudyStore.create(tmp_path_factory.mktemp("tasks") / "study", study, TEXT)
    with installed():
        run_study(study, made)
    return made


def test_every_cell_says_score_and_whether_batching_changed_answers(store: StudyStore) -> None:
    for record in store.records():
        for task in ("arithmetic", "instructions"):
            assert record.quality[f"task.{task}.accuracy"].n > 10
            changed = record.quality[f"task.{task}.changed_text"]
            assert (changed.value, changed.n) == (0.0, 4), "the fake engine answers the same at any load"


def test_an_answer_that_reads_otherwise_alone_is_counted(store: StudyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored answers as the load's, and a client that says something else to every second question."""
    record = store.records()[0]
    cell = next(c for c in expand(store.study) if c.id == record.cell_id)
    requests = store.tables(record).requests
    schedule = build(cell.workload, cell.seed, Vocabulary(1000), task_items(("arithmetic", "instructions"), cell.seed))
    said = {schedule.requests[i].prompt: requests.text[i] for i in range(len(schedule))}
    asked: list[str] = []

    def generate(_: Completions, prompt: str, tokens: int, **__: object) -> Answer:
        asked.append(prompt)
        wrong = " else" if "Instruction" not in prompt and len(asked) % 2 else ""
        return Answer(said[prompt] + wrong, None, None, None, None)

    monkeypatch.setattr(Completions, "generate", generate)
    target = Target("http://127.0.0.1:9", "fake", ignore_eos=False)
    found = changed_under_load(target, schedule, requests, 6)
    assert found["task.arithmetic.changed_text"].value == pytest.approx(0.5)
    assert found["task.instructions.changed_text"].value == 0.0 and len(asked) == 12
    sampled = changed_under_load(replace(target, temperature=1.0), schedule, requests, 6)
    assert not sampled["task.arithmetic.changed_text"].known and len(asked) == 12


def test_the_report_pairs_methods_item_by_item(store: StudyStore, tmp_path: Path) -> None:
    profile = Profile(write_profile(store, tmp_path / "profile"))
    for results in (store, profile):
        records = results.records()
        summary = summarise(records, reference="f16")
        found = graded(summary, results, records)
        tables = task_tables(summary, found)
        charts = task_charts(found, styles(*all_labels(summary)))
        assert [c.title for c in charts] == ["Task: arithmetic", "Task: instructions"]
        assert [len(c.rows) for c in charts] == [2, 2]
        assert [row[1] for row in tables["task_scores"].rows] == ["f16", "w8a16"]
        assert tables["task_scores"].columns == ("Model", "Method", "Arithmetic", "Instructions")
        (pair,) = tables["task_pairs"].rows
        assert pair[1] == "w8a16" and all("↓" in cell and "↑" in cell for cell in pair[2:])
        assert "no difference larger than" in pair[2].why or "worse" in pair[2]
        assert len(tables["tasks"].rows) == 4


def test_a_planted_loss_is_shown_as_worse_with_its_flips() -> None:
    from qmeter.quality.paired import compare_methods
    from qmeter.report.tasks import _pair

    def grades(passed: np.ndarray) -> Grades:
        rows = (Graded("facts", f"i{i}", "", i, float(p), bool(p), "", "", False) for i, p in enumerate(passed))
        return Grades(tuple(rows), {}, {})

    before = np.arange(400) < 300
    after = before & (np.arange(400) >= 40)
    (found,) = compare_methods(grades(before), {"w2": grades(after)})
    assert _pair(found).startswith("worse −10.0 [") and _pair(found).endswith("40↓ 0↑")
    assert _pair(None) == "unknown"


def test_repeats_are_merged_without_counting_an_item_twice() -> None:
    row = Graded("facts", "a", "", 0, 1.0, True, "", "", False)
    both = merged([Grades((row,), {"facts": 1}, {}), Grades((row,), {"facts": 2}, {"code": "off"})])
    assert [r.repeated for r in both.rows] == [False, True]
    assert both.unanswered == {"facts": 3} and both.unknown == {"code": "off"}
