"""Two cells that served the very same requests, compared request by request and second by second.

Cells of one workload and repeat share a seed, so their requests and arrivals are the same: what those do cancels in the
ratio, which two intervals taken as independent cannot see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from qmeter.analysis.energy import Series, grouped
from qmeter.analysis.latency import latencies
from qmeter.analysis.stats import (
    F64,
    Counts,
    block_length,
    counted_quantiles,
    resampled,
    spread,
    t_interval,
    t_quantile,
    widening,
)
from qmeter.record import CellTables, Quantity, Record

COMPARED = ("ttft_p50_s", "tpot_mean_s", "throughput_tok_s", "j_per_output_token")
"""What is compared: latency at both ends, rate, energy."""
PARTS = 10
"""Parts of the window that rate and energy are compared over."""
LEAST_PAIRS = 20
"""Fewest requests that both cells served in their windows."""
OVERLAP = 4.0
"""Blocks last at least so many median request durations: what runs together shares its luck."""
TOKENS = "engine.generated_tokens"

Cell = tuple[Record, CellTables]


def paired_ratios(pairs: Sequence[tuple[Cell, Cell]], confidence: float = 0.95) -> dict[str, Quantity]:
    """Quantity of :data:`COMPARED` → first / second over pairs of cells that served the same requests.

    One pair: intervals from within the run, which know nothing of how one start differs from the next. Several
    (repeats): a t interval on the log ratios. Missing where there is no such pair, or the tables lack what it takes.
    """
    same = [(a, b) for a, b in pairs if _same_requests(a[0], b[0])]
    each = [_one(a, b, confidence) for a, b in same]
    out = {}
    for name in COMPARED:
        found = [one[name] for one in each if name in one]
        if len(found) == 1 and len(pairs) == 1:
            out[name] = found[0]
        elif len(found) > 1:
            made = t_interval([math.log(q.value or math.nan) for q in found], confidence)
            value, low, high = (math.exp(v) for v in (made.value, made.low, made.high))
            out[name] = Quantity.of(value, "1", low=low, high=high, n=len(found))
    return out


def cell_ratios(loaded: Mapping[str, Cell], confidence: float = 0.95) -> Callable[[str, str, str], Quantity | None]:
    """(cell id, cell id, quantity) → first / second of two loaded cells; each pair is worked out once."""

    @cache
    def pair(a: str, b: str) -> dict[str, Quantity]:
        return paired_ratios([(loaded[a], loaded[b])], confidence) if a in loaded and b in loaded else {}

    return lambda a, b, name: pair(a, b).get(name) if name in COMPARED else None


def _same_requests(a: Record, b: Record) -> bool:
    parts = ("workload", "repeat", "seed")
    return all(a.cell.get(p) == b.cell.get(p) for p in parts) and a.window is not None and b.window is not None


def _one(a: Cell, b: Cell, confidence: float) -> dict[str, Quantity]:
    return {**_latency_ratios(a, b, confidence), **_work_ratios(a, b, confidence)}


def _latency_ratios(a: Cell, b: Cell, confidence: float) -> dict[str, Quantity]:
    """TTFT median and TPOT mean over the requests in both windows, resampled in blocks of both at once."""
    (mine, other), length_s = _matched(a, b)
    n = mine.shape[1]
    if n < LEAST_PAIRS:
        return {}
    rng = np.random.default_rng(int(a[0].cell.get("seed", 0)))
    ttft, tpot, took = mine
    ttft_b, tpot_b, took_b = other
    duration_s = float(np.median(np.maximum(took, took_b)))
    block = block_length(np.log(tpot / tpot_b), math.ceil(OVERLAP * duration_s * n / length_s))
    order, order_b = np.argsort(ttft), np.argsort(ttft_b)

    def both(counts: Counts) -> F64:
        median = counted_quantiles(ttft[order], counts[:, order], (0.5,))[:, 0]
        median_b = counted_quantiles(ttft_b[order_b], counts[:, order_b], (0.5,))[:, 0]
        return np.column_stack([median / median_b, (counts @ tpot) / (counts @ tpot_b)])

    (centre,) = both(np.ones((1, n), dtype=np.int32))
    draws = resampled(n, block, rng, both)
    out = {}
    for k, name in enumerate(("ttft_p50_s", "tpot_mean_s")):
        widen = widening(n, block, confidence)
        low, high = spread(draws[:, k], confidence, float(centre[k]), widen, floor=0.0)
        out[name] = Quantity.of(float(centre[k]), "1", low=min(low, centre[k]), high=max(high, centre[k]), n=n)
    return out


def _matched(a: Cell, b: Cell) -> tuple[tuple[F64, F64], float]:
    """TTFT, TPOT and duration of the requests that both served well in their windows, in order; and its length."""
    found = []
    for record, tables in (a, b):
        assert record.window is not None
        one = latencies(tables, record.window)
        good = one.ok & np.isfinite(one.tpot_s) & (one.tpot_s > 0) & (one.ttft_s > 0)
        found.append((one.rows[good], np.stack([one.ttft_s, one.tpot_s, one.elapsed_s])[:, good]))
    (rows, mine), (rows_b, other) = found
    _, at, at_b = np.intersect1d(rows, rows_b, return_indices=True)
    order = np.argsort(at)
    window = a[0].window
    assert window is not None
    return (mine[:, at[order]], other[:, at_b[order]]), window.length_s


def _work_ratios(a: Cell, b: Cell, confidence: float) -> dict[str, Quantity]:
    """Output rate and energy a token: the records' own values, the spread from leaving out each part of the window."""
    tokens, tokens_b = _parts(a, _generated), _parts(b, _generated)
    if tokens is None or tokens_b is None:
        return {}
    out = {}
    rate = _value(a[0], b[0], "throughput_tok_s")
    if rate is not None:
        half = _jackknife(lambda keep: tokens[keep].sum() / tokens_b[keep].sum(), confidence)
        out["throughput_tok_s"] = _around(rate, half)
    energy, energy_b = _parts(a, _energy), _parts(b, _energy)
    each = _value(a[0], b[0], "j_per_output_token")
    if energy is not None and energy_b is not None and each is not None:
        half = _jackknife(
            lambda keep: energy[keep].sum() / tokens[keep].sum() * tokens_b[keep].sum() / energy_b[keep].sum(),
            confidence,
        )
        out["j_per_output_token"] = _around(each, math.hypot(half, _counter_error(a[0]), _counter_error(b[0])))
    return out


def _value(a: Record, b: Record, name: str) -> float | None:
    one, two = ({**r.metrics, **r.energy}.get(name) for r in (a, b))
    if one is None or two is None or not one.value or not two.value:
        return None
    return one.value / two.value


def _around(value: float, half: float) -> Quantity:
    return Quantity.of(value, "1", low=value * math.exp(-half), high=value * math.exp(half), n=PARTS)


def _jackknife(ratio: Callable[[F64], float], confidence: float) -> float:
    """Half-width of the log ratio's interval, from leaving out one of :data:`PARTS` parts at a time."""
    left = np.log([ratio(np.arange(PARTS) != k) for k in range(PARTS)])
    error = math.sqrt((PARTS - 1) / PARTS * float(((left - left.mean()) ** 2).sum()))
    return t_quantile(0.5 + confidence / 2, PARTS - 1) * error


def _counter_error(record: Record) -> float:
    q = record.energy.get("energy_j")
    return 0.0 if q is None or not q.value or q.high is None else q.high / q.value - 1


def _parts(cell: Cell, of: Callable[[Series], list[tuple[F64, F64]]]) -> F64 | None:
    """What counters rose by in each part of the window, summed over them; ``None`` where they do not cover it."""
    record, tables = cell
    window = record.window
    assert window is not None
    edges = np.linspace(window.start_s, window.end_s, PARTS + 1)
    counters = of(grouped(tables.telemetry))
    total = np.zeros(PARTS)
    for t_s, counted in counters:
        if len(t_s) < 2 or t_s[0] > edges[0] or t_s[-1] < edges[-1] or (np.diff(counted) < 0).any():
            return None
        total += np.diff(np.interp(edges, t_s, counted))
    return total if counters and (total > 0).all() else None


def _generated(series: Series) -> list[tuple[F64, F64]]:
    return [series[TOKENS]] if TOKENS in series else []


def _energy(series: Series) -> list[tuple[F64, F64]]:
    return [series[k] for k in sorted(series) if k.startswith("gpu") and k.endswith(".energy_j")]
