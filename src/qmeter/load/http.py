"""HTTP/1.1 as far as a load client needs it: request bytes made ahead, and an exact, incremental response reader."""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from qmeter.errors import LoadError

if TYPE_CHECKING:
    from qmeter.load.target import Target
    from qmeter.workload.schedule import ScheduledRequest

MAX_HEAD_BYTES = 65_536
"""A response head longer than this is garbage."""


class BadResponse(Exception):
    """The bytes are not an HTTP/1.1 response; the message says where."""


@dataclass(frozen=True)
class Origin:
    """Where requests go: the server itself, and the hop that the socket connects to (a proxy or the server)."""

    host: str
    port: int
    tls: bool
    hop_host: str
    hop_port: int
    via_proxy: bool
    prefix: str

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header carries it (the default port left out)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def origin_of(target: Target) -> Origin:
    """Take a target's URLs apart.

    Raises:
        LoadError: the base URL or the proxy is not an http(s) URL with a host.
    """
    url = urlsplit(target.base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise LoadError(
            f"base_url {target.base_url!r} is not an http(s) URL", stage="load", hint="write http://host:port"
        )
    tls = url.scheme == "https"
    port = url.port or (443 if tls else 80)
    prefix = url.path.rstrip("/")
    if prefix.endswith("/v1") and target.path.startswith("/v1/"):
        prefix = prefix[: -len("/v1")]
    if target.proxy is None:
        return Origin(url.hostname, port, tls, url.hostname, port, False, prefix)
    proxy = urlsplit(target.proxy)
    if proxy.scheme != "http" or not proxy.hostname:
        raise LoadError(
            f"proxy {_without_user(target.proxy)!r} is not http://host:port",
            stage="load",
            hint="only plain HTTP proxies are spoken to (https targets go through CONNECT)",
        )
    return Origin(url.hostname, port, tls, proxy.hostname, proxy.port or 3128, True, prefix)


def proxy_authorization(target: Target) -> str | None:
    """``Basic …`` from the user and password in the proxy's URL, or ``None``."""
    url = urlsplit(target.proxy or "")
    if url.username is None:
        return None
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _without_user(url: str) -> str:
    return url.split("@", 1)[1] if "@" in url else url


class RequestEncoder:
    """Turns scheduled requests into the exact bytes that go on the wire, once, before the run."""

    def __init__(self, target: Target):
        self._target, self._origin = target, origin_of(target)
        self._chat = target.path.rstrip("/").endswith("/chat/completions")
        where = self._origin.prefix + target.path
        proxy_lines: list[str] = []
        if self._origin.via_proxy and not self._origin.tls:
            where = f"http://{self._origin.authority}{where}"
            if authorization := proxy_authorization(target):
                proxy_lines.append(f"Proxy-Authorization: {authorization}")
        lines = [f"POST {where} HTTP/1.1", f"Host: {self._origin.authority}", "Content-Type: application/json",
                 "Accept: text/event-stream", *proxy_lines]  # fmt: skip
        if not target.keep_alive:
            lines.append("Connection: close")
        for name, value in target.headers.items():
            if any(c in name + value for c in "\r\n\0") or not name.isascii():
                raise LoadError(f"header {name!r} holds a line break or a non-ASCII name", stage="load")
            lines.append(f"{name}: {value}")
        self._head = ("\r\n".join(lines) + "\r\n").encode("utf-8")

    def encode(self, index: int, request: ScheduledRequest) -> bytes:
        """The bytes of request ``index``; its number travels as ``X-Request-Id: qmeter-<index>``."""
        body = json.dumps(self._body(request), separators=(",", ":")).encode()
        return b"%sX-Request-Id: qmeter-%d\r\nContent-Length: %d\r\n\r\n%s" % (self._head, index, len(body), body)

    def _body(self, request: ScheduledRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._target.model}
        if self._chat:
            if not isinstance(request.prompt, str):
                raise LoadError(
                    "the chat endpoint takes text, the schedule holds token ids", stage="load",
                    hint="use path /v1/completions, or prompts as text",
                )  # fmt: skip
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        body |= {"max_tokens": request.output_tokens, "temperature": self._target.temperature, "stream": True,
                 "stream_options": {"include_usage": True}}  # fmt: skip
        if self._target.ignore_eos:
            body["ignore_eos"] = True
        return body


def connect_request(origin: Origin, proxy_authorization: str | None = None) -> bytes:
    """The CONNECT request that opens a tunnel to ``origin`` through its proxy."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [f"CONNECT {host}:{origin.port} HTTP/1.1", f"Host: {host}:{origin.port}"]
    if proxy_authorization:
        lines.append(f"Proxy-Authorization: {proxy_authorization}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class _Phase(enum.Enum):
    HEAD = 0
    CHUNKS = 1
    LENGTH = 2
    UNTIL_CLOSE = 3
    TRAILER = 4
    DONE = 5


@dataclass
class ResponseReader:
    """Reads one response, piece by piece, exactly: any split of the bytes gives the same body and the same end.

    ``status`` is 0 and ``headers`` empty until the head is complete. ``done`` turns true at the body's last byte;
    ``reusable`` then says whether the connection may carry another request. Bytes after the end are kept in ``extra``.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    done: bool = False
    reusable: bool = False
    extra: bytes = b""
    _phase: _Phase = _Phase.HEAD
    _buffer: bytes = b""
    _left: int = 0

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return the body bytes among them.

        Raises:
            BadResponse: they are not HTTP/1.1.
        """
        if self._phase is _Phase.CHUNKS and not self._buffer and not self._left:
            end = data.find(b"\r\n", 0, 10)  # the usual read: exactly one whole chunk
            if end > 0 and data[:end].isalnum() and data.endswith(b"\r\n"):
                size = _hex(data[:end])
                if size and size + end + 4 == len(data):
                    return data[end + 2 : -2]
        return self._feed(data)

    def end_of_input(self) -> None:
        """The peer closed: a body without a length is complete now; any other that is not done was cut off."""
        if self._phase is _Phase.UNTIL_CLOSE:
            self._finish(b"")
            self.reusable = False

    @property
    def started(self) -> bool:
        """Whether any byte of a response was seen."""
        return bool(self.status or self._buffer)

    def _feed(self, data: bytes) -> bytes:
        body: list[bytes] = []
        while data or self._phase is _Phase.DONE:
            if self._phase is _Phase.HEAD:
                data = self._head(data)
            elif self._phase is _Phase.CHUNKS:
                data = self._chunk(data, body)
            elif self._phase is _Phase.LENGTH:
                body.append(data[: self._left])
                rest = data[self._left :]
                self._left -= len(body[-1])
                data = rest
                if not self._left:
                    self._finish(rest)
            elif self._phase is _Phase.UNTIL_CLOSE:
                body.append(data)
                data = b""
            elif self._phase is _Phase.TRAILER:
                data = self._trailer(data)
            else:
                self.extra += data
                break
        return body[0] if len(body) == 1 else b"".join(body)

    def _finish(self, rest: bytes) -> None:
        self._phase, self.done = _Phase.DONE, True
        if rest:
            self.reusable = False

    def _head(self, data: bytes) -> bytes:
        self._buffer += data
        if not b"HTTP/1.".startswith(self._buffer[:7]):
            raise BadResponse(f"no HTTP/1.x status line: {self._buffer[:40]!r}")
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadResponse(f"response head over {MAX_HEAD_BYTES} bytes")
            return b""
        head, rest, self._buffer = self._buffer[:end], self._buffer[end + 4 :], b""
        status, headers = parse_head(head)
        if 100 <= status < 200:
            if status == 101:
                raise BadResponse("HTTP 101: the server switched protocols")
            return rest
        self.status, self.headers = status, headers
        connection = headers.get("connection", "").lower()
        self.reusable = "close" not in connection and (head.startswith(b"HTTP/1.1") or "keep-alive" in connection)
        self._set_body(headers)
        if self._phase is _Phase.DONE and rest:
            self.extra, self.reusable = rest, False
            return b""
        return rest

    def _set_body(self, headers: Mapping[str, str]) -> None:
        coding = headers.get("transfer-encoding", "").lower()
        if coding:
            if coding.strip() != "chunked":
                raise BadResponse(f"transfer-encoding {coding!r}")
            self._phase = _Phase.CHUNKS
        elif self.status in (204, 304):
            self._finish(b"")
        elif "content-length" in headers:
            text = headers["content-length"].strip()
            if not (text.isascii() and text.isdigit() and len(text) < 19):
                raise BadResponse(f"content-length {text[:40]!r}")
            self._left, self._phase = int(text), _Phase.LENGTH
            if not self._left:
                self._finish(b"")
        else:
            self._phase, self.reusable = _Phase.UNTIL_CLOSE, False

    def _chunk(self, data: bytes, body: list[bytes]) -> bytes:
        if self._left > 2:  # inside chunk data; ``_left`` counts the closing CRLF too
            body.append(data[: self._left - 2])
            self._left -= len(body[-1])
            return data[len(body[-1]) :]
        if self._left:
            want = b"\r\n"[2 - self._left :]
            if not data.startswith(want[: len(data)]):
                raise BadResponse(f"chunk data not followed by CRLF: {data[:20]!r}")
            used = min(self._left, len(data))
            self._left -= used
            return data[used:]
        self._buffer += data
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > 256:
                raise BadResponse("chunk size line over 256 bytes")
            return b""
        line, rest, self._buffer = self._buffer[:end], self._buffer[end + 2 :], b""
        size = _hex(line.split(b";", 1)[0].strip())
        if size is None:
            raise BadResponse(f"chunk size {line[:40]!r}")
        if size:
            self._left = size + 2
        else:
            self._phase = _Phase.TRAILER
        return rest

    def _trailer(self, data: bytes) -> bytes:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise BadResponse(f"trailer over {MAX_HEAD_BYTES} bytes")
                return b""
            line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
            if not line:
                rest, self._buffer = self._buffer, b""
                self._finish(rest)
                return rest


def _hex(text: bytes) -> int | None:
    """A chunk size, or ``None``; stricter than ``int(x, 16)`` (no sign, prefix, underscore or space)."""
    if not 0 < len(text) <= 8 or text.strip(b"0123456789abcdefABCDEF"):
        return None
    return int(text, 16)


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status code and headers (names in lower case, repeated ones joined by a comma) of a response head.

    Raises:
        BadResponse: it is not one.
    """
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ", 2)
    if len(parts) < 2 or parts[0] not in ("HTTP/1.1", "HTTP/1.0") or len(parts[1]) != 3 or not _digits(parts[1]):
        raise BadResponse(f"status line {lines[0][:60]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadResponse(f"header line {line[:60]!r}")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return int(parts[1]), headers


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
