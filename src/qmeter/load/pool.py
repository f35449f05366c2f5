"""The connections of one loop: opened ahead, kept for the next request, dropped when broken."""

from __future__ import annotations

import errno
import select
import ssl
import time
from collections.abc import Callable

from qmeter.load.connection import READ_BYTES, Connection, Route, State
from qmeter.load.http import BadResponse

PAUSE_NS = 1_000_000_000
"""After a failed connection no spare one is opened for this long."""
_CLIENT_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


class Pool:
    """Every connection of one loop, and the epoll they are registered with.

    Args:
        route: how connections are made.
        on_ready: given each connection that is ready for its first request.
        on_failed: told why when a connection could not be made, by any of the route's addresses.
        client_faults: errno name → count; raised where this host itself refuses a socket.
    """

    def __init__(self, route: Route, on_ready: Callable[[Connection], None], on_failed: Callable[[str], None],
                 client_faults: dict[str, int]):  # fmt: skip
        self._route, self._on_ready, self._on_failed, self._faults = route, on_ready, on_failed, client_faults
        self.epoll = select.epoll()
        self.by_fd: dict[int, Connection] = {}
        self.idle: dict[int, Connection] = {}
        self.opening = 0
        self._first = 0
        self._attempt: dict[int, int] = {}
        self._opened_ns: dict[int, int] = {}
        self._pause_until_ns = 0

    @property
    def spare(self) -> int:
        """Connections that are ready or nearly so, and carry nothing."""
        return len(self.idle) + self.opening

    @property
    def may_open(self) -> bool:
        """Whether a spare connection may be tried now."""
        return time.monotonic_ns() >= self._pause_until_ns

    def take(self) -> Connection | None:
        """The idle connection used last, or ``None``."""
        return self.idle.popitem()[1] if self.idle else None

    def open(self, attempt: int | None = None) -> bool:
        """Begin a connection; ``False`` where the host refuses every address at once."""
        attempt = self._first if attempt is None else attempt
        try:
            connection = Connection(self._route, attempt)
        except OSError as error:
            if error.errno in _CLIENT_FAULTS:
                name = errno.errorcode.get(error.errno or 0, "?")
                self._faults[name] = self._faults.get(name, 0) + 1
            return self._next_address(attempt)
        self.by_fd[connection.fd] = connection
        self._attempt[connection.fd] = attempt
        self._opened_ns[connection.fd] = time.monotonic_ns()
        self.opening += 1
        self.epoll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        return True

    def advance(self, connection: Connection, mask: int) -> None:
        """Take a connection that is not ready one step on: connected, tunnel, handshake."""
        try:
            if connection.state == State.CONNECTING:
                connection.advance()
            else:
                if mask & select.EPOLLOUT and connection.unsent:
                    connection.flush()
                if mask & ~select.EPOLLOUT:
                    data = connection.sock.recv(READ_BYTES)
                    if not data:
                        raise OSError(errno.ECONNRESET, "closed while connecting")
                    connection.advance(data)
        except BlockingIOError:
            return
        except (OSError, ssl.SSLError, BadResponse) as error:
            self.failed(connection, error)
            return
        self.watch(connection)
        if connection.state == State.READY:
            self.opening -= 1
            self._first = self._attempt[connection.fd] % len(self._route.addresses)
            self._opened_ns.pop(connection.fd, None)
            connection.idle_since_ns = time.monotonic_ns()
            self._on_ready(connection)

    def watch(self, connection: Connection) -> None:
        """Wait for what the connection waits for: always bytes, and room to write where some are unsent."""
        self.epoll.modify(connection.fd, select.EPOLLIN | (select.EPOLLOUT if connection.want_write else 0))

    def failed(self, connection: Connection, error: Exception) -> None:
        """A connection that was not ready broke: try the next address, or say that it failed."""
        attempt = self._attempt.get(connection.fd, 0)
        self.drop(connection)
        if not self._next_address(attempt):
            self._on_failed(describe(error))

    def _next_address(self, attempt: int) -> bool:
        if attempt + 1 < self._first + len(self._route.addresses):
            return self.open(attempt + 1)
        self._pause_until_ns = time.monotonic_ns() + PAUSE_NS
        return False

    def expire(self, before_ns: int) -> None:
        """Give up connections that were begun before ``before_ns`` and are not ready."""
        while self._opened_ns:
            fd, opened_ns = next(iter(self._opened_ns.items()))
            if opened_ns > before_ns:
                return
            self.failed(self.by_fd[fd], TimeoutError("connecting took too long"))

    def drop(self, connection: Connection) -> None:
        """Close a connection; safe to call again."""
        if connection.state == State.CLOSED:
            return
        if connection.state != State.READY:
            self.opening -= 1
        for table in (self.idle, self.by_fd, self._attempt, self._opened_ns):
            table.pop(connection.fd, None)
        connection.close()  # which also takes it out of the epoll

    def close(self) -> None:
        """Close everything."""
        for connection in list(self.by_fd.values()):
            self.drop(connection)
        self.epoll.close()


def describe(error: Exception) -> str:
    """An error for a request's record: the errno's name, or the exception and its text."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in errno.errorcode:
        return errno.errorcode[error.errno or 0]
    return f"{type(error).__name__}: {error}"[:200]
