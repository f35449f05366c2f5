"""Did the requests leave as asked? Kolmogorov-Smirnov tests of the gaps between sends against the asked arrival law.

Each law maps gaps to uniform numbers on [0, 1] where the law holds (:data:`LAWS`); the test then has no free parameter.
Gaps are compared at a resolution: a gap may differ from the asked one by a few per cent of the mean gap (see
:data:`RESOLUTION`) before it counts as different, since no client sends two requests in the same microsecond and a test
of enough requests would reject any physical client otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Cdf = Callable[[F64], F64]

RESOLUTION = 0.05
"""Gaps are compared to within this share of the mean gap, and never coarser than :data:`RESOLUTION_MOST_S`."""
RESOLUTION_MOST_S = 100e-6
FEWEST_GAPS = 8
"""With fewer gaps no distribution test is made: it could only tell the grossest fault."""


def _exponential(gaps: F64, law: Mapping[str, float]) -> F64:
    return -np.expm1(-np.maximum(gaps, 0) * law["rate_hz"])


def _gamma(gaps: F64, law: Mapping[str, float]) -> F64:
    shape = law["burstiness"]
    return gamma_cdf(shape, np.maximum(gaps, 0) * law["rate_hz"] * shape)


LAWS: dict[str, Callable[[F64, Mapping[str, float]], F64]] = {"poisson": _exponential, "gamma": _gamma}
"""Renewal law → CDF of its gaps. Ramp is brought to a unit-rate Poisson process first (time rescaling)."""


def rescaled(times_s: F64, law: tuple[str, Mapping[str, float]]) -> tuple[F64, tuple[str, Mapping[str, float]]]:
    """Times on which the law's gaps are identically distributed, and that law: a ramp becomes unit-rate Poisson."""
    name, values = law
    if name != "ramp":
        return times_s, law
    start, end = values["start_hz"], values["end_hz"]
    length = values["horizon_s"]
    t = np.clip(times_s, 0, length)
    return start * t + (end - start) * t * t / (2 * length), ("poisson", {"rate_hz": 1.0})


def ks_p_value(times_s: F64, asked: tuple[str, Mapping[str, float]], *, with_resolution: bool = True) -> float | None:
    """Two-sided KS p-value of the gaps of ``times_s`` (ascending, from the load's start) under the asked law.

    ``None``: the law has no gap distribution (constant, trace, closed), or there are under :data:`FEWEST_GAPS` gaps.
    The p-value is conservative (too large) by the resolution.
    """
    times = np.asarray(times_s, np.float64)
    mean_gap_s = (times[-1] - times[0]) / max(len(times) - 1, 1) if len(times) else 0.0
    resolution = min(RESOLUTION * mean_gap_s, RESOLUTION_MOST_S) if with_resolution else 0.0
    times, law = rescaled(times, asked)
    if law is not asked and mean_gap_s:
        resolution /= mean_gap_s
    name, values = law
    if name not in LAWS or len(times) <= FEWEST_GAPS:
        return None
    gaps = np.sort(np.diff(times))
    distance = ks_distance(gaps, lambda g: LAWS[name](g, values), resolution)
    return kolmogorov_p(distance, len(gaps))


def ks_distance(sorted_gaps: F64, cdf: Cdf, resolution: float) -> float:
    """Largest distance between the empirical CDF and ``cdf`` that no shift of a gap by ``resolution`` explains."""
    n = len(sorted_gaps)
    above = np.arange(1, n + 1) / n - cdf(sorted_gaps + resolution)
    below = cdf(sorted_gaps - resolution) - np.arange(n) / n
    return float(max(above.max(), below.max(), 0.0))


def kolmogorov_p(distance: float, n: int) -> float:
    """P(D_n >= distance) for the two-sided one-sample KS statistic.

    Exact for n <= 140 (Marsaglia, Tsang and Wang 2003); beyond, the limit law with Stephens' (1970) correction, whose
    error at p near 0.001 is under a tenth of p.
    """
    if distance <= 0:
        return 1.0
    if distance >= 1:
        return 0.0
    if n <= 140:
        return float(min(max(1.0 - _marsaglia(distance, n), 0.0), 1.0))
    root = math.sqrt(n)
    t = (root + 0.12 + 0.11 / root) * distance
    if t < 0.2:
        return 1.0
    terms = [2 * (-1) ** (k - 1) * math.exp(-2 * k * k * t * t) for k in range(1, 101)]
    return min(max(math.fsum(terms), 0.0), 1.0)


def _marsaglia(d: float, n: int) -> float:
    """P(D_n < d): entry (k, k) of H^n, times n!/n^n."""
    k = int(n * d) + 1
    m = 2 * k - 1
    h = k - n * d
    i, j = np.indices((m, m))
    matrix = (i - j + 1 >= 0).astype(float)
    powers = h ** np.arange(1, m + 1)
    matrix[:, 0] -= powers
    matrix[m - 1, :] -= powers[::-1]
    if 2 * h - 1 > 0:
        matrix[m - 1, 0] += (2 * h - 1) ** m
    factorials = np.array([math.factorial(x) if x >= 0 else 1 for x in range(m + 1)], dtype=float)
    order = i - j + 1
    matrix = np.where(order > 0, matrix / factorials[np.clip(order, 0, m)], matrix)
    scale = 0
    result = np.eye(m)
    for step in range(1, n + 1):
        result = result @ matrix * (step / n)
        top = result.max()
        if top < 1e-140:
            result, scale = result * 1e140, scale - 140
    return float(result[k - 1, k - 1] * 10.0**scale)


def gamma_cdf(shape: float, x: F64) -> F64:
    """Regularized lower incomplete gamma function P(shape, x), by its series (x < shape + 1) or continued fraction."""
    x = np.asarray(x, np.float64)
    out = np.zeros_like(x)
    low = (x > 0) & (x < shape + 1)
    out[low] = _gamma_series(shape, x[low])
    high = x >= shape + 1
    out[high] = 1.0 - _gamma_fraction(shape, x[high])
    return np.clip(out, 0.0, 1.0)


def _gamma_series(a: float, x: F64) -> F64:
    if not len(x):
        return x
    term = np.full_like(x, 1.0 / a)
    total = term.copy()
    for k in range(1, 2000):
        term = term * x / (a + k)
        total += term
        if np.all(term < total * 1e-15):
            break
    return np.asarray(total * np.exp(-x + a * np.log(x) - math.lgamma(a)))


def _gamma_fraction(a: float, x: F64) -> F64:
    if not len(x):
        return x
    tiny = 1e-300
    b = x + 1 - a
    c = np.full_like(x, 1 / tiny)
    d = 1 / b
    h = d.copy()
    for k in range(1, 2000):
        an = -k * (k - a)
        b = b + 2
        d = an * d + b
        d = 1 / np.where(np.abs(d) < tiny, tiny, d)
        c = b + an / c
        c = np.where(np.abs(c) < tiny, tiny, c)
        delta = c * d
        h = h * delta
        if np.all(np.abs(delta - 1) < 1e-15):
            break
    return np.asarray(np.exp(-x + a * np.log(x) - math.lgamma(a)) * h)


def dispersion(times_s: F64, rate_hz: float) -> float | None:
    """Variance over mean of the counts in bins of ten mean gaps (Poisson 1, constant 0); ``None`` under 10 bins."""
    times = np.asarray(times_s, np.float64)
    width = 10.0 / rate_hz
    bins = int(times[-1] / width) if len(times) else 0
    if bins < 10:
        return None
    counts = np.bincount((times / width).astype(np.int64), minlength=bins + 1)[:bins]
    return float(counts.var(ddof=1) / counts.mean()) if counts.mean() > 0 else None
