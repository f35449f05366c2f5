from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from qmeter.errors import MissingExtra, UnknownName
from qmeter.quality import sandbox
from qmeter.quality.tasks import TASKS, Grades, Item, facts, grade_items, grade_requests, task_items
from qmeter.quality.tasks.instructions import CHECKS
from qmeter.quality.tasks.summarization import rouge_l
from qmeter.record import Requests, RequestStatus
from qmeter.spec.workload import TaskPrompts, WorkloadSpec
from qmeter.workload import Vocabulary, build


def requests(rows: list[tuple[str, str, str | None, str]]) -> Requests:
    n = len(rows)
    task, item, text, status = zip(*rows, strict=True)
    nan, zero = np.full(n, np.nan), np.zeros(n)
    return Requests(nan, nan, nan, nan, nan, zero, zero, zero, zero, list(status), zero, [None] * n, list(task),
                    list(item), list(text), [None] * n)  # fmt: skip


@pytest.mark.parametrize("name", TASKS.names())
def test_items_repeat_for_a_seed_and_have_unique_names(name: str) -> None:
    task = TASKS.create(name)
    first, again, other = task.items(7, 40), TASKS.create(name).items(7, 40), task.items(8, 40)
    assert first == again and first != other
    assert len({i.id for i in first}) == len(first) == 40
    assert all(i.prompt and i.reference and 0 < i.output_tokens <= task.profile.output_tokens for i in first)
    json.dumps([dict(i.data) for i in first])


@pytest.mark.parametrize("name", ["facts", "arithmetic", "retrieval", "summarization"])
def test_the_reference_answer_passes_and_another_items_does_not(name: str) -> None:
    task = TASKS.create(name)
    items = task.items(1, 60)
    assert all(task.grade(i, f" {i.reference}\n\nQ: next").passed for i in items)
    wrong = [task.grade(a, f" {b.reference}").score for a, b in itertools.pairwise(items)]
    assert np.mean(wrong) < (0.75 if name == "summarization" else 0.3)  # its reports share a template's words


@pytest.mark.parametrize("name", TASKS.names())
@pytest.mark.parametrize("text", ["", "\n\n\n", "\x00\ud800", "{" * 50, "9" * 5000, "A:" * 100, "🦙 ñ"])
def test_no_text_breaks_a_grader(name: str, text: str) -> None:
    task = TASKS.create(name)
    if name == "code":
        return
    assert 0.0 <= task.grade(task.items(1, 1)[0], text).score <= 1.0


def fact(group: str, reference: str, accepted: tuple[str, ...] = (), rejected: tuple[str, ...] = ()) -> Item:
    return Item("x", "", reference, 8, accepted, rejected, group=group)


@pytest.mark.parametrize(
    ("item", "text", "passed"),
    [
        (fact("capital of country", "Reykjavik"), " Reykjavík.\nQ: And", True),
        (fact("capital of country", "Reykjavik"), " The capital of Iceland is Reykjavik", True),
        (fact("capital of country", "Rome"), " Romero", False),
        (fact("capital of country", "Oslo"), " Bergen\nOslo", False),
        (fact("continent", "Asia", rejected=("Europe",)), " Europe and Asia", False),
        (fact("symbol of element", "C"), " Co", False),
        (fact("symbol of element", "Co"), " Co, cobalt", True),
        (fact("symbol of element", "Co"), " CO", False),
    ],
)
def test_fact_grading(item: Item, text: str, passed: bool) -> None:
    assert TASKS.create("facts").grade(item, text).passed is passed


@pytest.mark.parametrize(
    ("text", "passed"),
    [(" 79", True), (" 48 + 31 = 79", True), (" 79.", True), (" 790", False), (" -79", False), (" about", False)],
)
def test_arithmetic_grading(text: str, passed: bool) -> None:
    assert TASKS.create("arithmetic").grade(Item("x", "", "79", 8), text).passed is passed


@pytest.mark.parametrize(
    ("kind", "data", "good", "bad"),
    [
        ("contains", {"word": "silver"}, "A Silver moon.", "A silvery moon."),
        ("starts", {"word": "copper"}, "Copper shines.", "The copper shines."),
        ("count", {"count": 3}, "Warm old bread.", "Warm bread"),
        ("fewer", {"count": 5}, "It rains.", "It rains all day long here."),
        ("lower", {}, "snow falls.", "Snow falls."),
        ("upper", {}, "SNOW FALLS.", "SNOW falls."),
        ("without", {"letter": "z"}, "Snow falls.", "A blizzard."),
        ("list", {"count": 2}, "- one\n- two", "- one\n- two\n- three"),
        ("json", {"keys": ["a", "b"]}, '{"b": 1, "a": 2}', '{"a": 2}'),
        ("question", {}, "Does it rain?", "It rains."),
    ],
)
def test_every_instruction_checker_accepts_and_refuses(kind: str, data: dict[str, object], good: str, bad: str) -> None:
    assert CHECKS[kind](good, data) and not CHECKS[kind](bad, data) and not CHECKS[kind]("", data)


def test_instruction_kinds_are_all_covered_above() -> None:
    assert {i.group for i in TASKS.create("instructions").items(0, 40)} == set(CHECKS)


def test_retrieval_places_the_needle_at_its_depth_and_length() -> None:
    for item in TASKS.create("retrieval").items(3, 30):
        at = item.prompt.index(f"is {item.reference}.") / item.prompt.index("Question:")
        assert at == pytest.approx(float(item.data["depth"]), abs=0.2)
        assert len(item.prompt.split()) * 1.1 == pytest.approx(float(item.data["length"]), rel=0.25)
        grade = TASKS.create("retrieval").grade(item, f" {item.data['distractor']}")
        assert not grade.passed and "other animal" in grade.why


def test_rouge_l_against_a_worked_example() -> None:
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police kill the gunman") == pytest.approx(0.5)
    assert rouge_l("", "x") == 0.0 and rouge_l("same words", "Same, words!") == 1.0


def test_a_load_run_is_graded_from_its_own_table() -> None:
    """GIVEN a schedule from tasks WHEN its answers are right, wrong or missing THEN the quantities say so."""
    spec = WorkloadSpec.model_validate(
        {"name": "w", "arrivals": {"kind": "poisson", "rate": "20/s"}, "window": "4s", "ignore_eos": False,
         "prompts": TaskPrompts(tasks=("facts", "arithmetic")).model_dump()}
    )  # fmt: skip
    schedule = build(spec, 11, Vocabulary(1000), task_items(("facts", "arithmetic"), 11))
    known = {t: {i.id: i for i in TASKS.create(t).items(11, 400)} for t in ("facts", "arithmetic")}
    rows, right = [], 0
    for k in range(len(schedule)):
        r = schedule.requests[k]
        item = known[r.task][r.item.split("/", 1)[1]]
        assert r.prompt == item.prompt and r.output_tokens == item.output_tokens
        good = r.task == "arithmetic" and k % 3 != 0
        right += good
        status = RequestStatus.TIMEOUT if r.task == "facts" and k % 5 == 0 else RequestStatus.OK
        rows.append((r.task, r.item, f" {item.reference}" if good or r.task == "facts" else " nothing", status))
    found = grade_requests(requests(rows))
    assert found["task.facts.accuracy"].value == 1.0 and "without an answer" in found["task.facts.accuracy"].why
    n = sum(r[0] == "arithmetic" for r in rows)
    share = found["task.arithmetic.accuracy"]
    assert share.n == n and share.value == pytest.approx(right / n) and share.low < share.value < share.high


def test_an_item_asked_twice_counts_once_and_failures_are_not_wrong_answers(tmp_path: Path) -> None:
    item = TASKS.create("arithmetic").items(2, 400)[0]
    key = f"2.400/{item.id}"
    rows = [("arithmetic", key, f" {item.reference}", "ok"), ("arithmetic", key, " no", "ok"),
            ("arithmetic", key, None, "timeout")]  # fmt: skip
    grades = grade_items(requests(rows))
    assert [r.repeated for r in grades.rows] == [False, True] and grades.unanswered == {"arithmetic": 1}
    assert grade_requests(requests(rows))["task.arithmetic.accuracy"].value == 1.0
    grades.save(tmp_path / "g.jsonl")
    assert Grades.load(tmp_path / "g.jsonl") == grades


def test_code_is_off_unless_allowed_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QMETER_ALLOW_CODE", raising=False)
    item = TASKS.create("code").items(0, 164)[0]
    found = grade_requests(requests([("code", f"0.164/{item.id}", item.reference, "ok")]))
    assert not found["task.code.accuracy"].known and "--allow-code" in found["task.code.accuracy"].why


@pytest.mark.skipif(sandbox.unavailable() is not None, reason="no sandbox on this host")
def test_code_runs_the_real_problems_in_the_sandbox() -> None:
    items = TASKS.create("code").items(0, 164)[:6]
    rows = [("code", f"0.164/{i.id}", i.reference + "\n\nprint('more')\ndef f(", "ok") for i in items]
    assert grade_requests(requests(rows), allow_code=True)["task.code.accuracy"].value == 1.0
    wrong = grade_items(requests([("code", rows[0][1], "    return None\n", "ok")]), allow_code=True)
    assert not wrong.rows[0].passed and wrong.rows[0].why.startswith("failed")


def test_unknown_tasks_and_missing_packages_name_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="did you mean 'facts'"):
        task_items(("fact",), 1)
    monkeypatch.setattr("qmeter.quality.tasks.facts._geography", facts._geography.__wrapped__)
    monkeypatch.setattr("qmeter.quality.tasks.facts.files", lambda name: (_ for _ in ()).throw(ModuleNotFoundError()))
    with pytest.raises(MissingExtra, match="tasks"):
        TASKS.create("facts").items(1, 1)
