"""The server's end of the engine process: tickets for requests, one wake-up a step for each stream."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qmeter.engines.openvino.detokenize import Vocabulary
from qmeter.engines.openvino.metrics import Metrics
from qmeter.engines.openvino.protocol import BadRequest
from qmeter.engines.openvino.steps import StepLog

LINE_LIMIT = 1 << 28


class EngineGone(Exception):
    """The engine process ended or gave up."""


@dataclass(frozen=True)
class Output:
    """Tokens of one step: ids, log-probabilities (zeros where none were asked for), and how it ended, if it did.

    ``best``: where they were asked for and the request is one that can list them, the best next tokens as pairs of id
    and log-probability.
    """

    tokens: list[int]
    logprobs: list[float]
    finish: str | None
    best: list[tuple[int, float]] | None = None


class Ticket:
    """One request in the engine process: awaited for acceptance, then read output by output."""

    def __init__(self, number: int, echo: bool):
        self.number = number
        self.echo = echo
        self.prompt_ids: list[int] = []
        self.echo_left = 0
        self._ready: deque[Output | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, item: Output | Exception) -> None:
        """Hand over an output (or the failure)."""
        self._ready.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Output:
        """The next output.

        Raises:
            EngineGone: the request cannot go on.
        """
        while not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._ready.popleft()
        if isinstance(item, Exception):
            raise item
        return item


class Link:
    """Tickets, metrics and iteration log over one socket to the engine process."""

    def __init__(self, steps: int):
        self.metrics, self.steps = Metrics(), StepLog(steps)
        self.config: dict[str, Any] | None = None
        self.vocabulary = Vocabulary(())
        self.failure: str | None = None
        self.memory = False
        self.failed = asyncio.Event()
        self._tickets: dict[int, Ticket] = {}
        self._numbers = 0
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, sock: socket.socket) -> None:
        """Begin to read; returns at once."""
        reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=LINE_LIMIT)
        self._task = asyncio.create_task(self._read(reader))

    async def add(self, message: Mapping[str, Any]) -> Ticket:
        """Send a request and wait until the engine process takes it.

        Raises:
            BadRequest: it refused (too long, no tokens, bad ids).
            EngineGone: there is no engine any more.
        """
        self._numbers += 1
        ticket = Ticket(self._numbers, message["echo"])
        self._tickets[ticket.number] = ticket
        self._send({"op": "add", "id": ticket.number, **message})
        try:
            await ticket.accepted
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request early; nothing happens where it has ended already."""
        if self._tickets.pop(ticket.number, None) is not None:
            self.metrics.add("qmeter_requests_cancelled_total")
            if self.failure is None:
                self._send({"op": "cancel", "id": ticket.number})
            self._rest_if_idle()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.failure is not None or self._writer is None:
            raise EngineGone(self.failure or "the engine is not ready")
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except OSError:
            pass
        self._fail(self.failure or "the engine process ended")

    def _take(self, message: dict[str, Any]) -> None:
        if "step" in message:
            self._step(message)
        elif "accepted" in message:
            if ticket := self._tickets.get(message["accepted"]):
                ticket.prompt_ids = message["ids"]
                ticket.echo_left = len(ticket.prompt_ids) if ticket.echo else 0
                self.metrics.add("qmeter_requests_total")
                self.metrics.add("qmeter_prompt_tokens_total", len(ticket.prompt_ids))
                _resolve(ticket, None)
        elif "refused" in message:
            if ticket := self._tickets.pop(message["refused"], None):
                _resolve(ticket, BadRequest(message["message"], param=message["param"]))
        elif "failed" in message:
            if ticket := self._tickets.pop(message["failed"], None):
                self.metrics.add("qmeter_requests_failed_total")
                ticket.put(EngineGone(message["message"]))
        elif "ready" in message:
            words = message["ready"]["vocabulary"]
            pieces = [None if p is None else base64.b64decode(p) for p in words["pieces"]]
            self.vocabulary = Vocabulary(pieces, frozenset(words["special"]))
            self.config = message["ready"]["config"]
        elif "fatal" in message:
            self.memory = bool(message["memory"])
            self._fail(message["fatal"])

    def _step(self, message: Mapping[str, Any]) -> None:
        self.steps.append(message["step"])
        self.metrics.step(message["step"])
        generated = 0
        for number, tokens, logprobs, finish, *best in message["out"]:
            ticket = self._tickets.get(number)
            if ticket is None:
                continue
            echoed = min(ticket.echo_left, len(tokens))
            ticket.echo_left -= echoed
            generated += len(tokens) - echoed
            if finish == "ignored":
                self.metrics.add("qmeter_requests_failed_total")
                ticket.put(EngineGone("the KV cache is full: the request does not fit beside the others"))
            else:
                ticket.put(Output(tokens, logprobs, finish, best[0] if best else None))
                if finish:
                    self.metrics.add("qmeter_requests_finished_total")
            if finish:
                del self._tickets[number]
        self.metrics.add("qmeter_generated_tokens_total", generated)
        self._rest_if_idle()

    def _rest_if_idle(self) -> None:
        if not self._tickets:
            self.metrics.idle()

    def _fail(self, why: str) -> None:
        self.failure = why
        self.failed.set()
        for ticket in self._tickets.values():
            _resolve(ticket, EngineGone(why))
            ticket.put(EngineGone(why))
        self._tickets.clear()
        self.metrics.idle()


def _resolve(ticket: Ticket, error: Exception | None) -> None:
    if ticket.accepted.done():
        return
    if error is None:
        ticket.accepted.set_result(None)
    else:
        ticket.accepted.set_exception(error)
