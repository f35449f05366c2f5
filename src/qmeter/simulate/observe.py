"""What a record says about single steps: each one's time and work, from the iteration log or from token times."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import AnalysisError
from qmeter.record import CellTables, RequestStatus
from qmeter.simulate.rules import chunk_pairs

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

IDLE_GAP_S = 2e-4
"""A pause between two steps longer than this counts as idle; shorter ones belong to the host."""
MIN_STEPS = 20
OVERLAPPING = "its {} data-parallel replicas step beside each other, and no record says which replica served a request"
ONE_REPLICA = "calibrate the deployment without dp, which is what each replica is; qmeter plan decides how many of it"


@dataclass(frozen=True)
class Observed:
    """Steps with their work; all arrays share their length.

    Attributes:
        start_s, seconds: start and duration; where the engine was busy before, from the end of the step before.
        after_idle: nothing ran just before it.
        decodes, prefill, chunks: sequences decoding, prompt tokens, and prompts they belong to.
        kv: KV tokens read by the decodes (from the requests' lengths and token times).
        pairs: query-key pairs of the prefill.
    """

    start_s: F64
    seconds: F64
    after_idle: NDArray[np.bool_]
    decodes: I64
    prefill: I64
    chunks: I64
    kv: F64
    pairs: F64

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def end_s(self) -> F64:
        """When each step ended."""
        return self.start_s + self.seconds

    def where(self, mask: NDArray[np.bool_]) -> Observed:
        """The steps that ``mask`` picks."""
        return Observed(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})


def observed_steps(tables: CellTables) -> Observed:
    """All steps of a cell that batch something.

    Raises:
        AnalysisError: neither an iteration log nor token times that would show steps, or a log of several replicas:
            what their steps read and prefill depends on who served which request, which is not recorded.
    """
    log = tables.steps
    if (replicas := len(np.unique(np.asarray(log.replica)))) > 1:
        raise AnalysisError(OVERLAPPING.format(replicas), hint=ONE_REPLICA)
    if len(log) >= MIN_STEPS:
        order = np.argsort(log.start_s + log.duration_s, kind="stable")
        start, end = log.start_s[order], (log.start_s + log.duration_s)[order]
        decodes, prefill = log.decode_tokens[order].astype(np.int64), log.prefill_tokens[order].astype(np.int64)
        keep = (decodes + prefill > 0) & (end > start)
        return _with_work(tables, start[keep], end[keep], decodes[keep], prefill[keep])
    if len(tables.tokens) >= MIN_STEPS:
        return _from_tokens(tables)
    raise AnalysisError(
        "the record has neither an iteration log nor token times",
        hint="keep the steps table (or the tokens table) of the records that the calibration rests on",
    )


def _with_work(tables: CellTables, start: F64, end: F64, decodes: I64, prefill: I64) -> Observed:
    before = np.concatenate(([-np.inf], end[:-1]))
    idle = start - before > IDLE_GAP_S
    start = np.where(idle, start, before)
    first, count, prompt = _joined(tables, end)
    kv = _context_sums(first, count, prompt, len(end))
    pairs, chunks = _prefill_work(first, prompt, prefill)
    return Observed(start, end - start, idle, decodes, prefill, chunks, kv, pairs)


def prefill_steps(tables: CellTables, prefill: I64, end: F64) -> tuple[I64, I64]:
    """``(requests, steps)``: in which step each request's prompt was done, first come first served.

    Where the prompts sent do not add up to the tokens prefilled (preemption, prefix hits), the step whose end is the
    last before the first token.
    """
    r = tables.requests
    asked = np.where(r.prompt_tokens > 0, r.prompt_tokens, r.prompt_tokens_asked)
    rows = np.flatnonzero(np.isfinite(r.sent_s))
    rows = rows[np.argsort(r.sent_s[rows], kind="stable")]
    done, total = np.cumsum(prefill), np.cumsum(asked[rows])
    step = np.searchsorted(done, total, side="left")
    known = (step < len(end)) & np.isfinite(r.first_token_s[rows])
    after = r.first_token_s[rows[known]] - end[step[known]]
    if known.any() and np.mean((after > -1e-3) & (after < 0.25)) > 0.95:
        return rows[known], step[known]
    rows = np.flatnonzero(np.isfinite(r.first_token_s))
    at = np.searchsorted(end, r.first_token_s[rows], side="right") - 1
    return rows[at >= 0], at[at >= 0]


def _joined(tables: CellTables, end: F64) -> tuple[I64, I64, I64]:
    """For each request that gave tokens: the step of its first token, its tokens, its prompt length; in step order."""
    r = tables.requests
    done = np.isfinite(r.first_token_s)
    prompt = np.where(r.prompt_tokens > 0, r.prompt_tokens, r.prompt_tokens_asked)[done].astype(np.int64)
    ok = r.status[done] == RequestStatus.OK.value
    output = np.where(r.output_tokens > 0, r.output_tokens, r.output_tokens_asked)[done].astype(np.int64)
    first = np.searchsorted(end, r.first_token_s[done], side="right") - 1
    last = np.searchsorted(end, np.where(np.isfinite(r.last_token_s), r.last_token_s, end[-1])[done], side="right") - 1
    count = np.where(ok, output, np.maximum(last - first + 1, 1)).astype(np.int64)
    order = np.argsort(first, kind="stable")
    return np.maximum(first, 0)[order], count[order], prompt[order]


def _context_sums(first: I64, count: I64, prompt: I64, steps: int) -> F64:
    """KV tokens read in each step: request i reads prompt + j in the j-th step after its first token (j = 1, 2, …).

    With two difference arrays: one for the constant part prompt - first, one for the number of readers x step index.
    """
    level, readers = np.zeros(steps + 1), np.zeros(steps + 1)
    begin = np.minimum(first + 1, steps)
    stop = np.minimum(first + count, steps)
    np.add.at(level, begin, (prompt - first).astype(np.float64))
    np.add.at(level, stop, -(prompt - first).astype(np.float64))
    np.add.at(readers, begin, 1.0)
    np.add.at(readers, stop, -1.0)
    return np.asarray(np.cumsum(level)[:-1] + np.cumsum(readers)[:-1] * np.arange(steps), dtype=np.float64)


def _prefill_work(first: I64, prompt: I64, prefill: I64) -> tuple[F64, I64]:
    """Pairs and chunks of each step: its prompt tokens belong to the requests first in line (FCFS)."""
    pairs, chunks = np.zeros(len(prefill)), np.zeros(len(prefill), dtype=np.int64)
    at, done = 0, 0
    for step in np.flatnonzero(prefill):
        left = int(prefill[step])
        while left > 0 and at < len(prompt):
            take = min(left, int(prompt[at]) - done)
            pairs[step] += chunk_pairs(take, done)
            chunks[step] += 1
            left, done = left - take, done + take
            if done >= prompt[at]:
                at, done = at + 1, 0
        if left > 0:
            pairs[step] += chunk_pairs(left, 0)
            chunks[step] = max(int(chunks[step]), 1)
    return pairs, chunks


def _from_tokens(tables: CellTables) -> Observed:
    """Steps from token times: a request gets one token a step, so its second one starts a new step.

    So does a pause of more than two fifths of the shortest gaps within a request.
    """
    t = tables.tokens
    order = np.argsort(t.t_s, kind="stable")
    request, when = t.request[order], t.t_s[order]
    step = np.zeros(len(when), dtype=np.int64)
    newest: dict[int, int] = {}
    own = np.diff(t.t_s)[np.diff(t.request) == 0]
    apart = 0.4 * float(np.quantile(own[own > 0], 0.05)) if np.any(own > 0) else np.inf
    now = 0
    for k in range(len(when)):
        if newest.get(int(request[k]), -1) == now or (k > 0 and when[k] - when[k - 1] > apart):
            now += 1
        newest[int(request[k])] = now
        step[k] = now
    count = np.bincount(step)
    end = np.bincount(step, weights=when) / count
    end = np.maximum.accumulate(end)
    heads = np.zeros(len(t), dtype=bool)
    heads[np.flatnonzero(np.diff(t.request, prepend=-1) != 0)] = True
    is_first = heads[order]
    decodes = np.bincount(step, weights=~is_first, minlength=len(end)).astype(np.int64)
    r = tables.requests
    prompt = np.where(r.prompt_tokens > 0, r.prompt_tokens, r.prompt_tokens_asked)
    prefill = np.bincount(step, weights=np.where(is_first, prompt[request], 0), minlength=len(end)).astype(np.int64)
    sent = np.full(len(end), np.inf)
    np.minimum.at(sent, step[is_first], r.sent_s[request[is_first]])
    before = np.concatenate(([-np.inf], end[:-1]))
    start = np.where(np.isfinite(sent) & (decodes == 0), np.maximum(sent, before), before)
    keep = np.isfinite(start) & (end > start)
    return _with_work(tables, start[keep], end[keep], decodes[keep], prefill[keep])
