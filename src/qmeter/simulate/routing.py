"""The routers, compiled: which replica a request goes to, and replicas advanced only when the choice needs it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qmeter.simulate import prefix
from qmeter.simulate.jit import jit
from qmeter.simulate.kernel import advance, enqueue
from qmeter.simulate.state import (
    BLOCK,
    DONE,
    F64,
    FREE,
    HEAPN,
    HOST_S,
    HOST_SEQ_S,
    I64,
    NDEC,
    NOW,
    NWAIT,
    PART,
    STUCK,
    USABLE,
    Cache,
    Coefficients,
    G,
    Log,
    Replica,
    Work,
)

ROUND_ROBIN, LEAST_LOADED, KV_AWARE = range(3)


class Stack(NamedTuple):
    """All replicas' arrays, one row each, and which kind (row of the coefficients) each is."""

    ints: I64
    floats: F64
    heap_key: I64
    heap_req: I64
    phase: I64
    ended: I64
    first_req: I64
    chunk_req: I64
    chunk_n: I64
    chunk_at: I64
    kind: I64
    accepts: I64
    serves: I64
    assigned: I64
    next_end: F64
    resident: I64
    holders: I64
    prev: I64
    next: I64


class Kinds(NamedTuple):
    """Coefficients of every kind of replica, one row each; ``least`` is the smallest noise factor."""

    rule: I64
    c: F64
    decode_s: F64
    mixed_s: F64
    mixed_clock_s: F64
    decode_j: F64
    mixed_j: F64
    padding_j: F64
    noise_decode: F64
    noise_mixed: F64
    least: F64


@jit
def _replica(s: Stack, r: int) -> Replica:
    return Replica(
        s.ints[r], s.floats[r], s.heap_key[r], s.heap_req[r], s.phase[r], s.ended[r], s.first_req[r], s.chunk_req[r],
        s.chunk_n[r], s.chunk_at[r],
    )  # fmt: skip


@jit
def _coefficients(k: Kinds, kind: int) -> Coefficients:
    return Coefficients(
        k.rule[kind], k.c[kind], k.decode_s[kind], k.mixed_s[kind], k.mixed_clock_s[kind], k.decode_j[kind],
        k.mixed_j[kind], k.padding_j[kind], k.noise_decode[kind], k.noise_mixed[kind],
    )  # fmt: skip


@jit
def _cache(s: Stack, start: I64, units: I64, r: int) -> Cache:
    at = r if len(s.resident) > 1 else 0
    return Cache(start, units, s.resident[at], s.holders[at], s.prev[at], s.next[at])


@jit
def advance_one(s: Stack, k: Kinds, work: Work, start: I64, units: I64, log: Log, r: int, until: float) -> int:
    """Run replica ``r`` up to ``until``, and note when it can end a request at the earliest."""
    kind = s.kind[r]
    rep, co = _replica(s, r), _coefficients(k, kind)
    why = advance(rep, work, _cache(s, start, units, r), co, log, until)
    ints = rep.ints
    s.next_end[r] = np.inf
    if ints[DONE] < s.assigned[r]:
        s.next_end[r] = until
        if ints[NWAIT] == 0 and ints[PART] < 0 and ints[HEAPN] > 0:
            n = ints[NDEC]
            step = max(co.c[HOST_S] + co.c[HOST_SEQ_S] * n, co.decode_s[n]) * k.least[kind]
            s.next_end[r] = rep.floats[NOW] + (rep.heap_key[0] - ints[G] - 3) * step
    return int(why)


@jit
def _cost(s: Stack, k: Kinds, work: Work, start: I64, units: I64, r: int, i: int, policy: int) -> float:
    """What a router minimises. KV-aware: share of the token budget to prefill beyond the cached prefix, plus the
    share of KV blocks in use, plus requests waiting."""
    ints, rule = s.ints[r], k.rule[s.kind[r]]
    flight = s.assigned[r] - ints[DONE]
    if policy == LEAST_LOADED:
        return float(flight)
    hit, _ = prefix.lookup(ints, work, _cache(s, start, units, r), rule, i, work.prompt[i])
    fresh = work.prompt[i] - hit * rule[BLOCK]
    used = (rule[USABLE] - ints[FREE]) / rule[USABLE]
    return float(fresh / 1024.0 + 4.0 * used + 0.25 * flight)


@jit
def route(s: Stack, k: Kinds, work: Work, start: I64, units: I64, log: Log, group: I64, policy: int, turn: I64,
          home: I64, begin: int, end: int) -> int:  # fmt: skip
    """Send requests ``begin``..``end``; ``home`` gets each one's replica (-1: nobody). Returns 0, or STUCK."""
    replicas = len(s.kind)
    for i in range(begin, end):
        at, best, least = work.arrival[i], -1, np.inf
        for step in range(replicas):
            r = (turn[0] + step) % replicas
            if s.accepts[r] == 0 or (s.serves[r] >> group[i]) & 1 == 0:
                continue
            if policy == ROUND_ROBIN:
                best = r
                break
            if (
                s.next_end[r] <= at
                and s.ints[r, DONE] < s.assigned[r]
                and advance_one(s, k, work, start, units, log, r, at) == STUCK
            ):
                return STUCK
            cost = _cost(s, k, work, start, units, r, i, policy)
            if cost < least:
                least, best = cost, r
        home[i] = best
        if best >= 0:
            turn[0] = (best + 1) % replicas
            enqueue(s.ints[best], work, i)
            s.assigned[best] += 1
            s.next_end[best] = min(s.next_end[best], at)
    return 0


@jit
def drain(s: Stack, k: Kinds, work: Work, start: I64, units: I64, log: Log) -> int:
    """Let every replica finish. Returns 0, or STUCK."""
    for r in range(len(s.kind)):
        # A request counts as done once its last step is launched; with asynchronous scheduling its stamp comes later.
        if s.assigned[r] > 0 and advance_one(s, k, work, start, units, log, r, np.inf) == STUCK:
            return STUCK
    return 0
