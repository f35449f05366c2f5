"""What a loop is told to do, and what it says it saw."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class Outcome(enum.IntEnum):
    """How a request ended, as far as the loop can see."""

    UNSENT = 0
    COMPLETE = 1
    EOF = 2
    RESET = 3
    STALL = 4
    TIMEOUT = 5
    CONNECT = 6
    CANCELLED = 7
    GARBAGE = 8


@dataclass(frozen=True)
class LoopPlan:
    """What one loop has to do. Times in ns from the load's start.

    Attributes:
        payload: request number (in this loop) → its bytes.
        count: requests.
        send_ns: open loop: when each is due, ascending; ``None`` for a closed loop.
        concurrency, think_ns: closed loop.
        send_until_ns: closed loop: no request starts after this.
        give_up_ns: everything still in flight is cancelled now.
        stall_ns, timeout_ns: limits of one request.
        open_ahead: sockets kept ready.
        spin_ns: how long before a send the loop stops sleeping and spins.
        nap_ns: while tokens stream in, how long the loop lets reads gather (0: it wakes for each).
        keep_alive: whether a connection carries more than one request.
    """

    payload: Callable[[int], memoryview | bytes]
    count: int
    send_ns: Sequence[int] | None
    concurrency: int
    think_ns: int
    send_until_ns: int
    give_up_ns: int
    stall_ns: int
    timeout_ns: int
    open_ahead: int
    spin_ns: int
    nap_ns: int
    keep_alive: bool


@dataclass
class LoopResult:
    """What the loop saw: per request, absolute CLOCK_MONOTONIC in ns (-1: never), and its own load."""

    intended_ns: list[int]
    dispatched_ns: list[int]
    sent_ns: list[int]
    end_ns: list[int]
    outcome: list[int]
    errors: dict[int, str] = field(default_factory=dict)
    client_faults: dict[str, int] = field(default_factory=dict)
    retried: int = 0
    idle_spin_ns: int = 0
    lag_buckets: list[int] = field(default_factory=lambda: [0] * 2000)
    """Loop iterations by length, 50 µs a bucket: how long the loop was away from its epoll."""
