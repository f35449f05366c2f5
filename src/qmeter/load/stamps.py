"""Receive stamps: the kernel's software stamp of each read, brought from the wall clock to CLOCK_MONOTONIC.

``SO_TIMESTAMPING`` with software receive stamps names the moment the *last* segment of a read entered the host's
network stack, on CLOCK_REALTIME, however late the process came to read it. The two clocks tick alike (NTP slews both);
only their offset can step, so :class:`ClockAnchors` notes the offset through the run and converts by the anchors either
side of each read. Where the socket gives no stamp the user-space stamp, taken right after the read, stands in.
"""

from __future__ import annotations

import socket
import struct
import time

import numpy as np
from numpy.typing import NDArray

SO_TIMESTAMPING: int = getattr(socket, "SO_TIMESTAMPING", 37)
"""``SO_TIMESTAMPING`` (and the control message's type) on Linux; 37 on every architecture qMeter runs on."""

RX_SOFTWARE = (1 << 3) | (1 << 4)
"""SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE."""

ANCILLARY_BYTES = socket.CMSG_SPACE(48)
"""Room for one ``struct scm_timestamping`` (three timespecs)."""

STEP_NS = 50_000
"""Anchors whose offsets differ by more than this (ns) tell of a wall-clock step between them."""

unpack_timespec = struct.Struct("@qq").unpack_from
"""(seconds, nanoseconds) of the first timespec of a control message: the software stamp."""

I64 = NDArray[np.int64]


def enable(sock: socket.socket) -> bool:
    """Ask for kernel receive stamps on ``sock``; ``False`` where the host refuses."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE)
    except OSError:
        return False
    return True


class StampKeeper:
    """Keeps the host's stamping switched on for as long as it is open.

    The kernel stamps no packet while no socket asks for it, and switches stamping on (and off) from a work queue, some
    milliseconds after the first socket asked. A connected pair that asks from the start makes sure of the first reads.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._receiver = socket.create_connection(listener.getsockname())
            self._sender, _ = listener.accept()
        self._receiver.settimeout(1.0)
        self._asked = enable(self._receiver)

    def wait(self, limit_s: float = 0.5) -> bool:
        """Wait until stamps come; ``False`` where the host gives none within ``limit_s``."""
        until = time.monotonic() + limit_s
        while self._asked and time.monotonic() < until:
            self._sender.send(b"x")
            _, ancillary, _, _ = self._receiver.recvmsg(1, ANCILLARY_BYTES)
            if ancillary:
                return True
            time.sleep(0.001)
        return False

    def close(self) -> None:
        """Let go; the kernel may switch stamping off."""
        self._receiver.close()
        self._sender.close()


def offset_ns() -> tuple[int, int]:
    """``(monotonic_ns, realtime_ns - monotonic_ns)``, the tightest of five bracketed readings."""
    best: tuple[int, int, int] | None = None
    for _ in range(5):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, before, real - (before + after) // 2)
    assert best is not None
    return best[1], best[2]


class ClockAnchors:
    """Offsets between CLOCK_REALTIME and CLOCK_MONOTONIC, noted through a run.

    Call :meth:`note` at the start, every 100 ms or so, and at the end.
    """

    def __init__(self) -> None:
        self._at: list[int] = []
        self._offset: list[int] = []

    def note(self) -> None:
        """Take one anchor now."""
        at, offset = offset_ns()
        self._at.append(at)
        self._offset.append(offset)

    def extend(self, anchors: list[tuple[int, int]]) -> None:
        """Add ``(monotonic_ns, offset_ns)`` pairs noted elsewhere (tests, another process)."""
        for at, offset in anchors:
            self._at.append(at)
            self._offset.append(offset)

    def to_monotonic(self, kernel_ns: I64, user_ns: I64) -> tuple[I64, NDArray[np.int8]]:
        """Best stamp of each read and which clock it is.

        Args:
            kernel_ns: kernel stamps on CLOCK_REALTIME, 0 where there was none; shape (n,).
            user_ns: user-space stamps on CLOCK_MONOTONIC, taken after the read; shape (n,).

        Returns:
            Stamps on CLOCK_MONOTONIC in ns and ``clock`` (0 kernel, 1 user). A kernel stamp that no anchor explains
            (it would lie after the read, or over a minute before it) is replaced by the user stamp.
        """
        at, offset = np.asarray(self._at, np.int64), np.asarray(self._offset, np.int64)
        if not len(at) or not len(kernel_ns):
            return user_ns.copy(), np.ones(len(user_ns), np.int8)
        after = np.clip(np.searchsorted(at, user_ns), 0, len(at) - 1)
        before = np.clip(after - 1, 0, len(at) - 1)
        stamp = kernel_ns - offset[before]
        # A step between the anchors: the stamp was taken before the read, so take the later of the possible times.
        stepped = np.abs(offset[after] - offset[before]) > STEP_NS
        other = kernel_ns - offset[after]
        slack = 20_000
        use_other = stepped & ((stamp > user_ns + slack) | ((other <= user_ns + slack) & (other > stamp)))
        stamp = np.where(use_other, other, stamp)
        good = (kernel_ns > 0) & (stamp <= user_ns + slack) & (stamp > user_ns - 60_000_000_000)
        return np.where(good, np.minimum(stamp, user_ns), user_ns), np.where(good, 0, 1).astype(np.int8)
