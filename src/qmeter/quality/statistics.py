"""Intervals, paired tests and power for quality: items and continuations are the unit, pairs are kept together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

RESAMPLES = 2000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A two-sided interval at ``level``."""

    low: float
    high: float
    level: float


def bootstrap_ratio(
    numerator: F64,
    denominator: F64,
    *,
    level: float = 0.95,
    seed: int = 0,
    link: Callable[[F64], F64] | None = None,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Interval of ``sum(numerator) / sum(denominator)`` (through ``link``) by resampling units with replacement.

    One row a unit (continuation, item). Both columns are resampled together, so pairs stay pairs. Percentile
    bootstrap whose tail area is widened for small samples as Hesterberg (2015) proposes (``expanded percentile``:
    alpha/2 becomes Phi(-sqrt(n/(n-1)) t_{n-1})), since the plain one is too narrow by about (n-1)/n and skew.
    ``None`` below 3 units: no interval is honest there.
    """
    n = len(numerator)
    if n < 3:
        return None
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)
    below = counts @ denominator
    kept = below > 0
    ratios = (counts @ numerator)[kept] / below[kept]
    values = link(ratios) if link else ratios
    tail = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * t_quantile(0.5 + level / 2, n - 1))
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(float(low), float(high), level)


def t_quantile(p: float, df: int) -> float:
    """Student's t quantile. Exact for 1 and 2 degrees, else Cornish-Fisher (Abramowitz & Stegun 26.7.5), error <1%."""
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = _NORMAL.inv_cdf(p)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / df + g2 / df**2 + g3 / df**3 + g4 / df**4


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share: good coverage for small n and near 0 or 1, where Wald's fails."""
    z = _NORMAL.inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(low if successes else 0.0, high if successes < n else 1.0, level)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of "as many items are lost as gained" (binomial, discordant pairs alone). 1 without any."""
    n, k = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    below = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * below / (1 << n))


def sign_flip(differences: F64, *, seed: int = 0, resamples: int = 9999) -> float:
    """Two-sided p of "the paired differences are symmetric about 0" by random sign flips; never below 1/10000."""
    kept = differences[differences != 0]
    if not kept.size:
        return 1.0
    signs = np.random.default_rng(seed).integers(0, 2, size=(resamples, kept.size)) * 2 - 1
    reached = np.abs(signs @ kept) >= abs(kept.sum()) - 1e-12
    return float((1 + reached.sum()) / (1 + resamples))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values of one family: the chance of any false alarm in it stays below alpha."""
    ranked = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    largest = 0.0
    for i, name in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - i) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def paired_shares(lost: int, gained: int, n: int, level: float = 0.95) -> Interval:
    """Interval of (gained - lost)/n by Bonett and Price (2012): adjusted Wald, honest even where nothing flipped."""
    z = _NORMAL.inv_cdf(0.5 + level / 2)
    a, b = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return Interval(max(-1.0, a - b - half), min(1.0, a - b + half), level)


def items_needed(difference: float, variance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items for a paired two-sided test to find ``difference`` with the given power (Connor 1987 for yes/no).

    Args:
        difference: true mean difference to find, in score units.
        variance: of the items' differences about 0, E[d^2]: the share of flipped items where scores are 0 or 1.
    """
    if difference == 0:
        raise ValueError("a difference of 0 cannot be found")
    under, over = math.sqrt(variance), math.sqrt(max(variance - difference**2, 0.0))
    z_alpha, z_power = _NORMAL.inv_cdf(1 - alpha / 2), _NORMAL.inv_cdf(power)
    return math.ceil(((z_alpha * under + z_power * over) / difference) ** 2)


def smallest_found(n: int, variance: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest mean difference that ``n`` paired items find with the given power (inverse of items_needed)."""
    low, high = 0.0, math.sqrt(variance) or 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if middle > 0 and items_needed(middle, variance, alpha=alpha, power=power) <= n:
            high = middle
        else:
            low = middle
    return high
