"""Dominance knows its noise: intervals pooled over repeats, doubt where it is, repeats where they decide."""

from __future__ import annotations

import numpy as np
import pytest
import tune_worlds as w

from qmeter.record import Quantity
from qmeter.tune.noise import Noise, standings, undecided

POINTS = w.space().points
METHOD = w.space().method_of


def values(ttft, tpot, joules):
    return {
        t.key: Quantity.of(v, t.unit, low=v * 0.97, high=v * 1.03)
        for t, v in zip(w.TERMS, (ttft, tpot, joules), strict=True)
    }


def of(method, n=0):
    return [p for p in POINTS if p.get("method") == method][n]


def where(rows, bounds=()):
    noise = Noise(w.TERMS, rows)
    return {s.measured.point: s for s in standings(noise, 3, bounds, METHOD)}


def test_clearly_worse_is_dominated_and_names_by_whom():
    a, b = of("bf16"), of("fp8")
    found = where({a: [values(0.2, 0.02, 0.2)], b: [values(0.1, 0.01, 0.1)]})
    assert found[b].on_front and found[b].chance == 1.0
    assert not found[a].on_front and found[a].chance == 0.0 and found[a].dominated_by == b


def test_within_noise_nothing_is_dominated_and_a_repeat_goes_there():
    a, b, c = of("bf16"), of("fp8"), of("awq-w4a16")
    rows = {a: [values(0.101, 0.0101, 0.101)], b: [values(0.1, 0.01, 0.1)], c: [values(0.5, 0.05, 0.5)]}
    found = where(rows)
    assert found[a].dominated_by is None and 0.05 < found[a].chance < 0.95
    assert undecided(list(found.values()), 3).measured.point in (a, b)
    assert undecided(list(found.values()), 1) is None


def test_knobs_that_make_no_difference_are_no_rivals():
    a, b = of("bf16", 0), of("bf16", 1)
    found = where({a: [values(0.1, 0.01, 0.1)], b: [values(0.1, 0.01, 0.1)]})
    assert found[a].chance == found[b].chance == 1.0 and undecided(list(found.values()), 3) is None


def test_limits_count_with_their_doubt():
    a = of("bf16")
    found = where({a: [values(2.0, 0.01, 0.1)]}, [(0, w.TTFT.loss(2.0))])
    assert 0.3 < found[a].chance < 0.7


def test_pooled_repeats_narrow_the_interval_and_cover():
    rng, hits, n = np.random.default_rng(0), 0, 300
    for _ in range(n):
        rows = {p: [values(*(0.1 * np.exp(rng.normal(0, 0.05, 3)))) for _ in range(2)] for p in POINTS[:8]}
        noise = Noise(w.TERMS, rows)
        q = noise.interval(noise.points[0], w.TTFT, rows[POINTS[0]][0][w.TTFT.key])
        hits += q.low <= 0.1 <= q.high
    assert noise.freedom == 8 and 0.92 <= hits / n <= 0.98
    assert q.n == 2 and "pooled over 8 repeats" in q.why


def test_without_repeats_the_records_own_intervals_stand():
    rows = {of("bf16"): [values(0.1, 0.01, 0.1)]}
    noise = Noise(w.TERMS, rows)
    single = rows[of("bf16")][0][w.TTFT.key]
    assert noise.interval(noise.points[0], w.TTFT, single) == single
    assert noise.points[0].errors[0] == pytest.approx(0.03 / 1.96, rel=0.1)
