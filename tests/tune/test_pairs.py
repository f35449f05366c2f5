"""GIVEN settings that noise does not tell apart, WHEN they served the same requests, THEN pairs decide between them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qmeter.analysis.metrics import Better
from qmeter.record import Quantity
from qmeter.tune.advise import advise
from qmeter.tune.journal import Outcome
from qmeter.tune.pairs import difference, paired_key, recorded_ratios
from qmeter.tune.problem import Term

sys.path.insert(0, str(Path(__file__).parent))
import tune_worlds as w
from test_tuner import go, tuner


def ratio(low: float, high: float) -> Quantity:
    return Quantity.of((low * high) ** 0.5, "1", low=low, high=high)


@pytest.mark.parametrize(
    ("name", "better", "low", "high", "sign"),
    [
        ("tpot_p90_s", Better.LOWER, 0.8, 0.9, 1),
        ("tpot_p90_s", Better.LOWER, 1.1, 1.2, -1),
        ("tpot_p90_s", Better.LOWER, 0.9, 1.1, 0),
        ("throughput_tok_s", Better.HIGHER, 1.1, 1.2, 1),
        ("throughput_tok_s", Better.HIGHER, 0.8, 0.9, -1),
        ("weight_bytes", Better.LOWER, 0.8, 0.9, 0),
    ],
)
def test_a_difference_counts_beyond_the_pair_s_interval_and_on_the_better_side(name, better, low, high, sign):
    term = Term(name, "chat", better)
    ratios = {k: ratio(low, high) for k in ("tpot_mean_s@chat", "throughput_tok_s@chat")}
    assert difference(term, ratios) == sign
    assert difference(Term(name, "other", better), ratios) == 0
    assert (paired_key(term) is None) == (name == "weight_bytes")


def flat_world(folder: Path, sampler: str):
    """A finished search in which the knobs make no difference beyond noise."""
    made = tuner(folder, sampler)
    while (proposal := made.ask()) is not None:
        rng = np.random.default_rng(proposal.number)
        speed = w.SPEED[proposal.point.get("method")]
        values = {t.key: Quantity.of(x := speed * rng.normal(0.1, 0.001), t.unit, low=x * 0.98, high=x * 1.02)
                  for t in w.TERMS}  # fmt: skip
        made.tell(proposal, Outcome(values, None, 1.0))
    return made


def test_an_equal_that_pairs_show_to_be_better_takes_the_knee_s_place(tmp_path):
    made = flat_world(tmp_path, "random")
    plain = advise(made)
    assert plain.choice.equals, "this made world must have settings that noise does not tell apart"
    first, favoured = plain.choice.standing.measured.point, plain.choice.equals[-1]

    def ratios(a, b):
        assert b == first or b.label == favoured
        if a.label == favoured:
            return {"tpot_mean_s@chat": ratio(0.85, 0.95)}
        return {"tpot_mean_s@chat": ratio(1.05, 1.15)} if b.label == favoured and a == first else {}

    found = advise(made, ratios)
    assert found.choice.standing.measured.point.label == favoured
    assert found.headline == f"Deploy {favoured}" and first.label in found.choice.equals
    told = next(line for line in found.why if "On the same requests" in line)
    assert "+9.9% [+5.0%, +15.0%]" in told and "TPOT" in told
    assert len(found.rows) == len(plain.rows)


def test_better_in_one_thing_and_worse_in_another_is_no_reason_to_change(tmp_path):
    made = flat_world(tmp_path, "random")
    plain = advise(made)
    mixed = {"tpot_mean_s@chat": ratio(0.85, 0.95), "j_per_output_token@chat": ratio(1.02, 1.05)}
    found = advise(made, lambda a, b: mixed)
    assert found.choice.standing.measured.point == plain.choice.standing.measured.point
    assert advise(made, lambda a, b: {}).why == plain.why


def test_evaluations_without_records_are_no_pairs(tmp_path):
    made = tuner(tmp_path)
    go(made, 4)
    ratios = recorded_ratios(made, tmp_path)
    points = [e.point for e in made.evaluated()]
    assert ratios(points[0], points[1]) == {}
