"""One quantity over the repeats of a cell: mean with Student's t, pooled shares, or the within-run interval."""

from __future__ import annotations

from collections.abc import Sequence

from qmeter.analysis.stats import t_interval, wilson
from qmeter.record import Quantity

POOLED = ("slo_attainment", "failed_share")
"""Shares whose requests are pooled over repeats (Wilson): the spread of shares near 1 understates their doubt."""


def over_repeats(name: str, values: Sequence[Quantity], confidence: float = 0.95) -> Quantity:
    """One quantity from its repeats.

    Two or more repeats: mean and t interval over them, which holds what differs from run to run. One: its interval
    from within the run, and it says so. Unknown in any repeat: unknown, since what is left would be a selection.

    Raises:
        ValueError: there is no repeat.
    """
    if not values:
        raise ValueError(f"{name}: no repeats to combine")
    first = values[0]
    if len(values) == 1:
        return _single(first)
    lost = [q for q in values if q.value is None]
    if lost:
        why = lost[0].why or "unknown"
        lead = "" if len(lost) == len(values) else f"unknown in {len(lost)} of {len(values)} repeats: "
        return Quantity.unknown(first.unit, lead + why, n=sum(q.n or 0 for q in values) or None)
    known = [q.value for q in values if q.value is not None]
    sizes = [q.n or 0 for q in values]
    if name in POOLED and min(sizes) > 0:
        hits = sum(v * n for v, n in zip(known, sizes, strict=True))
        made = wilson(round(hits), sum(sizes), confidence)
        widest = _widest(values, made.value)
        low, high = min(made.low, widest[0]), max(made.high, widest[1])
        return Quantity.of(
            made.value, first.unit, low=low, high=high, n=sum(sizes), why=f"{len(values)} repeats pooled"
        )
    made = t_interval(known, confidence)
    why = f"t interval over {len(known)} repeats"
    low, high = made.low, made.high
    if min(known) >= 0:
        low = max(0.0, low)
    if max(known) - min(known) <= 1e-9 * max(abs(v) for v in known) and first.low is not None:
        low, high = _single(first).low or low, _single(first).high or high
        why = f"{len(known)} repeats gave the same; interval from within one run"
    return Quantity.of(made.value, first.unit, low=low, high=high, n=len(known), why=why)


def _single(q: Quantity) -> Quantity:
    if q.value is None:
        return q
    why = "; ".join(
        filter(None, [q.why, "one repeat: the interval is from within the run" if q.low is not None else ""])
    )
    return q.model_copy(update={"why": why or None})


def _widest(values: Sequence[Quantity], centre: float) -> tuple[float, float]:
    """Bounds no narrower than the repeats' own over sqrt(k): clustered misses widen those."""
    k = len(values) ** 0.5
    lows = [(q.value or 0.0) - q.low for q in values if q.low is not None]
    highs = [q.high - (q.value or 0.0) for q in values if q.high is not None]
    low = centre - (sum(lows) / len(lows) / k if lows else 0.0)
    high = centre + (sum(highs) / len(highs) / k if highs else 0.0)
    return max(0.0, low), min(1.0, high)
