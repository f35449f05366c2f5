from __future__ import annotations

import json
from pathlib import Path

import pytest
from bigram import Bigram, served

from qmeter.cli.main import _run
from qmeter.quality.answering import answer_tasks, changed_answers
from qmeter.quality.tasks import Grades


def printed(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_fidelity_of_two_served_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN a reference server WHEN a worse one is scored on its continuations THEN it reads as worse."""
    file = str(tmp_path / "reference.npz")
    with served(Bigram()) as (target, _):
        assert _run(["quality", target.base_url, "--make-reference", file, "--prompts", "8", "--json"]) == 0
        assert printed(capsys)["quantities"]["kl_sampled"]["value"] == 0.0
    with served(Bigram(0.5)) as (target, _):
        assert _run(["quality", f"{target.base_url}/v1/", "--reference", file, "--json"]) == 0
    found = printed(capsys)["quantities"]
    assert found["kl_sampled"]["low"] > 0 and found["ppl_ratio"]["value"] > 1


def test_tasks_are_graded_saved_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = str(tmp_path / "first.jsonl")
    with served(Bigram()) as (target, _):
        base = ["quality", target.base_url, "--tasks", "arithmetic", "--items", "30", "--json"]
        assert _run([*base, "--grades", first, "--alone"]) == 0
        found = printed(capsys)["quantities"]
        assert found["task.arithmetic.accuracy"]["n"] == 30
        assert found["task.arithmetic.changed_text"]["value"] == 0.0
        assert _run([*base, "--against", first]) == 0
    assert "no difference larger than" in printed(capsys)["verdicts"][0]
    assert len(Grades.load(Path(first)).rows) == 30


def test_changed_answers_are_counted() -> None:
    with served(Bigram()) as (one, _), served(Bigram(3.0)) as (two, _):
        before, after = (answer_tasks(t, ("arithmetic",), items=20) for t in (one, two))
    assert changed_answers(before, after)["task.arithmetic.changed_text"].value > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:9", "--tasks", "facts"], "gave no list of models"),
        (["http://127.0.0.1:9"], "nothing to measure"),
        (["127.0.0.1", "--tasks", "facts"], "is no URL"),
        (["http://127.0.0.1:9", "--model", "m", "--tasks", "facs"], "no task named 'facs'"),
        (["http://127.0.0.1:9", "--model", "m", "--tasks", "facts", "--api-key-env", "NO_SUCH"], "has no NO_SUCH"),
        (["http://127.0.0.1:9", "--model", "m", "--reference", "/nowhere.npz"], "is not a fidelity reference"),
    ],
)
def test_wrong_use_says_what_to_do(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["quality", *arguments]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "next" in said and "Traceback" not in said
