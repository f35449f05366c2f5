"""A workload and a seed become the schedule of one cell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import SpecError
from qmeter.spec.workload import ClosedArrivals, SyntheticPrompts, TaskPrompts, TraceArrivals, WorkloadSpec
from qmeter.workload import arrivals, lengths, prompts
from qmeter.workload.schedule import Schedule, ScheduledRequest
from qmeter.workload.streams import Stream, stream
from qmeter.workload.traces import Trace, read_trace


def build(
    workload: WorkloadSpec, seed: int, vocabulary: prompts.Vocabulary, items: prompts.Items | None = None
) -> Schedule:
    """The schedule of one cell: sends over warm-up and window, prompts and lengths.

    Pure but for the trace file it reads; the same arguments give the same :func:`schedule_digest`. Arrivals, prompt
    lengths, output lengths and prompt content come from independent streams of ``seed``, so that changing one law
    leaves what the others draw as it was, and a longer window leaves the earlier requests as they were.

    Args:
        workload: the point to build.
        seed: the cell's seed: the same for every method.
        vocabulary: ids for synthetic prompts.
        items: task name → items, where the workload's prompts come from tasks.

    Raises:
        SpecError: the trace is missing, malformed, changed or too short; no request falls into the horizon; too many.
    """
    horizon_s = workload.warmup + workload.window
    trace = replayed(workload.arrivals, horizon_s) if isinstance(workload.arrivals, TraceArrivals) else None
    send_s = _send_s(workload, horizon_s, trace, seed)
    if not send_s.size:
        raise SpecError(
            f"workload {workload.name!r}: no request falls into its {horizon_s:g} s of warm-up and window",
            hint="raise the rate or lengthen the window",
        )
    closed = workload.arrivals if isinstance(workload.arrivals, ClosedArrivals) else None
    return Schedule(
        send_s=send_s,
        requests=_requests(workload, send_s.size, trace, seed, vocabulary, items),
        law=arrivals.law(workload.arrivals, horizon_s, send_s.size),
        warmup_s=workload.warmup,
        window_s=workload.window,
        drain_s=workload.drain,
        concurrency=closed.concurrency if closed else None,
        think_s=closed.think if closed else 0.0,
    )


def _send_s(workload: WorkloadSpec, horizon_s: float, trace: Trace | None, seed: int) -> NDArray[np.float64]:
    law = workload.arrivals
    if isinstance(law, ClosedArrivals):
        prompt, output = (lengths.mean_tokens(w) or 1.0 for w in (workload.prompt_tokens, workload.output_tokens))
        return np.full(arrivals.closed_requests(law, horizon_s, prompt, output), np.nan)
    if isinstance(law, TraceArrivals) and trace is not None:
        send_ns = np.rint(trace.time_ns / law.time_scale).astype(np.int64)
        return send_ns[send_ns < round(horizon_s * 1e9)] / 1e9
    return arrivals.open_send_ns(law, horizon_s, stream(seed, Stream.ARRIVALS)) / 1e9


def _requests(
    workload: WorkloadSpec,
    n: int,
    trace: Trace | None,
    seed: int,
    vocabulary: prompts.Vocabulary,
    items: prompts.Items | None,
) -> Sequence[ScheduledRequest]:
    output = lengths.draw_tokens(
        workload.output_tokens, n, stream(seed, Stream.OUTPUT_LENGTHS), trace.output_tokens[:n] if trace else None
    )
    if isinstance(workload.prompts, TaskPrompts):
        if items is None:
            raise SpecError(f"workload {workload.name!r} takes its prompts from tasks, but none were given")
        return prompts.from_tasks(workload.prompts.tasks, items, output, seed)
    prompt = lengths.draw_tokens(
        workload.prompt_tokens, n, stream(seed, Stream.PROMPT_LENGTHS), trace.prompt_tokens[:n] if trace else None
    )
    if trace is not None and trace.hash_ids is not None and takes_hashes(workload):
        return prompts.hashed(prompt, output, trace.hash_ids[:n], vocabulary, seed)
    return prompts.synthetic(prompt, output, workload.prompts.shared_prefix, vocabulary, seed)


def takes_hashes(workload: WorkloadSpec) -> bool:
    """Whether prefix sharing follows the trace's block ids: Mooncake rows, their own lengths, no share asked for."""
    return (
        isinstance(workload.arrivals, TraceArrivals)
        and workload.arrivals.format == "mooncake"
        and workload.prompt_tokens.kind == "trace"
        and isinstance(workload.prompts, SyntheticPrompts)
        and workload.prompts.shared_prefix == 0
    )


def replayed(law: TraceArrivals, horizon_s: float) -> Trace:
    """The stretch of the trace that covers ``horizon_s`` of load.

    Raises:
        SpecError: it is missing, malformed, not the file that the study was loaded with, or too short.
    """
    path = Path(law.path)
    if law.sha256 is not None and path.is_file():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != law.sha256:
            raise SpecError(
                f"the trace {path} has changed: sha256 {found[:12]}… where the study has {law.sha256[:12]}…",
                hint="restore the file, or start a new study",
            )
    needed_s = horizon_s * law.time_scale
    trace = read_trace(path, law.format, offset_s=law.offset, length_s=needed_s)
    if trace.covered_s < needed_s:
        raise SpecError(
            f"the trace {path} ends at {law.offset + trace.covered_s:g} s; offset, warm-up and window at time_scale "
            f"{law.time_scale:g} need it up to {law.offset + needed_s:g} s",
            hint="lower the offset, the time_scale or the window",
        )
    return trace
