"""The HTTP routes: OpenAI's, health, Prometheus, and what qMeter reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qmeter.engines.openvino.answers import DONE, Choice, EventWriter, error_event, whole
from qmeter.engines.openvino.link import EngineGone, Link, Ticket
from qmeter.engines.openvino.metrics import CONTENT_TYPE
from qmeter.engines.openvino.protocol import BadRequest, Generation, parse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_LIMIT_BYTES = 64 << 20


def build(link: Link, served_model: str) -> Starlette:
    """The application around one engine process."""

    async def health(_: Request) -> Response:
        if link.failure is not None:
            return JSONResponse({"status": "failed", "error": link.failure, "memory": link.memory}, 500)
        if link.config is None:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ok"})

    async def models(_: Request) -> Response:
        limit = link.config["max_model_tokens"] if link.config else None
        entry = {"id": served_model, "object": "model", "created": 0, "owned_by": "qmeter", "max_model_len": limit}
        return JSONResponse({"object": "list", "data": [entry]})

    async def metrics(_: Request) -> Response:
        return Response(link.metrics.page(), headers={"content-type": CONTENT_TYPE})

    async def config(_: Request) -> Response:
        if link.failure is not None:
            return JSONResponse({"status": "failed", "error": link.failure, "memory": link.memory}, 500)
        if link.config is None:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse(link.config)

    async def steps(request: Request) -> Response:
        since = request.query_params.get("since")
        try:
            return JSONResponse(link.steps.page(float(since) if since else None))
        except ValueError:
            return _refusal(BadRequest(f"since must be a number of seconds, not {since!r}", param="since"))

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/metrics", metrics),
            Route("/qmeter/config", config),
            Route("/qmeter/steps", steps),
            Route("/v1/completions", Completions(link, served_model, chat=False), methods=["POST"]),
            Route("/v1/chat/completions", Completions(link, served_model, chat=True), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else str(error)
    return _refusal(BadRequest(detail, status=status))


def _refusal(refusal: BadRequest) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status)


class Completions:
    """The generating routes, as a plain ASGI application: events go out with as little around them as can be."""

    def __init__(self, link: Link, served_model: str, *, chat: bool):
        self._link, self._model, self._chat = link, served_model, chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            body = await _body(receive)
            if body is None:
                return
            generation = parse(body, self._chat, self._model)
            await self._answer(generation, scope, receive, send)
        except BadRequest as refusal:
            await _refusal(refusal)(scope, receive, send)
        except EngineGone as error:
            await _refusal(BadRequest(str(error), status=503, code="engine_failed"))(scope, receive, send)

    async def _answer(self, generation: Generation, scope: Scope, receive: Receive, send: Send) -> None:
        if self._link.config is None and self._link.failure is None:
            raise BadRequest("the model is still loading", status=503, code="loading")
        tickets: list[Ticket] = []
        gone = asyncio.create_task(_disconnected(receive))
        work = asyncio.create_task(self._work(generation, tickets, scope, receive, send))
        try:
            await asyncio.wait((gone, work), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (gone, work):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BadRequest, EngineGone, OSError):
                await work
            for ticket in tickets:
                self._link.cancel(ticket)

    async def _work(
        self, generation: Generation, tickets: list[Ticket], scope: Scope, receive: Receive, send: Send
    ) -> None:
        for prompt in generation.prompts:
            for copy in range(generation.n):
                tickets.append(await self._link.add(generation.message(prompt, copy)))
        if generation.stream:
            await self._stream(generation, tickets[0], send)
            return
        choices = [await self._collect(generation, ticket) for ticket in tickets]
        answer = whole(generation, choices, tickets[0].number, self._model)
        await JSONResponse(answer)(scope, receive, send)

    async def _collect(self, generation: Generation, ticket: Ticket) -> Choice:
        choice = Choice(generation, self._link.vocabulary, ticket.prompt_ids)
        while not choice.ended:
            choice.take(await ticket.get())
        self._link.cancel(ticket)
        return choice

    async def _stream(self, generation: Generation, ticket: Ticket, send: Send) -> None:
        choice = Choice(generation, self._link.vocabulary, ticket.prompt_ids)
        events = EventWriter(generation, ticket.number, self._model)
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        try:
            while not choice.ended:
                added = choice.take(await ticket.get())
                for at in range(len(choice.tokens) - added, len(choice.tokens)):
                    last = choice.finish is not None and at == len(choice.tokens) - 1
                    await send(
                        {"type": "http.response.body", "body": events.token(choice, at, last), "more_body": True}
                    )
        except EngineGone as error:
            await send({"type": "http.response.body", "body": error_event(str(error)), "more_body": False})
            return
        end = (events.usage(choice) if generation.include_usage else b"") + DONE
        await send({"type": "http.response.body", "body": end, "more_body": False})


_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def _body(receive: Receive) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_LIMIT_BYTES:
            raise BadRequest(f"the body is larger than {BODY_LIMIT_BYTES} bytes", status=413)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
