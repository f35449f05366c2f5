"""The distribution tests: right about the right laws, harsh on the wrong ones, without false alarms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qmeter.load.arrivals import dispersion, gamma_cdf, kolmogorov_p, ks_p_value

POISSON = ("poisson", {"rate_hz": 1000.0})
GAMMA = ("gamma", {"rate_hz": 1000.0, "burstiness": 0.5})


def poisson(seed: int, n: int, rate_hz: float = 1000.0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_hz, n))


def gamma(seed: int, n: int, shape: float = 0.5, rate_hz: float = 1000.0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).gamma(shape, 1 / (shape * rate_hz), n))


@pytest.mark.parametrize(
    ("distance", "n", "p"),
    # Marsaglia, Tsang & Wang (2003) give Pr(D_10 < 0.274) = 0.628479615; the others are critical values from
    # Smirnov's and Miller's (1956) tables.
    [(0.274, 10, 1 - 0.6284796154565), (0.40925, 10, 0.05), (0.48893, 10, 0.01), (0.29408, 20, 0.05),
     (0.13403, 100, 0.05),
     (1.6276 / math.sqrt(1e6), 1_000_000, 0.01), (1.9495 / math.sqrt(1e6), 1_000_000, 0.001)],
)  # fmt: skip
def test_kolmogorov_matches_the_tables(distance: float, n: int, p: float) -> None:
    assert kolmogorov_p(distance, n) == pytest.approx(p, rel=0.02)


def test_kolmogorov_is_continuous_where_exact_meets_asymptotic() -> None:
    for d in (0.08, 0.12, 0.16):
        assert kolmogorov_p(d, 140) == pytest.approx(kolmogorov_p(d, 141), rel=0.1)


def test_gamma_cdf_known_values() -> None:
    x = np.asarray([0.0, 0.1, 1.0, 5.0, 30.0])
    assert gamma_cdf(1.0, x) == pytest.approx(1 - np.exp(-x), abs=1e-12)
    assert gamma_cdf(0.5, x) == pytest.approx([math.erf(math.sqrt(v)) for v in x], abs=1e-12)
    assert gamma_cdf(3.0, x) == pytest.approx(1 - np.exp(-x) * (1 + x + x * x / 2), abs=1e-12)


@pytest.mark.parametrize(("draw", "law"), [(poisson, POISSON), (gamma, GAMMA)])
@pytest.mark.parametrize("n", [10, 100, 5000])
def test_a_faithful_client_is_rarely_rejected(draw, law, n: int) -> None:
    values = np.asarray([ks_p_value(draw(seed, n), law, with_resolution=False) for seed in range(300)])
    assert (values < 0.05).mean() < 0.10
    assert (values < 1e-3).sum() <= 2


@pytest.mark.parametrize("n", [300, 5000])
def test_wrong_laws_are_rejected(n: int) -> None:
    constant = np.arange(n) / 1000.0
    doubled = np.repeat(poisson(3, n // 2, 500.0), 2)  # two workers that repeat the same gaps
    assert ks_p_value(constant, POISSON) < 1e-6
    assert ks_p_value(doubled, POISSON) < 1e-6
    assert ks_p_value(gamma(1, n), POISSON) < 1e-3
    assert ks_p_value(poisson(1, n), GAMMA) < 1e-3
    assert ks_p_value(poisson(1, n, 700.0), POISSON) < 1e-3


def test_small_jitter_is_forgiven_and_large_is_not() -> None:
    sent = poisson(5, 60_000)
    rng = np.random.default_rng(0)
    hair = np.sort(sent + rng.uniform(0, 20e-6, len(sent)))
    clump = np.ceil(sent / 2e-3) * 2e-3  # a client that wakes every 2 ms
    assert ks_p_value(hair, POISSON) > 0.01
    assert ks_p_value(clump, POISSON) < 1e-6


def test_ramp_is_tested_by_time_rescaling() -> None:
    rng = np.random.default_rng(2)
    start, end, horizon = 50.0, 450.0, 20.0
    unit = np.cumsum(rng.exponential(1.0, 6000))
    unit = unit[unit < (start + end) / 2 * horizon]
    slope = (end - start) / horizon
    times = (-start + np.sqrt(start**2 + 2 * slope * unit)) / slope
    law = ("ramp", {"start_hz": start, "end_hz": end, "horizon_s": horizon})
    assert ks_p_value(times, law) > 0.01
    assert ks_p_value(np.sort(rng.uniform(0, horizon, len(times))), law) < 1e-3


def test_laws_without_gaps_of_their_own_have_no_p_value() -> None:
    assert ks_p_value(np.arange(100.0), ("constant", {"rate_hz": 1.0})) is None
    assert ks_p_value(np.arange(100.0), ("trace", {"rate_hz": 1.0})) is None
    assert ks_p_value(poisson(1, 5), POISSON) is None


def test_dispersion_tells_poisson_constant_and_doubled_apart() -> None:
    assert dispersion(poisson(1, 20_000), 1000.0) == pytest.approx(1.0, abs=0.15)
    assert dispersion(np.arange(20_000) / 1000.0, 1000.0) == pytest.approx(0.0, abs=0.05)
    assert dispersion(np.repeat(poisson(1, 2500, 125.0), 8), 1000.0) > 5
    assert dispersion(poisson(1, 20), 1000.0) is None
