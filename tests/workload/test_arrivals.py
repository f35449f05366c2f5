"""The arrival laws against their own distributions, by exact formulas (no statistics package needed)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from workload_points import VOCABULARY, workload

from qmeter.errors import SpecError
from qmeter.spec.workload import ClosedArrivals
from qmeter.workload import build
from qmeter.workload.arrivals import MAX_REQUESTS, closed_requests

F64 = NDArray[np.float64]


def _sends(arrivals: dict[str, Any], seed: int = 1, window: str = "998s", **more: Any) -> F64:
    tiny: dict[str, Any] = {"prompt_tokens": {"kind": "fixed", "tokens": 1}}
    return build(workload(arrivals, window=window, **{**tiny, **more}), seed, VOCABULARY).send_s


def _ks_p(u: F64) -> float:
    """P of a Kolmogorov-Smirnov distance this large if ``u`` is uniform on 0..1 (Stephens 1970's finite-n form)."""
    n = len(u)
    u = np.sort(u)
    d = max(float((np.arange(1, n + 1) / n - u).max()), float((u - np.arange(n) / n).max()))
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * d
    return min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))))


def _gamma_cdf(x: F64, shape: int) -> F64:
    """CDF of a gamma of whole shape and unit scale (Erlang): 1 - e^-x Σ x^i/i!."""
    total = sum(x**i / math.factorial(i) for i in range(shape))
    return np.asarray(1 - np.exp(-x) * total)


def _dispersion(times: F64, horizon_s: float, bins: int = 500) -> float:
    """Variance over mean of counts in equal bins: 1 for Poisson, 0 for constant, CV² for a renewal process."""
    counts = np.histogram(times, bins=bins, range=(0, horizon_s))[0]
    return float(counts.var(ddof=1) / counts.mean())


def test_the_ks_test_itself_refuses_what_it_should() -> None:
    rng = np.random.default_rng(0)
    assert _ks_p(rng.random(1000)) > 0.01
    assert _ks_p(rng.random(1000) ** 1.2) < 1e-4
    # Critical value of the limit law: P(K > 1.3581) = 0.05.
    n = 10**6
    shifted = (np.arange(n) + 0.5) / n
    assert _ks_p(np.clip(shifted + 1.3581 / math.sqrt(n), 0, 1)) == pytest.approx(0.05, abs=0.002)


def test_constant_sends_on_the_grid_without_drift() -> None:
    sends = _sends({"kind": "constant", "rate": "7/s"})
    assert len(sends) == 7000
    assert np.abs(sends - np.arange(7000) / 7).max() <= 0.5e-9


@pytest.mark.parametrize("seed", range(5))
def test_poisson_gaps_are_exponential_and_counts_are_poisson(seed: int) -> None:
    sends = _sends({"kind": "poisson", "rate": "10/s"}, seed)
    assert _ks_p(1 - np.exp(-np.diff(sends, prepend=0) * 10)) > 1e-3
    assert _ks_p(sends / 1000) > 1e-3
    assert abs(len(sends) - 10_000) < 4 * 100
    assert 0.75 < _dispersion(sends, 1000) < 1.3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [1, 2, 4])
def test_gamma_gaps_have_the_shape_asked_for(shape: int, seed: int) -> None:
    sends = _sends({"kind": "gamma", "rate": "10/s", "burstiness": shape}, seed)
    gaps = np.diff(sends, prepend=0)
    assert _ks_p(_gamma_cdf(gaps * 10 * shape, shape)) > 1e-3
    assert gaps.mean() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 4.0])
def test_burstiness_below_one_is_burstier_by_the_law_of_the_gaps(burstiness: float) -> None:
    sends = _sends({"kind": "gamma", "rate": "20/s", "burstiness": burstiness})
    gaps = np.diff(sends)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.06)
    # A renewal process's long-run index of dispersion is the squared CV of its gaps.
    assert _dispersion(sends, 1000, bins=100) == pytest.approx(1 / burstiness, rel=0.45)


def test_gamma_of_burstiness_one_half_follows_the_chi_squared_law() -> None:
    gaps = np.diff(_sends({"kind": "gamma", "rate": "10/s", "burstiness": 0.5}), prepend=0)
    # Gamma(1/2, 1): CDF erf(√x).
    assert _ks_p(np.array([math.erf(math.sqrt(x)) for x in gaps * 10 * 0.5])) > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("start", "end"), [(1, 20), (20, 1), (5, 5.000001)])
def test_ramp_is_the_inhomogeneous_poisson_process_it_claims(start: float, end: float, seed: int) -> None:
    sends = _sends({"kind": "ramp", "start": f"{start}/s", "end": f"{end}/s"}, seed)
    integral = start * sends + (end - start) * sends**2 / 2000
    # Under the time change the gaps are unit exponential; given the count, the places are uniform.
    assert _ks_p(1 - np.exp(-np.diff(integral, prepend=0))) > 1e-3
    total = (start + end) / 2 * 1000
    assert _ks_p(integral / total) > 1e-3
    assert abs(len(sends) - total) < 4 * math.sqrt(total)


@pytest.mark.parametrize(
    "arrivals",
    [
        {"kind": "constant", "rate": "3/s"},
        {"kind": "poisson", "rate": "30/s"},
        {"kind": "gamma", "rate": "30/s", "burstiness": 0.1},
        {"kind": "ramp", "start": "1/s", "end": "60/s"},
    ],
)
def test_sends_are_whole_nanoseconds_ascending_inside_the_horizon(arrivals: dict[str, Any]) -> None:
    sends = _sends(arrivals)
    assert sends[0] >= 0 and sends[-1] < 1000
    assert (np.diff(sends) >= 0).all()
    assert (np.abs(sends * 1e9 - np.rint(sends * 1e9)) < 1e-3).all()


@pytest.mark.parametrize("kind", ["poisson", "constant", "gamma"])
def test_a_longer_window_leaves_the_earlier_sends_as_they_were(kind: str) -> None:
    law = {"kind": kind, "rate": "5/s", **({"burstiness": 0.5} if kind == "gamma" else {})}
    short, long = _sends(law, window="98s"), _sends(law, window="398s")
    assert np.array_equal(long[: len(short)], short)
    assert len(long) > 3 * len(short)


def test_a_law_that_needs_a_second_draw_to_cover_the_horizon_still_covers_it() -> None:
    # So bursty that the first draw (mean + 6 sd of a Poisson count) often ends early.
    for seed in range(20):
        sends = _sends({"kind": "gamma", "rate": "1/s", "burstiness": 0.02}, seed)
        assert sends.size == 0 or sends[-1] < 1000


def test_a_closed_loop_has_no_times_and_more_requests_than_an_engine_could_end() -> None:
    point = workload(
        {"kind": "closed", "concurrency": 8, "think": "100ms"}, output_tokens={"kind": "fixed", "tokens": 95}
    )
    schedule = build(point, 1, VOCABULARY)
    assert np.isnan(schedule.send_s).all()
    assert (schedule.concurrency, schedule.think_s) == (8, 0.1)
    # 12 s at 200 ms a request and 8 at once.
    assert len(schedule) == 8 * (1 + 60)
    assert schedule.law == ("closed", {"concurrency": 8.0, "think_s": 0.1})


def test_a_wide_closed_loop_is_bounded_but_never_below_four_rounds() -> None:
    assert closed_requests(ClosedArrivals(concurrency=8), 600, 128, 16) == 50_000
    assert closed_requests(ClosedArrivals(concurrency=4), 12, 100_000, 64) == 335
    assert closed_requests(ClosedArrivals(concurrency=300), 12, 100_000, 64) == 1200


def test_no_request_at_all_and_far_too_many_are_refused() -> None:
    with pytest.raises(SpecError, match="no request falls into"):
        _sends({"kind": "poisson", "rate": "0.001/h"}, window="1s")
    for law in ({"kind": "poisson", "rate": "1e9/s"}, {"kind": "ramp", "start": "1/s", "end": "1e9/s"}):
        with pytest.raises(SpecError, match=str(MAX_REQUESTS)):
            _sends(law)
