"""The schedule: every request of a cell, made ahead, the same to the byte for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScheduledRequest:
    """One request: ``prompt`` is text, or token ids where the engine takes them (exact counts).

    ``prompt_tokens`` is -1 where the prompt is text whose length in tokens is not known ahead.
    """

    prompt: str | tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    task: str | None = None
    item: str | None = None


class PackedRequests(Sequence[ScheduledRequest]):
    """Token-id requests held as one flat int32 array; each :class:`ScheduledRequest` is made when it is asked for.

    100,000 prompts of 512 tokens take 200 MB as arrays and 2 GB as tuples of Python ints. A slice is a view.

    Args:
        ids: all prompts' token ids, one after the other.
        starts: where each prompt begins in ``ids``, shape (n,).
        prompt_tokens, output_tokens: shape (n,).
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        starts: NDArray[np.int64],
        prompt_tokens: NDArray[np.int32],
        output_tokens: NDArray[np.int32],
    ):
        self._ids, self._starts, self._prompt, self._output = ids, starts, prompt_tokens, output_tokens

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> ScheduledRequest: ...
    @overload
    def __getitem__(self, index: slice) -> PackedRequests: ...
    def __getitem__(self, index: int | slice) -> ScheduledRequest | PackedRequests:
        if isinstance(index, slice):
            return PackedRequests(self._ids, self._starts[index], self._prompt[index], self._output[index])
        ids = tuple(self.prompt_ids(index).tolist())
        return ScheduledRequest(prompt=ids, prompt_tokens=len(ids), output_tokens=int(self._output[index]))

    @property
    def lengths(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Prompt and output tokens of all requests, shape (n,) each, without making any request."""
        return self._prompt, self._output

    def prompt_ids(self, index: int) -> NDArray[np.int32]:
        """The token ids of one prompt, as a view."""
        start = self._starts[index]
        return self._ids[start : start + self._prompt[index]]


@dataclass(frozen=True)
class Schedule:
    """Requests and when to send them.

    Attributes:
        send_s: intended send times from the load's start, ascending, whole nanoseconds, shape (n,); for a closed
            loop all NaN: ``concurrency`` says how many are kept in flight, requests taken in order. A closed loop
            that runs out of requests starts again at the first one (the engine may then know those prompts: see
            :func:`qmeter.workload.arrivals.closed_requests` for why that needs an engine faster than any we know).
        requests: the n requests. Indexing may build the request, so take each once.
        concurrency, think_s: closed loop only.
        law: what the arrivals claim to be, for the client's own test. Names and parameters:
            ``constant`` (rate_hz), ``poisson`` (rate_hz), ``gamma`` (rate_hz, burstiness: the shape; the scale is
            1/(shape × rate)), ``ramp`` (start_hz, end_hz, horizon_s), ``trace`` (rate_hz: the mean),
            ``closed`` (concurrency, think_s).
        warmup_s, window_s, drain_s: the phases. Sends cover [0, warmup_s + window_s).
    """

    send_s: NDArray[np.float64]
    requests: Sequence[ScheduledRequest]
    law: tuple[str, dict[str, float]]
    warmup_s: float
    window_s: float
    drain_s: float
    concurrency: int | None = None
    think_s: float = 0.0

    def __len__(self) -> int:
        return len(self.requests)


def schedule_digest(schedule: Schedule) -> str:
    """SHA-256 over everything a client would send and when: equal digests mean equal requests to the byte.

    Little-endian on every host; independent of how the requests are held.
    """
    head = [
        schedule.law,
        schedule.warmup_s,
        schedule.window_s,
        schedule.drain_s,
        schedule.concurrency,
        schedule.think_s,
    ]
    digest = hashlib.sha256(json.dumps([*head, len(schedule)], sort_keys=True).encode())
    digest.update(np.asarray(schedule.send_s, dtype="<f8").tobytes())
    packed = schedule.requests if isinstance(schedule.requests, PackedRequests) else None
    for i, request in enumerate(schedule.requests) if packed is None else ():
        text = isinstance(request.prompt, str)
        body = request.prompt.encode() if isinstance(request.prompt, str) else _id_bytes(request.prompt)
        _add(digest, i, text, body, request.prompt_tokens, request.output_tokens, request.task, request.item)
    for i in range(len(packed) if packed else 0):
        assert packed is not None
        ids = packed.prompt_ids(i)
        _add(digest, i, False, _id_bytes(ids), len(ids), int(packed._output[i]), None, None)
    return digest.hexdigest()


def _id_bytes(ids: tuple[int, ...] | NDArray[np.int32]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def _add(digest: hashlib._Hash, i: int, text: bool, body: bytes, *rest: int | str | None) -> None:
    digest.update(json.dumps([i, text, len(body), *rest]).encode())
    digest.update(body)
