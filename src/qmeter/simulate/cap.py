"""The power cap in the kernel: which clock it leaves a step with prefill (:mod:`qmeter.simulate.clocks` says why)."""

from __future__ import annotations

from qmeter.simulate.clocks import averaged, capped_clock, power_of, saved_share
from qmeter.simulate.jit import jit
from qmeter.simulate.state import (
    BUSY_W,
    CAP_AT,
    CAP_AVERAGE,
    CAP_J,
    CAP_W,
    CLOCK,
    DEC,
    DEVICE,
    F64,
    IDLE_W,
    LAUNCH_W,
    SETTLE,
    TAIL_S,
)


@jit
def waited(floats: F64, c: F64, host: float, device: float) -> float:
    """Seconds in which the device waits for the launch of the step about to be launched."""
    return float(max(0.0, floats[DEC] + host + c[TAIL_S] - max(floats[DEVICE], floats[DEC]) - device))


@jit
def clock_of_step(floats: F64, c: F64, host: float, device: float, clocked: float, work: float) -> tuple[float, float]:
    """``(clock, joules)``: of the step about to be launched, and what the decodes before it saved at a lower clock.

    The average power after it goes into the replica's floats: from idle power at the start, over the decodes since the
    last such step, then over what nothing ran, then over the step.

    Args:
        host, device: the step's seconds at full clock; ``clocked`` of the device's are divided by the clock.
        work: joules at full clock, beside the power of any running step.
    """
    begin = max(floats[DEVICE], floats[DEC])
    if floats[CAP_AVERAGE] == 0.0:
        floats[CAP_AVERAGE] = c[IDLE_W]
    idle, saved = max(0.0, floats[DEC] - max(floats[DEVICE], floats[CAP_AT])), 0.0
    ran = begin - floats[CAP_AT] - idle
    if ran > 0.0:
        if floats[CLOCK] < 1.0 and floats[CAP_AT] > 0.0:
            saved = floats[CAP_J] * saved_share(floats[CLOCK], ran, c[SETTLE])
        floats[CAP_AVERAGE] = averaged(floats[CAP_AVERAGE], c[BUSY_W] + (floats[CAP_J] - saved) / ran, ran, c[SETTLE])
    if idle > 0.0:
        floats[CAP_AVERAGE] = averaged(floats[CAP_AVERAGE], c[IDLE_W], idle, c[SETTLE])
    least, steady = floats[DEC] + host + c[TAIL_S] - begin, device - clocked
    clock = capped_clock(floats[CAP_AVERAGE], c[CAP_W], c[SETTLE], steady, clocked, least, c[BUSY_W], c[LAUNCH_W], work)
    device = steady + clocked / clock
    seconds = max(device, least)
    power = power_of(clock, device, seconds, c[BUSY_W], c[LAUNCH_W], work)
    floats[CAP_AVERAGE] = averaged(floats[CAP_AVERAGE], power, seconds, c[SETTLE])
    floats[CAP_AT], floats[CAP_J], floats[CLOCK] = begin + seconds, 0.0, clock
    return clock, saved
