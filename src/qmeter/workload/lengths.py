"""How long prompts and outputs are, in whole tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import SpecError
from qmeter.spec.workload import FixedLength, Lengths, LognormalLength, TraceLength, UniformLength

I32 = NDArray[np.int32]


def fixed(spec: FixedLength, n: int, rng: np.random.Generator, traced: I32 | None) -> I32:
    """Always ``tokens``."""
    return np.full(n, spec.tokens, dtype=np.int32)


def uniform(spec: UniformLength, n: int, rng: np.random.Generator, traced: I32 | None) -> I32:
    """Each whole number from ``low`` to ``high`` equally likely."""
    return rng.integers(spec.low, spec.high, size=n, endpoint=True).astype(np.int32)


def lognormal(spec: LognormalLength, n: int, rng: np.random.Generator, traced: I32 | None) -> I32:
    """round(median · exp(sigma · Z)), clipped to ``low``..``high``.

    Clipping moves mass to the two bounds instead of drawing again: the median stays where it was asked (if inside
    the bounds) but the mean falls below median · exp(sigma²/2) when ``high`` cuts the tail. The mean that the engine
    sees is :func:`mean_tokens`.
    """
    exponent = math.log(spec.median) + spec.sigma * rng.standard_normal(n)
    exponent = np.clip(exponent, math.log(spec.low), math.log(spec.high))  # before exp: a wide sigma cannot overflow
    drawn: I32 = np.clip(np.rint(np.exp(exponent)), spec.low, spec.high).astype(np.int32)
    return drawn


def from_trace(spec: TraceLength, n: int, rng: np.random.Generator, traced: I32 | None) -> I32:
    """What the trace's rows say, cut at ``high`` where that is set."""
    if traced is None:
        raise SpecError("lengths from a trace need trace arrivals", hint="set arrivals.kind to trace")
    return traced if spec.high is None else np.minimum(traced, np.int32(spec.high))


_LAWS: dict[str, Callable[[Any, int, np.random.Generator, I32 | None], I32]] = {
    "fixed": fixed,
    "uniform": uniform,
    "lognormal": lognormal,
    "trace": from_trace,
}


def draw_tokens(spec: Lengths, n: int, rng: np.random.Generator, traced: I32 | None = None) -> I32:
    """``n`` lengths of the law, shape (n,); ``traced`` are the trace rows' own. Units: tokens."""
    return _LAWS[spec.kind](spec, n, rng, traced)


def mean_tokens(spec: Lengths) -> float | None:
    """The law's mean, clipping included and rounding left out; ``None`` for a trace. Units: tokens."""
    means: dict[str, Callable[[Any], float | None]] = {
        "fixed": lambda s: float(s.tokens),
        "uniform": lambda s: (s.low + s.high) / 2,
        "lognormal": _clipped_lognormal_mean,
        "trace": lambda s: None,
    }
    return means[spec.kind](spec)


def most_tokens(spec: Lengths) -> int | None:
    """The longest length that the law can give; ``None`` for a trace without ``high``. Units: tokens."""
    most: dict[str, Callable[[Any], int | None]] = {
        "fixed": lambda s: s.tokens,
        "uniform": lambda s: s.high,
        "lognormal": lambda s: s.high,
        "trace": lambda s: s.high,
    }
    return most[spec.kind](spec)


def _clipped_lognormal_mean(spec: LognormalLength) -> float:
    """E[clip(X, l, h)] = l·Φ(a) + e^(μ+σ²/2)·(Φ(b-σ) - Φ(a-σ)) + h·(1-Φ(b)), a, b the bounds' z scores."""
    mu, sigma = math.log(spec.median), spec.sigma

    def phi(z: float) -> float:
        return 0.5 * math.erfc(-z / math.sqrt(2))

    a, b = (math.log(spec.low) - mu) / sigma, (math.log(spec.high) - mu) / sigma
    inside = (
        0.0 if phi(b - sigma) == phi(a - sigma) else math.exp(mu + sigma**2 / 2) * (phi(b - sigma) - phi(a - sigma))
    )
    return spec.low * phi(a) + inside + spec.high * (1 - phi(b))
