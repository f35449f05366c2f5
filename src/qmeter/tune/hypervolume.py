"""Hypervolume, exactly: the part of a box that no measured point dominates, as boxes that do not overlap.

Every objective is a loss (lower is better). A point p dominates all z >= p; what is left between floor and reference is
kept as disjoint boxes, split at each new point. The hypervolume is what was taken away; the expected hypervolume
improvement of an independent normal prediction is the sum over boxes of a product of one-dimensional integrals
(Emmerich et al. 2006), exact for any number of objectives.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


class Partition:
    """What no point added so far dominates, below ``reference``.

    Args:
        reference: losses from which a point no longer counts, shape (m,).
        floor: the losses that bound the volume from below (an ideal that nothing beats), shape (m,).
    """

    def __init__(self, reference: F64, floor: F64):
        self.reference, self.floor = np.asarray(reference, float), np.asarray(floor, float)
        self.low, self.high = self.floor[None, :].copy(), self.reference[None, :].copy()
        self.whole = float(np.prod(np.maximum(self.reference - self.floor, 0.0)))

    @property
    def volume(self) -> float:
        """The hypervolume: what the points dominate between floor and reference."""
        return self.whole - float(np.prod(self.high - self.low, axis=1).sum())

    def add(self, losses: F64) -> bool:
        """Take away what ``losses`` dominates; whether that was anything."""
        p = np.maximum(np.asarray(losses, float), self.floor)
        hit = np.all(p < self.high, axis=1)
        if not hit.any():
            return False
        low, high = self.low[hit], self.high[hit]
        kept_low, kept_high = [self.low[~hit]], [self.high[~hit]]
        rest = low.copy()
        for j in range(len(p)):
            piece_low, piece_high = rest.copy(), high.copy()
            piece_high[:, j] = np.minimum(p[j], high[:, j])
            some = piece_high[:, j] > piece_low[:, j]
            kept_low.append(piece_low[some])
            kept_high.append(piece_high[some])
            rest[:, j] = np.maximum(rest[:, j], p[j])
        self.low, self.high = np.concatenate(kept_low), np.concatenate(kept_high)
        return True

    def expected_improvement(self, mean: F64, sigma: F64, *, most_values: int = 4_000_000) -> F64:
        """Expected hypervolume gained by each prediction. Shapes: ``mean``, ``sigma`` (n, m); returns (n,)."""
        n, m = mean.shape
        parts = []
        for j in range(m):
            edges, where = np.unique(np.concatenate([self.low[:, j], self.high[:, j]]), return_inverse=True)
            z = (edges[None, :] - mean[:, j : j + 1]) / sigma[:, j : j + 1]
            area = sigma[:, j : j + 1] * (z * _cdf(z) + _pdf(z))
            parts.append((area, where[: len(self.low)], where[len(self.low) :]))
        out = np.zeros(n)
        step = max(1, most_values // max(n, 1))
        for at in range(0, len(self.low), step):
            product = np.ones((n, min(step, len(self.low) - at)))
            for area, low, high in parts:
                product *= area[:, high[at : at + step]] - area[:, low[at : at + step]]
            out += product.sum(axis=1)
        return out


def hypervolume(losses: F64, reference: F64, floor: F64) -> float:
    """The volume between floor and reference that rows of ``losses`` dominate. Shape (n, m)."""
    made = Partition(reference, floor)
    for row in losses:
        made.add(row)
    return made.volume


def front_mask(losses: F64) -> NDArray[np.bool_]:
    """Which rows no other row dominates (equal rows do not dominate each other). Shape (n, m) → (n,)."""
    n = len(losses)
    keep = np.ones(n, dtype=bool)
    for i in range(n):
        if keep[i]:
            worse = np.all(losses >= losses[i], axis=1) & np.any(losses > losses[i], axis=1)
            keep &= ~worse
    return keep


def _pdf(z: F64) -> F64:
    return np.asarray(np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi), dtype=np.float64)


def _cdf(z: F64) -> F64:
    """The standard normal's distribution function."""
    from scipy.special import ndtr

    return np.asarray(ndtr(z), dtype=np.float64)


def normal_quantile(p: float) -> float:
    """The standard normal's quantile."""
    return NormalDist().inv_cdf(p)
