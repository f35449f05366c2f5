"""Energy split into prefill, decode and idle by regression over load points.

Model, one row a cell of one deployment: E = a·(prefill tokens) + b·(decode tokens) + P·T, with a, b, P not negative.
A power meter sees all three at once; only cells whose mixes differ (loads, prompt and output lengths) tell them apart,
and the split says so where they do not: a coefficient that the fit puts at its bound of 0 is unknown too, since what it
stands for did cost something. Rows are weighted by 1/E, so that each cell's relative error counts the same.

Bias: the model is linear. Decode energy a token falls with batch size (weights are read once a step for all sequences),
so over loads far apart b is an average, and part of the step's fixed cost lands in P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from qmeter.analysis.stats import F64, spread
from qmeter.record import Quantity

MIN_CELLS = 4
"""Fewest cells for three coefficients and something left to judge the fit by."""
MIN_DISTINCT = 0.05
"""Least share of a column (scaled to unit length) that the other columns do not explain."""
RESAMPLES = 1000
COEFFICIENTS = (("prefill energy", "J/token"), ("decode energy", "J/token"), ("base power", "W"))
"""What is fitted, as messages name it, and its unit."""


@dataclass(frozen=True)
class CellEnergy:
    """One cell's window: energy, and the tokens and time it is attributed to."""

    energy_j: float
    prefill_tokens: float
    decode_tokens: float
    duration_s: float


@dataclass(frozen=True)
class EnergySplit:
    """The three coefficients with bootstrap intervals, and the fit's relative residual (root mean square)."""

    j_per_prefill_token: Quantity
    j_per_decode_token: Quantity
    base_power_w: Quantity
    residual: Quantity


def split_energy(
    cells: Sequence[CellEnergy], *, base_power: Quantity | None = None, confidence: float = 0.95, seed: int = 0
) -> EnergySplit:
    """Fit the split. ``base_power`` fixes P where an idle baseline was measured; else P is fitted too.

    Intervals: bootstrap of the relative residuals (cells' mixes stay as they are), scaled for the degrees of freedom.
    A coefficient at its bound of 0 is unknown; the reason says how much the draws put on it at most (upper end).
    """
    known = base_power.value if base_power is not None else None
    if len(cells) < MIN_CELLS:
        return _unknown(f"needs at least {MIN_CELLS} cells with energy; there are {len(cells)}", base_power)
    energy = np.array([c.energy_j for c in cells])
    if energy.min() <= 0:
        return _unknown("a cell has no energy above 0", base_power)
    columns = np.array([[c.prefill_tokens, c.decode_tokens, c.duration_s] for c in cells]) / energy[:, None]
    target = np.ones(len(cells))
    if known is not None:
        target = target - known * columns[:, 2]
        columns = columns[:, :2]
    alike = _indistinct(columns)
    if alike:
        return _unknown(alike, base_power)
    fit = nnls(columns, target)
    rest = target - columns @ fit
    free = max(1, len(cells) - int((fit > 0).sum()))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        noise = rng.choice(rest - rest.mean(), size=len(rest)) * np.sqrt(len(rest) / free)
        draws.append(nnls(columns, columns @ fit + noise))
    drawn = np.array(draws)
    made = [
        _coefficient(name, unit, float(value), seen, len(cells), confidence)
        for (name, unit), value, seen in zip(COEFFICIENTS, fit, drawn.T, strict=False)  # two of them where P is given
    ]
    power = base_power if known is not None and base_power is not None else made[2]
    residual = Quantity.of(float(np.sqrt((rest @ rest) / free)), "1", n=len(cells))
    return EnergySplit(made[0], made[1], power, residual)


def nnls(columns: F64, target: F64) -> F64:
    """Least squares with coefficients that are not negative, exactly, by trying each set of free coefficients."""
    m = columns.shape[1]
    best, best_error = np.zeros(m), float(target @ target)
    for size in range(1, m + 1):
        for free in combinations(range(m), size):
            part = columns[:, free]
            found = np.linalg.lstsq(part, target, rcond=None)[0]
            if (found < 0).any():
                continue
            rest = target - part @ found
            error = float(rest @ rest)
            if error < best_error:
                best_error = error
                best = np.zeros(m)
                best[list(free)] = found
    return best


def _coefficient(name: str, unit: str, value: float, draws: F64, n: int, confidence: float) -> Quantity:
    low, high = spread(draws, confidence)
    if value <= 0.0:
        most = f", which put at most {high:.2g} {unit} on it" if high > 0 else ""
        return Quantity.unknown(unit, f"{name} cannot be told from 0 at these loads{most}", n=n)
    return Quantity.of(value, unit, low=min(low, value), high=max(high, value), n=n)


def _indistinct(columns: F64) -> str | None:
    names = ("prefill tokens", "decode tokens", "time")
    unit = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    for j in range(unit.shape[1]):
        others = np.delete(unit, j, axis=1)
        fitted = others @ np.linalg.lstsq(others, unit[:, j], rcond=None)[0]
        if float(np.linalg.norm(unit[:, j] - fitted)) < MIN_DISTINCT:
            with_ = " and ".join(n for k, n in enumerate(names[: unit.shape[1]]) if k != j)
            return f"{names[j]} rise together with {with_} in these cells: vary prompt and output lengths"
    return None


def _unknown(why: str, base_power: Quantity | None) -> EnergySplit:
    none = Quantity.unknown("J/token", why)
    return EnergySplit(none, none, base_power or Quantity.unknown("W", why), Quantity.unknown("1", why))
