"""The front end between client and scheduler, from records: delays either way, and its time a token and a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.record import CellTables
from qmeter.simulate.observe import Observed, prefill_steps

F64 = NDArray[np.float64]

INPUT_S = {"vllm": 2e-3}
"""Engine -> the delay of a lone request, from which the nearest is taken where records agree with many: closed loops
send right after a result, so any delay up to a step does."""
INPUT_EACH_S = {"vllm": 7e-4}
"""Engine -> the front end's time a request where no burst shows it (vLLM's API server, 512 token ids a prompt)."""
BURST = 32
"""Requests sent together from which the front end's time a request can be told."""
OUTPUT_SEQ_S = {"vllm": 6e-5}
"""Engine -> the front end's time a token, from which the nearest is taken where records explain many nearly as well."""
EACH_S = np.concatenate([[0.0], np.geomspace(5e-6, 3e-4, 80)])
"""Times a token that are tried."""
NEARLY, ALIKE = 0.97, 1.05
"""Delays that agree with this share of what the best agrees with are as good; so are times a token that leave at most
so many times what the best leaves."""
SHARP_S = 5e-3
"""Delays are compared relative to themselves and this much."""


@dataclass(frozen=True)
class Seen:
    """One cell as the client and the scheduler saw it."""

    workload: Mapping[str, Any]
    tables: CellTables
    steps: Observed


def queue(end_s: F64, sequences: F64, each_s: float, taken_s: F64 | None = None, input_each_s: float = 0.0) -> F64:
    """When a queue that takes ``each_s`` a sequence is done with each step's outputs. Shape (steps,).

    Args:
        end_s: when the outputs reach it, in order; taken_s: when requests do, each of which takes ``input_each_s``.
            Both are served in order of arrival.
    """
    taken = np.empty(0) if taken_s is None else taken_s
    at = np.concatenate([taken, end_s])
    order = np.argsort(at, kind="stable")
    cost = np.concatenate([np.full(len(taken), input_each_s), each_s * sequences])[order]
    work = np.cumsum(cost)
    done = np.empty(len(at))
    done[order] = work + np.maximum.accumulate(at[order] - (work - cost))
    return done[len(taken) :]


@dataclass(frozen=True)
class _Stamps:
    """Tokens of one cell: the step that gave each, and when the client had it; with the steps' ends and sequences.

    ``taken_s``: when requests reached the front end, which is busy with each for ``input_each_s``.
    """

    at: NDArray[np.int64]
    stamp_s: F64
    end_s: F64
    sequences: F64
    taken_s: F64
    input_each_s: float

    def beyond(self, each_s: float) -> F64:
        """What the client's stamps are later than the queue's."""
        done = queue(self.end_s, self.sequences, each_s, self.taken_s, self.input_each_s)
        return np.asarray(self.stamp_s - done[self.at], dtype=np.float64)


def output_delay(
    cells: Sequence[Seen], input_s: float = 0.0, input_each_s: float = 0.0, engine: str = ""
) -> tuple[float, float]:
    """From a step's result to the client's stamp: a constant, and the front end's time a token. Units: s.

    Requests are in the same queue: they reach it ``input_s`` after they were sent, and take ``input_each_s`` each.

    The time a token is the one for which a queue explains first and last tokens best, cells counting by their mean
    batch, since it is large batches that make the queue; the constant is the median over cells of what it leaves. Where
    small batches tell little, the engine's usual time is among the best.
    """
    firsts, lasts = [], []
    for cell in cells:
        first, last = _stamps(cell, input_s, input_each_s)
        firsts.append(first)
        lasts += [last] if len(last.at) >= 5 else []
    usable = [f for f in firsts if len(f.at) >= 5]
    if not usable:
        return 0.0, 0.0
    weights = [float(p.sequences[p.at].mean()) for p in usable + lasts]
    constants, scores = [], []
    for each_s in EACH_S:
        base = float(np.median([np.median(f.beyond(each_s)) for f in usable]))
        off = [
            float(np.median(np.abs(p.beyond(each_s) - base) / (SHARP_S + p.stamp_s - p.end_s[p.at])))
            for p in usable + lasts
        ]
        constants.append(base)
        scores.append(float(np.average(off, weights=weights)))
    best = int(np.argmin(scores))
    if engine in OUTPUT_SEQ_S:
        alike = np.flatnonzero(np.array(scores) <= ALIKE * scores[best])
        best = int(alike[np.argmin(np.abs(EACH_S[alike] - OUTPUT_SEQ_S[engine]))])
    return max(0.0, constants[best]), float(EACH_S[best])


def _stamps(cell: Seen, input_s: float, input_each_s: float) -> tuple[_Stamps, _Stamps]:
    s, r = cell.steps, cell.tables.requests
    taken = (np.sort(r.sent_s[np.isfinite(r.sent_s)]) + input_s, input_each_s)
    rows, at = prefill_steps(cell.tables, s.prefill, s.end_s)
    sequences = (s.decodes + s.chunks).astype(np.float64)
    delay = r.first_token_s[rows] - s.end_s[at]
    keep = (delay > 0) & (delay < 5.0)
    first = _Stamps(at[keep], r.first_token_s[rows][keep], s.end_s, sequences, *taken)
    then = at + np.where(r.output_tokens > 0, r.output_tokens, 1)[rows] - 1
    good = keep & (then < len(s)) & np.isfinite(r.last_token_s[rows])
    delay = r.last_token_s[rows] - s.end_s[np.minimum(then, len(s) - 1)]
    good &= (delay > 0) & (delay < 10.0)
    return first, _Stamps(then[good], r.last_token_s[rows][good], s.end_s, sequences, *taken)


def input_cost(cells: Sequence[Seen], engine: str, delay_s: float) -> float:
    """The front end's time a request: until a burst's first step, over the burst's size; a lone one takes ``delay_s``.

    The API server takes in all of a burst before the engine sees the first of it: 100 to 235 ms for 256 requests.
    """
    found = []
    for cell in cells:
        sent = np.sort(cell.tables.requests.sent_s[np.isfinite(cell.tables.requests.sent_s)])
        if len(sent) < BURST:
            continue
        together = int(np.searchsorted(sent, sent[0] + 0.02, side="right"))
        first = np.flatnonzero((cell.steps.prefill > 0) & (cell.steps.start_s >= sent[0]))
        if together >= BURST and len(first):
            found.append(max(0.0, float(cell.steps.start_s[first[0]] - sent[0]) - delay_s) / together)
    return float(np.median(found)) if found else INPUT_EACH_S.get(engine, 0.0)


def input_delay(cells: Sequence[Seen], engine: str = "") -> float:
    """From the send to the scheduler: the delay that agrees with most requests. Units: s.

    A request admitted by the decision at d(k), and not by the one before it at d(k-1), came between the two; with
    asynchronous scheduling d(k) is when the results of step k-2 were seen. Only requests that nothing held up count.
    """
    lows, highs = [], []
    for cell in cells:
        s = cell.steps
        rows, at = prefill_steps(cell.tables, s.prefill, s.end_s)
        sent, end = cell.tables.requests.sent_s[rows], s.end_s
        alone = s.prefill[at] < 0.5 * max(int(s.prefill.max(initial=1)), 4096)
        idle = s.after_idle[at] & alone
        lows.append(s.start_s[at[idle]] - sent[idle] - 2e-4)
        highs.append(s.start_s[at[idle]] - sent[idle] + 2e-4)
        later = alone & ~s.after_idle[at] & (at >= 3)
        later &= ~s.after_idle[np.maximum(at - 1, 0)] & ~s.after_idle[np.maximum(at - 2, 0)]
        lows.append(end[at[later] - 3] - sent[later])
        highs.append(end[at[later] - 2] - sent[later])
    low, high = np.concatenate(lows), np.concatenate(highs)
    if len(low) < 5:
        return 0.0
    grid = np.arange(0.0, 0.05, 1e-4)
    votes = ((low[None, :] <= grid[:, None]) & (grid[:, None] <= high[None, :])).sum(axis=1)
    best = grid[votes >= NEARLY * votes.max()]
    usual = INPUT_S.get(engine)
    return float(best.mean()) if usual is None else float(best[np.argmin(np.abs(best - usual))])
