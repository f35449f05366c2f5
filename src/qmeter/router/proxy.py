"""One request through the router: choose a replica, try, try another, stream, and say so where it cannot be served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from qmeter.router.board import Board, Full, Replica
from qmeter.router.events import Relay, error_body, error_event, is_error
from qmeter.router.file import RouterLimits
from qmeter.router.metrics import Metrics

CLASS_HEADER, REPLICA_HEADER = "X-QMeter-Class", "X-QMeter-Replica"
_SENT = ("Accept", "X-Request-Id")
"""A client's headers that go to the replica; all others, hop-by-hop and credentials among them, do not."""
_RETURNED = ("Content-Type", "Content-Encoding", "Retry-After", "X-Request-Id", "Cache-Control")
RETRIED = frozenset({429, 500, 502, 503, 504})
"""Answers after which another replica is tried."""
DOUBTED = frozenset({"connect_failed", "connection_reset", "http_502", "http_503", "http_504"})
"""Outcomes after which a replica gets nothing until a health check succeeds; requests wait for it, or for another."""
MOST_ANSWER_BYTES = 64 << 20
"""Longest answer that is not a stream."""


@dataclass
class Job:
    """One request: its class, parsed body and bytes, and what was tried."""

    cls: str
    data: dict[str, Any]
    body: bytes
    headers: Mapping[str, str]
    began_s: float
    deadline_s: float
    tried: list[str] = field(default_factory=list)

    def bytes_for(self, replica: Replica) -> bytes:
        """The body with the model named as this replica calls it."""
        if self.data.get("model") == replica.served_model:
            return self.body
        return json.dumps({**self.data, "model": replica.served_model}, separators=(",", ":")).encode()

    @property
    def left_s(self) -> float:
        """Seconds until the request must have ended."""
        return max(self.deadline_s - time.monotonic(), 0.001)


class TryFailed(Exception):
    """This try gave the client nothing: another replica may be tried.

    ``answer`` is what the replica said, to be passed on if nobody does better.
    """

    def __init__(self, why: str, outcome: str, answer: web.Response | None = None):
        super().__init__(why)
        self.why, self.outcome, self.answer = why, outcome, answer


class Cut(Exception):
    """The answer broke after its first token had gone to the client; ``code`` names how."""

    def __init__(self, why: str, code: str):
        super().__init__(why)
        self.code = code


class Proxy:
    """Serves the generating routes."""

    def __init__(self, board: Board, metrics: Metrics, limits: RouterLimits, session: aiohttp.ClientSession):
        self._board, self._metrics, self._limits, self._session = board, metrics, limits, session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; whatever happens it ends in an answer, an error event, or the client's own leaving."""
        began = time.monotonic()
        job = await self._job(request, began)
        if isinstance(job, web.Response):
            return job
        outcome = "cancelled"
        try:
            answer, outcome = await self._served(request, job)
            return answer
        finally:
            self._metrics.requests.labels(job.cls, outcome).inc()

    async def _job(self, request: web.Request, began: float) -> Job | web.Response:
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                body = await request.read()
        except TimeoutError:
            answer = _refusal(408, f"the body did not arrive within {self._limits.body_timeout:g} s", "slow_request")
            answer.force_close()
            return answer
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"the body is larger than {self._limits.max_body_bytes} bytes", "too_large")
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            return _refusal(400, "the body is not JSON", "bad_json")
        if not isinstance(data, dict):
            return _refusal(400, "the body must be a JSON object", "bad_json")
        cls = self._class(request, data)
        if cls is None:
            known = ", ".join(self._board.shares)
            return _refusal(
                400, f"no class named {request.headers.get(CLASS_HEADER)!r}; known: {known}", "unknown_class"
            )
        headers = {name: value for name in _SENT if (value := request.headers.get(name)) is not None}
        headers["Content-Type"] = "application/json"
        return Job(cls, data, body, headers, began, began + self._limits.request_timeout)

    def _class(self, request: web.Request, data: dict[str, Any]) -> str | None:
        """The header's class, else the one that ``model`` names, else the schedule's first."""
        asked = request.headers.get(CLASS_HEADER)
        if asked is not None:
            return asked if asked in self._board.shares else None
        named = data.get("model")
        return named if isinstance(named, str) and named in self._board.shares else next(iter(self._board.shares))

    async def _served(self, request: web.Request, job: Job) -> tuple[web.StreamResponse, str]:
        last = TryFailed("no replica was tried", "none")
        for attempt in range(self._limits.tries):
            if attempt:
                self._metrics.retries.labels(job.cls).inc()
            waited = time.monotonic()
            try:
                waits = last.answer is None or last.outcome in DOUBTED
                if not waits and not self._board.another(job.cls, job.tried):
                    return _told(last), last.outcome
                replica = await self._board.acquire(job.cls, job.tried)
            except Full as full:
                headers = {"Retry-After": str(full.retry_after_s)}
                if last.answer is not None:
                    return _told(last), last.outcome
                text = str(full) if not attempt else f"{last.why}; then {full}"
                return _refusal(503, text, "overloaded", headers), "refused"
            self._metrics.wait.labels(job.cls).observe(time.monotonic() - waited)
            outcome = "cancelled"
            try:
                answer, outcome = await self._attempt(request, job, replica)
                return answer, outcome
            except TryFailed as failed:
                last, outcome = failed, failed.outcome
                job.tried.append(replica.name)
                if outcome in DOUBTED:
                    replica.healthy = False
            finally:
                self._metrics.tries.labels(replica.kind, outcome).inc()
                self._board.release(replica)
            if job.left_s <= 0.001:
                break
        if last.answer is not None:
            return _told(last), last.outcome
        names = ", ".join(dict.fromkeys(job.tried))
        return _refusal(502, f"no replica answered (tried {names}): {last.why}", last.outcome), last.outcome

    async def _attempt(self, request: web.Request, job: Job, replica: Replica) -> tuple[web.StreamResponse, str]:
        limits = self._limits
        timeout = aiohttp.ClientTimeout(total=job.left_s, connect=None, sock_connect=limits.connect_timeout)
        headers = {**job.headers, **replica.headers}
        url = replica.base_url + request.path
        try:
            async with asyncio.timeout(min(limits.first_token_timeout, job.left_s)) as clock:
                upstream = await self._session.post(
                    url, data=job.bytes_for(replica), headers=headers, timeout=timeout, allow_redirects=False
                )
                try:
                    if upstream.status in RETRIED:
                        body = await upstream.content.read(1 << 20)
                        said = _passed_on(upstream, body)
                        raise TryFailed(f"{replica.name} answered {upstream.status}", f"http_{upstream.status}", said)
                    streams = upstream.content_type == "text/event-stream"
                    if not streams:
                        clock.reschedule(None)
                        return await self._whole(job, replica, upstream), _outcome(upstream.status)
                    relay = Relay()
                    first = await self._first(replica, upstream, relay)
                except BaseException:
                    upstream.close()
                    raise
        except TimeoutError:
            raise TryFailed(f"{replica.name} did not answer in time", "first_token_timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            raise TryFailed(f"{replica.name}: {_words(error)}", _name(error)) from None
        self._metrics.ttft.labels(job.cls, replica.kind).observe(time.monotonic() - job.began_s)
        try:
            return await self._stream(request, job, replica, upstream, relay, first)
        finally:
            upstream.close()

    async def _first(self, replica: Replica, upstream: aiohttp.ClientResponse, relay: Relay) -> bytes:
        """The first whole events of a stream: until they are here, another replica can still be tried."""
        while True:
            data = await upstream.content.readany()
            if not data:
                raise TryFailed(f"{replica.name} ended the stream before its first token", "early_close")
            out = relay.feed(data)
            if out and is_error(out):
                raise TryFailed(f"{replica.name} answered with an error: {out[:200].decode(errors='replace').strip()}",
                                "error_event")  # fmt: skip
            if out:
                return out

    async def _stream(
        self, request: web.Request, job: Job, replica: Replica, upstream: aiohttp.ClientResponse, relay: Relay,
        first: bytes,
    ) -> tuple[web.StreamResponse, str]:  # fmt: skip
        answer = web.StreamResponse(status=upstream.status, headers=_kept(upstream))
        answer.headers[REPLICA_HEADER] = replica.name
        await answer.prepare(request)
        outcome = "ok"
        try:
            try:
                async with asyncio.timeout(job.left_s):
                    await answer.write(first)
                    await self._rest(replica, upstream, relay, answer)
            except TimeoutError:
                raise Cut(
                    f"the answer took longer than {self._limits.request_timeout:g} s", "request_timeout"
                ) from None
        except Cut as cut:
            outcome = cut.code
            await _say(request, answer, cut)
        except ConnectionResetError:
            return answer, "cancelled"
        with contextlib.suppress(ConnectionResetError):
            await answer.write_eof()
        return answer, outcome

    async def _rest(
        self, replica: Replica, upstream: aiohttp.ClientResponse, relay: Relay, answer: web.StreamResponse
    ) -> None:
        read, stall, again = upstream.content.readany, self._limits.stall_timeout, "incomplete: send the request again"
        loop = asyncio.get_running_loop()
        clock = asyncio.timeout(stall)
        try:
            async with clock:
                while data := await read():
                    out = relay.feed(data)
                    if out:
                        clock.reschedule(None)  # a client that reads slowly is not the replica's stall
                        await answer.write(out)
                    clock.reschedule(loop.time() + stall)
        except TimeoutError:
            raise Cut(f"{replica.name} sent nothing for {stall:g} s; the answer is {again}", "stalled") from None
        except (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if relay.finished:
                return
            raise Cut(f"{replica.name} was lost in the middle of the answer ({_words(error)}), which is {again}",
                      "replica_lost") from None  # fmt: skip
        if not relay.finished:
            raise Cut(f"{replica.name} ended the stream in the middle of the answer, which is {again}", "replica_lost")
        if left := relay.rest():
            await answer.write(left)

    async def _whole(self, job: Job, replica: Replica, upstream: aiohttp.ClientResponse) -> web.Response:
        """An answer that is no stream: nothing is sent until all of it is here."""
        parts, size = [], 0
        async with upstream:
            async for part in upstream.content.iter_any():
                size += len(part)
                if size > MOST_ANSWER_BYTES:
                    raise TryFailed(f"{replica.name} answered more than {MOST_ANSWER_BYTES} bytes", "too_long")
                parts.append(part)
        if upstream.status < 300:
            self._metrics.ttft.labels(job.cls, replica.kind).observe(time.monotonic() - job.began_s)
        answer = _passed_on(upstream, b"".join(parts))
        answer.headers[REPLICA_HEADER] = replica.name
        return answer


async def _say(request: web.Request, answer: web.StreamResponse, cut: Cut) -> None:
    """Tell the client inside the stream; one that does not even read is cut off."""
    try:
        async with asyncio.timeout(1.0):
            await answer.write(error_event(str(cut), cut.code))
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionResetError:
        pass


def _kept(upstream: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name in _RETURNED if (value := upstream.headers.get(name)) is not None}


def _passed_on(upstream: aiohttp.ClientResponse, body: bytes) -> web.Response:
    return web.Response(status=upstream.status, body=body, headers=_kept(upstream))


def _told(failed: TryFailed) -> web.Response:
    """What the replica said, with a Retry-After where it left that out."""
    assert failed.answer is not None
    if failed.answer.status in (429, 503):
        failed.answer.headers.setdefault("Retry-After", "1")
    return failed.answer


def _outcome(status: int) -> str:
    return "ok" if status < 300 else f"http_{status}"


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _name(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect_failed"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "early_close"
    return "connection_reset" if isinstance(error, OSError | aiohttp.ServerDisconnectedError) else "garbage"


def _refusal(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "service_unavailable" if status == 503 else "upstream_error"
    answer = web.Response(status=status, body=error_body(message, kind, code), content_type="application/json")
    answer.headers.update(headers or {})
    return answer
