"""GIVEN points that take different numbers of GPUs WHEN they are compared THEN rates count a GPU, as in the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qmeter.record import CellStatus, Quantity
from qmeter.simulate import Calibration
from qmeter.tune.advise import advise
from qmeter.tune.fidelity import Known, screen
from qmeter.tune.journal import Outcome
from qmeter.tune.outcome import outcome_of
from qmeter.tune.problem import Term
from qmeter.tune.spec import Tuning, load_tune_text
from qmeter.tune.tuner import Tuner

TEXT = """
qmeter: 1
tune: t
study:
  models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
  engines: [{name: vllm}]
  workloads:
    - {name: chat, arrivals: {kind: closed, concurrency: 64}, prompt_tokens: {kind: fixed, tokens: 256},
       output_tokens: {kind: fixed, tokens: 64}, warmup: 1s, window: 5s}
space: {method: [bf16, fp8], tp: [1, 2]}
objectives: [{metric: throughput_tok_s, limit: 1500}, j_per_output_token]
search: {sampler: random, evaluations: 4, repeats: 1}
"""
WHOLE, EACH, JOULES = "throughput_tok_s@chat", "throughput_tok_s_per_gpu@chat", "j_per_output_token@chat"
RATE = {("bf16", 1): 1000.0, ("bf16", 2): 1600.0, ("fp8", 1): 2000.0, ("fp8", 2): 2400.0}


def tuning(text: str = TEXT) -> Tuning:
    return load_tune_text(text, "t.yaml", Path())


def record(tp: int, rate: float) -> SimpleNamespace:
    found = {"throughput_tok_s": Quantity.of(rate, "token/s", low=rate * 0.99, high=rate * 1.01)}
    energy = {"j_per_output_token": Quantity.of(0.3, "J/token", low=0.299, high=0.301)}
    cell = {"repeat": 0, "workload": {"name": "chat"}, "deployment": {"parallelism": {"tp": tp, "pp": 1, "dp": 1}}}
    return SimpleNamespace(
        status=CellStatus.OK, cell=cell, metrics=found, energy=energy, quality={}, reasons=(), warnings=()
    )


def searched(folder: Path, text: str = TEXT) -> Tuner:
    made = Tuner(tuning(text), folder)
    while (p := made.ask()) is not None:
        at = (str(p.point.get("method")), int(p.point.get("tp") or 1))
        made.tell(p, outcome_of([record(at[1], RATE[at])], made.terms, 0))  # type: ignore[list-item]
    return made


def test_the_objective_counts_a_gpu_and_its_limit_the_whole_deployment() -> None:
    made = tuning()
    assert [t.key for t in made.objectives] == [EACH, JOULES]
    assert [(t.key, t.limit) for t in made.limits] == [(WHOLE, 1500.0)]
    assert made.objectives[0].limit is None and made.objectives[0].label == "Output rate a GPU"
    same = tuning(TEXT.replace("tp: [1, 2]", "tp: [2]"))
    assert [t.key for t in same.objectives] == [WHOLE, JOULES] and same.objectives[0].limit == 1500.0


def test_more_gpus_for_less_than_their_share_are_not_on_the_front(tmp_path: Path) -> None:
    made = searched(tmp_path)
    found = {(str(s.measured.point.get("method")), s.measured.point.get("tp")): s for s in made.standings()}
    # fp8 on two GPUs gives most, yet 1,200 a GPU where one alone gives 2,000 at the same joules
    assert [at for at, s in found.items() if s.on_front] == [("fp8", 1)]
    assert found[("fp8", 2)].feasible and found[("bf16", 2)].feasible and not found[("bf16", 1)].feasible
    row = advise(made).rows[0]
    assert row.values[EACH].value == pytest.approx(2000.0) and row.values[WHOLE].value == pytest.approx(2000.0)


def test_a_journal_from_before_goes_on_with_a_gpus_share(tmp_path: Path) -> None:
    searched(tmp_path)
    path = tmp_path / "evaluations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.get("values", {}).pop(EACH, None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {s.measured.point.label: s.on_front for s in Tuner(tuning(), tmp_path).standings()}
    assert len(found) == 4 and [label for label, on in found.items() if on] == ["fp8 tp=1"]


def test_an_unknown_rate_stays_unknown_a_gpu() -> None:
    lost = record(2, 1.0)
    lost.metrics["throughput_tok_s"] = Quantity.unknown("token/s", "nothing ended")
    found: Outcome = outcome_of([lost], tuning().objectives, 0)  # type: ignore[list-item]
    assert found.values[EACH].why == "nothing ended"


def test_the_low_fidelity_counts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuning()
    one = SimpleNamespace(scheduler=lambda: SimpleNamespace(prefix_cache=False, block_tokens=16))
    monkeypatch.setattr("qmeter.tune.fidelity._standing_for", lambda *_: one)
    monkeypatch.setattr("qmeter.tune.fidelity._under_knobs", lambda *_: one)
    monkeypatch.setattr("qmeter.tune.fidelity.load_of", lambda *_: None)
    monkeypatch.setattr("qmeter.tune.fidelity.quick", lambda *_, **__: {"throughput_tok_s": 900.0})
    known: tuple[Calibration, ...] = ()
    found = {p.get("tp"): v for p, v in screen(made, Known(known, None, "c")).items()}
    assert found[1][EACH] == 900.0 and found[2][EACH] == 450.0 and found[2][WHOLE] == 900.0


def test_terms_that_are_no_rates_stay_whole() -> None:
    made = tuning(TEXT.replace("{metric: throughput_tok_s, limit: 1500}", "ttft_p90_s, weight_bytes"))
    assert not any(t.per_gpu for t in made.objectives) and isinstance(made.objectives[0], Term)
