"""From the processes' columns to one result on the cell's clock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.load import wire
from qmeter.load.proof import Observed, prove
from qmeter.load.target import LoadResult
from qmeter.record import Requests, RequestStatus, Tokens
from qmeter.workload.schedule import Schedule

Arrays = dict[str, NDArray[Any]]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
_LOOP_BUCKET_S = 50e-6


def merge(
    schedule: Schedule, shares: list[Arrays], reports: list[dict[str, Any]], start_ns: int, origin_monotonic_s: float
) -> LoadResult:
    """Put the shares together in schedule order and judge the client.

    Args:
        schedule: what was asked.
        shares: each process's columns, absolute CLOCK_MONOTONIC in ns (-1: never), as its worker left them.
        reports: each process's closing words.
        start_ns: the load's start on CLOCK_MONOTONIC.
        origin_monotonic_s: the cell's zero.
    """
    origin_ns = round(origin_monotonic_s * 1e9)
    whole = _joined(shares)
    tokens, first_s, last_s = _tokens(whole, len(schedule), origin_ns)
    requests = _requests(schedule, whole, first_s, last_s, origin_ns)
    proof = prove(_observed(schedule, whole, shares, reports, start_ns, requests, tokens))
    return LoadResult(requests=requests, tokens=tokens, proof=proof, start_s=(start_ns - origin_ns) / 1e9)


def _joined(shares: list[Arrays]) -> Arrays:
    """One column each over all processes, request columns in schedule order, token columns by (request, time)."""
    order = np.argsort(np.concatenate([s["request"] for s in shares]), kind="stable")
    texts = ("status", "finish_reason", "text", "error")
    whole: Arrays = {}
    for name in shares[0]:
        if name in texts:
            joined: list[str | None] = [t for s in shares for t in wire.unpack_texts(s[name])]
            whole[name] = np.asarray([*joined, None], dtype=np.object_)[:-1][order]
        elif name.startswith("token_"):
            whole[name] = np.concatenate([s[name] for s in shares])
        elif name not in ("lag_ns", "loop_lag"):
            whole[name] = np.concatenate([s[name] for s in shares])[order]
    by_request = np.lexsort((np.arange(len(whole["token_t_ns"])), whole["token_request"]))
    for name in whole:
        if name.startswith("token_"):
            whole[name] = whole[name][by_request]
    return whole


def _tokens(whole: Arrays, count: int, origin_ns: int) -> tuple[Tokens, F64, F64]:
    """The token table (events that turned out to hold no token left out), first and last token times."""
    keep = whole["token_n"] > 0
    request = whole["token_request"][keep].astype(np.int64)
    t_s = (whole["token_t_ns"][keep] - origin_ns) / 1e9
    # Segments stamped on two CPUs may differ by a few µs in order: a stream's time never runs backwards.
    t_s = _never_backwards(request, t_s)
    first, last = np.full(count, np.nan), np.full(count, np.nan)
    if len(request):
        starts = np.flatnonzero(np.diff(request, prepend=-1))
        ends = np.append(starts[1:], len(request)) - 1
        first[request[starts]], last[request[ends]] = t_s[starts], t_s[ends]
    n = np.minimum(whole["token_n"][keep], np.iinfo(np.int16).max)
    table = Tokens(request=request.astype(np.int32), t_s=t_s, n=n, clock=whole["token_clock"][keep],
                   coalesced=whole["token_coalesced"][keep])  # fmt: skip
    return table, first, last


def _never_backwards(request: I64, t_s: F64) -> F64:
    if not len(t_s):
        return t_s
    offset = request * (float(t_s.max()) - float(t_s.min()) + 1.0)
    if np.all(np.diff(t_s + offset) >= 0):
        return t_s
    forward: F64 = np.maximum.accumulate(t_s + offset) - offset
    return forward


def _seconds(at_ns: I64, origin_ns: int) -> F64:
    seconds: F64 = (at_ns - origin_ns).astype(np.float64) / 1e9
    seconds[at_ns < 0] = np.nan
    return seconds


def _requests(schedule: Schedule, whole: Arrays, first_s: F64, last_s: F64, origin_ns: int) -> Requests:
    asked = schedule.requests
    return Requests(
        intended_s=_seconds(whole["intended_ns"], origin_ns),
        sent_s=_seconds(whole["sent_ns"], origin_ns),
        first_token_s=first_s,
        last_token_s=last_s,
        end_s=_seconds(whole["end_ns"], origin_ns),
        prompt_tokens_asked=np.asarray([r.prompt_tokens for r in asked], np.int32),
        output_tokens_asked=np.asarray([r.output_tokens for r in asked], np.int32),
        prompt_tokens=whole["prompt_tokens"],
        output_tokens=whole["output_tokens"],
        status=np.asarray([RequestStatus(s) for s in whole["status"]], np.object_),
        http_status=whole["http_status"],
        finish_reason=whole["finish_reason"],
        task=np.asarray([r.task for r in asked], np.object_),
        item=np.asarray([r.item for r in asked], np.object_),
        text=whole["text"],
        error=whole["error"],
    )


def _observed(schedule: Schedule, whole: Arrays, shares: list[Arrays], reports: list[dict[str, Any]], start_ns: int,
              requests: Requests, tokens: Tokens) -> Observed:  # fmt: skip
    went = whole["dispatched_ns"] >= 0
    intended, dispatched = whole["intended_ns"][went], whole["dispatched_ns"][went]
    reads, kernel = (sum(r[k] for r in reports) for k in ("reads", "kernel_reads"))
    lag_s = np.concatenate([s["lag_ns"] for s in shares]) / 1e9
    source = "kernel"
    if kernel < reads / 2 or not len(lag_s):
        buckets = np.sum([s["loop_lag"] for s in shares], axis=0)
        lag_s, source = np.repeat((np.arange(len(buckets)) + 1) * _LOOP_BUCKET_S, _thinned(buckets)), "loop"
    faults: dict[str, int] = {}
    for report in reports:
        for name, times in report["client_faults"].items():
            faults[name] = faults.get(name, 0) + times
    load_ns = start_ns + (schedule.warmup_s + schedule.window_s) * 1e9
    closed = schedule.concurrency is not None
    return Observed(
        intended_s=(intended - start_ns) / 1e9,
        dispatched_s=(dispatched - start_ns) / 1e9,
        law=schedule.law,
        open_loop=not closed,
        ttft_p50_s=_median(requests.first_token_s - requests.intended_s),
        lag_s=lag_s,
        lag_source=source,
        reads=reads,
        kernel_reads=kernel,
        token_events=len(tokens),
        coalesced=int(tokens.coalesced.sum()),
        doubt_s=_doubt(whole),
        first_events=np.flatnonzero(np.diff(tokens.request, prepend=-1)),
        gap_p50_s=_gap_s(tokens),
        cpu_share=max(r["cpu_share"] for r in reports),
        client_faults=faults,
        exhausted=bool(closed and went.all() and np.nanmax(whole["end_ns"]) < load_ns),
        retried=sum(r["retried"] for r in reports),
        processes=len(shares),
    )


def _doubt(whole: Arrays) -> F64:
    """Of each token event, by how much its stamp may be late.

    One read together with nothing but what ends its stream (usage, ``[DONE]``), which is sent with it, has the read's
    own stamp, like the last of several.
    """
    keep = whole["token_n"] > 0
    request, t_ns = whole["token_request"][keep], whole["token_t_ns"][keep]
    shared = np.append((request[1:] == request[:-1]) & (t_ns[1:] == t_ns[:-1]), False)[: len(request)]
    alone = whole["token_coalesced"][keep].astype(bool) & ~shared
    doubt: F64 = np.where(alone & (whole["token_clock"][keep] == 0), 0.0, whole["token_doubt_ns"][keep] / 1e9)
    return doubt


def _gap_s(tokens: Tokens) -> float | None:
    """Median time between tokens of a request that did not come in one read. Units: s."""
    gaps = np.diff(tokens.t_s)
    return _median(gaps[(np.diff(tokens.request) == 0) & (gaps > 0)])


def _median(values: F64) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _thinned(buckets: I64, most: int = 200_000) -> I64:
    """Counts scaled down so that no more than about ``most`` values come of them; a bucket in use keeps one."""
    total = int(buckets.sum())
    return buckets if total <= most else np.where(buckets > 0, np.maximum(buckets * most // total, 1), 0)
