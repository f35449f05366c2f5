"""Whether every workload point of a study can be built, fits its models, and will give numbers worth reading."""

from __future__ import annotations

import math

from qmeter import catalog
from qmeter.catalog import ModelShape
from qmeter.errors import SpecError
from qmeter.spec.study import Study
from qmeter.spec.workload import (
    SLO,
    ClosedArrivals,
    RampArrivals,
    SyntheticPrompts,
    TraceArrivals,
    TraceLength,
    WorkloadSpec,
)
from qmeter.study.findings import Findings, HostFacts, known
from qmeter.workload import Trace, replayed
from qmeter.workload.arrivals import MAX_REQUESTS
from qmeter.workload.build import takes_hashes
from qmeter.workload.lengths import mean_tokens, most_tokens
from qmeter.workload.prompts import MAX_PROMPT_TOKENS

ENERGY_WINDOW_S = 10.0
"""Shorter windows hold too few readings of a power counter (GPU counters refresh every 20 to 100 ms, RAPL wraps
aside) for its energy to mean much."""

FEW_REQUESTS = 20


def check(study: Study, host: HostFacts, findings: Findings) -> None:
    """Note everything that makes a workload point impossible or its numbers doubtful."""
    shapes = [shape for model in study.models if (shape := known(catalog.model, model.shape))]
    for i, workload in enumerate(study.workloads):
        trace = _trace(i, workload, findings)
        expected = _expected_requests(workload, trace)
        _size(i, workload, expected, findings)
        for shape in shapes:
            _positions(i, workload, shape, trace, findings)
        _model_tokens(i, workload, study, findings)
        _concurrency(workload, study, findings)
        _window(workload, expected, workload.slo or study.slo, findings)
        _prompts(workload, findings)
    if study.repeats == 1:
        findings.warn(
            "one_repeat", "repeats is 1: intervals come from within one run, none over repeats",
            "set repeats to 3 or more to compare methods that are close",
        )  # fmt: skip


def _trace(i: int, workload: WorkloadSpec, findings: Findings) -> Trace | None:
    law = workload.arrivals
    if not isinstance(law, TraceArrivals):
        return None
    try:
        return replayed(law, workload.warmup + workload.window)
    except SpecError as error:
        findings.fault(("workloads", i, "arrivals", "path"), f"{error.message}; {error.hint}")
        return None


def _expected_requests(workload: WorkloadSpec, trace: Trace | None) -> float | None:
    """Requests expected over warm-up and window; ``None`` for a closed loop (the engine decides)."""
    law, horizon_s = workload.arrivals, workload.warmup + workload.window
    if isinstance(law, ClosedArrivals):
        return None
    if isinstance(law, TraceArrivals):
        return None if trace is None else float(len(trace))
    return ((law.start + law.end) / 2 if isinstance(law, RampArrivals) else law.rate) * horizon_s


def _size(i: int, workload: WorkloadSpec, expected: float | None, findings: Findings) -> None:
    tokens = mean_tokens(workload.prompt_tokens)
    if expected is not None and expected > MAX_REQUESTS:
        text = f"about {expected:.3g} requests in warm-up and window; the most is {MAX_REQUESTS}"
        findings.fault(("workloads", i, "arrivals"), text)
    elif expected is not None and tokens is not None and expected * tokens > MAX_PROMPT_TOKENS:
        text = f"about {expected * tokens:.3g} prompt tokens in all; the most is {MAX_PROMPT_TOKENS}"
        findings.fault(("workloads", i, "prompt_tokens"), text)
    elif expected == 0:
        findings.fault(("workloads", i, "arrivals"), "no request falls into warm-up and window")


def _positions(i: int, workload: WorkloadSpec, shape: ModelShape, trace: Trace | None, findings: Findings) -> None:
    if not isinstance(workload.prompts, SyntheticPrompts):
        return
    if trace is not None and "trace" in (workload.prompt_tokens.kind, workload.output_tokens.kind):
        _traced_positions(i, workload, shape, trace, findings)
        return
    longest = _longest(workload)
    if longest is not None and longest > shape.max_positions:
        text = f"prompt and output reach {longest} tokens together; {shape.name} takes {shape.max_positions}"
        findings.fault(("workloads", i, "prompt_tokens"), text)


def _traced_positions(i: int, workload: WorkloadSpec, shape: ModelShape, trace: Trace, findings: Findings) -> None:
    totals = [0] * len(trace)
    for law, column in ((workload.prompt_tokens, trace.prompt_tokens), (workload.output_tokens, trace.output_tokens)):
        most = most_tokens(law)
        rows = column.tolist() if isinstance(law, TraceLength) else [most or 0] * len(trace)
        totals = [total + (min(row, most) if most else row) for total, row in zip(totals, rows, strict=True)]
    over = sum(total > shape.max_positions for total in totals)
    if over:
        text = (
            f"{over} of the stretch's {len(trace)} rows are longer than {shape.name}'s {shape.max_positions} tokens "
            f"(the longest {max(totals)}); cut them with 'high' beside 'kind: trace'"
        )
        findings.fault(("workloads", i, "prompt_tokens"), text)


def _longest(workload: WorkloadSpec) -> int | None:
    prompt, output = most_tokens(workload.prompt_tokens), most_tokens(workload.output_tokens)
    return None if prompt is None or output is None else prompt + output


def _model_tokens(i: int, workload: WorkloadSpec, study: Study, findings: Findings) -> None:
    longest = _longest(workload)
    for j, engine in enumerate(study.engines):
        limit = engine.options.get("max_model_tokens")
        if isinstance(limit, int) and longest is not None and longest > limit:
            text = (
                f"prompt and output reach {longest} tokens together; engines[{j}].options.max_model_tokens is {limit}"
            )
            findings.fault(("workloads", i, "prompt_tokens"), text)


def _concurrency(workload: WorkloadSpec, study: Study, findings: Findings) -> None:
    law = workload.arrivals
    for j, engine in enumerate(study.engines):
        limit = engine.options.get("max_sequences")
        if isinstance(law, ClosedArrivals) and isinstance(limit, int) and law.concurrency > limit:
            findings.warn(
                "concurrency_above_engine",
                f"workload {workload.name}: {law.concurrency} in flight, but engines[{j}].options.max_sequences is "
                f"{limit}: the rest wait inside the engine, and TTFT includes it",
                "raise max_sequences, or lower the concurrency",
            )


def _window(workload: WorkloadSpec, expected: float | None, slo: SLO | None, findings: Findings) -> None:
    name, window_s = workload.name, workload.window
    if window_s < ENERGY_WINDOW_S:
        findings.warn(
            "short_window", f"workload {name}: a window of {window_s:g} s is short for energy",
            f"{ENERGY_WINDOW_S:g} s or more",
        )  # fmt: skip
    if workload.warmup == 0:
        findings.warn("no_warmup", f"workload {name}: without warm-up the window has the start-up burst", "warmup: 2s")
    if expected is None:
        return
    counted = expected * window_s / (workload.warmup + window_s)
    tail = math.ceil(1 / (1 - slo.percentile)) if slo is not None and slo.percentile < 1 else 0
    least = max(FEW_REQUESTS, tail)
    if counted < least:
        why = (
            f"the SLO's share of {slo.percentile:g} needs {least}" if slo and least == tail else "percentiles need more"
        )
        findings.warn(
            "few_requests", f"workload {name}: about {counted:.0f} requests count in its window; {why}",
            "lengthen the window, or raise the rate or the repeats",
        )  # fmt: skip


def _prompts(workload: WorkloadSpec, findings: Findings) -> None:
    law = workload.arrivals
    if not isinstance(workload.prompts, SyntheticPrompts):
        if workload.ignore_eos:
            findings.warn(
                "tasks_past_eos", f"workload {workload.name}: ignore_eos lets task answers run past their end",
                "ignore_eos: false",
            )  # fmt: skip
    elif isinstance(law, TraceArrivals) and law.format == "mooncake" and not takes_hashes(workload):
        findings.warn(
            "hash_ids_unused",
            f"workload {workload.name}: the trace's prefix sharing is not replayed (it needs prompt_tokens "
            "{kind: trace} and no shared_prefix)",
        )
