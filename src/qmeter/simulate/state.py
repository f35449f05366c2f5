"""The fast kernel's state: plain arrays, so that the same code runs compiled and resumes at any time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmeter.simulate.load import SimLoad
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Replica integers.
AP, WHEAD, NWAIT, STACK, RHEAD, RTAIL, NDEC, PART, PDONE, G, STEPS, FREE, HEAPN = range(13)
NZ, NZOLD, INFLIGHT, DONE, PREEMPTS, QTAIL, NEXT, RUNS, NC, BLANK, LHEAD, LTAIL, NFIRST, PDEC = range(13, 27)
MSTEPS, POUT = range(27, 29)
N_INTS = 29
# Replica floats.
NOW, DEC, BUSY, ENERGY, KSUM, DOOR, DEVICE, PSTART, FRONT, BEFORE, OUT_AT, OUT_COST = range(12)
CAP_AVERAGE, CAP_AT, CAP_J, CLOCK = range(12, 16)
N_FLOATS = 16
# Rule integers.
BUDGET, SEATS, BLOCK, RESERVE, ASYNC, CHUNKED, MIXED, CACHE, UNIT, CLOSED, DETAIL, USABLE = range(12)
# Model floats.
KV_S, PAIR_S, CHUNK_S, HOST_S, HOST_SEQ_S, KV_J, PAIR_J, BUSY_W, THINK_S, STOP_S, SPACING_S = range(11)
HOST_MIXED_S, HOST_MIXED_SEQ_S, TAIL_S, OUT_SEQ_S, IN_EACH_S, CAP_W, SETTLE, KV_MIXED_S = range(11, 19)
LAUNCH_W, IDLE_W = range(19, 21)
# Log counters and step columns.
LSEG, LGEN, LSTEP = range(3)
C_START, C_DUR, C_DEC, C_PRE, C_KV, C_PAIRS, C_RUN, C_WAIT, C_USED, C_OUT, C_WORK_J, C_CLOCK = range(12)
N_COLUMNS = 12
# What advance() stopped for.
HORIZON, DRAINED, GROW, STUCK = range(4)


class Replica(NamedTuple):
    """One replica: counters, the heap of decode ends, the block phases of its decodes, its newest step's chunks."""

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


class Work(NamedTuple):
    """All requests of a run, by index; the links chain a replica's queue, its running list and its preempted ones.

    ``door`` is when a request is through the front end, once ``passed``; until then when it reaches it. ``first`` and
    ``end`` are when the engine gave its first and last token, ``first_out`` and ``end_out`` when the front end had sent
    them on.
    """

    arrival: F64
    door: F64
    passed: I64
    prompt: I64
    output: I64
    queue_next: I64
    stack_next: I64
    run_prev: I64
    run_next: I64
    generated: I64
    joined: I64
    joined_s: F64
    segment: I64
    shared_blocks: I64
    shared_units: I64
    first: F64
    end: F64
    first_out: F64
    end_out: F64
    preempted: I64
    hit: I64


class Cache(NamedTuple):
    """The prefix cache by unit: leading blocks resident, holders, and the links of the eviction order."""

    start: I64
    units: I64
    resident: I64
    holders: I64
    prev: I64
    next: I64


class Coefficients(NamedTuple):
    """Rules and step model as arrays."""

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


class Log(NamedTuple):
    """Segments of consecutive tokens, times of decode steps, and one row a step; empty without detail."""

    n: I64
    seg_req: I64
    seg_s: F64
    seg_g: I64
    seg_n: I64
    decode_end: F64
    step: F64


def replica(rules: Rules) -> Replica:
    """A fresh, idle replica."""
    ints = np.zeros(N_INTS, dtype=np.int64)
    for link in (AP, WHEAD, STACK, RHEAD, RTAIL, PART, QTAIL, LHEAD, LTAIL):
        ints[link] = -1
    ints[FREE] = ints[BLANK] = rules.usable_blocks
    seats = rules.max_sequences + 1

    def i() -> I64:
        return np.zeros(seats, dtype=np.int64)

    phase = np.zeros(rules.block_tokens, dtype=np.int64)
    return Replica(ints, np.zeros(N_FLOATS), i(), i(), phase, i(), i(), i(), i(), i())


def work(load: SimLoad) -> Work:
    """Per-request arrays of a load."""
    n = len(load)

    def links() -> I64:
        return np.full(n, -1, dtype=np.int64)

    def zeros() -> I64:
        return np.zeros(n, dtype=np.int64)

    arrival = np.array(load.arrival_s, dtype=np.float64)
    if load.concurrency is not None:
        arrival[:] = np.nan
        first = arrival[: load.concurrency]
        first[:] = load.spacing_s * np.arange(len(first))
    return Work(
        arrival, arrival.copy(), zeros(),
        np.ascontiguousarray(load.prompt, dtype=np.int64), np.ascontiguousarray(load.output, dtype=np.int64),
        links(), links(), links(), links(), zeros(), zeros(), np.zeros(n), links(), zeros(), zeros(),
        np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan), zeros(), zeros(),
    )  # fmt: skip


def cache(load: SimLoad, rules: Rules) -> Cache:
    """The prefix cache: one node a known unit, and one a request for the blocks that only it can find again."""
    n = len(load)
    if not rules.prefix_cache:
        one = np.zeros(1, dtype=np.int64)
        return Cache(one, one, one.copy(), one.copy(), one.copy(), one.copy())
    start, units = _whole_units(load)
    nodes = (int(units.max()) + 1 if len(units) else 0) + n
    zero, link = np.zeros(nodes, dtype=np.int64), np.full(nodes, -1, dtype=np.int64)
    return Cache(start, units, zero, zero.copy(), link, link.copy())


def _whole_units(load: SimLoad) -> tuple[I64, I64]:
    """Units that a prompt fills entirely: a part-full last unit cannot be told from a longer one."""
    n = len(load)
    if not load.unit_tokens or not len(load.unit_start):
        return np.zeros(n + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
    counts = np.minimum(np.diff(load.unit_start), load.prompt // load.unit_tokens)
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    rows = np.repeat(np.arange(n), counts)
    within = np.arange(int(start[-1])) - start[rows]
    return start, np.ascontiguousarray(load.units[load.unit_start[rows] + within], dtype=np.int64)


def coefficients(rules: Rules, model: StepModel, load: SimLoad | None = None, detail: bool = False) -> Coefficients:
    """Rules and model as the kernel takes them."""
    unit = load.unit_tokens // rules.block_tokens if load is not None and load.unit_tokens else 1
    closed = load is not None and load.concurrency is not None
    flags = (rules.reserve_full_prompt, rules.async_scheduling, rules.chunked_prefill, rules.mixed, rules.prefix_cache)
    rule = [rules.token_budget, rules.max_sequences, rules.block_tokens, *flags, unit, closed, detail,
            rules.usable_blocks]  # fmt: skip
    c = [model.kv_s, model.pair_s, model.chunk_s, model.host_s, model.host_seq_s, model.kv_j, model.pair_j,
         model.busy_w, load.think_s if load else 0.0, load.stop_s if load else np.inf,
         load.spacing_s if load else 0.0, model.host_mixed_s, model.host_mixed_seq_s, model.tail_s,
         model.output_seq_s, model.input_each_s, model.cap_w, model.settle_s,
         model.kv_s * model.kv_mixed, model.waiting_w, model.idle_w]  # fmt: skip
    return Coefficients(
        np.array(rule, dtype=np.int64), np.array(c, dtype=np.float64),
        _table(model.decode_s, rules.max_sequences), _table(model.mixed_s, rules.token_budget),
        _table(model.mixed_clock_s, rules.token_budget),
        _table(model.decode_j, rules.max_sequences), _table(model.mixed_j, rules.token_budget),
        _table(model.padding_j, rules.token_budget),
        np.asarray(model.noise_decode, dtype=np.float64), np.asarray(model.noise_mixed, dtype=np.float64),
    )  # fmt: skip


def _table(values: F64, length: int) -> F64:
    index = np.minimum(np.arange(length + 1), len(values) - 1)
    return np.ascontiguousarray(np.asarray(values, dtype=np.float64)[index])


def log(segments: int, decode_steps: int, steps: int) -> Log:
    """Room for that many rows; 1 each where no detail is kept."""
    s, d, t = max(segments, 1), max(decode_steps, 1), max(steps, 1)
    return Log(
        np.zeros(3, dtype=np.int64), np.zeros(s, dtype=np.int64), np.zeros(s), np.zeros(s, dtype=np.int64),
        np.zeros(s, dtype=np.int64), np.zeros(d), np.zeros((t, N_COLUMNS)),
    )  # fmt: skip


def grown(old: Log) -> Log:
    """The same log with twice the room."""

    def twice(a: Any) -> Any:
        return np.concatenate((a, np.zeros_like(a)))

    return Log(old.n, twice(old.seg_req), twice(old.seg_s), twice(old.seg_g), twice(old.seg_n), twice(old.decode_end),
               twice(old.step))  # fmt: skip
