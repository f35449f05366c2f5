"""One client connection: plain, through a proxy, or TLS; non-blocking, with kernel stamps in every case.

TLS runs over :class:`ssl.MemoryBIO`, so that the raw socket is still read with ``recvmsg`` and its stamps survive.
"""

from __future__ import annotations

import enum
import errno
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from qmeter.load import stamps
from qmeter.load.http import BadResponse, Origin, ResponseReader, connect_request

READ_BYTES = 65_536


class State(enum.IntEnum):
    """Where a connection stands."""

    CONNECTING = 0
    TUNNEL = 1
    HANDSHAKE = 2
    READY = 3
    CLOSED = 4


@dataclass(frozen=True)
class Route:
    """How every connection of a run is made.

    Attributes:
        addresses: (family, sockaddr) of the hop, in the resolver's order; tried in turn.
        origin: the server and its hop.
        tls: context for https, else ``None``.
        proxy_authorization: value of Proxy-Authorization, or ``None``.
    """

    addresses: tuple[tuple[int, Any], ...]
    origin: Origin
    tls: ssl.SSLContext | None = None
    proxy_authorization: str | None = None


class Connection:
    """A non-blocking connection. ``request`` is the one in flight (-1: idle)."""

    __slots__ = (
        "_bio_in",
        "_bio_out",
        "_pending",
        "_pending_at",
        "_route",
        "_ssl",
        "_tunnel",
        "fd",
        "idle_since_ns",
        "last_ns",
        "reader",
        "recvmsg",
        "request",
        "sock",
        "stamped",
        "state",
        "used",
        "want_write",
    )  # fmt: skip

    def __init__(self, route: Route, attempt: int = 0):
        family, address = route.addresses[attempt % len(route.addresses)]
        self._route = route
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.stamped = stamps.enable(self.sock)
            code = self.sock.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, errno.errorcode.get(code, str(code)))
        except BaseException:
            self.sock.close()
            raise
        self.fd = self.sock.fileno()
        self.recvmsg = self.sock.recvmsg
        self.state = State.CONNECTING
        self.request, self.used = -1, 0
        self.idle_since_ns = self.last_ns = 0
        self.reader: ResponseReader | None = None
        self.want_write = True
        self._tunnel: ResponseReader | None = None
        self._ssl: ssl.SSLObject | None = None
        self._bio_in: ssl.MemoryBIO | None = None
        self._bio_out: ssl.MemoryBIO | None = None
        self._pending: memoryview | bytes = b""
        self._pending_at = 0

    @property
    def plain(self) -> bool:
        """Whether bytes on the socket are the HTTP bytes themselves."""
        return self._ssl is None

    def advance(self, data: bytes | None = None) -> None:
        """Take the next step towards READY: after connect (no data), or with bytes of the tunnel or handshake.

        Raises:
            OSError, ssl.SSLError, BadResponse: it failed; the caller closes the connection.
        """
        if self.state is State.CONNECTING:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, errno.errorcode.get(code, str(code)))
            self.want_write = False
            origin = self._route.origin
            if origin.via_proxy and origin.tls:
                self.state, self._tunnel = State.TUNNEL, ResponseReader()
                self.write(connect_request(origin, self._route.proxy_authorization))
            else:
                self._start_tls_or_ready()
        elif self.state is State.TUNNEL and data is not None:
            self._read_tunnel(data)
        elif self.state is State.HANDSHAKE and data is not None:
            self._handshake(data)

    def _read_tunnel(self, data: bytes) -> None:
        assert self._tunnel is not None
        rest = self._tunnel.feed(data)
        if self._tunnel.status:
            if self._tunnel.status != 200:
                raise BadResponse(f"the proxy refused the tunnel: HTTP {self._tunnel.status}")
            self._start_tls_or_ready()
            if rest or self._tunnel.extra:
                self.advance(rest or self._tunnel.extra)

    def _start_tls_or_ready(self) -> None:
        if self._route.tls is None:
            self.state = State.READY
            return
        self.state = State.HANDSHAKE
        self._bio_in, self._bio_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = self._route.tls.wrap_bio(self._bio_in, self._bio_out, server_hostname=self._route.origin.host)
        self._handshake(b"")

    def _handshake(self, data: bytes) -> None:
        assert self._ssl is not None and self._bio_in is not None
        if data:
            self._bio_in.write(data)
        try:
            self._ssl.do_handshake()
            self.state = State.READY
        except ssl.SSLWantReadError:
            pass
        finally:
            self._flush_tls()

    def _flush_tls(self) -> None:
        assert self._bio_out is not None
        out = self._bio_out.read()
        if out:
            self._write_raw(out)

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Plain bytes of the records that are now complete, and whether the peer ended the TLS stream."""
        assert self._ssl is not None and self._bio_in is not None
        self._bio_in.write(data)
        out: list[bytes] = []
        ended = False
        try:
            while piece := self._ssl.read(READ_BYTES):
                out.append(piece)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            ended = True
        self._flush_tls()
        return b"".join(out), ended

    def write(self, data: memoryview | bytes) -> None:
        """Send ``data``; what the socket does not take now goes out by :meth:`flush` (``want_write`` says so).

        Raises:
            OSError: the connection is gone.
        """
        if self._ssl is not None:
            self._ssl.write(data)
            self._flush_tls()
        else:
            self._write_raw(data)

    def _write_raw(self, data: memoryview | bytes) -> None:
        if self.unsent:
            data = b"".join((self._pending[self._pending_at :], data))
            self._pending, self._pending_at = data, 0
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._pending, self._pending_at, self.want_write = data, sent, True

    @property
    def unsent(self) -> int:
        """Bytes waiting for room in the socket's buffer."""
        return len(self._pending) - self._pending_at

    def flush(self) -> None:
        """Send more of what waits.

        Raises:
            OSError: the connection is gone.
        """
        try:
            while self.unsent:
                self._pending_at += self.sock.send(memoryview(self._pending)[self._pending_at :])
        except BlockingIOError:
            return
        self._pending, self._pending_at, self.want_write = b"", 0, False

    def close(self) -> None:
        """Close at once; safe to call again."""
        self.state = State.CLOSED
        self._pending, self._pending_at = b"", 0
        self.sock.close()
