"""A workload's main numbers straight from the fast simulation: a few milliseconds, no tables, no intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmeter.simulate.calibration import Calibration
from qmeter.simulate.engine import at_scheduler
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import SimLoad, SimResult, load_of
from qmeter.spec.workload import WorkloadSpec
from qmeter.workload.schedule import Schedule

F64 = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)


def quick(
    calibration: Calibration,
    workload: WorkloadSpec,
    schedule: Schedule,
    *,
    draw: int | None = None,
    seed: int = 0,
    noise: bool = False,
    load: SimLoad | None = None,
) -> dict[str, float]:
    """Latencies, rates, SLO attainment and energy of a workload, by the names that records use.

    It differs from a whole simulated cell (:func:`qmeter.simulate.run_cell` and its analysis) in that the planned
    window always counts, and tokens are spread evenly over a request's life.

    Args:
        draw: a bootstrap draw of the parameters; ``None``: the fitted ones.
        noise: let steps vary as they did when measured; off: every step takes its modelled time.
        load: of this schedule under these rules, where it was made before (prefixes take time to hash).

    Raises:
        AnalysisError: the load cannot be served by these rules.
    """
    rules, model = calibration.scheduler(), calibration.step_model(draw, seed, noise=noise)
    load = load_of(schedule, rules) if load is None else load
    begin, end = schedule.warmup_s, schedule.warmup_s + schedule.window_s
    result = simulate(at_scheduler(load, model), rules, model, marks=(begin, end))
    sent = result.arrival_s - model.input_s if load.concurrency is not None else np.asarray(schedule.send_s)
    first = result.first_out_s + model.output_s - sent
    last = result.end_out_s + model.output_s - sent
    tpot = (last - first) / np.maximum(load.output - 1, 1)
    due = np.isfinite(sent) & (sent >= begin) & (sent < end)
    out: dict[str, float] = {}
    for name, values in (("ttft", first), ("tpot", tpot), ("e2e", last)):
        mine = np.where(np.isfinite(values[due]), values[due], np.inf)
        if len(mine):
            out[f"{name}_mean_s"] = float(mine.mean())
            ranked = np.percentile(mine, PERCENTILES, method="lower")
            out |= {f"{name}_p{p}_s": float(v) for p, v in zip(PERCENTILES, ranked, strict=True)}
    out |= _rates(load.output, result, begin, end)
    if workload.slo is not None and due.any():
        kept = np.ones(int(due.sum()), dtype=bool)
        for limit, values in ((workload.slo.ttft, first), (workload.slo.tpot, tpot), (workload.slo.e2e, last)):
            kept &= values[due] <= limit if limit is not None else True
        out["slo_attainment"] = float(kept.mean())
        out["goodput_hz"] = float(kept.sum() / (end - begin))
    if calibration.energy is not None:
        (spent, busy), (spent_end, busy_end) = result.marks
        joules = spent_end - spent + model.idle_w * max(end - begin - (busy_end - busy), 0.0)
        tokens = out["throughput_tok_s"] * (end - begin)
        out["j_per_output_token"] = joules / tokens if tokens > 0 else np.nan
        out["power_mean_w"] = joules / (end - begin)
    return {name: value for name, value in out.items() if np.isfinite(value)}


def _rates(output: NDArray[np.int64], result: SimResult, begin: float, end: float) -> dict[str, float]:
    """Tokens and requests a second in the window, each request's tokens after the first spread evenly to its last."""
    first, last = result.first_out_s, result.end_out_s
    span = np.maximum(last - first, 1e-9)
    inside = np.clip(np.minimum(last, end) - np.maximum(first, begin), 0.0, None)
    tokens = np.nansum((first >= begin) & (first < end)) + np.nansum((output - 1) * inside / span)
    done = int(((last >= begin) & (last < end)).sum())
    return {"throughput_tok_s": float(tokens / (end - begin)), "request_rate_hz": done / (end - begin)}
