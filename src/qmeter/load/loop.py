"""The client's event loop: sends on an absolute schedule, stamps and spools what arrives, understands no token.

One thread, one epoll. While nothing is due it sleeps in the kernel to within the plan's ``spin_ns`` of the next
send and spins the rest; between any two reads it looks whether a send is due. All that
can wait (parsing, token counts) waits.
"""

from __future__ import annotations

import errno
import heapq
import select
import ssl
import time
from collections import deque
from collections.abc import Callable

from qmeter.load.connection import Connection, Route, State
from qmeter.load.http import BadResponse, ResponseReader
from qmeter.load.plan import LoopPlan, LoopResult, Outcome
from qmeter.load.pool import Pool, describe
from qmeter.load.spool import HEADER, PIECE_BYTES, READ_BYTES, Spool
from qmeter.load.stamps import ANCILLARY_BYTES, ClockAnchors, unpack_timespec

CHORE_NS = 20_000_000
"""Timeouts are looked at this often."""
ANCHOR_NS = 100_000_000
"""The clock offset is noted and progress reported this often."""
CONNECT_NS = 30_000_000_000
"""A connection that is not ready after this long (or the request's own timeout, if shorter) has failed."""
BACKOFF_NS = 100_000_000
"""In a closed loop a slot whose request failed waits this long, or as Retry-After says, up to
:data:`RETRY_AFTER_NS`."""
RETRY_AFTER_NS = 5_000_000_000
STALE_NS = 500_000_000
"""A connection idle for longer may have been closed by the server unseen: its request is sent once more."""
LOOK_NS = 1_000_000
"""While requests are in flight the loop looks at its sockets at least this often: when it did is what bounds how early
events that were read together may have come."""
NEVER = 1 << 62
MOST_EVENTS = 256


class Loop:
    """Drives one :class:`LoopPlan`. Call :meth:`warm`, then :meth:`run`."""

    def __init__(self, plan: LoopPlan, route: Route, spool: Spool, *, watch_fd: int | None = None,
                 on_progress: Callable[[int, int, int], None] | None = None):  # fmt: skip
        n = plan.count
        self._plan, self._spool = plan, spool
        self.result = LoopResult([-1] * n, [-1] * n, [-1] * n, [-1] * n, [0] * n)
        self.anchors = ClockAnchors()
        self._pool = Pool(route, self._give, self._fail_waiting, self.result.client_faults)
        self._watch_fd = watch_fd
        if watch_fd is not None:
            self._pool.epoll.register(watch_fd, select.EPOLLIN | select.EPOLLHUP)
        self._on_progress = on_progress
        self._waiting: deque[int] = deque()
        self._retried: set[int] = set()
        self._deadlines: list[tuple[int, int]] = []
        self._carrier: dict[int, Connection] = {}
        self._slots: list[int] = []
        self._next = self._ended = self._failed = self._in_flight = 0
        self._start_ns = 0
        self._due = self._chores_at = self._anchor_at = self._give_up_at = NEVER
        self._sending = False
        self.orphaned = False

    # -- before the run ------------------------------------------------------------------------------------------

    def warm(self, limit_s: float = 10.0) -> int:
        """Open the sockets ahead; return how many are ready (fewer than asked: the server took no more in time)."""
        target = min(self._plan.open_ahead, self._plan.count)
        until = time.monotonic_ns() + int(limit_s * 1e9)
        pool = self._pool
        while len(pool.idle) < target and time.monotonic_ns() < until and not self.orphaned:
            while pool.opening < 64 and pool.spare < target and pool.may_open:
                pool.open()
            if not pool.opening:
                break  # nobody listens: the requests will say so, each for itself
            self._handle(pool.epoll.poll(0.05, 256))
        return len(pool.idle)

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self, start_ns: int) -> LoopResult:
        """Send everything as planned from ``start_ns`` (CLOCK_MONOTONIC); return when the last request has ended."""
        plan = self._plan
        self._start_ns = start_ns
        self._give_up_at = start_ns + plan.give_up_ns
        self._chores_at = self._anchor_at = start_ns
        self.anchors.note()
        self._sending = True
        if plan.send_ns is not None:
            self._due = start_ns + plan.send_ns[0] if plan.count else NEVER
        else:
            self._slots = [start_ns] * min(plan.concurrency, plan.count)
            self._due = start_ns if self._slots else NEVER
        self._spin()
        self._chores(time.monotonic_ns())
        self.anchors.note()
        self._sending = False
        self._pool.close()
        return self.result

    def _spin(self) -> None:
        mono, poll, lag, pool = time.monotonic_ns, self._pool.epoll.poll, self.result.lag_buckets, self._pool
        spare, count, spin = self._plan.open_ahead, self._plan.count, self._plan.spin_ns
        nap, nap_s, more = self._plan.nap_ns, self._plan.nap_ns / 1e9, False
        looked = mono()
        while (self._due < NEVER or self._in_flight or self._waiting) and not self.orphaned:
            now = mono()
            busy = now >= self._due
            if busy:
                self._send_due(now)
            if now >= self._chores_at:
                self._chores(now)
            gap = min(self._due, self._chores_at) - mono()
            if gap > 2 * spin and pool.spare < min(spare, count - self._next) and pool.may_open:
                pool.open()
                gap = min(self._due, self._chores_at) - mono()
            if more and nap and gap > spin + nap:
                time.sleep(nap_s)  # the kernel stamps meanwhile: many reads at one waking
            elif gap > spin:
                self._sleep(min(gap - spin, LOOK_NS) if self._in_flight else gap - spin)
            begun = mono()
            events = poll(0, MOST_EVENTS)
            more = bool(events)
            if more:
                self._spool.note_look(looked)
                self._handle(events)
                away = (mono() - begun) // 50_000
                lag[away if away < 2000 else 1999] += 1
            elif not busy:
                self.result.idle_spin_ns += mono() - begun
            if len(events) < MOST_EVENTS:
                looked = begun  # else more may be ready than was told

    def _sleep(self, gap_ns: int) -> None:
        # select() takes microseconds where epoll's own timeout rounds up to milliseconds; an epoll can be selected on.
        select.select([self._pool.epoll], (), (), gap_ns / 1e9)

    def _handle(self, events: list[tuple[int, int]]) -> None:
        by_fd, mono, plain_in, ready = self._pool.by_fd, time.monotonic_ns, select.EPOLLIN, State.READY
        for fd, mask in events:
            connection = by_fd.get(fd)
            if connection is None:
                if fd == self._watch_fd:
                    self.orphaned = True
                continue
            if mask == plain_in and connection.state == ready:
                self._read(connection)
            else:
                self._other_event(connection, mask)
            if self._sending and mono() >= self._due:
                self._send_due(mono())

    def _other_event(self, connection: Connection, mask: int) -> None:
        """Writable, hung up, or not ready yet."""
        if connection.state != State.READY:
            self._pool.advance(connection, mask)
            return
        if mask & select.EPOLLOUT:
            try:
                connection.flush()
            except OSError as error:
                self._lost(connection, error)
                return
            self._pool.watch(connection)
        if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data, ancillary, _, _ = connection.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(connection, error)
            return
        now = time.monotonic_ns()
        kernel = 0
        if ancillary:
            seconds, nanoseconds = unpack_timespec(ancillary[0][2])
            kernel = seconds * 1_000_000_000 + nanoseconds
        if not data:
            self._closed_by_peer(connection, now)
            return
        if not connection.plain:
            self._read_tls(connection, data, kernel, now)
            return
        self._take(connection, data, kernel, now)

    def _take(self, connection: Connection, data: bytes, kernel: int, now: int) -> None:
        request = connection.request
        reader = connection.reader
        if request < 0 or reader is None:
            self._pool.drop(connection)  # bytes nobody asked for
            return
        buffer = self._spool.buffer
        buffer += HEADER.pack(request, len(data), kernel, now)
        buffer += data
        if len(buffer) >= PIECE_BYTES:
            self._spool.spill()
        connection.last_ns = now
        try:
            reader.feed(data)
        except BadResponse as bad:
            self._end(request, Outcome.GARBAGE, now, str(bad))
            self._pool.drop(connection)
            return
        if reader.done:
            self._complete(connection, now)

    def _read_tls(self, connection: Connection, data: bytes, kernel: int, now: int) -> None:
        try:
            text, ended = connection.decrypt(data)
        except (ssl.SSLError, OSError) as error:
            self._lost(connection, error)
            return
        if text:
            self._take(connection, text, kernel, now)
        if ended and connection.state != State.CLOSED:
            self._closed_by_peer(connection, now)

    # -- sending -------------------------------------------------------------------------------------------------

    def _send_due(self, now: int) -> None:
        plan = self._plan
        while now >= self._due:
            index = self._next
            if plan.send_ns is None and (now - self._start_ns >= plan.send_until_ns or index >= plan.count):
                self._due = NEVER
                return
            self._next = index + 1
            self.result.intended_ns[index] = self._due
            if plan.send_ns is not None:
                self._due = self._start_ns + plan.send_ns[index + 1] if index + 1 < plan.count else NEVER
            else:
                heapq.heappop(self._slots)
                self._due = self._slots[0] if self._slots else NEVER
            self.result.dispatched_ns[index] = now
            self._in_flight += 1
            self._assign(index)
            now = time.monotonic_ns()

    def _assign(self, index: int) -> None:
        connection = self._pool.take()
        if connection is not None:
            self._start(connection, index)
            return
        self._waiting.append(index)
        heapq.heappush(self._deadlines, (time.monotonic_ns() + min(self._plan.timeout_ns, CONNECT_NS), index))
        if self._pool.opening < len(self._waiting) and not self._pool.open():
            self._fail_waiting("no socket could be opened")

    def _start(self, connection: Connection, index: int) -> None:
        connection.request, connection.reader = index, ResponseReader()
        self._carrier[index] = connection
        payload = self._plan.payload(index)
        now = connection.last_ns = self.result.sent_ns[index] = time.monotonic_ns()
        heapq.heappush(self._deadlines, (now + min(self._plan.stall_ns, self._plan.timeout_ns), index))
        try:
            connection.write(payload)
        except (OSError, ssl.SSLError) as error:
            self._lost(connection, error)
            return
        if connection.want_write:
            self._pool.watch(connection)

    def _give(self, connection: Connection) -> None:
        """Put a ready connection to use."""
        if self._waiting and self._sending:
            self._start(connection, self._waiting.popleft())
        else:
            self._pool.idle[connection.fd] = connection

    def _fail_waiting(self, why: str) -> None:
        """Fail the oldest waiting request, unless enough connections are still on their way."""
        if self._waiting and len(self._waiting) > self._pool.opening:
            self._end(self._waiting.popleft(), Outcome.CONNECT, time.monotonic_ns(), why)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _complete(self, connection: Connection, now: int) -> None:
        reader, request = connection.reader, connection.request
        assert reader is not None
        wait_ns = 0
        if reader.status != 200:
            wait_ns = _retry_after_ns(reader)
        self._end(request, Outcome.COMPLETE, now, slot_wait_ns=wait_ns, bad=reader.status != 200)
        if reader.reusable and self._plan.keep_alive and not connection.unsent:
            connection.request, connection.reader, connection.idle_since_ns = -1, None, now
            connection.used += 1
            self._give(connection)
        else:
            self._pool.drop(connection)

    def _end(self, request: int, outcome: Outcome, now: int, error: str | None = None, *, slot_wait_ns: int = 0,
             bad: bool = False) -> None:  # fmt: skip
        result = self.result
        if result.outcome[request]:
            return
        result.outcome[request], result.end_ns[request] = int(outcome), now
        self._carrier.pop(request, None)
        if error:
            result.errors[request] = error
        self._in_flight -= 1
        self._ended += 1
        bad = bad or outcome is not Outcome.COMPLETE
        self._failed += bad
        if self._plan.send_ns is None and self._sending:
            wait = self._plan.think_ns + (max(slot_wait_ns, BACKOFF_NS) if bad else 0)
            heapq.heappush(self._slots, now + wait)
            if now - self._start_ns < self._plan.send_until_ns and self._next < self._plan.count:
                self._due = self._slots[0]

    def _lost(self, connection: Connection, error: Exception) -> None:
        """The connection failed with a socket or TLS error."""
        now = time.monotonic_ns()
        request = connection.request
        if connection.state != State.READY:
            self._pool.failed(connection, error)
            return
        stale = request >= 0 and self._stale(connection)
        reader = connection.reader
        self._pool.drop(connection)
        if request < 0:
            return
        if stale:
            self._again(request)
        elif reader is not None and reader.started and reader.status not in (0, 200):
            self._end(request, Outcome.EOF, now)  # the answer was an error status: that is its name
        else:
            self._end(request, Outcome.RESET, now, describe(error))

    def _closed_by_peer(self, connection: Connection, now: int) -> None:
        request, reader = connection.request, connection.reader
        if connection.state != State.READY:
            self._pool.failed(connection, OSError(errno.ECONNRESET, "closed while connecting"))
            return
        stale = request >= 0 and self._stale(connection)
        self._pool.drop(connection)
        if request < 0 or reader is None:
            return
        reader.end_of_input()
        if reader.done:
            self._end(request, Outcome.EOF, now, bad=False)
        elif stale:
            self._again(request)
        else:
            self._end(request, Outcome.EOF, now)

    def _stale(self, connection: Connection) -> bool:
        """Whether the server had likely closed this idle connection before our request reached it."""
        reader = connection.reader
        if reader is None or reader.started or connection.request in self._retried:
            return False
        sent = self.result.sent_ns[connection.request]
        return connection.used > 0 or sent - connection.idle_since_ns > STALE_NS

    def _again(self, request: int) -> None:
        self._retried.add(request)
        self.result.retried += 1
        self._carrier.pop(request, None)
        self._waiting.appendleft(request)
        if not self._pool.open():
            self._fail_waiting("no socket could be opened")

    # -- chores --------------------------------------------------------------------------------------------------

    def _chores(self, now: int) -> None:
        self._chores_at = now + CHORE_NS
        while self._deadlines and self._deadlines[0][0] <= now:
            self._check_deadline(heapq.heappop(self._deadlines)[1], now)
        if self._pool.opening:
            self._pool.expire(now - min(self._plan.timeout_ns, CONNECT_NS))
        if now >= self._give_up_at:
            self._give_up(now)
        if now >= self._anchor_at:
            self._anchor_at = now + ANCHOR_NS
            self.anchors.note()
            if self._on_progress is not None:
                self._on_progress(self._next, self._ended, self._failed)

    def _check_deadline(self, request: int, now: int) -> None:
        if self.result.outcome[request]:
            return
        plan, connection = self._plan, self._carrier.get(request)
        if connection is None:
            if now - self.result.dispatched_ns[request] >= min(plan.timeout_ns, CONNECT_NS):
                self._waiting.remove(request)
                self._end(request, Outcome.CONNECT, now, "no connection became ready in time")
            return
        hard = self.result.sent_ns[request] + plan.timeout_ns
        silent = connection.last_ns + plan.stall_ns if connection.reader and connection.reader.started else NEVER
        if now >= hard or now >= silent:
            outcome = Outcome.TIMEOUT if now >= hard else Outcome.STALL
            silence_s = (now - connection.last_ns) / 1e9
            self._end(request, outcome, now, f"last byte {silence_s:.1f} s before")
            self._pool.drop(connection)
            return
        heapq.heappush(self._deadlines, (min(hard, silent, now + plan.stall_ns), request))

    def _give_up(self, now: int) -> None:
        self._due, self._slots, self._sending = NEVER, [], False
        for request in [*self._waiting, *self._carrier]:
            self._end(request, Outcome.CANCELLED, now, "cut off at the end of the drain")
        self._waiting.clear()


def _retry_after_ns(reader: ResponseReader) -> int:
    text = reader.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 6:
        return min(int(text) * 1_000_000_000, RETRY_AFTER_NS)
    return 0
