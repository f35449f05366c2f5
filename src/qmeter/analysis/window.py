"""The stationary window: the planned one where nothing drifts, else its quiet end, else a verdict why there is none.

Procedure, in this order:

1. The planned window is ``[warmup, warmup + window)`` on the cell's clock, which starts with its load. A closed loop's
   begins at the earliest when each of its first requests has had its first token (:func:`filled_s`): until then the
   prompts that were all sent at once are worked off. Requests in flight cannot show that, they are constant.
2. Drift test (:func:`drifts`: a line, and the start against the later half) on requests in flight and output token
   rate, a line on time to first token.
3. Where something drifts, MSER-5 (White 1997) on requests in flight and token rate truncates the beginning, at most
   half of the window, and what is left is tested again.
4. Where that drifts too, the planned window stands, marked not stationary, with what drifted and whether the load
   outgrew the deployment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.stats import F64, holm, t_cdf
from qmeter.record import CellTables, Window
from qmeter.spec.workload import WorkloadSpec

BINS = 120
"""Time bins over the planned window, for MSER-5 and the batches of the drift test."""
BATCHES = 12
"""Batch means that the drift test fits its line through."""
LEVEL = 0.01
"""Significance, Holm-corrected over the series tested: 1 stationary cell in 100 is called drifting by chance."""
RELEVANT = {"requests in flight": 0.25, "output token rate": 0.15, "time to first token": 0.5}
"""Drift over the whole window, as a share of its mean, below which a significant drift is let pass."""
MOST_CUT = 0.5
"""Share of the planned window that may be cut from its beginning."""
YOUNG = 0.5
"""Share of a closed loop's first requests that may be unfinished when the window begins, without a warning."""
MIN_LATENCIES = 24
"""Requests needed to test their latency for drift."""
OVERLOAD_SHARE = 0.05
"""Share of the arrivals by which the backlog must grow for the cell to be called overloaded."""
NO_DRIFT = "planned, no drift found"
SLOWDOWN = 1.25
"""Median duration of the last third of requests over the first third's, above which a growing backlog is overload."""


@dataclass(frozen=True)
class Drift:
    """A series that changes over the window: fitted change from end to end, as a share of its mean."""

    name: str
    change: float
    p: float

    @property
    def text(self) -> str:
        """In words: by how much it changes over the window."""
        if self.change > 1:
            return f"{self.name} grows {1 + self.change:.1f}-fold over the window"
        return f"{self.name} changes by {self.change:+.0%} over the window"


@dataclass(frozen=True)
class Found:
    """The window, and whether the load outgrew the deployment in it (``overload`` says how it shows).

    ``young`` says that most of a closed loop's first requests were still running when the window began.
    """

    window: Window
    overload: str | None = None
    young: str | None = None


def in_flight(tables: CellTables, edges: F64) -> F64:
    """Mean number of requests open in each bin, from intended (or sent) time to the end; shape (len(edges) - 1,).

    A request with no end is open to the last edge: it did not finish.
    """
    begin, end = spans(tables)
    some = ~np.isnan(begin)
    begin, end = begin[some], np.where(np.isnan(end[some]), np.inf, end[some])
    # Integral of the number open from -inf to t: sum of clip(t - begin) - clip(t - end), by sorted prefix sums.
    area = _ramp(np.sort(begin), edges) - _ramp(np.sort(end[np.isfinite(end)]), edges)
    return np.asarray(np.diff(area) / np.diff(edges), dtype=np.float64)


def _ramp(times: F64, at: F64) -> F64:
    sums = np.concatenate([[0.0], np.cumsum(times)])
    k = np.searchsorted(times, at)
    return np.asarray(k * at - sums[k], dtype=np.float64)


def spans(tables: CellTables) -> tuple[F64, F64]:
    """``(begin_s, end_s)`` a request: intended send time (the send itself in a closed loop) and end; NaN: never."""
    r = tables.requests
    begin = np.where(np.isnan(r.intended_s), r.sent_s, r.intended_s)
    return begin, r.end_s


def line(batches: F64) -> tuple[float, float]:
    """``(change from end to end, p)`` of the straight line through batch means, tested with a t on the slope.

    The residuals' lag-1 autocorrelation r (where positive) widens the standard error by sqrt((1 + r) / (1 - r)).
    """
    y = batches[~np.isnan(batches)]
    n = len(y)
    if n < 5:
        return 0.0, 1.0
    x = np.arange(n) - (n - 1) / 2
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    variance = float(rest @ rest) / (n - 2)
    change = slope * (n - 1)
    if variance <= 1e-18 * float(y @ y):
        return change, 1.0 if abs(change) <= 1e-9 * float(np.abs(y).max()) else 0.0
    r = min(0.8, max(0.0, float(rest[1:] @ rest[:-1]) / float(rest @ rest)))
    error = math.sqrt(variance / float(x @ x) * (1 + r) / (1 - r))
    return change, 2 * (1 - t_cdf(abs(slope) / error, n - 2))


def transient(batches: F64) -> tuple[float, float]:
    """``(later half's mean less the first sixth's, p)``: a filling phase at the start, which a line hardly sees."""
    early, late = batches[: max(1, len(batches) // 6)], batches[len(batches) // 2 :]
    change = float(late.mean() - early.mean())
    spread_ = float(late.std(ddof=1))
    if spread_ <= 1e-9 * abs(float(late.mean())):
        return change, 1.0 if abs(change) <= 1e-9 * abs(float(late.mean())) else 0.0
    t = abs(change) / (spread_ * math.sqrt(1 / len(early) + 1 / len(late)))
    return change, 2 * (1 - t_cdf(t, len(late) - 1))


def _relative(name: str, batches: F64) -> list[Drift]:
    mean = float(np.nanmean(batches))
    found = [line(batches), transient(batches)]
    return [Drift(name, change / mean if mean else 0.0, p) for change, p in found]


def _latency_drift(tables: CellTables, start_s: float, end_s: float) -> Drift | None:
    """Drift of the logarithm of the time to first token, in order of intended send; ``None`` for few requests."""
    begin, _ = spans(tables)
    inside = np.flatnonzero((begin >= start_s) & (begin < end_s))
    inside = inside[np.argsort(begin[inside], kind="stable")]
    ttft = tables.requests.first_token_s[inside] - begin[inside]
    ttft = ttft[~np.isnan(ttft)]
    if len(ttft) < MIN_LATENCIES:
        return None
    parts = np.array_split(np.log(np.maximum(ttft, 1e-6)), BATCHES)
    change, p = line(np.array([float(part.mean()) for part in parts]))
    return Drift("time to first token", math.expm1(change), p)


def drifts(tables: CellTables, start_s: float, end_s: float) -> list[Drift]:
    """The series that drift inside ``[start_s, end_s)``: significantly (Holm over the series) and by enough to matter.

    An empty list also comes where there is too little to test; see :func:`testable`.
    """
    edges = np.linspace(start_s, end_s, BATCHES + 1)
    tested = [
        *_relative("requests in flight", in_flight(tables, edges)),
        *_relative("output token rate", rate(tables, edges)),
    ]
    latency = _latency_drift(tables, start_s, end_s)
    if latency:
        tested.append(latency)
    adjusted = holm([d.p for d in tested])
    found = [d for d, p in zip(tested, adjusted, strict=True) if p < LEVEL and abs(d.change) > RELEVANT[d.name]]
    return list({d.name: d for d in reversed(found)}.values())


def rate(tables: CellTables, edges: F64) -> F64:
    """Output tokens a second that arrived in each bin, shape (len(edges) - 1,)."""
    tokens, _ = np.histogram(tables.tokens.t_s, bins=edges, weights=tables.tokens.n)
    return np.asarray(tokens / np.diff(edges), dtype=np.float64)


def mser5(series: F64, most: float = MOST_CUT) -> int | None:
    """MSER-5 truncation: how many leading observations to drop, or ``None`` where it does not settle within ``most``.

    Batches of 5; the cut minimises the squared standard error of what is left (White 1997), searched over the first
    ``most`` of the series only, since short remainders at its end look quiet by chance.
    """
    m = len(series) // 5
    if m < 6:
        return None
    y = series[: 5 * m].reshape(m, 5).mean(axis=1)
    last = int(most * m)
    scores = [float(y[d:].var()) / (m - d) for d in range(last + 1)]
    cut = int(np.argmin(scores))
    return None if cut == last else 5 * cut


def find(tables: CellTables, workload: WorkloadSpec) -> Found:
    """The window of one cell, whose clock starts with its load."""
    begin, end = workload.warmup, workload.warmup + workload.window
    if workload.arrivals.kind == "ramp":
        why = "the arrival rate rises by design, so nothing is stationary: read the cell as a sweep"
        return Found(Window(start_s=begin, end_s=end, method="planned", stationary=False, why=why))
    if workload.arrivals.kind == "closed":
        return _of_closed(tables, begin, end, workload.arrivals.concurrency)
    return _settled(tables, begin, begin, end)


def _of_closed(tables: CellTables, begin: float, end: float, concurrency: int) -> Found:
    """A closed loop's window: as :func:`_settled`, once the loop is filled; and whether it is still young then."""
    filled = filled_s(tables, concurrency)
    if filled > begin + MOST_CUT * (end - begin):
        when = f"at {filled:.1f} s" if math.isfinite(filled) else "never"
        why = f"the last of the loop's first {concurrency} requests had its first token {when}: the loop was filling"
        found = Found(Window(start_s=begin, end_s=end, method="planned", stationary=False, why=why))
    else:
        found = _settled(tables, begin, max(begin, filled), end, closed=True)
    running = _first(tables, concurrency, tables.requests.end_s) > found.window.start_s
    if running.sum() <= YOUNG * len(running):
        return found
    young = f"{running.sum()} of the loop's first {concurrency} requests, sent at once, ran on when the window began"
    return replace(found, young=f"{young}: fewer prompts are in its steps than in a loop that has turned over")


def filled_s(tables: CellTables, concurrency: int) -> float:
    """When each of a closed loop's first ``concurrency`` requests had had its first token, or had failed; ∞: never."""
    r = tables.requests
    seen = np.where(np.isnan(r.first_token_s), r.end_s, r.first_token_s)
    return float(_first(tables, concurrency, seen).max(initial=0.0))


def _first(tables: CellTables, concurrency: int, column: F64) -> F64:
    """The column's values of the first ``concurrency`` requests that were sent; never (NaN) counts as ∞."""
    sent = tables.requests.sent_s
    order = np.argsort(sent, kind="stable")[: min(concurrency, int(np.count_nonzero(~np.isnan(sent))))]
    return np.asarray(np.nan_to_num(column[order], nan=np.inf), dtype=np.float64)


def _settled(tables: CellTables, planned: float, begin: float, end: float, *, closed: bool = False) -> Found:
    """The window within ``[begin, end)``, as the module says; ``planned`` is where the workload wants it to begin."""
    backlog, overload = (None, False) if closed else growing(tables, begin, end)
    few = testable(tables, begin, end)
    found = [] if few else drifts(tables, begin, end)
    if not found and not few and not backlog:
        method = f"planned, first {begin - planned:.2f} s cut: the loop was filling" if begin > planned else NO_DRIFT
        return Found(Window(start_s=begin, end_s=end, method=method, stationary=True))
    cut = None if overload or few else _truncation(tables, begin, end)
    if cut and begin + cut <= planned + MOST_CUT * (end - planned):
        later = begin + cut
        if not drifts(tables, later, end) and not testable(tables, later, end):
            method = f"planned, first {later - planned:.2f} s cut by MSER-5"
            return Found(Window(start_s=later, end_s=end, method=method, stationary=True))
    why = backlog or few or "; ".join(d.text for d in found)
    window = Window(start_s=begin, end_s=end, method="planned", stationary=False, why=why)
    return Found(window, backlog if overload else None)


def testable(tables: CellTables, start_s: float, end_s: float) -> str | None:
    """Why the stretch holds too little to test for drift, or ``None`` where it holds enough."""
    begin, _ = spans(tables)
    requests = int(((begin >= start_s) & (begin < end_s)).sum())
    tokens = int(((tables.tokens.t_s >= start_s) & (tables.tokens.t_s < end_s)).sum())
    if requests < 3 or tokens < 2 * BATCHES:
        return (
            f"only {requests} requests and {tokens} token events in the window: too few to show that it is stationary"
        )
    return None


def growing(tables: CellTables, start_s: float, end_s: float) -> tuple[str | None, bool]:
    """``(how the backlog grows through the window or None, whether that is overload beyond doubt)``.

    It grows if the requests open rise along a line by more than 5% of the arrivals and by more than chance would (2.6
    times sqrt(2 × its mean at the start), as for Poisson arrivals), and fewer requests end than begin. It is overload
    if later requests also take longer than earlier ones; else the warm-up may only be shorter than a request takes.
    """
    begin, end = spans(tables)
    inside = (begin >= start_s) & (begin < end_s)
    arrived = int(inside.sum())
    ended = int(((end >= start_s) & (end < end_s)).sum())
    open_ = in_flight(tables, np.linspace(start_s, end_s, BATCHES + 1))
    growth, p = line(open_)
    chance = 2.6 * math.sqrt(2 * max(1.0, float(open_[:3].mean())))
    if arrived < 5 or growth <= max(OVERLOAD_SHARE * arrived, chance) or p > LEVEL or ended >= arrived:
        return None, False
    seen = f"{arrived} requests arrived and {ended} ended in the window, requests open grew by {growth:.0f}"
    slower = _slowdown(tables, inside)
    if slower < SLOWDOWN:
        return f"{seen}: more load than it serves, or a warm-up shorter than a request takes", False
    last = "did not finish" if math.isinf(slower) else f"took {slower:.1f} times as long as early ones"
    return f"overloaded: {seen}, late requests {last}", True


def _slowdown(tables: CellTables, inside: NDArray[np.bool_]) -> float:
    """Median duration of the last third of the window's requests over that of the first; unfinished ones count ∞."""
    begin, end = spans(tables)
    order = np.flatnonzero(inside)[np.argsort(begin[inside], kind="stable")]
    ok = tables.requests.status[order] == "ok"
    took = np.where(ok & ~np.isnan(end[order]), end[order] - begin[order], np.inf)
    third = max(1, len(took) // 3)
    early, late = float(np.median(took[:third])), float(np.median(took[-third:]))
    return 1.0 if math.isinf(early) or early <= 0 else late / early


def _truncation(tables: CellTables, start_s: float, end_s: float) -> float | None:
    """Seconds to cut from the beginning by MSER-5 on both series; ``None`` where it finds no cut within half."""
    edges = np.linspace(start_s, end_s, BINS + 1)
    cuts = [mser5(in_flight(tables, edges)), mser5(rate(tables, edges))]
    found = [c for c in cuts if c is not None]
    if not found or max(found) == 0:
        return None
    return max(found) * (end_s - start_s) / BINS
