"""Sanity that can fail: planted drops are found, planted zeros are not, at the promised rates."""

from __future__ import annotations

import numpy as np
import pytest

from qmeter.quality import statistics
from qmeter.quality.paired import POOLED, Verdict, compare_methods
from qmeter.quality.tasks.grading import Graded, Grades


def grades(scores: np.ndarray, task: str = "facts") -> Grades:
    rows = tuple(
        Graded(task, f"i{i}", "", i, float(s), bool(s >= 0.5), "", "", False) for i, s in enumerate(scores.tolist())
    )
    return Grades(rows, {}, {})


def planted(seed: int, n: int, drop: float, flips: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """A reference at 60% and a variant: a share ``flips`` of items goes either way equally, ``drop`` more are lost."""
    rng = np.random.default_rng(seed)
    before = (rng.random(n) < 0.6).astype(float)
    u = rng.random(n)
    p_lost, p_gained = (flips / 2 + drop) / 0.6, (flips / 2) / 0.4
    after = np.where(before == 1, (u >= p_lost).astype(float), (u < p_gained).astype(float))
    return before, after


def verdict(seed: int, n: int, drop: float, methods: int = 1) -> list[Verdict]:
    before, _ = planted(seed, n, 0.0)
    others = {}
    for m in range(methods):
        rng_seed = seed * 100 + m
        u = np.random.default_rng(rng_seed).random(n)
        p_lost, p_gained = (0.03 + drop) / 0.6, 0.03 / 0.4
        others[f"m{m}"] = grades(np.where(before == 1, (u >= p_lost).astype(float), (u < p_gained).astype(float)))
    return [c.verdict for c in compare_methods(grades(before), others)]


def test_a_planted_five_point_drop_is_found() -> None:
    found = [verdict(seed, 1000, 0.05)[0] for seed in range(200)]
    assert found.count(Verdict.WORSE) >= 0.95 * 200
    assert Verdict.BETTER not in found


def test_a_planted_zero_is_not_found() -> None:
    found = [verdict(seed, 1000, 0.0)[0] for seed in range(500)]
    alarms = 500 - found.count(Verdict.NO_DIFFERENCE)
    assert alarms <= 0.05 * 500, f"{alarms / 5:.1f}% false alarms"


def test_eight_planted_zeros_raise_an_alarm_in_at_most_five_percent_of_studies() -> None:
    alarms = sum(any(v is not Verdict.NO_DIFFERENCE for v in verdict(seed, 300, 0.0, methods=8)) for seed in range(300))
    assert alarms <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95)


def test_power_figures_are_what_simulation_gives() -> None:
    variance = 0.06 + 0.05
    n = statistics.items_needed(0.05, variance)
    found = [verdict(seed, n, 0.05)[0] is Verdict.WORSE for seed in range(400)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)  # the exact test is a little conservative
    assert statistics.smallest_found(n, variance) == pytest.approx(0.05, rel=0.01)


def test_mcnemar_against_known_values() -> None:
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 0) == pytest.approx(2 / 32)
    assert statistics.mcnemar(10, 2) == pytest.approx(0.03857421875)
    assert statistics.mcnemar(2000, 2000) == 1.0 and statistics.mcnemar(3000, 1000) < 1e-100


def test_wilson_against_known_values() -> None:
    interval = statistics.wilson(8, 10)
    assert (interval.low, interval.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert statistics.wilson(0, 20).low == 0.0 and statistics.wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)


def test_holm_against_a_worked_example() -> None:
    adjusted = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


T_TABLE = [(0.975, 1, 12.706), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 7, 2.3646), (0.995, 10, 3.1693)]


@pytest.mark.parametrize(("p", "df", "expected"), T_TABLE)
def test_t_quantiles(p: float, df: int, expected: float) -> None:
    assert statistics.t_quantile(p, df) == pytest.approx(expected, rel=0.01)


def test_intervals_of_paired_shares_cover_and_do_not_vanish_without_flips() -> None:
    nothing = statistics.paired_shares(0, 0, 100)
    assert nothing.low < -0.01 and nothing.high > 0.01
    held = 0
    for seed in range(1000):
        before, after = planted(seed, 150, 0.05)
        change = after - before
        interval = statistics.paired_shares(int((change < 0).sum()), int((change > 0).sum()), 150)
        held += interval.low <= -0.05 <= interval.high
    assert held / 1000 >= 0.935


def test_sentences_name_the_bound_and_the_items_needed() -> None:
    before, after = planted(3, 120, 0.0)
    (comparison,) = compare_methods(grades(before), {"w4a16": grades(after)})
    text = comparison.sentence()
    assert comparison.verdict is Verdict.NO_DIFFERENCE and "no difference larger than" in text
    assert comparison.bound == pytest.approx(max(abs(comparison.difference.low), abs(comparison.difference.high)))
    assert comparison.items_for > 120 and f"{comparison.items_for} items would find 5 points" in text


def test_flips_count_both_ways_and_items_are_paired_by_name() -> None:
    before, after = np.array([1.0, 1, 1, 0, 0]), np.array([1.0, 0, 1, 1, 0])
    shuffled = Grades(grades(after).rows[::-1], {}, {})
    (comparison,) = compare_methods(grades(before), {"m": shuffled})
    assert (comparison.lost, comparison.gained, comparison.n) == (1, 1, 5)
    assert comparison.difference.value == 0.0


def test_continuous_scores_use_sign_flips() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(200) * 0.6 + 0.2
    worse = compare_methods(grades(before), {"m": grades(before - 0.02 + rng.normal(0, 0.02, 200))})[0]
    assert worse.verdict is Verdict.WORSE and worse.difference.high < 0
    alarms = [
        compare_methods(grades(before), {"m": grades(before + np.random.default_rng(s).normal(0, 0.05, 200))}, seed=s)[
            0
        ].p
        <= 0.05
        for s in range(40)
    ]
    assert np.mean(alarms) <= 0.125


def test_too_few_items_get_no_verdict_and_take_no_part_in_holm() -> None:
    before, after = planted(1, 400, 0.2)
    found = compare_methods(grades(before), {"few": grades(after[:2]), "many": grades(after)})
    assert [c.verdict for c in found] == [Verdict.TOO_FEW, Verdict.WORSE]
    assert found[1].p_adjusted == found[1].p and "too few" in found[0].sentence()


def test_several_tasks_are_also_pooled() -> None:
    before, after = planted(5, 300, 0.1)
    both = [Grades(grades(x).rows + grades(x, "arithmetic").rows, {}, {}) for x in (before, after)]
    found = compare_methods(both[0], {"m": both[1]})
    assert [(c.task, c.n) for c in found] == [("facts", 300), ("arithmetic", 300), (POOLED, 600)]
