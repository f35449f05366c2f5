"""Host and device told apart: what a result says when something held it up."""

import numpy as np
import pytest

from qmeter.simulate.overlap import replay

FULL_S, LAUNCH_S = 0.120, 0.020


def explained(seen, device, host):
    seen, n = np.asarray(seen, dtype=np.float64), len(seen)
    out, fresh = np.empty(n), np.zeros(n, dtype=bool)
    fresh[0] = True
    start = np.concatenate([[0.0], seen[:-1]])
    replay(seen, start, fresh, np.full(n, host), np.full(n, device), 0.0, out)
    return out


def test_full_steps_last_what_the_device_takes():
    out = explained(np.cumsum(np.full(8, FULL_S)), FULL_S, LAUNCH_S)
    assert out[1:] == pytest.approx(FULL_S)


def test_a_stall_is_not_made_up_by_the_steps_behind_it():
    """GIVEN full steps of which one was held up THEN those behind it are explained by the device's time, each.

    A device thought to have gone on meanwhile would be ahead for ever: each later step would look longer than it was,
    and the fit would make full steps slower than they are.
    """
    took = np.full(10, FULL_S)
    took[4] += 0.110
    out = explained(np.cumsum(took), FULL_S, LAUNCH_S)
    assert out[4] == pytest.approx(FULL_S), "the held-up one is not explained"
    assert out[5:] == pytest.approx(FULL_S)


def test_a_delay_shorter_than_a_launch_does_not_move_the_devices_end():
    """GIVEN a full step seen late by less than a launch THEN the host may have been slow: the next comes sooner."""
    took = np.full(10, FULL_S)
    took[4], took[5] = FULL_S + 0.010, FULL_S - 0.010
    out = explained(np.cumsum(took), FULL_S, LAUNCH_S)
    assert out[5] == pytest.approx(FULL_S - 0.010) and out[6:] == pytest.approx(FULL_S)


def test_a_result_that_waited_for_the_host_says_nothing_of_the_device():
    """GIVEN launches slower than the device THEN a late result does not move the device's end."""
    took = np.full(10, 0.030)
    took[4] += 0.050
    out = explained(np.cumsum(took), 0.004, 0.030)
    assert out[1:-1] == pytest.approx(0.030) and out[-1] < 0.030
