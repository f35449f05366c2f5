"""Latencies of the requests in the window: what counts in, what is censored, and percentiles with their intervals.

Counts in: every request whose intended send time lies in the window, however it ended. A request that failed or did
not finish has no E2E and no TPOT, and no TTFT unless its first token came: it enters the percentiles as infinity, so a
percentile is either exact or unknown with the reason, never computed over the survivors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.stats import (
    F64,
    I64,
    Counts,
    block_length,
    counted_quantiles,
    quantiles,
    resampled,
    spread,
    widening,
)
from qmeter.analysis.window import spans
from qmeter.record import CellTables, Quantity, RequestStatus, Window

PERCENTILES = (50, 90, 95, 99)
MIN_FOR_PERCENTILE = {50: 5, 90: 10, 95: 20, 99: 100}
"""Fewest requests (for ITL: gaps) for each percentile: at least one observation is expected above it (five for p50)."""
TAIL_FOR_INTERVAL = 5
"""Observations expected above a percentile below which its bootstrap interval is called too narrow."""
MEAN_CENSORED_SHARE = 0.01
"""Share of censored requests above which a mean is unknown: the survivors' mean would flatter the deployment."""
MIN_ITL_REQUESTS = 3
"""Fewest requests whose gaps make an ITL."""


@dataclass(frozen=True)
class Latencies:
    """Per-request values of the window's requests in order of intended send time; all arrays share their length.

    ``inf`` marks a censored value, NaN one that is not defined (a TPOT of a one-token output). ``rows`` indexes the
    requests table; ``ok`` tells the requests that finished well; ``elapsed_s`` is how long each was seen at least.
    """

    rows: I64
    ok: NDArray[np.bool_]
    ttft_s: F64
    ttft_from_sent_s: F64
    tpot_s: F64
    e2e_s: F64
    elapsed_s: F64
    output_tokens: I64


@dataclass(frozen=True)
class Gaps:
    """Inter-token gaps that ended in the window: ``seconds`` each, and the rank of the request it belongs to."""

    seconds: F64
    request: I64


def latencies(tables: CellTables, window: Window) -> Latencies:
    """The window's requests and their latencies, from the intended send time. Units: s."""
    r = tables.requests
    begin, end = spans(tables)
    rows = np.flatnonzero((begin >= window.start_s) & (begin < window.end_s))
    rows = rows[np.argsort(begin[rows], kind="stable")]
    first, last = first_last_tokens(tables)
    tokens, opening = counted_tokens(tables)
    started, final = first[rows], last[rows]
    begin = begin[rows]
    ok = (r.status[rows] == RequestStatus.OK.value) & ~np.isnan(started)
    seen = max(_latest(r.end_s), _latest(tables.tokens.t_s), window.end_s)
    ends = np.where(np.isnan(end[rows]), seen, end[rows])
    after = np.maximum(tokens[rows] - opening[rows], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(after > 0, (final - started) / after, np.nan)
    sent = np.where(np.isnan(r.sent_s[rows]), begin, r.sent_s[rows])
    return Latencies(
        rows=rows,
        ok=ok,
        ttft_s=np.where(np.isnan(started), np.inf, started - begin),
        ttft_from_sent_s=np.where(np.isnan(started), np.inf, started - sent),
        tpot_s=np.where(ok, tpot, np.inf),
        e2e_s=np.where(ok, np.where(np.isnan(final), ends, final) - begin, np.inf),
        elapsed_s=np.maximum(ends - begin, 0.0),
        output_tokens=tokens[rows],
    )


def _latest(times: F64) -> float:
    finite = times[np.isfinite(times)]
    return float(finite.max()) if len(finite) else -math.inf


def first_last_tokens(tables: CellTables) -> tuple[F64, F64]:
    """First and last token time a request; from the token events where the requests table does not have them."""
    r, t = tables.requests, tables.tokens
    first, last = r.first_token_s.copy(), r.last_token_s.copy()
    seen_first, seen_last = np.full(len(r), np.inf), np.full(len(r), -np.inf)
    np.minimum.at(seen_first, t.request, t.t_s)
    np.maximum.at(seen_last, t.request, t.t_s)
    fill = np.isnan(first) & np.isfinite(seen_first)
    first[fill] = seen_first[fill]
    fill = np.isnan(last) & np.isfinite(seen_last)
    last[fill] = seen_last[fill]
    return first, last


def counted_tokens(tables: CellTables) -> tuple[I64, I64]:
    """``(output tokens, tokens of the first event)`` a request: the server's count where it gives one, else ours."""
    r, t = tables.requests, tables.tokens
    own = np.bincount(t.request, weights=t.n, minlength=len(r)).astype(np.int64)[: len(r)]
    opening = np.ones(len(r), dtype=np.int64)
    heads = np.flatnonzero(np.diff(t.request, prepend=-1) != 0)
    opening[t.request[heads]] = t.n[heads]
    return np.where(r.output_tokens >= 0, r.output_tokens, own).astype(np.int64), opening


def gaps(tables: CellTables, window: Window) -> Gaps:
    """Inter-token gaps whose later token arrived in the window.

    An event of n tokens spreads its gap evenly: n gaps of gap/n. Events read together (coalesced, or with the same
    stamp) are one event first, since their stamps name one moment. Units: s.
    """
    t = tables.tokens
    if len(t) < 2:
        return Gaps(np.empty(0), np.empty(0, dtype=np.int64))
    same = t.request[1:] == t.request[:-1]
    joined = same & (t.coalesced[:-1] | (t.t_s[1:] <= t.t_s[:-1]))
    ends = np.flatnonzero(np.append(~joined, True))
    n = np.diff(np.concatenate([[0], np.cumsum(t.n, dtype=np.int64)[ends]]))
    request, at = t.request[ends].astype(np.int64), t.t_s[ends]
    gap = np.diff(at)
    keep = (request[1:] == request[:-1]) & (at[1:] >= window.start_s) & (at[1:] < window.end_s) & (n[1:] > 0)
    each = np.where(keep, gap / np.maximum(n[1:], 1), 0.0)[keep]
    times = n[1:][keep]
    begin, _ = spans(tables)
    rank = np.argsort(np.argsort(np.nan_to_num(begin, nan=np.inf), kind="stable"), kind="stable")
    return Gaps(np.repeat(each, times), np.repeat(rank[request[1:][keep]], times))


def latency_metrics(
    columns: Mapping[str, F64], elapsed_s: F64, overlap: int, confidence: float, rng: np.random.Generator
) -> dict[str, Quantity]:
    """``<name>_mean_s`` and ``<name>_p50_s`` … of per-request columns in time order, infinity where censored.

    Intervals: circular block bootstrap over requests in time order. Blocks are as long as Politis and White ask (the
    longest of the columns'), and no shorter than ``overlap``, the requests that share batches with one request. Each
    resample serves every column, those of a request staying together.
    """
    n = len(elapsed_s)
    some = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    out: dict[str, Quantity] = {}
    for name in columns:
        if name not in some:
            why = f"no request in the window has a {name.upper()}"
            out |= {key: Quantity.unknown("s", why, n=0) for key in _names(name)}
    if not some:
        return out
    ps = [p / 100 for p in PERCENTILES]
    ready = {name: _Column(values) for name, values in some.items()}

    def draw(counts: Counts) -> F64:
        return np.column_stack([c.draw(counts, ps) for c in ready.values()])

    block = max(block_length(c.bounded, overlap) for c in ready.values())
    widen = widening(n, block, confidence)
    draws = resampled(n, block, rng, draw)
    for k, (name, values) in enumerate(some.items()):
        own = draws[:, k * (1 + len(ps)) : (k + 1) * (1 + len(ps))]
        defined = ~np.isnan(values)
        seen, elapsed = values[defined], elapsed_s[defined]
        out[f"{name}_mean_s"] = _mean(name, seen, elapsed, own[:, 0], confidence, widen)
        for j, p in enumerate(PERCENTILES):
            point = float(quantiles(seen, [p / 100])[0])
            interval = spread(own[:, j + 1], confidence, point, widen, floor=0.0)
            out[f"{name}_p{p}_s"] = _percentile(name, p, point, interval, seen, elapsed)
    return out


class _Column:
    """One latency column made ready for the bootstrap: sorted once, sums over what is finite."""

    def __init__(self, values: F64):
        self._order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
        self._ordered = values[self._order]
        finite = np.isfinite(values)
        self._sums = np.column_stack([np.where(finite, values, 0.0), finite.astype(np.float64)])
        top = values[finite].max() if finite.any() else 0.0
        self.bounded = np.where(finite, values, np.where(np.isnan(values), top / 2, top))

    def draw(self, counts: Counts, ps: Sequence[float]) -> F64:
        """Mean of the finite values and the quantiles, a row a resample."""
        sums = counts.astype(np.float64) @ self._sums
        mean = sums[:, 0] / np.maximum(sums[:, 1], 1)
        return np.column_stack([mean, counted_quantiles(self._ordered, counts[:, self._order], ps)])


def _names(name: str) -> list[str]:
    return [f"{name}_mean_s", *(f"{name}_p{p}_s" for p in PERCENTILES)]


def _mean(name: str, values: F64, elapsed_s: F64, draws: F64, confidence: float, widen: float) -> Quantity:
    finite = np.isfinite(values)
    n, lost = len(values), int((~finite).sum())
    if lost > MEAN_CENSORED_SHARE * n:
        bound = float(np.where(finite, values, elapsed_s).mean())
        least = "" if name == "tpot" else f"; counted up to then the mean is at least {bound:.4g} s"
        why = f"{lost} of {n} requests failed or did not finish{least}"
        return Quantity.unknown("s", why, n=n)
    value = float(values[finite].mean())
    low, high = spread(draws, confidence, value, widen, floor=0.0) if n > 1 else (None, None)
    why_text = f"over the {n - lost} requests that finished; {lost} did not" if lost else None
    if n == 1:
        why_text = "one request only, so no interval"
    return Quantity.of(value, "s", low=low, high=high, n=n, why=why_text)


def _percentile(
    name: str, p: int, value: float, interval: tuple[float, float], values: F64, elapsed_s: F64
) -> Quantity:
    n = len(values)
    too_few = too_few_for(p, n, "requests")
    if too_few:
        return Quantity.unknown("s", too_few, n=n)
    if not math.isfinite(value):
        lost = int((~np.isfinite(values)).sum())
        bound = float(quantiles(np.where(np.isfinite(values), values, elapsed_s), [p / 100])[0])
        least = "" if name == "tpot" else f"; it is at least {bound:.4g} s"
        why = f"{lost} of {n} requests failed or did not finish, more than p{p} allows{least}"
        return Quantity.unknown("s", why, n=n)
    low, high = interval
    return Quantity.of(value, "s", **_bounds(low, high), n=n, why=caveat(p, n, high))


def too_few_for(p: int, n: int, what: str) -> str | None:
    """Why ``n`` observations do not give percentile ``p``, or ``None`` where they do."""
    least = MIN_FOR_PERCENTILE[p]
    return f"p{p} needs at least {least} {what} in the window; there were {n}" if n < least else None


def caveat(p: int, n: int, high: float) -> str | None:
    """What a reader must know about the interval of percentile ``p`` from ``n`` observations, if anything."""
    if not math.isfinite(high):
        return "no upper bound: with other requests failing, this percentile would fall among the failed ones"
    above = n * (1 - p / 100)
    if above < TAIL_FOR_INTERVAL:
        return f"about {above:.0f} of {n} requests lie above it, so the interval is likely too narrow"
    return None


def _bounds(low: float, high: float) -> dict[str, float | None]:
    return {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}


def itl_metrics(found: Gaps, overlap: int, confidence: float, rng: np.random.Generator) -> dict[str, Quantity]:
    """``itl_mean_s`` and ``itl_p50_s`` …: every gap weighs the same; requests, not gaps, are resampled.

    For the bootstrap the gaps are binned at 2,000 of their own quantiles, half of them in the top 2%.
    """
    n = len(found.seconds)
    ranks, member = np.unique(found.request, return_inverse=True)
    if len(ranks) < MIN_ITL_REQUESTS:
        why = f"an ITL needs gaps of at least {MIN_ITL_REQUESTS} requests in the window; there were {len(ranks)}"
        return {key: Quantity.unknown("s", why, n=n) for key in _names("itl")}
    grid = np.union1d(np.linspace(0, 1, 1001), np.linspace(0.98, 1, 1001))
    values = np.unique(np.quantile(found.seconds, grid))
    at = np.minimum(np.searchsorted(values, found.seconds), len(values) - 1)
    table = np.bincount(member * len(values) + at, minlength=len(ranks) * len(values)).reshape(len(ranks), -1)
    table32 = table.astype(np.float32)
    sums, sizes = np.bincount(member, weights=found.seconds), np.bincount(member).astype(np.float64)
    ps = [p / 100 for p in PERCENTILES]

    def draw(counts: Counts) -> F64:
        binned = np.rint(counts.astype(np.float32) @ table32).astype(np.int32)
        return np.column_stack([counts @ sums / np.maximum(counts @ sizes, 1), counted_quantiles(values, binned, ps)])

    block = block_length(sums / sizes, overlap)
    widen = widening(len(ranks), block, confidence)
    draws = resampled(len(ranks), block, rng, draw, resamples=400)
    mean = float(found.seconds.mean())
    low, high = spread(draws[:, 0], confidence, mean, widen, floor=0.0)
    out = {"itl_mean_s": Quantity.of(mean, "s", low=low, high=high, n=n)}
    for j, p in enumerate(PERCENTILES):
        few = too_few_for(p, n, "inter-token gaps")
        value = float(np.quantile(found.seconds, p / 100))
        low, high = spread(draws[:, j + 1], confidence, value, widen, floor=0.0)
        note = few or _alike(p, len(ranks) / max(1, overlap))
        out[f"itl_p{p}_s"] = (
            Quantity.unknown("s", few, n=n) if few else Quantity.of(value, "s", low=low, high=high, n=n, why=note)
        )
    return out


def _alike(p: int, stretches: float) -> str | None:
    """The caveat on an ITL tail: gaps of requests that share batches are alike, so there are far fewer than counted."""
    if p == 50 or stretches * (1 - p / 100) >= 1:
        return None
    return f"gaps of one batch are alike: about {stretches:.0f} independent stretches, so its interval is too narrow"
