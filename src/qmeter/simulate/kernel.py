"""The fast mode's kernel: the rules of :mod:`qmeter.simulate.rules`, event by event instead of step by step.

Between an arrival, a completion and a shortage of blocks a decode batch does not change, so its steps are summed in
closed form (with resampled noise or detail asked, step by step at constant cost). A step costs the same whatever its
batch: the decodes' next completion is the top of a heap, and the blocks they need come from a histogram of their
position in a block.
"""

from __future__ import annotations

import numpy as np

from qmeter.simulate import prefix
from qmeter.simulate.jit import jit
from qmeter.simulate.state import (
    AP,
    ASYNC,
    BLOCK,
    BUDGET,
    BUSY,
    BUSY_W,
    C_DEC,
    C_DUR,
    C_KV,
    C_PAIRS,
    C_PRE,
    C_RUN,
    C_START,
    C_USED,
    C_WAIT,
    CHUNK_S,
    CHUNKED,
    CLOSED,
    DEC,
    DETAIL,
    DONE,
    DOOR,
    DRAINED,
    ENERGY,
    F64,
    FREE,
    GROW,
    HEAPN,
    HORIZON,
    HOST_S,
    HOST_SEQ_S,
    I64,
    INFLIGHT,
    KSUM,
    KV_J,
    KV_S,
    LSEG,
    LSTEP,
    MIXED,
    NC,
    NDEC,
    NEXT,
    NOW,
    NWAIT,
    NZ,
    NZOLD,
    PAIR_J,
    PAIR_S,
    PART,
    PDONE,
    PREEMPTS,
    QTAIL,
    RESERVE,
    RHEAD,
    RTAIL,
    RUNS,
    SEATS,
    SPACING_S,
    STACK,
    STEPS,
    STOP_S,
    STUCK,
    THINK_S,
    USABLE,
    WHEAD,
    Cache,
    Coefficients,
    G,
    Log,
    Replica,
    Work,
)  # fmt: skip


@jit
def _push(rep: Replica, key: int, i: int) -> None:
    at = rep.ints[HEAPN]
    rep.ints[HEAPN] += 1
    keys, reqs = rep.heap_key, rep.heap_req
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] <= key:
            break
        keys[at], reqs[at] = keys[up], reqs[up]
        at = up
    keys[at], reqs[at] = key, i


@jit
def _sink(rep: Replica, at: int, key: int, i: int) -> None:
    n, keys, reqs = rep.ints[HEAPN], rep.heap_key, rep.heap_req
    while True:
        down = 2 * at + 1
        if down >= n:
            break
        if down + 1 < n and keys[down + 1] < keys[down]:
            down += 1
        if keys[down] >= key:
            break
        keys[at], reqs[at] = keys[down], reqs[down]
        at = down
    keys[at], reqs[at] = key, i


@jit
def _pop(rep: Replica) -> int:
    top = rep.heap_req[0]
    rep.ints[HEAPN] -= 1
    n = rep.ints[HEAPN]
    if n > 0:
        _sink(rep, 0, rep.heap_key[n], rep.heap_req[n])
    return int(top)


@jit
def _drop(rep: Replica, i: int) -> None:
    n = rep.ints[HEAPN]
    kept = 0
    for at in range(n):
        if rep.heap_req[at] != i:
            rep.heap_key[kept], rep.heap_req[kept] = rep.heap_key[at], rep.heap_req[at]
            kept += 1
    rep.ints[HEAPN] = kept
    for at in range(kept // 2 - 1, -1, -1):
        _sink(rep, at, rep.heap_key[at], rep.heap_req[at])


@jit
def _seat(ints: I64, work: Work, i: int) -> None:
    tail = ints[RTAIL]
    work.run_prev[i], work.run_next[i] = tail, -1
    if tail >= 0:
        work.run_next[tail] = i
    else:
        ints[RHEAD] = i
    ints[RTAIL] = i


@jit
def _unseat(ints: I64, work: Work, i: int) -> None:
    before, after = work.run_prev[i], work.run_next[i]
    if before >= 0:
        work.run_next[before] = after
    else:
        ints[RHEAD] = after
    if after >= 0:
        work.run_prev[after] = before
    else:
        ints[RTAIL] = before


@jit
def _segment(ints: I64, work: Work, rule: I64, log: Log, i: int, following: int) -> None:
    if rule[DETAIL]:
        row = log.n[LSEG]
        log.seg_req[row], log.seg_s[row] = i, work.joined_s[i]
        log.seg_g[row], log.seg_n[row] = work.joined[i], following
        log.n[LSEG] += 1


@jit
def _preempt(rep: Replica, work: Work, cache: Cache, rule: I64, log: Log) -> int:
    ints = rep.ints
    i = ints[RTAIL]
    if i == ints[PART]:
        computed = ints[PDONE]
        ints[PART] = -1
    else:
        following = ints[G] - work.joined[i]
        work.generated[i] += following
        computed = work.prompt[i] + work.generated[i] - 1
        ints[NDEC] -= 1
        rep.phase[(computed - ints[G]) % rule[BLOCK]] -= 1
        rep.floats[KSUM] -= computed + 1
        _drop(rep, i)
        _segment(ints, work, rule, log, i, following)
    _unseat(ints, work, i)
    prefix.release(ints, work, cache, rule, i, computed)
    work.stack_next[i] = ints[STACK]
    ints[STACK] = i
    ints[NWAIT] += 1
    ints[PREEMPTS] += 1
    work.preempted[i] += 1
    return int(i)


@jit
def _decode_blocks(rep: Replica, work: Work, cache: Cache, rule: I64, log: Log) -> bool:
    """Blocks for the next decode step of all decodes; True: somebody was preempted for them."""
    ints, size = rep.ints, rule[BLOCK]
    need = rep.phase[(-ints[G]) % size] if ints[NDEC] > 0 else 0
    if need <= ints[FREE]:
        prefix.take(ints, cache, rule, need)
        return False
    i = ints[RHEAD]
    while i >= 0:
        after = work.run_next[i]
        if i != ints[PART] and (work.prompt[i] + work.generated[i] - 1 + ints[G] - work.joined[i]) % size == 0:
            gone = False
            while ints[FREE] == 0 and not gone:
                gone = _preempt(rep, work, cache, rule, log) == i
            if gone:
                break
            prefix.take(ints, cache, rule, 1)
            after = work.run_next[i]
        i = after
    return True


@jit
def _continue_prompt(rep: Replica, work: Work, cache: Cache, rule: I64, log: Log, budget: int) -> bool:
    """The next chunk of the prompt that is part done; True: it had to give way."""
    ints, size = rep.ints, rule[BLOCK]
    i = ints[PART]
    if i < 0 or budget <= 0:
        return False
    done = ints[PDONE]
    tokens = min(work.prompt[i] + work.generated[i] - done, budget)
    need = (done + tokens + size - 1) // size - (done + size - 1) // size
    if need > ints[FREE]:
        _preempt(rep, work, cache, rule, log)
        return True
    prefix.take(ints, cache, rule, need)
    prefix.publish(ints, work, cache, rule, i, done + tokens)
    rep.chunk_req[0], rep.chunk_n[0], rep.chunk_at[0] = i, tokens, done
    ints[NC] = 1
    return False


@jit
def _admit(rep: Replica, work: Work, cache: Cache, rule: I64, budget: int, decodes: int) -> None:
    """Start waiting requests, in order, until one does not fit."""
    ints, size = rep.ints, rule[BLOCK]
    while ints[NWAIT] > 0 and budget > 0:
        seated = decodes + ints[NC] + ints[NZ]
        if ints[PART] >= 0 and ints[NC] == 0:
            seated += 1
        if seated >= rule[SEATS]:
            break
        i = ints[STACK] if ints[STACK] >= 0 else ints[WHEAD]
        total = work.prompt[i] + work.generated[i]
        hit, idle = prefix.lookup(ints, work, cache, rule, i, total)
        rest = total - hit * size
        if rest > budget and rule[CHUNKED] == 0:
            break
        tokens = min(rest, budget)
        held = total if rule[RESERVE] else hit * size + tokens
        if (held + size - 1) // size - hit + idle > ints[FREE]:
            break
        if ints[STACK] >= 0:
            ints[STACK] = work.stack_next[i]
        else:
            ints[WHEAD] = work.queue_next[i] if work.queue_next[i] != ints[AP] else -1
        ints[NWAIT] -= 1
        prefix.hold(ints, work, cache, rule, i, hit)
        prefix.take(ints, cache, rule, (hit * size + tokens + size - 1) // size - hit)
        prefix.publish(ints, work, cache, rule, i, hit * size + tokens)
        if work.generated[i] == 0:
            work.hit[i] = hit * size
        _seat(ints, work, i)
        at = ints[NC]
        rep.chunk_req[at], rep.chunk_n[at], rep.chunk_at[at] = i, tokens, hit * size
        ints[NC] += 1
        budget -= tokens


@jit
def _end(rep: Replica, work: Work, rule: I64, c: F64, i: int) -> None:
    """Request ``i`` got its last token now; its seat and blocks go when the step's result was processed."""
    ints, now = rep.ints, rep.floats[NOW]
    work.end[i] = now
    _unseat(ints, work, i)
    rep.ended[ints[NZ]] = i
    ints[NZ] += 1
    ints[DONE] += 1
    if rule[CLOSED]:
        new, at = ints[NEXT], now + c[THINK_S]
        if new < len(work.prompt) and at < c[STOP_S]:
            at = max(at, rep.floats[DOOR] + c[SPACING_S])
            rep.floats[DOOR] = at
            work.arrival[new] = at
            ints[NEXT] += 1
            enqueue(ints, work, new)


@jit
def enqueue(ints: I64, work: Work, i: int) -> None:
    """Put request ``i`` at the end of a replica's queue; arrivals of one replica must ascend."""
    if ints[QTAIL] >= 0:
        work.queue_next[ints[QTAIL]] = i
    ints[QTAIL] = i
    if ints[AP] < 0:
        ints[AP] = i


@jit
def _first_token(rep: Replica, work: Work, co: Coefficients, log: Log, i: int) -> None:
    """A prompt (or a recomputed one) is done: it gives a token and decodes from the next step on."""
    ints, now = rep.ints, rep.floats[NOW]
    work.generated[i] += 1
    if np.isnan(work.first[i]):
        work.first[i] = now
    work.joined[i], work.joined_s[i] = ints[G], now
    left = work.output[i] - work.generated[i]
    if left == 0:
        _segment(ints, work, co.rule, log, i, 0)
        _end(rep, work, co.rule, co.c, i)
        return
    computed = work.prompt[i] + work.generated[i] - 1
    _push(rep, ints[G] + left, i)
    rep.phase[(computed - ints[G]) % co.rule[BLOCK]] += 1
    rep.floats[KSUM] += computed + 1
    ints[NDEC] += 1


@jit
def _finish_decodes(rep: Replica, work: Work, co: Coefficients, log: Log) -> None:
    ints = rep.ints
    while ints[HEAPN] > 0 and rep.heap_key[0] == ints[G]:
        i = _pop(rep)
        computed = work.prompt[i] + work.output[i] - 1
        rep.phase[(computed - ints[G]) % co.rule[BLOCK]] -= 1
        rep.floats[KSUM] -= computed + 1
        ints[NDEC] -= 1
        _segment(ints, work, co.rule, log, i, ints[G] - work.joined[i])
        _end(rep, work, co.rule, co.c, i)


@jit
def _row(rep: Replica, rule: I64, log: Log, start: float, seconds: float, decodes: int, prefill: int, kv: float,
         pairs: float, used: int) -> None:  # fmt: skip
    row = log.step[log.n[LSTEP]]
    row[C_START], row[C_DUR], row[C_DEC], row[C_PRE], row[C_KV], row[C_PAIRS] = (
        start,
        seconds,
        decodes,
        prefill,
        kv,
        pairs,
    )
    row[C_RUN], row[C_WAIT], row[C_USED] = decodes + rep.ints[NC], rep.ints[NWAIT], used
    log.n[LSTEP] += 1


@jit
def _mixed_step(rep: Replica, work: Work, co: Coefficients, log: Log, decodes: int) -> None:
    """One step with prompt tokens in it, beside ``decodes`` decodes."""
    ints, floats, c = rep.ints, rep.floats, co.c
    chunks, prefill, pairs = ints[NC], 0, 0.0
    for at in range(chunks):
        n = rep.chunk_n[at]
        prefill += n
        pairs += n * rep.chunk_at[at] + n * (n + 1) / 2
    kv = floats[KSUM] if decodes > 0 else 0.0
    work_s = co.mixed_s[decodes + prefill] + c[KV_S] * kv + c[PAIR_S] * pairs + c[CHUNK_S] * chunks
    seconds = max(c[HOST_S] + c[HOST_SEQ_S] * (decodes + chunks), work_s)
    seconds *= co.noise_mixed[ints[STEPS] % len(co.noise_mixed)]
    start = max(floats[NOW], floats[DEC])
    floats[BUSY] += seconds
    floats[ENERGY] += c[BUSY_W] * seconds + co.mixed_j[decodes + prefill] + c[KV_J] * kv + c[PAIR_J] * pairs
    floats[NOW] = start + seconds
    floats[DEC] = start if co.rule[ASYNC] else floats[NOW]
    if co.rule[DETAIL]:
        running = rep.ints[NDEC] - decodes
        _row(rep, co.rule, log, start, seconds, decodes, prefill, kv, pairs, co.rule[USABLE] - ints[FREE])
        log.step[log.n[LSTEP] - 1, C_RUN] += running
    ints[STEPS] += 1
    ints[NZOLD] = ints[NZ]
    if decodes > 0:
        if co.rule[DETAIL]:
            log.decode_end[ints[G]] = floats[NOW]
        ints[G] += 1
        floats[KSUM] += decodes
        _finish_decodes(rep, work, co, log)
    ints[PART] = -1
    for at in range(chunks):
        i = rep.chunk_req[at]
        done = rep.chunk_at[at] + rep.chunk_n[at]
        if done < work.prompt[i] + work.generated[i]:
            ints[PART], ints[PDONE] = i, done
        else:
            _first_token(rep, work, co, log, i)
    ints[NC] = 0


@jit
def _under(floor: float, first: float, slope: float, steps: int) -> int:
    """Of ``steps`` steps: how many last less than ``floor``."""
    if first >= floor:
        return 0
    if floor - first > slope * steps:
        return steps
    return min(steps, int(np.ceil((floor - first) / slope)))


@jit
def run_seconds(floor: float, first: float, slope: float, steps: int) -> float:
    """Seconds of ``steps`` steps of max(floor, first + j slope): :func:`qmeter.simulate.steptime.decode_run`."""
    under = _under(floor, first, slope, steps)
    over = steps - under
    return floor * under + (first + slope * under) * over + slope * over * (over - 1) / 2


@jit
def steps_until(floor: float, first: float, slope: float, seconds: float, most: int) -> int:
    """The fewest steps that last ``seconds`` or more, at most ``most``; from the quadratic, then checked."""
    if seconds <= 0:
        return 0
    if run_seconds(floor, first, slope, most) < seconds:
        return most
    under = _under(floor, first, slope, most)
    if seconds <= floor * under:
        guess = seconds / floor
    else:
        rest, head = seconds - floor * under, first + slope * under
        b = head - slope / 2
        guess = under + 2 * rest / (b + np.sqrt(b * b + 2 * slope * rest))
    x = min(most, max(0, int(np.ceil(guess))))
    while x > 0 and run_seconds(floor, first, slope, x - 1) >= seconds:
        x -= 1
    while x < most and run_seconds(floor, first, slope, x) < seconds:
        x += 1
    return x


@jit
def _run_blocks(rep: Replica, rule: I64, steps: int) -> int:
    """Blocks that the decodes need for steps 2..``steps`` of a run (those of the first step are taken)."""
    size, g = rule[BLOCK], rep.ints[G]
    rounds, rest = (steps - 1) // size, (steps - 1) % size
    need = rounds * rep.ints[NDEC]
    for j in range(1, rest + 1):
        need += rep.phase[(-(g + j)) % size]
    return int(need)


@jit
def _longest_run(rep: Replica, rule: I64, log: Log) -> int:
    """Steps for which the batch cannot change for reasons inside the replica."""
    ints = rep.ints
    most = rep.heap_key[0] - ints[G]
    if ints[NWAIT] > 0 and ints[NZ] > 0:
        return 1
    if rule[DETAIL]:
        most = min(most, len(log.step) - log.n[LSTEP], len(log.decode_end) - ints[G])
    if _run_blocks(rep, rule, most) > ints[FREE]:
        if ints[NZ] > 0:
            return 1
        low, high = 1, most
        while high - low > 1:
            middle = (low + high) // 2
            if _run_blocks(rep, rule, middle) > ints[FREE]:
                high = middle
            else:
                low = middle
        most = low
    return int(most)


@jit
def _ended_blocks(rep: Replica, work: Work, size: int) -> int:
    """Blocks that requests which ended one step ago still hold (shared ones counted once a holder)."""
    blocks = 0
    for at in range(rep.ints[NZ]):
        i = rep.ended[at]
        blocks += (work.prompt[i] + work.output[i] - 1 + size - 1) // size
    return blocks


@jit
def _stepwise(rep: Replica, work: Work, co: Coefficients, log: Log, most: int, bound: float, floor: float,
              first: float, slope: float) -> int:  # fmt: skip
    """A run with noise or detail: one step after the other. Returns how many; sets NOW, DEC, BUSY."""
    ints, floats, rule = rep.ints, rep.floats, co.rule
    n = ints[NDEC]
    now = max(floats[NOW], floats[DEC])
    before, done, total = now, 0, 0.0
    noise, length, at = co.noise_decode, len(co.noise_decode), ints[STEPS] % len(co.noise_decode)
    used, size = rule[USABLE] - ints[FREE], rule[BLOCK]
    while done < most:
        if done > 0 and (before if rule[ASYNC] else now) >= bound:
            break
        seconds = first + slope * done
        if seconds < floor:
            seconds = floor
        seconds *= noise[at]
        at += 1
        if at == length:
            at = 0
        if rule[DETAIL]:
            if done > 0:
                used += rep.phase[(-(ints[G] + done)) % size]
            if done == 1:
                used -= _ended_blocks(rep, work, size)
            _row(rep, rule, log, now, seconds, n, 0, floats[KSUM] + n * done, 0.0, used)
            log.decode_end[ints[G] + done] = now + seconds
        before = now
        now += seconds
        total += seconds
        done += 1
    floats[NOW] = now
    floats[DEC] = before if rule[ASYNC] else now
    floats[BUSY] += total
    floats[ENERGY] += co.c[BUSY_W] * total
    return done


@jit
def _decode_steps(rep: Replica, work: Work, cache: Cache, co: Coefficients, log: Log, horizon: float,
                  one: bool) -> None:  # fmt: skip
    """As many decode steps as the batch stays the same; ``one``: a single one, since the next may admit."""
    ints, floats, c, rule = rep.ints, rep.floats, co.c, co.rule
    n, kv = ints[NDEC], floats[KSUM]
    most = 1 if one else _longest_run(rep, rule, log)
    floor, first, slope = c[HOST_S] + c[HOST_SEQ_S] * n, co.decode_s[n] + c[KV_S] * kv, c[KV_S] * n
    bound = horizon
    if ints[AP] >= 0 and (ints[NWAIT] == 0 or rule[DETAIL]):
        bound = min(bound, work.arrival[ints[AP]])
    if rule[DETAIL] or len(co.noise_decode) > 1:
        steps = _stepwise(rep, work, co, log, most, bound, floor, first, slope)
    else:
        start = max(floats[NOW], floats[DEC])
        steps = most
        if bound < np.inf:
            until = steps_until(floor, first, slope, bound - start, most)
            steps = min(most, until + 1 if rule[ASYNC] else max(until, 1))
        seconds = run_seconds(floor, first, slope, steps)
        before = run_seconds(floor, first, slope, steps - 1)
        floats[NOW] = start + seconds
        floats[DEC] = start + (before if rule[ASYNC] else seconds)
        floats[BUSY] += seconds
        floats[ENERGY] += c[BUSY_W] * seconds
    floats[ENERGY] += co.decode_j[n] * steps + c[KV_J] * (kv * steps + n * (steps * (steps - 1) / 2))
    prefix.take(ints, cache, rule, _run_blocks(rep, rule, steps))
    floats[KSUM] += n * steps
    ints[G] += steps
    ints[STEPS] += steps
    ints[RUNS] += 1
    ints[NZOLD] = ints[NZ]
    _finish_decodes(rep, work, co, log)


@jit
def _release_ended(rep: Replica, work: Work, cache: Cache, rule: I64, count: int) -> None:
    ints = rep.ints
    for at in range(count):
        i = rep.ended[at]
        prefix.release(ints, work, cache, rule, i, work.prompt[i] + work.output[i] - 1)
    for at in range(count, ints[NZ]):
        rep.ended[at - count] = rep.ended[at]
    ints[NZ] -= count
    ints[NZOLD] = max(0, ints[NZOLD] - count)


@jit
def _see_arrivals(ints: I64, work: Work, until: float) -> None:
    while ints[AP] >= 0 and work.arrival[ints[AP]] <= until:
        if ints[WHEAD] < 0:
            ints[WHEAD] = ints[AP]
        ints[NWAIT] += 1
        ints[AP] = work.queue_next[ints[AP]]


@jit
def _schedule(rep: Replica, work: Work, cache: Cache, rule: I64, log: Log) -> tuple[bool, int]:
    """Fill the next step: its chunks into the replica; returns whether somebody was preempted, and its decodes."""
    ints = rep.ints
    if rule[MIXED] == 0:
        _continue_prompt(rep, work, cache, rule, log, rule[BUDGET])
        used = rep.chunk_n[0] if ints[NC] > 0 else 0
        _admit(rep, work, cache, rule, rule[BUDGET] - used, ints[NDEC])
        if ints[NC] > 0:
            return False, 0
        return _decode_blocks(rep, work, cache, rule, log), ints[NDEC]
    preempted = _decode_blocks(rep, work, cache, rule, log)
    if _continue_prompt(rep, work, cache, rule, log, rule[BUDGET] - ints[NDEC]):
        preempted = True
    if not preempted and ints[NWAIT] > 0:
        used = rep.chunk_n[0] if ints[NC] > 0 else 0
        _admit(rep, work, cache, rule, rule[BUDGET] - ints[NDEC] - used, ints[NDEC])
    return preempted, ints[NDEC]


@jit
def advance(rep: Replica, work: Work, cache: Cache, co: Coefficients, log: Log, horizon: float) -> int:
    """Run a replica until the next decision would be at ``horizon`` or later; returns why it stopped.

    HORIZON: more can be done later. DRAINED: nothing left to do. GROW: the log is full, call again with a larger one.
    STUCK: the queue's head can never start.
    """
    ints, floats, rule = rep.ints, rep.floats, co.rule
    while True:
        if floats[DEC] >= horizon:
            return HORIZON
        if rule[DETAIL] and (log.n[LSTEP] >= len(log.step) or ints[G] >= len(log.decode_end)
                             or log.n[LSEG] + 2 * rule[SEATS] > len(log.seg_req)):  # fmt: skip
            return GROW
        _see_arrivals(ints, work, floats[DEC])
        if ints[NZ] > 0:
            _release_ended(rep, work, cache, rule, ints[NZOLD] if ints[INFLIGHT] else ints[NZ])
        preempted, decodes = False, 0
        if ints[NDEC] > 0 or ints[NWAIT] > 0 or ints[PART] >= 0:
            preempted, decodes = _schedule(rep, work, cache, rule, log)
        if ints[NC] > 0:
            _mixed_step(rep, work, co, log, decodes)
            ints[INFLIGHT] = rule[ASYNC]
        elif decodes > 0:
            _decode_steps(rep, work, cache, co, log, horizon, preempted)
            ints[INFLIGHT] = rule[ASYNC]
        elif ints[INFLIGHT]:
            ints[INFLIGHT] = 0
            floats[DEC] = floats[NOW]
        elif preempted:
            continue
        elif ints[NWAIT] > 0:
            return STUCK
        elif ints[AP] < 0:
            return DRAINED
        else:
            floats[DEC] = max(floats[NOW], work.arrival[ints[AP]])
