"""When requests are sent: open-loop laws as whole nanoseconds from the load's start, and the closed loop's bound.

Every law covers [0, horizon) with horizon = warm-up + window. Random laws are not rescaled to hit the asked rate
exactly: the count in the window varies as the law says it does, the same for every method since the seed is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import SpecError
from qmeter.spec.workload import (
    Arrivals,
    ClosedArrivals,
    ConstantArrivals,
    GammaArrivals,
    PoissonArrivals,
    RampArrivals,
)

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MAX_REQUESTS = 2_000_000
"""Most requests of one schedule: beyond it a study file is taken to be wrong rather than filling the memory."""

CLOSED_MAX_REQUESTS = 50_000
CLOSED_MAX_PROMPT_TOKENS = 2**25
CLOSED_FASTEST_TOKEN_S = 1e-3
CLOSED_FASTEST_REQUEST_S = 5e-3

_NS = 1_000_000_000


def constant(spec: ConstantArrivals, horizon_s: float, rng: np.random.Generator) -> I64:
    """Request i at i/rate, each from its index (no drift). The first at 0. Units: ns."""
    count = math.ceil(_bounded(spec.rate, horizon_s))
    times = np.rint(np.arange(count, dtype=np.float64) * (_NS / spec.rate)).astype(np.int64)
    return times[times < round(horizon_s * _NS)]


def poisson(spec: PoissonArrivals, horizon_s: float, rng: np.random.Generator) -> I64:
    """Independent exponential gaps of mean 1/rate; the first request after one gap. Units: ns."""
    return _renewal(lambda n: rng.standard_exponential(n) / spec.rate, spec.rate, horizon_s)


def gamma(spec: GammaArrivals, horizon_s: float, rng: np.random.Generator) -> I64:
    """Independent gamma gaps, shape k = burstiness, scale 1/(k·rate): mean 1/rate, CV k**-0.5. Units: ns.

    An ordinary renewal process: it starts with a full gap, so its first moments are not yet stationary; the warm-up
    covers them.
    """
    shape = spec.burstiness
    return _renewal(lambda n: rng.standard_gamma(shape, n) / (shape * spec.rate), spec.rate, horizon_s)


def ramp(spec: RampArrivals, horizon_s: float, rng: np.random.Generator) -> I64:
    """Poisson with rate a + (b - a)·t/H, exact: unit-rate arrivals E mapped through the inverse of its integral.

    Λ(t) = a·t + (b - a)·t²/(2H) inverts to t = 2E / (a + √(a² + 2·E·(b - a)/H)), stable where a is close to b
    (Çinlar 1975). Units: ns.
    """
    slope = (spec.end - spec.start) / horizon_s
    total = (spec.start + spec.end) / 2 * horizon_s
    _bounded(total / horizon_s, horizon_s)
    unit = np.cumsum(rng.standard_exponential(_chunk(total)))
    while unit[-1] < total:
        more = rng.standard_exponential(_chunk(total))
        unit = np.concatenate([unit, np.cumsum(np.concatenate([unit[-1:], more]))[1:]])
    unit = unit[unit < total]
    times = 2 * unit / (spec.start + np.sqrt(np.maximum(spec.start**2 + 2 * slope * unit, 0.0)))
    nanoseconds = np.rint(times * _NS).astype(np.int64)
    return nanoseconds[nanoseconds < round(horizon_s * _NS)]


_LAWS: dict[str, Callable[[Any, float, np.random.Generator], I64]] = {
    "constant": constant,
    "poisson": poisson,
    "gamma": gamma,
    "ramp": ramp,
}


def open_send_ns(spec: Arrivals, horizon_s: float, rng: np.random.Generator) -> I64:
    """Send times of a synthetic open-loop law, ascending. Units: ns.

    Raises:
        SpecError: more than :data:`MAX_REQUESTS` requests asked for.
    """
    return _LAWS[spec.kind](spec, horizon_s, rng)


def law(spec: Arrivals, horizon_s: float, count: int) -> tuple[str, dict[str, float]]:
    """What the send times claim to be, as :class:`~qmeter.workload.schedule.Schedule` carries it."""
    claims: dict[str, Callable[[Any], dict[str, float]]] = {
        "constant": lambda s: {"rate_hz": s.rate},
        "poisson": lambda s: {"rate_hz": s.rate},
        "gamma": lambda s: {"rate_hz": s.rate, "burstiness": s.burstiness},
        "ramp": lambda s: {"start_hz": s.start, "end_hz": s.end, "horizon_s": horizon_s},
        "trace": lambda s: {"rate_hz": count / horizon_s},
        "closed": lambda s: {"concurrency": float(s.concurrency), "think_s": s.think},
    }
    return spec.kind, claims[spec.kind](spec)


def closed_requests(
    spec: ClosedArrivals, horizon_s: float, mean_prompt_tokens: float, mean_output_tokens: float
) -> int:
    """How many requests to make ready for a closed loop: more than any engine we know can end in the horizon.

    The bound takes 5 ms a request plus 1 ms an output token for one stream, at most 50,000 requests and 2**25 prompt
    tokens (128 MiB), at least four rounds; a client that still runs out starts again at the first request.
    """
    fastest_s = spec.think + CLOSED_FASTEST_REQUEST_S + CLOSED_FASTEST_TOKEN_S * mean_output_tokens
    rounds = 1 + math.ceil(horizon_s / fastest_s)
    most = min(CLOSED_MAX_REQUESTS, int(CLOSED_MAX_PROMPT_TOKENS / mean_prompt_tokens))
    return max(4 * spec.concurrency, min(spec.concurrency * rounds, most))


def _renewal(gaps_s: Callable[[int], F64], rate_hz: float, horizon_s: float) -> I64:
    """Sum gaps (rounded to ns first, so that the sum is exact) until the horizon is covered."""
    expected = _bounded(rate_hz, horizon_s)
    end = round(horizon_s * _NS)
    times = np.empty(0, dtype=np.int64)
    while not times.size or times[-1] < end:
        gaps = np.rint(np.minimum(gaps_s(_chunk(expected)), horizon_s + 1) * _NS).astype(np.int64)
        times = np.concatenate([times, (times[-1] if times.size else 0) + np.cumsum(gaps)])
    return times[times < end]


def _chunk(expected: float) -> int:
    return int(expected + 6 * math.sqrt(expected) + 16)


def _bounded(rate_hz: float, horizon_s: float) -> float:
    expected = rate_hz * horizon_s
    if expected > MAX_REQUESTS:
        raise SpecError(
            f"{rate_hz:g} requests/s for {horizon_s:g} s is {expected:.3g} requests; the most is {MAX_REQUESTS}",
            hint="lower the rate or the window",
        )
    return expected
