"""Interval estimates against tables, closed forms and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qmeter.analysis import stats

# p = 0.975 and 0.995 quantiles of Student's t, printed tables with 6 decimals or more.
T_TABLE = [
    (1, 0.975, 12.7062047364), (2, 0.975, 4.3026527297), (3, 0.975, 3.1824463053), (5, 0.975, 2.5705818356),
    (9, 0.975, 2.2621571628), (30, 0.975, 2.0422724563), (120, 0.975, 1.9799304051), (1, 0.995, 63.6567411629),
    (4, 0.995, 4.6040948713), (10, 0.995, 3.1692726726), (2, 0.9, 1.8856180832), (7, 0.6, 0.2631668660),
]  # fmt: skip


@pytest.mark.parametrize(("df", "p", "expected"), T_TABLE)
def test_t_quantile_agrees_with_tables(df: int, p: float, expected: float) -> None:
    assert stats.t_quantile(p, df) == pytest.approx(expected, rel=1e-6)
    assert stats.t_quantile(1 - p, df) == pytest.approx(-expected, rel=1e-6)


def test_t_quantile_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="0 < p < 1"):
        stats.t_quantile(1.0, 3)


def test_t_interval_needs_two_values() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        stats.t_interval([1.0])
    made = stats.t_interval([1.0, 2.0, 3.0])
    assert made.value == 2.0
    assert made.high - made.value == pytest.approx(4.3026527 / math.sqrt(3), rel=1e-6)


def test_wilson_against_known_values_and_ends() -> None:
    made = stats.wilson(8, 10)
    assert (made.low, made.high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    none, every = stats.wilson(0, 20), stats.wilson(20, 20)
    assert none.low == 0.0 and none.high == pytest.approx(0.1611, abs=1e-4)
    assert every.high == 1.0 and every.low == pytest.approx(1 - 0.1611, abs=1e-4)
    with pytest.raises(ValueError, match="share"):
        stats.wilson(3, 0)


def test_block_counts_keep_the_sample_size_and_use_every_row() -> None:
    rng = np.random.default_rng(0)
    for n, block in ((1, 1), (7, 3), (10, 10), (100, 7)):
        counts = stats.block_counts(n, block, 500, rng)
        assert (counts.sum(axis=1) == n).all()
        assert (counts.sum(axis=0) > 0).all()


def test_counted_quantiles_equal_numpy_on_expanded_resamples() -> None:
    rng = np.random.default_rng(1)
    x = np.sort(rng.normal(size=41))
    counts = stats.block_counts(41, 4, 20, rng)
    ps = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
    got = stats.counted_quantiles(x, counts, ps)
    for row, weights in zip(got, counts, strict=True):
        assert row == pytest.approx(np.quantile(np.repeat(x, weights), ps))


def test_quantiles_with_infinities_stay_finite_below_them() -> None:
    x = np.array([1.0, 2.0, 3.0, np.inf])
    assert stats.quantiles(x, [0.5])[0] == 2.5
    assert math.isinf(stats.quantiles(x, [0.9])[0])


def test_block_length_follows_correlation() -> None:
    rng = np.random.default_rng(2)
    white = rng.normal(size=2000)
    slow = np.convolve(rng.normal(size=2100), np.ones(50) / 50, mode="valid")[:2000]
    assert stats.block_length(white) <= 5
    assert stats.block_length(slow) > 20
    assert stats.block_length(np.ones(100)) == 1


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_block_bootstrap_covers_a_correlated_mean(phi: float) -> None:
    rng = np.random.default_rng(3)
    hits, runs, n = 0, 200, 400
    for _ in range(runs):
        noise = rng.normal(size=n + 50)
        x = np.zeros(n + 50)
        for i in range(1, n + 50):
            x[i] = phi * x[i - 1] + noise[i]
        x = x[50:]
        draws = stats.resampled(n, stats.block_length(x), rng, lambda c, x=x: c @ x / n, 200)
        low, high = stats.spread(draws, 0.95)
        hits += low <= 0 <= high
    assert hits / runs > 0.87


def test_paired_bootstrap_sees_a_small_shift_that_unpaired_noise_hides() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(0, 10, size=300)
    made = stats.paired_bootstrap(a, a + 0.2 + rng.normal(0, 0.5, size=300), rng)
    assert made.low > 0 and made.p < 0.01
    same = stats.paired_bootstrap(a, a + rng.normal(0, 0.5, size=300), rng)
    assert same.low < 0 < same.high and same.p > 0.01
    with pytest.raises(ValueError, match="match"):
        stats.paired_bootstrap([1.0, 2.0], [1.0], rng)


def test_holm_matches_the_worked_example() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []
