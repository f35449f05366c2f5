"""The router's HTTP server: OpenAI's routes, health, Prometheus, the schedule's state. On loopback only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from qmeter.router.board import Board
from qmeter.router.events import error_body
from qmeter.router.file import RouterLimits
from qmeter.router.metrics import Metrics
from qmeter.router.proxy import Proxy

LOOPBACK = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
UPSTREAM_KEEP_ALIVE_S = 4.0
"""Below what servers keep an idle connection for (uvicorn: 5 s), so that a request seldom meets one just closed."""
GENERATING = ("/v1/completions", "/v1/chat/completions")


@asynccontextmanager
async def router(
    board: Board, metrics: Metrics, limits: RouterLimits, port: int, state: Callable[[], dict[str, Any]]
) -> AsyncIterator[int]:
    """The router on loopback ``port`` (0: any); gives the port. At the end it takes no new connections and waits.

    Args:
        state: what ``/qmeter/schedule`` answers.

    Raises:
        OSError: the port is taken.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=UPSTREAM_KEEP_ALIVE_S, force_close=False)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
        headers={"Accept-Encoding": "identity"},
    ) as session:  # fmt: skip
        app = _application(Proxy(board, metrics, limits, session), board, metrics, limits, state)
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, keepalive_timeout=limits.keep_alive, handle_signals=False,
            shutdown_timeout=limits.drain_timeout,
        )  # fmt: skip
        await runner.setup()
        listening = socket.create_server((LOOPBACK, port), backlog=1024)
        site = web.SockSite(runner, listening)
        try:
            await site.start()
            gate = asyncio.create_task(_keep_out(runner, limits.max_connections))
            try:
                yield listening.getsockname()[1]
            finally:
                gate.cancel()
        finally:
            await runner.cleanup()


async def _keep_out(runner: web.AppRunner, most: int) -> None:
    """Close the newest connections beyond ``most``: a client that only opens them must not use up the router."""
    while True:
        await asyncio.sleep(0.1)
        server = runner.server
        extra = list(server.connections)[most:] if server is not None else []
        for handler in extra:
            handler.force_close()


def _application(
    proxy: Proxy, board: Board, metrics: Metrics, limits: RouterLimits, state: Callable[[], dict[str, Any]]
) -> web.Application:
    names = LOOPBACK_NAMES | set(limits.hosts)

    @web.middleware
    async def guarded(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if _host(request.headers.get("Host", "")) not in names:
            return _error(421, f"this router answers to {', '.join(sorted(names))}: see router.hosts", "wrong_host")
        try:
            answer: web.StreamResponse = await handler(request)
            return answer
        except web.HTTPException as error:
            return _error(error.status, error.reason, "not_found" if error.status == 404 else "refused")

    async def health(_: web.Request) -> web.Response:
        live = [r.name for r in board.replicas.values() if r.live]
        data = {"status": "ok" if live else "no replica is live", "live": live}
        return web.json_response(data, status=200 if live else 503)

    async def models(_: web.Request) -> web.Response:
        served = {r.served_model for r in board.replicas.values() if r.served_model}
        rows = [{"id": n, "object": "model", "created": 0, "owned_by": "qmeter"} for n in [*board.shares, *served]]
        return web.json_response({"object": "list", "data": rows})

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def schedule(_: web.Request) -> web.Response:
        return web.json_response(state())

    app = web.Application(middlewares=[guarded], client_max_size=limits.max_body_bytes)
    pages = {"/health": health, "/v1/models": models, "/metrics": page, "/qmeter/schedule": schedule}
    app.add_routes([web.get(path, handler) for path, handler in pages.items()])
    app.add_routes([web.post(path, proxy.handle) for path in GENERATING])
    return app


def _host(header: str) -> str:
    """The name in a Host header, its port taken off."""
    name, _, port = header.rpartition(":")
    return (name if name and port.isdigit() else header).lower()


def _error(status: int, message: str, code: str) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.Response(status=status, body=error_body(message, kind, code), content_type="application/json")
