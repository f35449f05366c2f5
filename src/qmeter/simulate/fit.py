"""Non-negative, monotone fits of step time: hinge bases, least squares on ratios, bootstrap by blocks of steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import MissingExtra
from qmeter.simulate.observe import Observed

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BLOCK_STEPS = 64
"""Steps resampled together: neighbours are alike, so single steps would make the intervals too narrow."""
ROUNDS = 4
"""Rounds of down-weighting outliers."""
FAR = 0.25
"""A step whose time is off by more than this share counts less (Huber's weight)."""
ANCHOR = 1.0
"""Squared relative errors of steps that an anchored coefficient outweighs when it is off by its whole value."""


@dataclass(frozen=True)
class Basis:
    """Columns of the design: a decode step's table, a mixed step's table, KV, pairs, chunks.

    Attributes:
        decode_knots: numbers of sequences where a decode step's time may bend.
        mixed_knots: numbers of tokens where a mixed step's time may bend.
        pad: CUDA-graph sizes that a decode batch is padded to; empty: none.
        tile: rows of a matrix tile: a mixed step takes as long as its tokens rounded up to whole tiles (1: as is).
        mixed_clock: at each mixed knot, the share of the time that the clock divides; empty: unknown.
    """

    decode_knots: tuple[float, ...]
    mixed_knots: tuple[float, ...]
    pad: tuple[int, ...] = ()
    tile: int = 1
    mixed_clock: tuple[float, ...] = ()

    @property
    def columns(self) -> int:
        """Number of coefficients."""
        return len(self.decode_knots) + len(self.mixed_knots) + 3

    def design(self, steps: Observed) -> F64:
        """The design matrix, shape (steps, columns); every entry is non-negative."""
        pure = steps.prefill == 0
        size = padded_sizes(steps.decodes, self.pad)
        decode = hinges(size, self.decode_knots) * pure[:, None]
        tokens = tiled(steps.decodes + steps.prefill, self.tile)
        mixed = hinges(tokens, self.mixed_knots) * (~pure)[:, None]
        return np.column_stack([decode, mixed, steps.kv, steps.pairs, steps.chunks])

    def tables(self, coefficients: F64, sequences: int, tokens: int) -> tuple[F64, F64]:
        """Decode and mixed tables, index 0..sequences and 0..tokens."""
        d, m = len(self.decode_knots), len(self.mixed_knots)
        sizes = padded_sizes(np.arange(sequences + 1), self.pad)
        decode = hinges(sizes, self.decode_knots) @ coefficients[:d]
        mixed = hinges(tiled(np.arange(tokens + 1), self.tile), self.mixed_knots) @ coefficients[d : d + m]
        return decode, mixed

    def clocked(self, mixed: F64) -> F64:
        """Of each entry of a mixed table, the seconds that the clock divides; zeros where that is unknown."""
        if not self.mixed_clock:
            return np.zeros(len(mixed))
        tokens = tiled(np.arange(len(mixed)), self.tile)
        return np.asarray(mixed * np.interp(tokens, self.mixed_knots, self.mixed_clock), dtype=np.float64)


def padded_sizes(batches: I64, sizes: tuple[int, ...]) -> F64:
    """The captured size that each batch runs with; itself above the largest."""
    if not sizes:
        return batches.astype(np.float64)
    table = np.asarray(sizes, dtype=np.int64)
    at = np.searchsorted(table, batches)
    return np.where(at < len(table), table[np.minimum(at, len(table) - 1)], batches).astype(np.float64)


def tiled(tokens: I64 | F64, tile: int) -> F64:
    """Tokens rounded up to whole tiles; below one tile to a power of two, since there are kernels with smaller ones."""
    n = np.maximum(np.asarray(tokens, dtype=np.float64), 1.0)
    if tile <= 1:
        return n
    return np.where(n <= tile, np.exp2(np.ceil(np.log2(n))), np.ceil(n / tile) * tile)


def hinges(x: F64, knots: tuple[float, ...]) -> F64:
    """A constant and one ramp a segment: non-negative coefficients make a non-decreasing piecewise-linear curve.

    The last ramp goes on beyond the last knot: the table keeps its last slope there.
    """
    columns = [np.ones(len(x))]
    for k in range(len(knots) - 1):
        low, high = knots[k], knots[k + 1]
        top = np.inf if k == len(knots) - 2 else 1.0
        columns.append(np.clip((x - low) / (high - low), 0.0, top))
    return np.column_stack(columns)


def knots_for(values: F64, weights: F64, most: int, least: float = 0.02) -> tuple[float, ...]:
    """Where a curve may bend: values seen, spaced geometrically, each segment with at least a share of the weight."""
    distinct = np.unique(values)
    if len(distinct) <= 2:
        return tuple(float(v) for v in distinct)
    low, high = float(distinct[0]), float(distinct[-1])
    asked = np.unique(np.geomspace(max(low, 1.0), high, most))
    chosen = [low]
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    for knot in asked[1:-1]:
        nearest = float(distinct[np.argmin(np.abs(distinct - knot))])
        inside = _share(values[order], share, chosen[-1], nearest)
        if nearest > chosen[-1] and inside >= least and _share(values[order], share, nearest, high) >= least:
            chosen.append(nearest)
    return (*chosen, high)


def _share(ordered: F64, share: F64, low: float, high: float) -> float:
    a, b = np.searchsorted(ordered, low, side="right") - 1, np.searchsorted(ordered, high, side="right") - 1
    return float(share[b] - share[a]) if b >= 0 and a >= 0 else 0.0


def nonnegative(gram: F64, moment: F64) -> F64:
    """Coefficients >= 0 that minimise the quadratic form (Lawson-Hanson on a square root of the Gram matrix).

    What the data never has (a zero on the diagonal) gets 0.

    Raises:
        MissingExtra: scipy is not installed.
    """
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise MissingExtra("simulate", "fitting a step model") from error
    used = np.flatnonzero(np.diag(gram) > 0)
    found = np.zeros(len(moment))
    if len(used) < len(moment):
        found[used] = nonnegative(gram[np.ix_(used, used)], moment[used]) if len(used) else 0.0
        return found
    scale = np.sqrt(np.diag(gram))
    scaled = gram / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(scaled)
    keep = values > values.max() * 1e-11
    root = (vectors[:, keep] * np.sqrt(values[keep])).T
    right = (vectors[:, keep] / np.sqrt(values[keep])).T @ (moment / scale)
    solution, _ = nnls(root, right, maxiter=50 * len(moment))
    return np.asarray(solution / scale, dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """Coefficients, their bootstrap draws (shape (draws, columns)), and measured / modelled step times."""

    coefficients: F64
    draws: F64
    ratios: F64


def fit_steps(design: F64, seconds: F64, *, draws: int, seed: int, anchor: tuple[int, float] | None = None) -> Fit:
    """Fit ``seconds`` = design @ coefficients on relative errors, outliers down-weighted, then bootstrap.

    ``anchor``: a column and what its coefficient should be, where the data hardly tell it from others.
    The coefficients are scaled so that the modelled total equals the measured one: means are right, and what the curve
    does not explain is in the ratios.
    """
    weight = np.ones(len(seconds))
    scaled = design / seconds[:, None]
    coefficients = np.zeros(design.shape[1])
    gram, moment = np.zeros((design.shape[1], design.shape[1])), np.zeros(design.shape[1])
    if anchor is not None:
        column, value = anchor
        gram[column, column], moment[column] = ANCHOR / value**2, ANCHOR / value
    for _ in range(ROUNDS):
        weighted = scaled * weight[:, None]
        coefficients = nonnegative(weighted.T @ scaled + gram, weighted.sum(axis=0) + moment)
        off = np.abs(scaled @ coefficients - 1.0)
        weight = np.where(off > FAR, FAR / np.maximum(off, 1e-12), 1.0)
    scale = _scale(design, seconds, coefficients)
    coefficients = coefficients * scale
    modelled = np.maximum(design @ coefficients, 1e-9)
    sampled = _bootstrap(design, scaled, seconds, weight, (gram, moment), draws, seed)
    return Fit(coefficients, sampled, seconds / modelled)


def _scale(design: F64, seconds: F64, coefficients: F64) -> float:
    total = float((design @ coefficients).sum())
    return float(seconds.sum()) / total if total > 0 else 1.0


def _bootstrap(
    design: F64, scaled: F64, seconds: F64, weight: F64, prior: tuple[F64, F64], draws: int, seed: int
) -> F64:
    blocks = np.array_split(np.arange(len(seconds)), max(2, len(seconds) // BLOCK_STEPS))
    grams = np.array([(scaled[b] * weight[b, None]).T @ scaled[b] for b in blocks])
    moments = np.array([(scaled[b] * weight[b, None]).sum(axis=0) for b in blocks])
    sums, totals = np.array([design[b].sum(axis=0) for b in blocks]), np.array([seconds[b].sum() for b in blocks])
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(draws):
        times = np.bincount(rng.integers(0, len(blocks), len(blocks)), minlength=len(blocks)).astype(np.float64)
        found = nonnegative(np.tensordot(times, grams, 1) + prior[0], times @ moments + prior[1])
        modelled = float((times @ sums) @ found)
        out.append(found * (float(times @ totals) / modelled if modelled > 0 else 1.0))
    return np.array(out).reshape(draws, design.shape[1])
