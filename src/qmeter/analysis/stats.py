"""Interval estimates: Student t, Wilson, block bootstrap over requests in time order, paired bootstrap, Holm.

Everything takes a seeded generator where it resamples, so that the same record gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Counts = NDArray[np.int32]

RESAMPLES = 1000
"""Bootstrap resamples; a 95% percentile interval's ends then rest on 25 resamples each."""

MANY, FEWER_RESAMPLES = 4000, 400
"""Above so many observations fewer resamples do: each end then rests on 10, and intervals are narrow anyway."""

_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A point estimate with its interval at the confidence asked; ``n`` observations."""

    value: float
    low: float
    high: float
    n: int


# ---------------------------------------------------------------- Student t


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    result = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            result *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return result


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def t_cdf(x: float, df: float) -> float:
    """P(T ≤ x) of Student's t with ``df`` degrees of freedom, through the incomplete beta function."""
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + x * x))
    return 1.0 - tail if x > 0 else tail


@lru_cache(maxsize=512)
def t_quantile(p: float, df: float) -> float:
    """The ``p`` quantile of Student's t with ``df`` degrees of freedom (bisection on :func:`t_cdf`, to 1e-12).

    Raises:
        ValueError: ``p`` is not inside 0..1 or ``df`` is not positive.
    """
    if not 0.0 < p < 1.0 or df <= 0:
        raise ValueError(f"t_quantile needs 0 < p < 1 and df > 0, found p={p}, df={df}")
    if p < 0.5:
        return -t_quantile(1.0 - p, df)
    if df > 1e7:
        return NormalDist().inv_cdf(p)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        low, high = high, high * 2
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def t_interval(values: Sequence[float] | F64, confidence: float = 0.95) -> Estimate:
    """Mean of independent values (repeats) with Student's t interval.

    Raises:
        ValueError: fewer than two values: there is no spread to make an interval from.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        raise ValueError(f"a t interval needs at least 2 values, found {len(x)}")
    mean = float(x.mean())
    half = t_quantile(0.5 + confidence / 2, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(mean, mean - half, mean + half, len(x))


def wilson(successes: float, n: float, confidence: float = 0.95) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927): right near 0 and 1, where the normal one is not.

    ``n`` may be an effective number of observations, smaller than the real one where they are correlated.

    Raises:
        ValueError: ``n`` is 0 or ``successes`` is outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 ≤ successes ≤ n and n > 0, found {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, math.floor(n))


# ---------------------------------------------------------------- block bootstrap


def block_length(x: F64, least: int = 1) -> int:
    """Block length for a circular block bootstrap of the mean, from the series' own autocorrelation.

    ``least`` is how far the caller knows dependence to reach (a short series does not show it). Never above n/5, so
    that there are at least five blocks; :func:`widening` makes up for few of them.

    Politis and White (2004) with the correction of Patton, Politis and White (2009): the flat-top lag window's
    bandwidth is twice the lag after which autocorrelations stay below 2·sqrt(log10(n)/n).
    """
    n = len(x)
    top = max(1, n // 5)
    floor = min(top, max(1, least))
    if n < 8:
        return floor
    d = x - x.mean()
    variance = float(d @ d) / n
    if variance <= 0:
        return floor
    lags = min(n - 1, math.ceil(math.sqrt(n)) + max(5, math.ceil(math.log10(n))) + 1)
    cov = np.array([float(d[: n - k] @ d[k:]) / n for k in range(lags + 1)])
    small = np.abs(cov[1:] / variance) < 2 * math.sqrt(math.log10(n) / n)
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    m = next((k for k in range(len(small) - run + 1) if small[k : k + run].all()), None)
    if m is None:
        loud = np.flatnonzero(~small)
        m = int(loud[-1]) + 1 if len(loud) else 0
    band = min(max(1, 2 * m), lags)
    k = np.arange(1, band + 1)
    taper = np.clip(2 * (1 - k / band), 0, 1) if band > 1 else np.array([1.0 if m else 0.0])
    spectrum0 = cov[0] + 2 * float(taper @ cov[1 : band + 1])
    g = 2 * float((taper * k) @ cov[1 : band + 1])
    if spectrum0 <= 0:
        return min(top, max(floor, m))
    return int(min(top, max(floor, math.ceil((2 * g * g / (4 / 3 * spectrum0**2)) ** (1 / 3) * n ** (1 / 3)))))


def block_counts(n: int, block: int, resamples: int, rng: np.random.Generator) -> Counts:
    """How often each of ``n`` observations occurs in each circular-moving-block resample, shape (resamples, n)."""
    blocks = math.ceil(n / block)
    width = 2 * n + 1
    starts = rng.integers(0, n, size=(resamples, blocks)) + width * np.arange(resamples)[:, None]
    lengths = np.full(blocks, block)
    lengths[-1] = n - block * (blocks - 1)
    size = resamples * width
    steps = np.bincount(starts.ravel(), minlength=size) - np.bincount((starts + lengths).ravel(), minlength=size)
    cover = np.cumsum(steps.reshape(resamples, width)[:, : 2 * n], axis=1, dtype=np.int32)
    counts: Counts = cover[:, :n] + cover[:, n:]
    return counts


def counted_quantiles(ordered: F64, counts: Counts, ps: Sequence[float]) -> F64:
    """Quantiles (linear, type 7) of resamples given as counts of the ``ordered`` values, shape (rows, len(ps)).

    A value of infinity stands for a request that never finished; a quantile that touches it is infinite.
    """
    cumulative = np.cumsum(counts, axis=1, dtype=np.int64)
    total = cumulative[:, -1]
    h = (np.maximum(total, 1) - 1)[:, None] * np.asarray(ps)[None, :]
    below = np.floor(h)
    wanted = np.concatenate([below, np.ceil(h)], axis=1)
    at = np.empty(wanted.shape, dtype=np.int64)
    for i, row in enumerate(cumulative):
        at[i] = np.searchsorted(row, wanted[i], side="right")
    found = ordered[np.minimum(at, len(ordered) - 1)]
    out = _between(found[:, : len(ps)], found[:, len(ps) :], h - below)
    out[total == 0] = np.nan
    return out


def _between(low: F64, high: F64, weight: F64) -> F64:
    with np.errstate(invalid="ignore"):
        value: F64 = np.where((weight == 0) | (low == high), low, low + (high - low) * weight)
    return value


def quantiles(values: F64, ps: Sequence[float]) -> F64:
    """Sample quantiles (linear, type 7), infinities allowed, shape (len(ps),)."""
    ordered = np.sort(values)
    result: F64 = counted_quantiles(ordered, np.ones((1, len(ordered)), dtype=np.int32), ps)[0]
    return result


def resampled(
    n: int,
    block: int,
    rng: np.random.Generator,
    of: Callable[[Counts], F64],
    resamples: int | None = None,
) -> F64:
    """``of(counts)`` over all resamples, made in chunks that bound the memory; rows are resamples.

    By default :data:`RESAMPLES` of them, fewer where there are many observations.
    """
    if resamples is None:
        resamples = RESAMPLES if n <= MANY else FEWER_RESAMPLES
    size = max(1, min(resamples, _CHUNK // max(1, n)))
    parts = []
    done = 0
    while done < resamples:
        take = min(size, resamples - done)
        parts.append(of(block_counts(n, block, take, rng)))
        done += take
    return np.concatenate(parts)


def widening(n: int, block: int, confidence: float) -> float:
    """How much wider an interval from ``n / block`` blocks must be than its percentile bootstrap.

    With k blocks the bootstrap sees their spread short by sqrt((k - 1) / k), and k - 1 degrees of freedom ask for
    Student's t where percentiles give the normal.
    """
    k = max(2.0, n / block)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return t_quantile(0.5 + confidence / 2, k - 1) / z * math.sqrt(k / (k - 1))


def spread(
    draws: F64, confidence: float, centre: float = 0.0, widen: float = 1.0, floor: float = -math.inf
) -> tuple[float, float]:
    """Percentile interval of bootstrap draws, stretched from ``centre`` by ``widen``, not below ``floor``.

    NaN draws (empty resamples) are left out; an infinite end stays infinite.
    """
    seen = draws[~np.isnan(draws)]
    if not len(seen):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = (float(v) for v in quantiles(seen, (tail, 1 - tail)))
    if math.isfinite(centre):
        low, high = centre - (centre - low) * widen, centre + (high - centre) * widen
    return max(floor, low), high


# ---------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Difference:
    """A paired difference ``b - a``: its mean, interval, and the two-sided bootstrap p-value of no difference."""

    value: float
    low: float
    high: float
    p: float
    n: int


def paired_bootstrap(
    a: Sequence[float] | F64,
    b: Sequence[float] | F64,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
) -> Difference:
    """Mean of ``b - a`` over the same items, with a percentile interval from resampling items.

    The p-value is twice the smaller share of resampled means on either side of 0, with the +1 correction, so it is
    never below 2/(resamples + 1).

    Raises:
        ValueError: the two differ in length or hold fewer than two items.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or len(x) < 2:
        raise ValueError(f"paired items must match and be at least 2, found {len(x)} and {len(y)}")
    d = y - x
    n = len(d)

    def means(counts: Counts) -> F64:
        result: F64 = counts @ d / n
        return result

    draws = resampled(n, 1, rng, means, resamples)
    low, high = spread(draws, confidence)
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    return Difference(float(d.mean()), low, high, p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given: family-wise error over all comparisons."""
    m = len(p_values)
    adjusted = [0.0] * m
    worst = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda k: p_values[k])):
        worst = max(worst, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
