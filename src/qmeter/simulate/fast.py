"""The fast mode: one replica, the whole load, by the kernel that advances decode runs in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import AnalysisError
from qmeter.simulate import state as st
from qmeter.simulate.kernel import advance, enqueue
from qmeter.simulate.load import Detail, SimLoad, SimResult
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel


def simulate(
    load: SimLoad, rules: Rules, model: StepModel, *, detail: bool = False, marks: Sequence[float] = ()
) -> SimResult:
    """Run one replica until all requests ended.

    Args:
        load: the requests.
        rules: the scheduler.
        model: step time and energy.
        detail: keep every token's and every step's time.
        marks: times, ascending, at which to note energy and busy time, of the steps begun before. Units: s.

    Raises:
        AnalysisError: the load cannot be served by these rules.
    """
    load.check(rules)
    rep, work = st.replica(rules), st.work(load)
    cache, co = st.cache(load, rules), st.coefficients(rules, model, load, detail)
    first = len(load) if load.concurrency is None else min(load.concurrency, len(load))
    if first:
        rep.floats[st.DOOR] = work.arrival[first - 1]
        work.queue_next[: first - 1] = np.arange(1, first)
        rep.ints[st.AP], rep.ints[st.QTAIL], rep.ints[st.NEXT] = 0, first - 1, first
    room = 4 * rules.max_sequences + len(load)
    log = st.log(room, 4096, 4096) if detail else st.log(0, 0, 0)
    noted = []
    for mark in (*marks, np.inf):
        while (why := advance(rep, work, cache, co, log, mark)) == st.GROW:
            log = st.grown(log)
        if why == st.STUCK:
            raise AnalysisError("the queue's head can never start", hint="report this as a fault")
        noted.append((float(rep.floats[st.ENERGY]), float(rep.floats[st.BUSY])))
    return result(rep, work, _detail(rep, work, log) if detail else None, tuple(noted[:-1]))


def result(
    rep: st.Replica, work: st.Work, detail: Detail | None = None, marks: tuple[tuple[float, float], ...] = ()
) -> SimResult:
    """What a finished replica did."""
    return SimResult(
        arrival_s=work.arrival,
        first_s=work.first,
        end_s=work.end,
        first_out_s=work.first_out,
        end_out_s=work.end_out,
        preemptions=work.preempted,
        hit_tokens=work.hit,
        steps=int(rep.ints[st.STEPS]),
        decode_runs=int(rep.ints[st.RUNS]),
        busy_s=float(rep.floats[st.BUSY]),
        energy_j=float(rep.floats[st.ENERGY]),
        end_of_work_s=float(rep.floats[st.NOW]),
        detail=detail,
        marks=marks,
    )


def _detail(rep: st.Replica, work: st.Work, log: st.Log) -> Detail:
    segments, steps = int(log.n[st.LSEG]), int(log.n[st.LSTEP])
    order = np.argsort(log.seg_req[:segments], kind="stable")
    request, begin, count = log.seg_req[:segments][order], log.seg_g[:segments][order], log.seg_n[:segments][order]
    sizes = count + 1
    start = np.concatenate(([0], np.cumsum(np.bincount(request, weights=sizes, minlength=len(work.prompt)))))
    where = np.concatenate(([0], np.cumsum(sizes)))[:-1]
    times = np.empty(int(sizes.sum()), dtype=np.float64)
    times[where] = log.seg_s[:segments][order]
    within = np.arange(len(times)) - np.repeat(where, sizes)
    later = within > 0
    times[later] = log.decode_end[(np.repeat(begin, sizes) + within - 1)[later]]

    def column(index: int) -> NDArray[np.float64]:
        return np.ascontiguousarray(log.step[:steps, index])

    def whole(index: int) -> NDArray[np.int64]:
        return column(index).astype(np.int64)

    return Detail(
        token_start=start.astype(np.int64), token_s=times,
        step_start_s=column(st.C_START), step_s=column(st.C_DUR), step_decodes=whole(st.C_DEC),
        step_prefill=whole(st.C_PRE), step_kv=column(st.C_KV), step_pairs=column(st.C_PAIRS),
        step_running=whole(st.C_RUN), step_waiting=whole(st.C_WAIT), step_used=whole(st.C_USED),
        step_out_s=column(st.C_OUT), step_work_j=column(st.C_WORK_J), step_clock=column(st.C_CLOCK),
    )  # fmt: skip


__all__ = ["enqueue", "result", "simulate"]
