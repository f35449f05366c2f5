"""After the run: spooled reads become token events, and each request gets its name."""

from __future__ import annotations

import contextlib
import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qmeter.load.completion import EXACT, PERHAPS, BadEvent, Event, read_event, settle
from qmeter.load.http import BadResponse, ResponseReader
from qmeter.load.plan import Outcome
from qmeter.load.spool import LOOK, READ_BYTES, Spool
from qmeter.load.sse import EventReader, EventTooLong
from qmeter.load.stamps import ClockAnchors


class Ending(enum.StrEnum):
    """How a request ended: the members of :class:`qmeter.record.RequestStatus`, which the merge turns them into.

    Spelled here again since a client process must not pay for the record's imports; a test holds the two together.
    """

    OK = "ok"
    CONNECT = "connect_failed"
    RESET = "connection_reset"
    EARLY_CLOSE = "early_close"
    STALL = "stalled"
    TIMEOUT = "timeout"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    HTTP_503 = "http_503"
    GARBAGE = "garbage"
    ERROR_EVENT = "error_event"
    CANCELLED = "cancelled"
    UNSENT = "unsent"


_BY_OUTCOME = {
    Outcome.UNSENT: Ending.UNSENT,
    Outcome.RESET: Ending.RESET,
    Outcome.STALL: Ending.STALL,
    Outcome.TIMEOUT: Ending.TIMEOUT,
    Outcome.CONNECT: Ending.CONNECT,
    Outcome.CANCELLED: Ending.CANCELLED,
    Outcome.GARBAGE: Ending.GARBAGE,
}
_BODY_KEPT = 2000
"""Bytes of an error body kept for the message."""


@dataclass
class Parsed:
    """One request, read: its status, its server-side counts, and its token events as parallel lists.

    ``doubt_ns``: how much earlier than its stamp each event may have come (:func:`parse_spool`).
    """

    status: Ending = Ending.UNSENT
    http_status: int = 0
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = -1
    output_tokens: int = -1
    text: str | None = None
    t_ns: array[int] = field(default_factory=lambda: array("q"))
    n: array[int] = field(default_factory=lambda: array("i"))
    user_clock: bytearray = field(default_factory=bytearray)
    coalesced: bytearray = field(default_factory=bytearray)
    doubt_ns: array[int] = field(default_factory=lambda: array("q"))


class StreamParser:
    """Reads one request's bytes: HTTP, then events or one JSON body, then tokens."""

    def __init__(self, keep_text: bool):
        self._keep_text = keep_text
        self._reader, self._events = ResponseReader(), EventReader()
        self._sse: bool | None = None
        self._body = b""
        self._texts: list[str] = []
        self._how, self._finished = bytearray(), bytearray()
        self._lengths: array[int] = array("i")
        self._stated = 0
        self._saw_done = self._bad = self._errored = False
        self._body_at = (0, 1)
        self._doubt_ns, self._exact = 0, True
        self.out = Parsed()

    def feed(self, data: bytes, t_ns: int, user_clock: int, doubt_ns: int = 0, *, exact: bool = True) -> None:
        """Take one read with its stamp. Never raises: what cannot be read becomes the request's error.

        Args:
            doubt_ns: how much earlier than the stamp what was read may have come.
            exact: whether the stamp is that of the read's last event, which is then in no doubt.
        """
        if self._bad:
            return
        self._doubt_ns, self._exact = doubt_ns, exact
        try:
            body = self._reader.feed(data)
            if body:
                self._take(body, t_ns, user_clock)
        except (BadResponse, BadEvent, EventTooLong) as bad:
            self._bad = True
            self.out.error = self.out.error or str(bad)

    def finish(self, outcome: Outcome, error: str | None) -> Parsed:
        """Settle token counts and name how the request ended."""
        out = self.out
        if outcome is Outcome.EOF:
            self._reader.end_of_input()
        out.http_status = self._reader.status
        if not self._bad and self._sse and outcome in (Outcome.EOF, Outcome.COMPLETE):
            self._last_words()
        if self._sse is False and out.http_status == 200 and not self._bad and self._reader.done:
            self._read_whole_body()
        out.n = settle(out.n, self._how, self._lengths, self._finished, out.output_tokens)
        out.status, why = self._name(outcome)
        out.error = out.error or error or why
        if out.status is Ending.OK:
            out.error = None
        if self._keep_text:
            out.text = "".join(self._texts)
        return out

    def _take(self, body: bytes, t_ns: int, user_clock: int) -> None:
        if self._sse is None:
            kind = self._reader.headers.get("content-type", "").lower()
            self._sse = self._reader.status == 200 and not kind.startswith("application/json")
        self._body_at = (t_ns, user_clock)
        if not self._sse:
            limit = _BODY_KEPT if self._reader.status != 200 else 1 << 26
            self._body += body[: max(0, limit - len(self._body))]
            return
        events = self._events.feed(body)
        last = len(events) - 1
        for i, (name, data) in enumerate(events):
            self._event(name, data, t_ns, user_clock, i < last)

    def _event(self, name: bytes, data: bytes, t_ns: int, user_clock: int, coalesced: bool) -> None:
        if data == b"[DONE]":
            self._saw_done = True
            return
        if name == b"\xff":
            raise BadEvent(f"not an event stream: {data[:60]!r}")
        if name == b"error":
            self._fail_event(data)
            return
        if b"\n" in data:
            self._lines(data, t_ns, user_clock, coalesced)
        else:
            self._count(read_event(data), t_ns, user_clock, coalesced)

    def _lines(self, data: bytes, t_ns: int, user_clock: int, coalesced: bool) -> None:
        """Data of several lines: one JSON text as the standard has it, or one on each line as some servers do."""
        try:
            events = [read_event(data)]
        except BadEvent:
            events = [read_event(line) for line in data.split(b"\n") if line and line != b"[DONE]"]
        for i, event in enumerate(events):
            self._count(event, t_ns, user_clock, coalesced or i + 1 < len(events))

    def _fail_event(self, data: bytes) -> None:
        try:
            text = read_event(data).error
        except BadEvent:
            text = None
        self._error_event(text or data[:200].decode("utf-8", "replace"))

    def _error_event(self, text: str) -> None:
        if not self._errored:
            self._errored = True
            self.out.error = f"the server sent an error event: {text}"

    def _count(self, event: Event, t_ns: int, user_clock: int, coalesced: bool) -> None:
        out = self.out
        if event.error is not None:
            self._error_event(event.error)
            return
        if event.finish_reason is not None:
            out.finish_reason = event.finish_reason
        if event.prompt_tokens >= 0:
            out.prompt_tokens = event.prompt_tokens
        n, how = event.n, event.how
        if event.completion_tokens >= 0:
            out.output_tokens = event.completion_tokens
            continuous = self._stated > 0 or not out.t_ns  # else it is the final usage, in the last event of tokens
            if continuous and (n or how == PERHAPS):  # the event's own share is what the count grew by
                n, how = max(event.completion_tokens - self._stated, 0), EXACT
                self._stated = max(event.completion_tokens, self._stated)
        if not n and how == EXACT:
            return
        out.t_ns.append(t_ns)
        out.n.append(n)
        out.user_clock.append(user_clock)
        out.coalesced.append(coalesced)
        out.doubt_ns.append(self._doubt_ns if coalesced or not self._exact else 0)
        self._how.append(how)
        self._lengths.append(len(event.text))
        self._finished.append(event.finish_reason is not None)
        if self._keep_text:
            self._texts.append(event.text)

    def _last_words(self) -> None:
        try:
            for name, data in self._events.rest():
                self._event(name, data, *self._body_at, False)
        except BadEvent as bad:
            if self._reader.done:
                self._bad, self.out.error = True, self.out.error or str(bad)

    def _read_whole_body(self) -> None:
        """A server that answered at once, without streaming: one event that holds every token."""
        try:
            event = read_event(self._body)
        except BadEvent as bad:
            self._bad, self.out.error = True, str(bad)
            return
        self._saw_done = True
        if event.completion_tokens > 0:
            event.n, event.how = event.completion_tokens, EXACT
        self._count(event, *self._body_at, False)

    def _name(self, outcome: Outcome) -> tuple[Ending, str | None]:
        status = self._reader.status
        if outcome in (Outcome.UNSENT, Outcome.CONNECT):
            return _BY_OUTCOME[outcome], None
        if status and status != 200:
            return _http_status_name(status), self._http_error()
        if self._errored:
            return Ending.ERROR_EVENT, None
        if self._bad:
            return Ending.GARBAGE, None
        if outcome in _BY_OUTCOME:
            return _BY_OUTCOME[outcome], None
        if outcome is Outcome.EOF and not self._reader.done and not self._saw_done:
            return Ending.EARLY_CLOSE, "the server closed before the response was complete"
        if not self._saw_done and self.out.finish_reason is None:
            return Ending.EARLY_CLOSE, "the stream ended with neither [DONE] nor a finish reason"
        return Ending.OK, None

    def _http_error(self) -> str:
        text = f"HTTP {self._reader.status}"
        if after := self._reader.headers.get("retry-after"):
            text += f", Retry-After: {after[:40]}"
        body = self._body.decode("utf-8", "replace").strip()
        with contextlib.suppress(BadEvent):
            body = read_event(self._body).error or body
        return f"{text}: {body[:200]}" if body else text


def _http_status_name(status: int) -> Ending:
    if status == 429:
        return Ending.HTTP_429
    if status == 503:
        return Ending.HTTP_503
    if 400 <= status < 500:
        return Ending.HTTP_4XX
    if status >= 500:
        return Ending.HTTP_5XX
    return Ending.GARBAGE  # a redirect or another 2xx: not an answer to a completion


@dataclass(frozen=True)
class StampStatistics:
    """Of all reads: how many had a kernel stamp, and how long after it the loop read them."""

    reads: int
    kernel: int
    lag_ns: NDArray[np.int64]


_LAG_SAMPLES = 200_000
FULL = READ_BYTES * 4 // 5
"""A read of more bytes may have left some in the socket (TLS takes up to a fifth for itself)."""


def parse_spool(spool: Spool, anchors: ClockAnchors, outcomes: list[int], errors: dict[int, str], *,
                keep_text: bool, sent_ns: Sequence[int] = ()) -> tuple[list[Parsed], StampStatistics]:  # fmt: skip
    """Parse every read of a run.

    Args:
        sent_ns: when each request was sent, for what was read first of it (CLOCK_MONOTONIC; -1: never).

    Returns:
        One :class:`Parsed` a request, in order, times in ns on CLOCK_MONOTONIC, and the stamps' statistics.
    """
    parsers: dict[int, StreamParser] = {}
    reads = kernel_reads = 0
    lags: list[NDArray[np.int64]] = []
    emptied = dict(enumerate(sent_ns))
    looked_ns = -1
    for whole in spool.batches():
        batch, looks = [], []
        for read in whole:
            if read[0] == LOOK:
                looked_ns = read[2]
            else:
                batch.append(read)
                looks.append(looked_ns)
        kernel, user = spool.stamps(batch)
        at, clock = anchors.to_monotonic(kernel, user)
        reads += len(batch)
        kernel_reads += int((clock == 0).sum())
        lags.append((user - at)[clock == 0])
        for (request, _, read_ns, data), t_ns, user_clock, look_ns in zip(
            batch, at.tolist(), clock.tolist(), looks, strict=True
        ):
            parser = parsers.get(request)
            if parser is None:
                parser = parsers[request] = StreamParser(keep_text)
            # What is in a read came after the loop had seen every socket, and after this one was last emptied.
            doubt_ns = max(t_ns - max(look_ns, emptied.get(request, -1)), 0)
            full = len(data) >= FULL
            parser.feed(data, t_ns, user_clock, doubt_ns, exact=not (user_clock or full))
            if not full:
                emptied[request] = read_ns
    parsed = []
    for request, outcome in enumerate(outcomes):
        parser = parsers.pop(request, None) or StreamParser(keep_text)
        parsed.append(parser.finish(Outcome(outcome), errors.get(request)))
    lag = np.concatenate(lags) if lags else np.empty(0, np.int64)
    if len(lag) > _LAG_SAMPLES:
        lag = lag[:: len(lag) // _LAG_SAMPLES + 1]
    return parsed, StampStatistics(reads, kernel_reads, lag)
