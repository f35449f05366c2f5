"""A server that misbehaves on request: each request's prompt names, in its first word, what goes wrong.

:data:`BEHAVIOURS` maps the name to what happens; ``ok`` streams properly. One run can so mix good and bad requests, and
a test can see that the good ones came to no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GAP_S = 0.005
"""Time between two tokens."""


@dataclass
class Exchange:
    """One request being answered."""

    writer: asyncio.StreamWriter
    tokens: int
    chat: bool

    async def send(self, data: bytes) -> None:
        """Write and flush."""
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """One HTTP chunk."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, text: str = " a", reason: str | None = None) -> None:
        """One token event in a chunk of its own."""
        await self.chunk(b"data: " + json.dumps(self.token(text, reason)).encode() + b"\n\n")

    def token(self, text: str, reason: str | None = None) -> dict[str, object]:
        """The JSON of one token."""
        part: dict[str, object] = {"delta": {"content": text}} if self.chat else {"text": text}
        return {"choices": [{"index": 0, **part, "finish_reason": reason}]}

    async def some(self, count: int) -> None:
        """The head and ``count`` tokens."""
        await self.send(HEAD)
        for _ in range(count):
            await asyncio.sleep(GAP_S)
            await self.event()

    async def usage_and_end(self) -> None:
        """Usage, ``[DONE]``, last chunk."""
        usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": self.tokens}}
        await self.chunk(b"data: " + json.dumps(usage).encode() + b"\n\n")
        await self.chunk(b"data: [DONE]\n\n")
        await self.send(b"0\r\n\r\n")

    def abort(self) -> None:
        """Reset the connection (RST, not FIN)."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def _ok(x: Exchange) -> None:
    await x.some(x.tokens - 1)
    await asyncio.sleep(GAP_S)
    await x.event(reason="length")
    await x.usage_and_end()


async def _reset(x: Exchange) -> None:
    await x.some(3)
    x.abort()


async def _reset_at_once(x: Exchange) -> None:
    x.abort()


async def _early_close(x: Exchange) -> None:
    await x.some(3)
    x.writer.close()


async def _close_at_once(x: Exchange) -> None:
    x.writer.close()


async def _no_end(x: Exchange) -> None:
    await x.some(3)
    await x.send(b"0\r\n\r\n")


async def _stall(x: Exchange) -> None:
    await x.some(3)
    await asyncio.sleep(3600)


async def _silence(x: Exchange) -> None:
    await asyncio.sleep(3600)


async def _slow_loris_head(x: Exchange) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 100_000:
        await x.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def _slow_loris_body(x: Exchange) -> None:
    await x.some(2)
    for _ in range(100_000):
        await x.chunk(b": still here\n\n")
        await asyncio.sleep(0.02)


async def _garbage(x: Exchange) -> None:
    await x.send(b"\x00\xffSSH-2.0-OpenSSH_9.9\r\n" * 3)
    x.writer.close()


async def _garbage_chunks(x: Exchange) -> None:
    await x.some(2)
    await x.send(b"zz\r\nnot a chunk\r\n")


async def _garbage_json(x: Exchange) -> None:
    await x.some(2)
    await x.chunk(b'data: {"choices": [{"text": \xff\xfe\n\n')
    await x.usage_and_end()


async def _html(x: Exchange) -> None:
    page = b"<html>\n\n<body>Welcome to nginx!</body></html>"
    await x.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page))


async def _redirect(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")


async def _error_event(x: Exchange) -> None:
    await x.some(2)
    await x.chunk(b'data: {"error": {"message": "CUDA out of memory", "type": "server_error", "code": 500}}\n\n')
    await x.chunk(b"data: [DONE]\n\n")
    await x.send(b"0\r\n\r\n")


async def _error_event_named(x: Exchange) -> None:
    await x.some(2)
    await x.chunk(b"event: error\ndata: the engine died\n\n")
    x.writer.close()


def _status(status: bytes, extra: bytes = b"") -> Callable[[Exchange], Awaitable[None]]:
    async def answer(x: Exchange) -> None:
        body = b'{"error": {"message": "no, thank you"}}'
        await x.send(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
                     % (status, extra, len(body), body))  # fmt: skip

    return answer


async def _keep_alives(x: Exchange) -> None:
    await x.send(HEAD)
    for i in range(x.tokens):
        await asyncio.sleep(GAP_S)
        await x.chunk(b": keep-alive\r\n\r\n")
        data = json.dumps(x.token(" a", "length" if i == x.tokens - 1 else None)).encode()
        await x.chunk(b"data:" + data + b"\r\n\r\n")
    await x.usage_and_end()


async def _byte_by_byte(x: Exchange) -> None:
    data = HEAD
    for i in range(x.tokens):
        event = b"data: " + json.dumps(x.token(" a", "length" if i == x.tokens - 1 else None)).encode() + b"\n\n"
        data += b"%x\r\n%s\r\n" % (len(event), event)
    data += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    for byte in data:
        await x.send(bytes([byte]))


async def _whole_answer(x: Exchange) -> None:
    body = json.dumps(
        {**x.token(" a" * x.tokens, "length"), "usage": {"prompt_tokens": 3, "completion_tokens": x.tokens}}
    )
    await x.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                 % (len(body), body.encode()))  # fmt: skip


async def _until_close(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    for i in range(x.tokens):
        reason = "length" if i == x.tokens - 1 else None
        await x.send(b"data: " + json.dumps(x.token(" a", reason)).encode() + b"\n\n")
    await x.send(b"data: [DONE]\n\n")
    x.writer.close()


BEHAVIOURS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "ok": _ok, "keep_alives": _keep_alives, "byte_by_byte": _byte_by_byte, "whole_answer": _whole_answer,
    "until_close": _until_close, "reset": _reset, "reset_at_once": _reset_at_once, "early_close": _early_close,
    "close_at_once": _close_at_once, "no_end": _no_end, "stall": _stall, "silence": _silence,
    "slow_loris_head": _slow_loris_head, "slow_loris_body": _slow_loris_body, "garbage": _garbage,
    "garbage_chunks": _garbage_chunks, "garbage_json": _garbage_json, "html": _html, "redirect": _redirect,
    "error_event": _error_event, "error_event_named": _error_event_named, "http_400": _status(b"400 Bad Request"),
    "http_429": _status(b"429 Too Many Requests", b"Retry-After: 1\r\n"), "http_500": _status(b"500 Oops"),
    "http_503": _status(b"503 Service Unavailable", b"Retry-After: 7\r\n"),
}  # fmt: skip
"""Behaviour → what the server does; the prompt's first word picks it."""


@dataclass
class Misbehaving:
    """A running misbehaving server, and what it saw: requests by behaviour, connections accepted, targets asked."""

    base_url: str
    seen: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)


async def _connection(state: Misbehaving, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    state.connections += 1
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
        while not writer.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            state.heads.append(head)
            lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            body = json.loads(await reader.readexactly(int(lengths[0].split(b":")[1])))
            chat = "messages" in body
            prompt = body["messages"][0]["content"] if chat else body["prompt"]
            name = prompt.split()[0] if isinstance(prompt, str) else "ok"
            state.seen[name] += 1
            await BEHAVIOURS[name](Exchange(writer, body["max_tokens"], chat))
            if b"connection: close" in head.lower():
                break
    writer.close()


@contextlib.contextmanager
def misbehaving(tls: ssl.SSLContext | None = None) -> Iterator[Misbehaving]:
    """Run the server on loopback in a thread of this process; ``tls`` makes it https."""
    loop = asyncio.new_event_loop()
    state = Misbehaving("")
    started = threading.Event()

    async def main() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _connection(state, reader, writer)

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls, backlog=1024)
        scheme = "https" if tls else "http"
        state.base_url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks(loop) - {asyncio.current_task(loop)}:
            task.cancel()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
