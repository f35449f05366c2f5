"""Samplers: what proposes the next point to measure, each behind one seam of two methods."""

from qmeter.tune.samplers.base import SAMPLERS, Sampler

__all__ = ["SAMPLERS", "Sampler"]
