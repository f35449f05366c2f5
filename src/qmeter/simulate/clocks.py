"""The power cap and the clocks that enforce it: from records, and as the simulator counts them.

A GPU that would draw more than its limit lowers its clock. What computes gets longer by 1 / clock, what reads memory
hardly; and since the voltage goes with the clock, a computation costs less energy, by about its square. Firmware
watches an average over a tenth of a second or so: a single prefill may exceed the limit, a row of them may not.

    average(t + s) = P + (average(t) - P) exp(-s / settle)     P: power while a step (or what lay between) lasts
    clock of a step with prefill: the highest at which the average after it is at most the limit

Decodes do not lower the clock: on the shipped records they stay under the limit, and their steps last the same within
a few percent at 1.5 GHz. Their energy is less until the clock has settled back. Thermal limits, which act over
minutes, are not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qmeter.record import CellTables
from qmeter.simulate.jit import jit
from qmeter.simulate.observe import Observed

F64 = NDArray[np.float64]

LAG_S = 0.05
"""What NVML's clock and power are late by: half their refresh period."""
KEPT = 0.985
"""Share of the limit that sustained power settles at: 688 to 693 W of 700 in every saturated cell of four studies."""
SETTLE_S = 0.1
"""Time constant of the average that is held at the limit."""
LEAST_CLOCK = 0.5
"""Lowest clock, as a share of the full one, that the cap enforces."""
HALVINGS = 18
ENERGY_CLOCK = 2.0
"""Energy of work goes with the clock to this power: voltage goes with the clock, energy with its square. Held out by
load on four profiles, with measured clocks, energy is off by 2.7, 2.4, 2.2 and 2.4% with 1, 1.5, 2 and 2.5."""


@jit
def power_of(clock: float, device: float, seconds: float, busy: float, off: float, work: float) -> float:
    """Power of a step of ``seconds``, ``device`` of them on the device; see :func:`capped_clock`. Units: W."""
    return (busy * device + off * (seconds - device) + work * clock * clock) / seconds


@jit
def capped_clock(average: float, limit: float, settle: float, steady: float, clocked: float, least: float, busy: float,
                 off: float, work: float) -> float:  # fmt: skip
    """The highest clock (share of the full one) at which the average power after a step is at most ``limit``.

    Args:
        average: power averaged up to the step. Units: W, as ``limit``, as ``busy``, the power of a running device, and
            as ``off``, that of one that waits for a launch.
        settle: time constant of the average. Units: s, as the other times.
        steady, clocked: seconds of the step that the clock does not change, and those it divides.
        least: the step's shortest time, whatever the device does (its launch).
        work: energy at full clock that goes with the clock's square. Units: J.
    """
    low, high, clock = LEAST_CLOCK, 1.0, 1.0
    for _ in range(HALVINGS):
        device = steady + clocked / clock
        seconds = max(device, least)
        power = power_of(clock, device, seconds, busy, off, work)
        if power + (average - power) * np.exp(-seconds / settle) <= limit:
            low = clock
        else:
            high = clock
        if low == high:
            break
        clock = 0.5 * (low + high)
    return low


@jit
def averaged(before: float, power: float, seconds: float, settle: float) -> float:
    """The average power after so many seconds at ``power``."""
    return float(power + (before - power) * np.exp(-seconds / settle))


@jit
def saved_share(clock: float, gone: float, settle: float) -> float:
    """Share of their energy at full clock that decodes saved in ``gone`` seconds after a step at ``clock``.

    The clock is back with the settling time; energy goes with its square.
    """
    return float((1.0 - clock * clock) * (1.0 - np.exp(-gone / settle)) * settle / gone)


def names_of(tables: CellTables, what: str) -> list[str]:
    """Names of the GPUs' series of one kind, e.g. ``sm_clock_hz``."""
    return sorted({str(n) for n in tables.telemetry.series if str(n).startswith("gpu") and str(n).endswith(f".{what}")})


def full_clock_hz(tables: Sequence[CellTables]) -> float | None:
    """The highest SM clock that any of the cells saw; ``None``: no clock was recorded."""
    seen = [t.telemetry.of(n)[1].max() for t in tables for n in names_of(t, "sm_clock_hz") if len(t.telemetry.of(n)[1])]
    return float(max(seen)) if seen and max(seen) > 0 else None


def step_clocks(tables: CellTables, steps: Observed, full_hz: float | None) -> F64:
    """The clock in the middle of each step as a share of the full one; ones where none was recorded. Shape (steps,)."""
    at = steps.start_s + 0.5 * steps.seconds + LAG_S
    seen = [tables.telemetry.of(n) for n in names_of(tables, "sm_clock_hz")]
    clocks = [np.interp(at, t, hz) for t, hz in seen if len(t)]
    if not clocks or full_hz is None:
        return np.ones(len(steps))
    return np.asarray(np.clip(np.mean(clocks, axis=0) / full_hz, LEAST_CLOCK, 1.0), dtype=np.float64)


def power_cap(tables: Sequence[CellTables]) -> tuple[float | None, str | None]:
    """``(watts, why not)``: what all GPUs together settle at under their limit; unknown without limit and clocks."""
    limits = []
    for own in tables:
        series = [own.telemetry.of(n)[1] for n in names_of(own, "power_limit_w")]
        if series and all(len(s) for s in series):
            limits.append(sum(float(np.median(s)) for s in series))
    if not limits:
        return None, "the records hold no power limit"
    if full_clock_hz(tables) is None:
        return None, "the records hold no clocks"
    if max(limits) > 1.01 * min(limits):
        return None, f"the cells ran under limits from {min(limits):.0f} to {max(limits):.0f} W"
    return KEPT * float(np.median(limits)), None
