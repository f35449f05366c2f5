"""Upstreams for the router's tests: small servers in this process that behave, or misbehave, as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from qmeter.router.board import Board, Replica, State
from qmeter.router.file import RouterLimits
from qmeter.router.metrics import Metrics

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Upstream:
    """One server: ``behave`` names what it does; it notes heads and bodies seen, and clients that left."""

    behave: str = "ok"
    tokens: int = 5
    gap_s: float = 0.002
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")), 0
                )
                body = json.loads(await reader.readexactly(length)) if length else {}
                if head.startswith(b"GET"):
                    status = b"503 X" if self.behave == "sick" else b"200 OK"
                    writer.write(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % status)
                    continue
                self.heads.append(head)
                self.bodies.append(body)
                await self._answer(body, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            raise
        finally:
            writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        b = "503" if self.behave == "sick" else self.behave
        if b.isdigit():
            extra = b"Retry-After: 7\r\n" if b == "429" else b""
            text = json.dumps({"error": {"message": f"said {b}"}}).encode()
            writer.write(b"HTTP/1.1 %s X\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                         % (b.encode(), extra, len(text), text))  # fmt: skip
            return
        if b == "close_at_once":
            raise ConnectionError
        if b == "silent":
            await asyncio.sleep(3600)
        if not body.get("stream"):
            text = json.dumps({"choices": [{"text": "a" * self.tokens, "finish_reason": "length"}]}).encode()
            if b == "half_body":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n" + text)
                raise ConnectionError
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
            writer.write(head + text)
            return
        await self._stream(writer)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        b = self.behave
        writer.write(HEAD)
        if b == "head_then_close":
            await writer.drain()
            raise ConnectionError
        if b == "error_event":
            self._chunk(writer, b'data: {"error": {"message": "out of blocks"}}\n\n')
            writer.write(b"0\r\n\r\n")
            return
        for i in range(self.tokens):
            if writer.is_closing():
                self.left += 1
                raise ConnectionError
            event = b"data: " + json.dumps({"choices": [{"text": f" t{i}", "finish_reason": None}]}).encode() + b"\n\n"
            if i == 2 and b in ("die", "die_inside_event"):
                if b == "die_inside_event":
                    self._chunk(writer, event[: len(event) // 2])
                await writer.drain()
                raise ConnectionError
            if i == 2 and b == "stall":
                await asyncio.sleep(3600)
            if b == "split":
                self._chunk(writer, event[:7])
                await writer.drain()
                await asyncio.sleep(self.gap_s)
                event = event[7:]
            self._chunk(writer, event)
            try:
                await writer.drain()
            except ConnectionError:
                self.left += 1
                raise
            await asyncio.sleep(self.gap_s)
        if b != "no_end":
            last = {"choices": [{"text": "", "finish_reason": "length"}]}
            self._chunk(writer, b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    @staticmethod
    def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


@contextlib.asynccontextmanager
async def running(*upstreams: Upstream) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for upstream in upstreams:
            server = await asyncio.start_server(upstream.serve, "127.0.0.1", upstream.port, limit=2**24)
            upstream.port = server.sockets[0].getsockname()[1]
            stack.push_async_callback(_closed, server)
        yield


async def _closed(server: asyncio.Server) -> None:
    server.close()


@contextlib.asynccontextmanager
async def routed(limits: RouterLimits, shares: dict[str, dict[str, float]], **kinds: Upstream
                 ) -> AsyncIterator[tuple[str, Board, Metrics]]:  # fmt: skip
    """Upstreams and a router before them; a replica is called like its kind."""
    from qmeter.router.app import router

    async with running(*kinds.values()):
        board = Board(shares, dict.fromkeys(kinds, "m"), limits)
        metrics = Metrics(board)
        for name, upstream in kinds.items():
            board.replicas[name] = Replica(name, name, "m", upstream.url, f"served-{name}", state=State.READY)
        board.set_shares(shares)
        async with router(board, metrics, limits, 0, dict) as port:
            yield f"http://127.0.0.1:{port}", board, metrics
