"""One cell's analysis: the window, every metric over it, energy, and the warnings a reader must see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qmeter.analysis.energy import Work, energy_metrics, grouped
from qmeter.analysis.latency import Latencies, gaps, itl_metrics, latencies, latency_metrics
from qmeter.analysis.links import link_metrics
from qmeter.analysis.rates import failed_share, failures, rate_metrics, slo_metrics
from qmeter.analysis.state import state_metrics
from qmeter.analysis.window import Found, find
from qmeter.record import CellTables, Quantity, Reason, SeriesInfo, Window
from qmeter.spec.workload import WorkloadSpec

FEW_REQUESTS = 20
"""Requests in the window below which the cell carries a warning."""
OVERLAP = 4.0
"""Blocks of the bootstrap span at least so many median request durations: requests that share batches depend."""
TOKEN_DISAGREEMENT = 0.01
"""Share of requests whose token counts may disagree without a warning."""


@dataclass(frozen=True)
class CellAnalysis:
    """What the tables of one cell say over its window; goes into the record as it is."""

    window: Window
    metrics: dict[str, Quantity]
    energy: dict[str, Quantity]
    warnings: tuple[Reason, ...]


def analyse(
    tables: CellTables,
    workload: WorkloadSpec,
    series: Sequence[SeriesInfo] = (),
    *,
    confidence: float = 0.95,
    seed: int = 0,
    idle_power: Quantity | None = None,
) -> CellAnalysis:
    """Analyse one cell. Pure: the same tables and seed give the same numbers.

    Args:
        tables: requests, tokens and telemetry; the cell's clock starts with its load.
        workload: the workload that was driven, its SLO filled in.
        series: what telemetry offered, with the reasons for its gaps.
        confidence: of every interval.
        seed: of the bootstrap.
        idle_power: the devices' power before the deployment, where it was measured.
    """
    rng = np.random.default_rng(seed)
    found = find(tables, workload)
    window = found.window
    requests = latencies(tables, window)
    overlap_s = OVERLAP * float(np.median(requests.elapsed_s)) if len(requests.rows) else 0.0
    overlap = math.ceil(len(requests.rows) * overlap_s / window.length_s)
    metrics = _latencies(requests, overlap, confidence, rng)
    metrics |= itl_metrics(gaps(tables, window), overlap, confidence, rng)
    metrics |= rate_metrics(tables, window, overlap_s, confidence, rng)
    metrics |= slo_metrics(requests, workload.slo, due_hz(tables, workload), overlap, confidence, rng)
    metrics["failed_share"] = failed_share(requests, overlap, confidence, rng)
    metrics["requests"] = Quantity.of(float(len(requests.rows)), "1", n=len(requests.rows))
    readings = grouped(tables.telemetry)
    metrics |= state_metrics(readings, series, window)
    metrics |= link_metrics(readings, series, window, metrics["output_tokens"].value or 0.0)
    work = Work(
        output_tokens=metrics["output_tokens"].value or 0.0,
        total_tokens=metrics["total_tokens"].value or 0.0,
        requests=metrics["requests_ended"].value or 0.0,
        e2e_mean_s=metrics["e2e_mean_s"],
        token_t_s=tables.tokens.t_s,
        token_n=tables.tokens.n.astype(np.float64),
    )
    energy, energy_warnings = energy_metrics(
        tables.telemetry, series, window, work, idle_power=idle_power, confidence=confidence
    )
    warnings = (*_warnings(found, tables, requests, workload), *energy_warnings)
    return CellAnalysis(window, metrics, energy, warnings)


def due_hz(tables: CellTables, workload: WorkloadSpec) -> float:
    """Requests due a second over the planned window, which no cut changes."""
    due_s = tables.requests.intended_s
    planned = (due_s >= workload.warmup) & (due_s < workload.warmup + workload.window)
    return float(np.count_nonzero(planned)) / workload.window


def _latencies(found: Latencies, overlap: int, confidence: float, rng: np.random.Generator) -> dict[str, Quantity]:
    columns = {
        "ttft": found.ttft_s,
        "ttft_from_sent": found.ttft_from_sent_s,
        "tpot": found.tpot_s,
        "e2e": found.e2e_s,
    }
    return latency_metrics(columns, found.elapsed_s, overlap, confidence, rng)


def _warnings(found: Found, tables: CellTables, requests: Latencies, workload: WorkloadSpec) -> list[Reason]:
    out = []

    def warn(kind: str, message: str, hint: str | None = None) -> None:
        out.append(Reason(kind=kind, stage="analyse", message=message, hint=hint))

    n = len(requests.rows)
    if found.overload:
        warn("overloaded", found.overload, "lower the arrival rate; latencies here grow with the window's length")
    elif not found.window.stationary:
        hint = None if workload.arrivals.kind == "ramp" else "lengthen warmup, then window"
        warn("not_stationary", found.window.why or "not stationary", hint)
    if found.young:
        warn("young_loop", found.young, "lengthen warmup to the time a request takes")
    if n < FEW_REQUESTS:
        warn("few_requests", f"{n} requests were due in the window; tails are unknown", "lengthen the window")
    lost = failures(tables, requests)
    if lost:
        named = ", ".join(f"{count} {status}" for status, count in lost.most_common())
        warn("failed_requests", f"{sum(lost.values())} of {n} requests did not end well: {named}")
    out.extend(_token_warnings(tables, requests, exact=workload.ignore_eos))
    return out


def _token_warnings(tables: CellTables, requests: Latencies, *, exact: bool) -> list[Reason]:
    """Warnings where the stream, the server's count and the length asked for (``exact``) disagree."""
    r, rows = tables.requests, requests.rows[requests.ok]
    own = np.bincount(tables.tokens.request, weights=tables.tokens.n, minlength=len(r))[: len(r)]
    out = []
    told = rows[r.output_tokens[rows] >= 0]
    differ = int((own[told] != r.output_tokens[told]).sum())
    if differ > TOKEN_DISAGREEMENT * len(told):
        message = f"{differ} of {len(told)} requests streamed another number of tokens than the server reported"
        hint = "rates use what was streamed, TPOT what the server reported; check how the engine groups tokens"
        out.append(Reason(kind="token_count", stage="analyse", message=message, hint=hint))
    short = int((requests.output_tokens[requests.ok] != r.output_tokens_asked[rows]).sum())
    if exact and short > TOKEN_DISAGREEMENT * len(rows):
        message = f"{short} of {len(rows)} requests gave another number of output tokens than asked"
        hint = "the engine may not honour ignore_eos, or max_model_tokens cuts requests short"
        out.append(Reason(kind="output_length", stage="analyse", message=message, hint=hint))
    return out
