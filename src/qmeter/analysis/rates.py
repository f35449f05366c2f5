"""Rates over the window: tokens by arrival, requests by completion, goodput by intended send time; and the SLO."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.latency import Latencies, first_last_tokens
from qmeter.analysis.stats import F64, I64, Counts, block_length, resampled, spread, widening, wilson
from qmeter.analysis.window import in_flight, spans
from qmeter.record import CellTables, Quantity, RequestStatus, Window
from qmeter.spec.workload import SLO

RATE_BINS = 60
"""Time bins over the window that the rates' block bootstrap resamples."""


def rate_metrics(
    tables: CellTables, window: Window, overlap_s: float, confidence: float, rng: np.random.Generator
) -> dict[str, Quantity]:
    """Token and request rates over the window and the client's count of open requests.

    ``throughput_tok_s``: output tokens that arrived in the window, whichever request they belong to. ``total_tok_s``:
    those plus the prompt tokens of requests whose first token arrived in it. ``request_rate_hz``: requests that ended
    well in it. ``offered_rate_hz``: requests whose intended send time lies in it.
    """
    edges = np.linspace(window.start_s, window.end_s, RATE_BINS + 1)
    least = math.ceil(overlap_s / window.length_s * RATE_BINS)
    begin, end = spans(tables)
    prompts = prompt_tokens(tables)
    ok = tables.requests.status == RequestStatus.OK.value
    out_bins, _ = np.histogram(tables.tokens.t_s, bins=edges, weights=tables.tokens.n)
    first, _ = first_last_tokens(tables)
    in_bins, _ = np.histogram(first, bins=edges, weights=prompts)
    done_bins, _ = np.histogram(end[ok], bins=edges)
    sent_bins, _ = np.histogram(begin, bins=edges)
    total = out_bins + in_bins
    offered = float(sent_bins.sum()) / window.length_s
    return {
        "throughput_tok_s": _rate(out_bins, window, "token/s", least, confidence, rng),
        "total_tok_s": _rate(total, window, "token/s", least, confidence, rng),
        "request_rate_hz": _rate(done_bins, window, "1/s", least, confidence, rng),
        "offered_rate_hz": Quantity.of(offered, "1/s", n=int(sent_bins.sum())),
        "in_flight_mean": Quantity.of(float(in_flight(tables, edges).mean()), "1", n=int(sent_bins.sum())),
        "output_tokens": Quantity.of(float(out_bins.sum()), "token", n=int(out_bins.sum())),
        "total_tokens": Quantity.of(float(total.sum()), "token", n=int(total.sum())),
        "requests_ended": Quantity.of(float(done_bins.sum()), "1", n=int(done_bins.sum())),
    }


def prompt_tokens(tables: CellTables) -> I64:
    """Prompt tokens a request: the server's count where it gives one, else what the schedule asked."""
    r = tables.requests
    return np.where(r.prompt_tokens >= 0, r.prompt_tokens, np.maximum(r.prompt_tokens_asked, 0)).astype(np.int64)


def _rate(bins: F64, window: Window, unit: str, least: int, confidence: float, rng: np.random.Generator) -> Quantity:
    per_s = np.asarray(bins, dtype=np.float64) / (window.length_s / len(bins))

    def draw(counts: Counts) -> F64:
        result: F64 = counts @ per_s / len(per_s)
        return result

    block, mean = block_length(per_s, least), float(per_s.mean())
    draws = resampled(len(per_s), block, rng, draw)
    low, high = spread(draws, confidence, mean, widening(len(per_s), block, confidence), floor=0.0)
    return Quantity.of(mean, unit, low=low, high=high, n=int(bins.sum()))


def slo_metrics(
    found: Latencies, slo: SLO | None, arrivals_hz: float, overlap: int, confidence: float, rng: np.random.Generator
) -> dict[str, Quantity]:
    """``slo_attainment`` and ``goodput_hz`` (requests a second that met every limit).

    Goodput is the attainment times ``arrivals_hz``, the rate at which requests were due over the *planned* window:
    every method was sent the same requests, so where a window was cut must not make one look better than another.

    Every request with its intended send time in the window counts; one that failed or did not finish missed. Wilson
    interval, with the number of requests divided by the design effect that a block bootstrap finds where misses come
    in clusters.
    """
    n = len(found.rows)
    if slo is None or n == 0:
        why = "the workload has no SLO" if slo is None else "no request was due in the window"
        return {"slo_attainment": Quantity.unknown("1", why, n=n), "goodput_hz": Quantity.unknown("1/s", why, n=n)}
    met = within(found, slo)
    share = _share(met, overlap, confidence, rng)
    low, high = (None if b is None else b * arrivals_hz for b in (share.low, share.high))
    goodput = Quantity.of(float(met.mean()) * arrivals_hz, "1/s", low=low, high=high, n=n)
    return {"slo_attainment": share, "goodput_hz": goodput}


def within(found: Latencies, slo: SLO) -> NDArray[np.bool_]:
    """Whether each request finished well inside every limit of the SLO; a TPOT that is not defined is inside."""
    met = found.ok.copy()
    for limit, values in ((slo.ttft, found.ttft_s), (slo.tpot, found.tpot_s), (slo.e2e, found.e2e_s)):
        if limit is not None:
            met &= np.isnan(values) | (values <= limit)
    return met


def failed_share(found: Latencies, overlap: int, confidence: float, rng: np.random.Generator) -> Quantity:
    """Share of the window's requests that did not end well (failed, or unfinished when the drain was over)."""
    if not len(found.rows):
        return Quantity.unknown("1", "no request was due in the window", n=0)
    return _share(~found.ok, overlap, confidence, rng)


def failures(tables: CellTables, found: Latencies) -> Counter[str]:
    """How the window's requests that did not end well ended, by status."""
    bad = found.rows[~found.ok]
    named = (str(tables.requests.status[i]) for i in bad)
    return Counter("no_tokens" if s == RequestStatus.OK.value else s for s in named)


def _share(flags: NDArray[np.bool_], overlap: int, confidence: float, rng: np.random.Generator) -> Quantity:
    n, hits = len(flags), int(flags.sum())
    x = flags.astype(np.float64)
    effect = 1.0
    block = block_length(x, overlap)
    if 0 < hits < n and block > 1:

        def draw(counts: Counts) -> F64:
            result: F64 = counts @ x / n
            return result

        plain = hits / n * (1 - hits / n) / n
        widen = widening(n, block, confidence)
        effect = max(1.0, float(resampled(n, block, rng, draw).var()) / plain * widen * widen)
    made = wilson(hits / effect, n / effect, confidence)
    why = None if effect < 1.5 else f"they come in clusters: the interval counts {n} requests as {n / effect:.0f}"
    return Quantity.of(hits / n, "1", low=made.low, high=made.high, n=n, why=why)
