"""How wrong a client was: its stamps against the ground truth's log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.load.target import LoadResult
from qmeter.testing.ground_truth import Log

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """Errors of one run, in s, the server's own lateness cancelled.

    Attributes:
        send_s: request received by the server minus the moment it was due; shape (requests,).
        ttft_s: (first token - sent) by the client minus (first write - receipt) by the server; shape (requests,).
        ttft_intended_s: the same, counted from the intended send: what lateness adds is in it.
        itl_s: each gap between a request's token events by the client minus the same by the server.
        stamp_s: each token event's stamp minus its write.
        missing: requests or events that only one side has.
    """

    send_s: F64
    ttft_s: F64
    ttft_intended_s: F64
    itl_s: F64
    stamp_s: F64
    missing: int


def errors(result: LoadResult, log: Log, *, origin_monotonic_s: float) -> Errors:
    """Match a run of qMeter's client with the log, request by request and event by event.

    Args:
        result: the run; one token event for each of the server's events is expected.
        log: the server's log of that run alone.
        origin_monotonic_s: the origin that ``drive`` was given.
    """
    origin_ns = round(origin_monotonic_s * 1e9)
    requests, tokens = result.requests, result.tokens
    known = np.flatnonzero(log.id >= 0)
    row_of = np.full(len(requests), -1)
    row_of[log.id[known]] = known  # a request sent twice: the later one counts
    counts = np.bincount(tokens.request, minlength=len(requests))
    matched = (row_of >= 0) & (counts == np.where(row_of >= 0, log.events[row_of], -1))
    ours = np.flatnonzero(matched)
    rows = row_of[ours]
    keep = matched[tokens.request]
    request, at_ns = tokens.request[keep], np.rint(tokens.t_s[keep] * 1e9) + origin_ns
    starts = np.concatenate([[0], np.cumsum(counts[ours])])[:-1]
    within = np.arange(len(request)) - np.repeat(starts, counts[ours])
    written = log.written_ns[log.first[row_of[request]] + within]
    stamp = at_ns - written
    same = request[1:] == request[:-1]
    received = log.received_ns[rows]
    truth = log.written_ns[log.first[rows]] - received
    first = requests.first_token_s[ours]
    return Errors(
        send_s=received / 1e9 - origin_monotonic_s - requests.intended_s[ours],
        ttft_s=first - requests.sent_s[ours] - truth / 1e9,
        ttft_intended_s=first - requests.intended_s[ours] - truth / 1e9,
        itl_s=np.diff(stamp)[same] / 1e9,
        stamp_s=stamp / 1e9,
        missing=len(requests) - len(ours),
    )
