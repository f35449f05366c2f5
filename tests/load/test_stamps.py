"""Kernel stamps: they name the arrival, not the read; wall-clock steps do not move them."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest

from qmeter.load import stamps
from qmeter.load.stamps import ClockAnchors

S = 1_000_000_000
I64 = np.int64


def array(*values: int) -> np.ndarray:
    return np.asarray(values, I64)


def test_a_late_read_still_has_the_time_of_arrival() -> None:
    keeper = stamps.StampKeeper()
    if not keeper.wait():
        pytest.skip("this host gives no software receive stamps")
    listener = socket.create_server(("127.0.0.1", 0))
    receiver = socket.create_connection(listener.getsockname())
    sender, _ = listener.accept()
    with listener, receiver, sender:
        assert stamps.enable(receiver)
        anchors = ClockAnchors()
        anchors.note()
        before = time.monotonic_ns()
        sender.send(b"x")
        time.sleep(0.05)
        _, ancillary, _, _ = receiver.recvmsg(100, stamps.ANCILLARY_BYTES)
        read = time.monotonic_ns()
        anchors.note()
        seconds, nanoseconds = stamps.unpack_timespec(ancillary[0][2])
        at, clock = anchors.to_monotonic(array(seconds * S + nanoseconds), array(read))
    keeper.close()
    assert clock[0] == 0
    assert before - 20_000 <= at[0] < read - 30_000_000


def test_stamps_are_converted_by_the_anchors_around_them() -> None:
    anchors = ClockAnchors()
    anchors.extend([(0, 1000 * S), (S, 1000 * S + 10), (2 * S, 1000 * S + 20)])
    at, clock = anchors.to_monotonic(array(1000 * S + 500_000_000), array(500_020_000))
    assert (at[0], clock[0]) == (500_000_000, 0)


@pytest.mark.parametrize("step", [-3 * S, 3 * S, 200_000, -200_000])
def test_a_wall_clock_step_moves_no_stamp(step: int) -> None:
    # GIVEN the wall clock steps at t = 1.05 s, between the anchors at 1.0 and 1.1 s
    anchors = ClockAnchors()
    offsets = [(int(t * S), 1000 * S + (step if t > 1.05 else 0)) for t in np.arange(0.0, 2.0, 0.1)]
    anchors.extend(offsets)
    true = array(*(int(t * S) for t in (0.5, 1.02, 1.08, 1.5)))
    wall = true + 1000 * S + np.where(true > int(1.05 * S), step, 0)
    # WHEN reads come 30 µs after each
    at, clock = anchors.to_monotonic(wall, true + 30_000)
    # THEN every stamp is within its read's 30 µs of the truth, or is the user stamp
    assert (np.abs(at - true) <= 30_000).all()
    assert clock[0] == clock[3] == 0


def test_nonsense_and_absent_stamps_fall_back_to_the_user_clock() -> None:
    anchors = ClockAnchors()
    anchors.extend([(0, 1000 * S)])
    user = array(5 * S, 5 * S, 100 * S)
    at, clock = anchors.to_monotonic(array(0, 1007 * S, 1001 * S), user)
    assert list(clock) == [1, 1, 1]
    assert list(at) == list(user)
