"""The search as a whole: asked and told through its journal, killed and gone on with, without the runner."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest
import tune_worlds as w

import qmeter.tune
from qmeter.analysis.metrics import Better
from qmeter.cli.tune import with_evaluations
from qmeter.errors import IncompatibleRecords, StoreError
from qmeter.record import Quantity, Reason
from qmeter.tune.advise import advise, shown
from qmeter.tune.journal import Outcome, SearchJournal
from qmeter.tune.problem import Term
from qmeter.tune.spec import load_tune_text
from qmeter.tune.tuner import Tuner

TEXT = """
qmeter: 1
tune: t
study:
  models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
  engines: [{name: vllm, options: {max_model_tokens: 4096}}]
  workloads:
    - {name: chat, arrivals: {kind: poisson, rate: 8/s}, prompt_tokens: {kind: fixed, tokens: 256}}
space:
  method: [bf16, fp8, awq-w4a16, fp8-kv8]
  max_sequences: [8, 16, 32, 64, 128, 256]
  token_budget: [256, 512, 1024, 2048, 4096, 8192]
  chunked_prefill: [true, false]
objectives: [{metric: ttft_p90_s, limit: 2s}, tpot_mean_s, j_per_output_token]
search: {sampler: SAMPLER, evaluations: 24, repeats: 3, seed: 3}
"""


def tuner(folder: Path, sampler="ehvi") -> Tuner:
    return Tuner(load_tune_text(TEXT.replace("SAMPLER", sampler), "t.yaml", Path()), folder)


def answer(proposal) -> Outcome:
    """The made world, its noise fixed by the point and the repeat."""
    import numpy as np

    rng = np.random.default_rng([int(proposal.point.id, 16) % 2**31, proposal.repeat])
    values = w.measured(proposal.point, rng)
    if values is None:
        return Outcome({}, Reason(kind="EngineCrashed", stage="launch", message="no"), 1.0)
    return Outcome(values, None, 1.0)


def go(made: Tuner, most=99):
    asked = []
    while len(asked) < most and (proposal := made.ask()) is not None:
        asked.append(proposal)
        made.tell(proposal, answer(proposal))
    return asked


@pytest.mark.parametrize("sampler", ["informed", "random", "tpe", "nsga2"])
@pytest.mark.parametrize("kill_at", [3, 11, 17])
def test_killed_anywhere_it_goes_on_as_if_nothing_had_happened(tmp_path, sampler, kill_at):
    whole = go(tuner(tmp_path / "a", sampler))
    (tmp_path / "b").mkdir()
    first = tuner(tmp_path / "b", sampler)
    done = go(first, kill_at)
    waiting = first.ask()  # asked for, then killed while it was measured
    rest = go(tuner(tmp_path / "b", sampler))
    assert rest[0] == waiting
    assert [(p.point, p.repeat) for p in (*done, *rest)] == [(p.point, p.repeat) for p in whole]
    numbers = [json.loads(line)["number"] for line in (tmp_path / "b" / "evaluations.jsonl").read_text().splitlines()]
    assert sorted(numbers) == sorted([*range(1, 25)] * 2), "every evaluation is asked for once and told once"


def test_a_budget_that_is_spent_asks_nothing_even_where_a_measurement_was_cut_off(tmp_path):
    first = tuner(tmp_path / "a")
    assert first.typical_s == 0.0
    go(first, 5)
    first.ask()  # killed while it was measured
    again = Tuner(with_evaluations(first.tuning, 5), tmp_path / "a")
    assert again.ask() is None and again.done == 5 and advise(again).rows
    assert again.typical_s == 1.0
    assert len(go(tuner(tmp_path / "a"))) == 19, "with the file's own budget it goes on"


@pytest.fixture(autouse=True)
def folder_a(tmp_path):
    (tmp_path / "a").mkdir()


def test_a_torn_line_is_set_aside_and_a_broken_one_named(tmp_path):
    go(tuner(tmp_path / "a"), 4)
    path = tmp_path / "a" / "evaluations.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    torn = path.read_bytes().splitlines()[-1]
    made = tuner(tmp_path / "a")
    assert made.done == 3
    again = made.ask()
    made.tell(again, answer(again))
    assert tuner(tmp_path / "a").done == 4
    assert path.with_suffix(".torn").read_bytes() == torn + b"\n"
    path.write_text(path.read_text().replace('"event"', '"evnt"', 1))
    with pytest.raises(StoreError, match="line 1"):
        tuner(tmp_path / "a")


def test_a_changed_space_is_refused(tmp_path):
    go(tuner(tmp_path / "a"), 2)
    other = TEXT.replace("SAMPLER", "ehvi").replace("[8, 16, 32, 64, 128, 256]", "[48]")
    with pytest.raises(IncompatibleRecords, match="not in the space"):
        Tuner(load_tune_text(other, "t.yaml", Path()), tmp_path / "a")


def test_repeats_go_to_points_that_may_be_on_the_front_and_never_beyond_the_share(tmp_path):
    asked = go(tuner(tmp_path / "a"))
    repeats = [p for p in asked if p.repeat]
    assert len(asked) == 24 and 0 < len(repeats) <= 6 and max(p.repeat for p in asked) <= 2
    assert all("sure to be on the front" in p.why for p in repeats)


def test_the_end_is_a_front_a_choice_and_a_reason(tmp_path):
    made = tuner(tmp_path / "a")
    go(made)
    found = advise(made)
    assert found.choice in found.rows and sum(r.recommended for r in found.rows) == 1
    assert found.headline.startswith("Deploy ") and "keeps every limit: TTFT p90" in found.why[0]
    point = found.choice.standing.measured.point
    study = made.tuning.study(point, 0)
    assert study.methods == (made.tuning.space.method_of(point),)
    assert study.engines[0].options["max_sequences"] == point.get("max_sequences")
    assert study.engines[0].options["max_model_tokens"] == 4096
    for row in found.rows:
        assert all(q.low <= q.value <= q.high for q in row.values.values())


def test_where_no_point_keeps_the_limits_the_nearest_is_named(tmp_path):
    made = Tuner(load_tune_text(TEXT.replace("SAMPLER", "random").replace("limit: 2s", "limit: 1ms"), "t", Path()),
                 tmp_path / "a")  # fmt: skip
    go(made)
    found = advise(made)
    assert found.choice is None and "breaks TTFT p90" in found.why[0] and "limit 1 ms" in found.why[0]


def test_a_share_of_nothing_is_zero_not_minus_zero():
    """GIVEN a share that is to be large WHEN it is 0 THEN its loss stands for 0, without a sign."""
    term = Term("slo_attainment", "chat", Better.HIGHER, limit=0.9)
    assert math.copysign(1.0, term.value(term.loss(0.0))) == 1.0
    assert shown(Quantity.of(term.value(term.loss(0.0)), term.unit)) == "0"


def test_an_objective_that_stays_unknown_is_a_failure_with_its_reason(tmp_path):
    made = tuner(tmp_path / "a", "random")
    proposal = made.ask()
    values = {t.key: Quantity.unknown(t.unit, "no counter") for t in w.TERMS}
    made.tell(proposal, Outcome(values))
    found = advise(made)
    assert found.choice is None and "an objective stayed unknown" in found.why[0]


def test_a_load_that_no_configuration_serves_is_called_that(tmp_path):
    # GIVEN points that lost their latencies to an overload, and one that could not start
    made = tuner(tmp_path / "a", "random")
    for k in range(3):
        values = {t.key: Quantity.unknown(t.unit, "9 of 20 requests failed") for t in w.TERMS}
        made.tell(made.ask(), Outcome(values, overloaded=("chat",)))
        # THEN the load is the reason, and nobody is told to leave the objective out
        first, why, step = advise(made).why
        assert f"{k + 1} × overloaded" in first
        assert "chat is more than any configuration that was measured can serve" in why and "TTFT p90 (chat)" in why
        assert step.startswith("Lower the load")
    # WHEN the search is read back THEN it says the same
    assert advise(tuner(tmp_path / "a", "random")).why == advise(made).why
    # WHEN another failed for another reason THEN both are told
    made.tell(made.ask(), Outcome({}, Reason(kind="EngineCrashed", stage="launch", message="no")))
    why = advise(made).why
    assert "3 × overloaded, 1 × EngineCrashed" in why[0] and "some configurations" in why[1]
    assert why[-1].startswith("Look into the evaluations' folders")


def test_deciding_never_executes():
    """No module of the room imports the study runner, an engine, or the load client."""
    for path in Path(qmeter.tune.__file__).parent.rglob("*.py"):
        names = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
        wrong = [n for n in names if n.startswith(("qmeter.study", "qmeter.engines", "qmeter.load"))]
        assert not wrong, (path.name, wrong)


def test_journal_reads_what_it_wrote(tmp_path):
    made = tuner(tmp_path / "a")
    go(made, 3)
    rows = SearchJournal(tmp_path / "a").read()
    assert [p.number for p, _ in rows] == [1, 2, 3] and all(o is not None for _, o in rows)
