"""Runs of decode steps in closed form: step j lasts max(floor, first + j slope), its slope never negative."""

from __future__ import annotations

import numpy as np

from qmeter.simulate.jit import jit


@jit
def under(floor: float, first: float, slope: float, steps: int) -> int:
    """Of ``steps`` steps: how many last less than ``floor``."""
    if first >= floor:
        return 0
    if floor - first > slope * steps:
        return steps
    return min(steps, int(np.ceil((floor - first) / slope)))


@jit
def run_seconds(floor: float, first: float, slope: float, steps: int) -> float:
    """Seconds of ``steps`` steps of a run."""
    below = under(floor, first, slope, steps)
    over = steps - below
    return floor * below + (first + slope * below) * over + slope * over * (over - 1) / 2


@jit
def steps_until(floor: float, first: float, slope: float, seconds: float, most: int) -> int:
    """The fewest steps that last ``seconds`` or more, at most ``most``; from the quadratic, then checked."""
    if seconds <= 0:
        return 0
    if run_seconds(floor, first, slope, most) < seconds:
        return most
    below = under(floor, first, slope, most)
    if seconds <= floor * below:
        guess = seconds / floor
    else:
        rest, head = seconds - floor * below, first + slope * below
        b = head - slope / 2
        guess = below + 2 * rest / (b + np.sqrt(b * b + 2 * slope * rest))
    x = min(most, max(0, int(np.ceil(guess))))
    while x > 0 and run_seconds(floor, first, slope, x - 1) >= seconds:
        x -= 1
    while x < most and run_seconds(floor, first, slope, x) < seconds:
        x += 1
    return x
