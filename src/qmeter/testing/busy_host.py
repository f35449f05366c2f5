"""Whether a host is too busy, or its cores at present too slow, to measure a load client on.

A guest does not always count what its host takes (steal), and a process that sleeps is woken ahead of others: neither
`/proc/stat` nor a late sleep shows what a busy client and server would suffer. A loop that spins as they do shows it.
A core that shares its execution units with a neighbour loses no time, but works more slowly: what a bare read costs
at the same moment shows that.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from qmeter.load.spool import READ_BYTES
from qmeter.load.stamps import ANCILLARY_BYTES, enable

GAP_S = 0.25e-3
"""A pause between two readings of the clock longer than this was somebody else's. Units: s."""
STOLEN_SHARE = 0.02
"""Above this share a core is no place for a p99: twice as many moments lie in somebody else's time as a p99 leaves out.
(0.5 to 1.0% seen on a quiet VM of two cores, 28 to 38% beside one process that spins.)"""

_SPIN = """
import json, os, sys, time
core, seconds, gap = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
os.sched_setaffinity(0, {core})
sys.stdin.readline()
now = time.monotonic
began = last = now()
end, lost, longest = began + seconds, 0.0, 0.0
while last < end:
    t = now()
    if t - last > gap:
        lost += t - last
        longest = max(longest, t - last)
    last = t
print(json.dumps([lost, longest, last - began]))
"""


@dataclass(frozen=True)
class Stolen:
    """What was missed on the worst of the cores looked at.

    Attributes:
        share: part of the time that lay in pauses of over :data:`GAP_S`, 0..1.
        longest_s: the longest of them.
    """

    share: float
    longest_s: float

    @property
    def disturbed(self) -> bool:
        """Whether this host was too busy to measure a client's p99 on it."""
        return self.share > STOLEN_SHARE

    def __str__(self) -> str:
        return (
            f"a loop that only reads the clock missed {self.share:.1%} of a core's time, up to "
            f"{self.longest_s * 1e3:.1f} ms at once"
        )


def stolen(cores: Sequence[int], seconds: float = 1.0) -> Stolen:
    """Spin on each of the cores at once for so long; the worst of them.

    Args:
        cores: cores by number, each of this process's own affinity; at least one.

    Raises:
        RuntimeError: a loop ended without its answer.
    """
    argv = [sys.executable, "-I", "-S", "-c", _SPIN]
    loops = [
        subprocess.Popen([*argv, str(core), str(seconds), str(GAP_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for core in cores
    ]
    worst = Stolen(0.0, 0.0)
    try:
        for loop in loops:
            assert loop.stdin is not None
            with suppress(BrokenPipeError):  # it has ended already: its return code says so
                loop.stdin.write(b"\n")
                loop.stdin.flush()
        for core, loop in zip(cores, loops, strict=True):
            answer, _ = loop.communicate(timeout=60 + 10 * seconds)
            if loop.returncode != 0:
                raise RuntimeError(f"the loop on core {core} ended with {loop.returncode}")
            lost_s, longest_s, whole_s = json.loads(answer)
            worst = Stolen(max(worst.share, lost_s / whole_s), max(worst.longest_s, longest_s))
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    return worst


def bare_read_s(connections: int = 128, rounds: int = 60) -> float:
    """CPU time that this core spends at this moment on one read as any Python client must do it. Units: s.

    That is one event out of epoll and one ``recvmsg`` of 200 bytes and its kernel stamp over loopback, nothing parsed
    or kept. qMeter's client took 2.0 to 2.6 times this an event, sends and all, on a quiet host and on one whose cores
    were slow; beside a process that spins on its core, 1.7 to 2.0 (its idle spinning is counted by the clock).
    """
    spent_ns = reads = 0
    message = bytes(200)
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=connections))
        epoll = stack.enter_context(select.epoll())
        writers, readers = [], {}
        for _ in range(connections):
            writer = stack.enter_context(socket.create_connection(server.getsockname()))
            reader = stack.enter_context(server.accept()[0])
            writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable(reader)
            reader.setblocking(False)
            epoll.register(reader.fileno(), select.EPOLLIN)
            writers.append(writer)
            readers[reader.fileno()] = reader
        for _ in range(rounds):
            for writer in writers:
                writer.send(message)
            began_ns = time.thread_time_ns()
            while events := epoll.poll(0, 256):
                for fd, _ in events:
                    readers[fd].recvmsg(READ_BYTES, ANCILLARY_BYTES)
                    reads += 1
            spent_ns += time.thread_time_ns() - began_ns
    return spent_ns / reads / 1e9
