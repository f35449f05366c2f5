"""The fast mode's kernel: the rules of :mod:`qmeter.simulate.rules`, event by event instead of step by step.

Between an arrival, a completion and a shortage of blocks a decode batch does not change, so its steps are summed in
closed form (with resampled noise or detail asked, step by step at constant cost). A step costs the same whatever its
batch: the decodes' next completion is the top of a heap, and the blocks they need come from a histogram of their
position in a block.
"""

from __future__ import annotations

import numpy as np

from qmeter.simulate import heap, prefix
from qmeter.simulate.cap import clock_of_step, waited
from qmeter.simulate.jit import jit
from qmeter.simulate.runs import run_seconds, steps_until, under
from qmeter.simulate.state import (
    AP,
    ASYNC,
    BEFORE,
    BLOCK,
    BUDGET,
    BUSY,
    BUSY_W,
    C_CLOCK,
    C_DEC,
    C_DUR,
    C_KV,
    C_OUT,
    C_PAIRS,
    C_PRE,
    C_RUN,
    C_START,
    C_USED,
    C_WAIT,
    C_WORK_J,
    CAP_J,
    CAP_W,
    CHUNK_S,
    CHUNKED,
    CLOSED,
    DEC,
    DETAIL,
    DEVICE,
    DONE,
    DOOR,
    DRAINED,
    ENERGY,
    F64,
    FREE,
    FRONT,
    GROW,
    HEAPN,
    HORIZON,
    HOST_MIXED_S,
    HOST_MIXED_SEQ_S,
    HOST_S,
    HOST_SEQ_S,
    I64,
    IN_EACH_S,
    INFLIGHT,
    KSUM,
    KV_J,
    KV_MIXED_S,
    KV_S,
    LAUNCH_W,
    LSEG,
    LSTEP,
    MIXED,
    MSTEPS,
    NC,
    NDEC,
    NEXT,
    NFIRST,
    NOW,
    NWAIT,
    NZ,
    NZOLD,
    OUT_AT,
    OUT_COST,
    OUT_SEQ_S,
    PAIR_J,
    PAIR_S,
    PART,
    PDEC,
    PDONE,
    POUT,
    PREEMPTS,
    PSTART,
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
    TAIL_S,
    THINK_S,
    USABLE,
    WHEAD,
    Cache,
    Coefficients,
    G,
    Log,
    Replica,
    Work,
)


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
        work.segment[i] = row
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
        heap.drop(rep, i)
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
def enqueue(ints: I64, work: Work, i: int) -> None:
    """Put request ``i`` at the end of a replica's queue; arrivals of one replica must ascend."""
    if ints[QTAIL] >= 0:
        work.queue_next[ints[QTAIL]] = i
    ints[QTAIL] = i
    if ints[AP] < 0:
        ints[AP] = i


@jit
def _end(rep: Replica, work: Work, i: int) -> None:
    """Request ``i`` has its last token in the newest step; seat and blocks go when its result was processed."""
    ints = rep.ints
    _unseat(ints, work, i)
    rep.ended[ints[NZ]] = i
    ints[NZ] += 1
    ints[DONE] += 1


@jit
def _send_next(rep: Replica, work: Work, c: F64, now: float) -> None:
    """A closed-loop client whose request ended sends its next one."""
    new, at = rep.ints[NEXT], now + c[THINK_S]
    if new < len(work.prompt) and at < c[STOP_S]:
        at = max(at, rep.floats[DOOR] + c[SPACING_S])
        rep.floats[DOOR] = at
        work.arrival[new] = work.door[new] = at
        rep.ints[NEXT] += 1
        enqueue(rep.ints, work, new)


@jit
def _outputs(floats: F64, at: float, cost: float) -> None:
    """The front end takes in the outputs seen ``at``; :func:`_pass_front` lets requests that came earlier overtake."""
    floats[BEFORE], floats[OUT_AT], floats[OUT_COST] = floats[FRONT], at, cost
    floats[FRONT] = max(floats[FRONT], at) + cost


@jit
def _account(rep: Replica, rule: I64, c: F64, log: Log, at: float) -> None:
    """The newest step's time is known: its results are seen ``at``."""
    ints, floats = rep.ints, rep.floats
    seconds = at - floats[PSTART]
    floats[NOW] = at
    floats[BUSY] += seconds
    floats[ENERGY] += c[BUSY_W] * seconds
    _outputs(floats, at, c[OUT_SEQ_S] * ints[POUT])
    if rule[DETAIL]:
        log.step[log.n[LSTEP] - 1, C_DUR] = seconds
        log.step[log.n[LSTEP] - 1, C_OUT] = floats[FRONT]
        if ints[PDEC]:
            log.decode_end[ints[G] - 1] = at


@jit
def _stamp(rep: Replica, work: Work, rule: I64, c: F64, log: Log, at: float) -> None:
    """Requests with a first or last token in the newest step get their times; closed-loop clients send on."""
    ints, out = rep.ints, rep.floats[FRONT]
    for k in range(ints[NFIRST]):
        i = rep.first_req[k]
        work.joined_s[i] = at
        if np.isnan(work.first[i]):
            work.first[i], work.first_out[i] = at, out
        if work.segment[i] >= 0 and rule[DETAIL]:
            log.seg_s[work.segment[i]] = at
    ints[NFIRST] = 0
    for k in range(ints[NZOLD], ints[NZ]):
        i = rep.ended[k]
        work.end[i], work.end_out[i] = at, out
        if rule[CLOSED]:
            _send_next(rep, work, c, out)
    ints[NZOLD] = ints[NZ]


@jit
def _see_results(rep: Replica, work: Work, rule: I64, c: F64, log: Log, at: float) -> None:
    """The newest step's tokens are out ``at``."""
    _account(rep, rule, c, log, at)
    _stamp(rep, work, rule, c, log, at)


@jit
def _launch(rep: Replica, work: Work, co: Coefficients, log: Log, host: float, device: float) -> None:
    """Launch a step as :class:`qmeter.simulate.steptime.Pipeline` says; the step before it is seen, if one ran."""
    ints, floats = rep.ints, rep.floats
    decided = floats[DEC]
    launched = decided + host
    then = max(max(floats[DEVICE], decided) + device, launched + co.c[TAIL_S])
    if co.rule[ASYNC] == 0:
        floats[DEC] = then
    elif ints[INFLIGHT]:
        seen = max(launched, floats[DEVICE])
        _see_results(rep, work, co.rule, co.c, log, seen)
        floats[DEC] = seen
    else:
        floats[DEC] = launched
    floats[DEVICE] = then
    floats[PSTART] = max(decided, floats[NOW])
    ints[INFLIGHT] = co.rule[ASYNC]


@jit
def _first_token(rep: Replica, work: Work, co: Coefficients, log: Log, i: int) -> None:
    """A prompt (or a recomputed one) is done: it gives a token and decodes from the next step on."""
    ints = rep.ints
    work.generated[i] += 1
    work.joined[i], work.segment[i] = ints[G], -1
    rep.first_req[ints[NFIRST]] = i
    ints[NFIRST] += 1
    left = work.output[i] - work.generated[i]
    if left == 0:
        _segment(ints, work, co.rule, log, i, 0)
        _end(rep, work, i)
        return
    computed = work.prompt[i] + work.generated[i] - 1
    heap.push(rep, ints[G] + left, i)
    rep.phase[(computed - ints[G]) % co.rule[BLOCK]] += 1
    rep.floats[KSUM] += computed + 1
    ints[NDEC] += 1


@jit
def _finish_decodes(rep: Replica, work: Work, co: Coefficients, log: Log) -> None:
    ints = rep.ints
    while ints[HEAPN] > 0 and rep.heap_key[0] == ints[G]:
        i = heap.pop(rep)
        computed = work.prompt[i] + work.output[i] - 1
        rep.phase[(computed - ints[G]) % co.rule[BLOCK]] -= 1
        rep.floats[KSUM] -= computed + 1
        ints[NDEC] -= 1
        _segment(ints, work, co.rule, log, i, ints[G] - work.joined[i])
        _end(rep, work, i)


@jit
def _row(rep: Replica, rule: I64, log: Log, start: float, decodes: int, prefill: int, kv: float, pairs: float,
         used: int, work: float) -> None:  # fmt: skip
    """One row of the step log; its duration is filled in when its results are seen."""
    row = log.step[log.n[LSTEP]]
    row[C_START], row[C_DEC], row[C_PRE], row[C_KV], row[C_PAIRS] = start, decodes, prefill, kv, pairs
    row[C_RUN], row[C_WAIT], row[C_USED] = decodes + rep.ints[NC], rep.ints[NWAIT], used
    row[C_WORK_J], row[C_CLOCK] = work, 1.0
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
    device = co.mixed_s[decodes + prefill] + c[KV_MIXED_S] * kv + c[PAIR_S] * pairs + c[CHUNK_S] * chunks
    host = c[HOST_MIXED_S] + c[HOST_MIXED_SEQ_S] * (decodes + chunks)
    noise, clock = co.noise_mixed[ints[MSTEPS] % len(co.noise_mixed)], 1.0
    host *= noise
    scale = noise if c[HOST_MIXED_S] == 0.0 else 1.0
    device *= scale
    joules = co.mixed_j[prefill] + co.padding_j[decodes + prefill] + c[PAIR_J] * pairs
    joules += co.decode_j[decodes] + c[KV_J] * kv
    if c[CAP_W] < np.inf:
        clocked = scale * (co.mixed_clock_s[decodes + prefill] + c[PAIR_S] * pairs)
        clock, saved = clock_of_step(floats, c, host, device, clocked, joules)
        device += clocked / clock - clocked
        joules = joules * clock * clock - saved
    joules += (c[LAUNCH_W] - c[BUSY_W]) * waited(floats, c, host, device)
    _launch(rep, work, co, log, host, device)
    ints[POUT] = decodes + chunks
    floats[ENERGY] += joules
    if co.rule[DETAIL]:
        _row(rep, co.rule, log, floats[PSTART], decodes, prefill, kv, pairs, co.rule[USABLE] - ints[FREE], joules)
        log.step[log.n[LSTEP] - 1, C_RUN] += ints[NDEC] - decodes
        log.step[log.n[LSTEP] - 1, C_CLOCK] = clock
    ints[STEPS] += 1
    ints[MSTEPS] += 1
    ints[PDEC] = 1 if decodes > 0 else 0
    if decodes > 0:
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
    if co.rule[ASYNC] == 0:
        _see_results(rep, work, co.rule, c, log, floats[DEVICE])


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
def _next_door(ints: I64, work: Work) -> float:
    """When the next request is through the front end, or one reaches it."""
    i = ints[AP]
    at = work.door[i]
    while i >= 0 and work.passed[i]:
        i = work.queue_next[i]
    return float(at if i < 0 else min(at, work.door[i]))


@jit
def _front(rep: Replica, c: F64, first: float, before: float, last: float, steps: int) -> None:
    """The front end after ``steps`` results of one batch: seen from ``first`` on, the last two ``before`` and ``last``.

    Steps of a run never get shorter, so what keeps the front end busy longest began with the first or is the last.
    """
    floats = rep.floats
    each = c[OUT_SEQ_S] * rep.ints[POUT]
    if steps > 1:
        floats[FRONT] = max(max(floats[FRONT], first) + (steps - 1) * each, before + each)
    _outputs(floats, last, each)


@jit
def _closed_form(rep: Replica, co: Coefficients, most: int, bound: float, floor: float, first: float, slope: float,
                 tail: float) -> int:  # fmt: skip
    """Steps of a run in closed form, after its first ones; 0 where the pipeline is not in step yet.

    Synchronous: each step lasts max(device, host + tail). Asynchronous: either the device is busy all the time and each
    step adds its seconds, or the host is, with the device waiting for each launch; between the two, step by step.
    """
    floats = rep.floats
    d, g = floats[DEC], floats[DEVICE]
    if co.rule[ASYNC] == 0:
        least = floor + tail
        steps = most
        if bound < np.inf:
            steps = min(most, max(1, steps_until(least, first, slope, bound - d, most)))
        seconds = run_seconds(least, first, slope, steps)
        before = d + run_seconds(least, first, slope, steps - 1)
        _front(rep, co.c, d + max(least, first), before, d + seconds, steps)
        floats[NOW] = floats[DEVICE] = floats[DEC] = floats[PSTART] = d + seconds
        floats[BUSY] += seconds
        floats[ENERGY] += co.c[BUSY_W] * seconds
        return steps
    before = first - slope
    if before >= floor and abs(g - (d + before)) <= 1e-12 * g and floor + tail <= 2 * before:
        steps = most
        if bound < np.inf:
            steps = min(most, max(1, steps_until(0.0, before, slope, bound - d, most)))
        gone, one = run_seconds(0.0, before, slope, steps), before
        but_one = run_seconds(0.0, before, slope, steps - 1)
        floats[DEVICE] = d + gone + first + slope * (steps - 1)
    else:
        steps = min(most, under(floor, first, slope, most))
        if steps < 2 or tail > floor or g > d + tail:
            return 0
        if bound < np.inf:
            steps = min(steps, max(1, int(np.ceil((bound - d) / floor))))
        gone, one, but_one = floor * steps, floor, floor * (steps - 1)
        floats[DEVICE] = d + gone + tail
    seen = d + gone
    _front(rep, co.c, d + one, d + but_one, seen, steps)
    floats[BUSY] += seen - floats[PSTART]
    floats[ENERGY] += co.c[BUSY_W] * (seen - floats[PSTART])
    floats[PSTART] = floats[NOW] = floats[DEC] = seen
    return steps


@jit
def _decode_run(rep: Replica, work: Work, co: Coefficients, log: Log, most: int, bound: float) -> int:
    """Decode steps of one batch until ``most`` or the first decision at ``bound`` or later. Returns how many."""
    ints, floats, c, rule = rep.ints, rep.floats, co.c, co.rule
    n, kv = ints[NDEC], floats[KSUM]
    floor, first, slope = c[HOST_S] + c[HOST_SEQ_S] * n, co.decode_s[n] + c[KV_S] * kv, c[KV_S] * n
    noise, length, at = co.noise_decode, len(co.noise_decode), ints[STEPS] % len(co.noise_decode)
    closed = length == 1 and rule[DETAIL] == 0
    watch = ints[NWAIT] == 0 or rule[DETAIL] > 0 or c[OUT_SEQ_S] > 0 or c[IN_EACH_S] > 0
    used, size, done = rule[USABLE] - ints[FREE], rule[BLOCK], 0
    ended = prefix.ended_blocks(rep, work, size) if rule[DETAIL] else 0
    while done < most:
        if done > 0 and floats[DEC] >= bound:
            break
        if closed and (done > 0 or rule[ASYNC] == 0):
            ints[POUT] = n
            more = _closed_form(rep, co, most - done, bound, floor, first + slope * done, slope, c[TAIL_S])
            done += more
            if more > 0:
                continue
        factor = noise[at]
        at = 0 if at + 1 == length else at + 1
        _launch(rep, work, co, log, factor * floor, factor * (first + slope * done))
        ints[PDEC], ints[POUT] = 1, n
        if done == 0 and ints[AP] >= 0 and watch:
            bound = min(bound, _next_door(ints, work))  # the launch may have let a closed-loop client send on
        if rule[DETAIL]:
            if done > 0:
                used += rep.phase[(-ints[G]) % size]
            if done == 1:
                used -= ended
            joules = co.decode_j[n] + c[KV_J] * (kv + n * done)
            _row(rep, rule, log, floats[PSTART], n, 0, kv + n * done, 0.0, used, joules)
        done += 1
        ints[G] += 1
        if rule[ASYNC] == 0:
            _account(rep, rule, c, log, floats[DEVICE])
    return done


@jit
def _decode_steps(rep: Replica, work: Work, cache: Cache, co: Coefficients, log: Log, horizon: float,
                  one: bool) -> None:  # fmt: skip
    """As many decode steps as the batch stays the same; ``one``: a single one, since the next may admit."""
    ints, floats, c, rule = rep.ints, rep.floats, co.c, co.rule
    n, kv, begin = ints[NDEC], floats[KSUM], ints[G]
    most = 1 if one else _longest_run(rep, rule, log)
    bound = horizon
    if ints[AP] >= 0 and (ints[NWAIT] == 0 or rule[DETAIL] or c[OUT_SEQ_S] > 0 or c[IN_EACH_S] > 0):
        bound = min(bound, _next_door(ints, work))
    steps = _decode_run(rep, work, co, log, most, bound)
    ints[G] = begin
    joules = co.decode_j[n] * steps + c[KV_J] * (kv * steps + n * (steps * (steps - 1) / 2))
    floats[ENERGY] += joules
    floats[CAP_J] += joules
    prefix.take(ints, cache, rule, _run_blocks(rep, rule, steps))
    floats[KSUM] += n * steps
    ints[G] += steps
    ints[STEPS] += steps
    ints[RUNS] += 1
    _finish_decodes(rep, work, co, log)
    if rule[ASYNC] == 0:
        _stamp(rep, work, rule, c, log, floats[DEVICE])


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
def _pass_front(rep: Replica, work: Work, c: F64, until: float) -> None:
    """Requests that have reached the front end by now get through it together.

    Those that came before the newest outputs go before them: their outputs come later by that, what was stamped stays.
    """
    ints, floats = rep.ints, rep.floats
    if c[OUT_SEQ_S] == 0.0 and c[IN_EACH_S] == 0.0:
        return
    i, count, first = ints[AP], 0, np.inf
    while i >= 0 and (work.passed[i] or work.door[i] <= until):
        if work.passed[i] == 0:
            first = min(first, work.door[i])
            count += 1
        i = work.queue_next[i]
    if count == 0:
        return
    if first <= floats[OUT_AT]:
        through = max(floats[BEFORE], first) + c[IN_EACH_S] * count
        floats[BEFORE] = through
        floats[FRONT] = max(through, floats[OUT_AT]) + floats[OUT_COST]
    else:
        through = max(floats[FRONT], first) + c[IN_EACH_S] * count
        floats[FRONT] = through
    i = ints[AP]
    while i >= 0 and (work.passed[i] or work.door[i] <= until):
        if work.passed[i] == 0:
            work.passed[i], work.door[i] = 1, max(work.door[i] + c[IN_EACH_S], through)
        i = work.queue_next[i]


@jit
def _see_arrivals(rep: Replica, work: Work, c: F64, until: float) -> None:
    ints = rep.ints
    _pass_front(rep, work, c, until)
    while ints[AP] >= 0 and work.door[ints[AP]] <= until:
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
        _see_arrivals(rep, work, co.c, floats[DEC])
        if ints[NZ] > 0:
            _release_ended(rep, work, cache, rule, ints[NZOLD] if ints[INFLIGHT] else ints[NZ])
        preempted, decodes = False, 0
        if ints[NDEC] > 0 or ints[NWAIT] > 0 or ints[PART] >= 0:
            preempted, decodes = _schedule(rep, work, cache, rule, log)
        if ints[NC] > 0:
            _mixed_step(rep, work, co, log, decodes)
        elif decodes > 0:
            _decode_steps(rep, work, cache, co, log, horizon, preempted)
        elif ints[INFLIGHT]:
            ints[INFLIGHT] = 0
            _see_results(rep, work, rule, co.c, log, floats[DEVICE])
            floats[DEC] = floats[DEVICE]
        elif preempted:
            continue
        elif ints[NWAIT] > 0:
            return STUCK
        elif ints[AP] < 0:
            return DRAINED
        else:
            floats[DEC] = max(floats[NOW], _next_door(ints, work))
