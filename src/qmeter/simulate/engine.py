"""A simulated deployment: the same schedule as a measured cell, and tables of the same shape, marked simulated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.record import (
    CellTables,
    EffectiveConfig,
    Requests,
    RequestStatus,
    SeriesInfo,
    Steps,
    Telemetry,
    Tokens,
)
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import Detail, SimLoad, SimResult, load_of
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel
from qmeter.workload.schedule import Schedule

F64 = NDArray[np.float64]

STATE = ("engine.running", "engine.waiting", "engine.kv_use")
TELEMETRY_S = 0.1
"""Spacing of simulated telemetry: the refresh period of NVML's counter."""


@dataclass(frozen=True)
class SimulatedCell:
    """What the runner needs of a simulated cell: as after measuring.

    Attributes:
        tables: requests, tokens, telemetry and steps on the cell's clock.
        series: what telemetry there is; gaps with the reason.
        effective: the calibrated deployment's own report.
        calibration: id to go into ``Provenance.calibration``.
        notes: what a reader must know (questions near the edge of the calibration).
        result: the simulator's own numbers.
    """

    tables: CellTables
    series: tuple[SeriesInfo, ...]
    effective: EffectiveConfig
    calibration: str
    notes: tuple[str, ...]
    result: SimResult


def run_cell(
    calibration: Calibration,
    schedule: Schedule,
    *,
    seed: int = 0,
    draw: int | None = None,
    allow_extrapolation: bool = False,
) -> SimulatedCell:
    """Serve a cell's schedule on the calibrated deployment.

    Args:
        calibration: of the deployment.
        schedule: the seeded schedule that a measurement would be driven with.
        seed: of the noise.
        draw: which bootstrap draw of the parameters; ``None``: the fitted ones.
        allow_extrapolation: answer outside the calibration's support too, with a note.

    Raises:
        AnalysisError: the question lies outside what the calibration supports; the message says in what.
    """
    from qmeter.simulate.support import check

    rules, model = calibration.scheduler(), calibration.step_model(draw, seed)
    load = load_of(schedule, rules)
    result = simulate(at_scheduler(load, model), rules, model, detail=True)
    notes = check(calibration, load, result, allow=allow_extrapolation)
    sent = _sent(schedule, load, result, model)
    window_end_s = schedule.warmup_s + schedule.window_s
    limit_s = window_end_s + schedule.drain_s
    tables = tables_of(load, result, sent, model, rules, limit_s, calibration.energy_series, window_end_s)
    return SimulatedCell(tables, _series(calibration), EffectiveConfig(**calibration.effective), calibration.id, notes,
                         result)  # fmt: skip


def at_scheduler(load: SimLoad, model: StepModel) -> SimLoad:
    """The load as it reaches the scheduler: later by the input delay, and through the front end one at a time."""
    if load.concurrency is not None:
        return replace(load, think_s=load.think_s + model.input_s + model.output_s, spacing_s=model.spacing_s)
    order = model.spacing_s * np.arange(len(load))
    through = np.maximum.accumulate(load.arrival_s - order) + order
    return replace(load, arrival_s=through + model.input_s)


def _sent(schedule: Schedule, load: SimLoad, result: SimResult, model: StepModel) -> F64:
    if load.concurrency is None:
        return np.asarray(schedule.send_s, dtype=np.float64)
    ends = np.sort(result.end_out_s[np.isfinite(result.end_out_s)]) + model.output_s + load.think_s
    later = int(np.isfinite(result.arrival_s).sum()) - load.concurrency
    sent = np.full(len(load), np.nan)
    sent[: load.concurrency] = 0.0
    if later > 0:
        sent[load.concurrency : load.concurrency + later] = ends[:later]
    return sent


def tables_of(
    load: SimLoad, result: SimResult, sent: F64, model: StepModel, rules: Rules, limit_s: float, energy: str | None,
    window_end_s: float = 0.0,
) -> CellTables:  # fmt: skip
    """A run as the four tables. The client stamps ``output_s`` after a token was sent on, waits until ``limit_s``.

    Telemetry goes on to ``window_end_s`` at least, as a recorder's does where the last request ends before.
    """
    detail = result.detail
    assert detail is not None
    token_s = _sent_on(detail) + model.output_s
    request = np.repeat(np.arange(len(load)), np.diff(detail.token_start))
    seen = token_s <= limit_s
    counts = np.bincount(request[seen], minlength=len(load))
    last, first = np.full(len(load), np.nan), np.full(len(load), np.nan)
    np.fmin.at(first, request[seen], token_s[seen])
    np.fmax.at(last, request[seen], token_s[seen])
    keep = np.isfinite(sent)
    order = np.cumsum(keep) - 1
    done = counts == load.output
    requests = _requests(load, sent, first, last, counts, done, limit_s)
    rows = seen & keep[request]
    n = int(rows.sum())
    tokens = Tokens(
        request=_i32(order[request[rows]]), t_s=token_s[rows], n=np.ones(n, dtype=np.int16),
        clock=np.zeros(n, dtype=np.int8), coalesced=np.zeros(n, dtype=np.bool_),
    )  # fmt: skip
    steps = Steps(
        start_s=detail.step_start_s, duration_s=detail.step_s, running=_i32(detail.step_running),
        waiting=_i32(detail.step_waiting), prefill_tokens=_i32(detail.step_prefill),
        decode_tokens=_i32(detail.step_decodes),
        kv_use=detail.step_used / rules.usable_blocks,
    )  # fmt: skip
    at = _sampled_s(detail, limit_s, window_end_s)
    telemetry = _joined(_telemetry(detail, model, energy, at), _state(detail, rules, at))
    chosen = Requests(**{name: column[keep] for name, column in requests.columns().items()})
    return CellTables(chosen, tokens, telemetry, steps)


def _requests(load: SimLoad, sent: F64, first: F64, last: F64, counts: NDArray[np.int64], done: NDArray[np.bool_],
              limit_s: float) -> Requests:  # fmt: skip
    n = len(load)
    nothing = np.full(n, None, dtype=object)
    status = np.where(done, RequestStatus.OK.value, RequestStatus.TIMEOUT.value).astype(object)
    reason = nothing.copy()
    reason[done] = "length"
    return Requests(
        intended_s=sent, sent_s=sent, first_token_s=first, last_token_s=last, end_s=np.where(done, last, limit_s),
        prompt_tokens_asked=_i32(load.prompt), output_tokens_asked=_i32(load.output), prompt_tokens=_i32(load.prompt),
        output_tokens=_i32(counts), status=status, http_status=np.full(n, 200, dtype=np.int32),
        finish_reason=reason, task=nothing, item=nothing, text=nothing,
        error=nothing,
    )  # fmt: skip


def _sent_on(detail: Detail) -> F64:
    """When the front end had sent on each token. Shape (tokens,)."""
    end = detail.step_start_s + detail.step_s
    step = np.minimum(np.searchsorted(end, detail.token_s - 1e-9, side="left"), len(end) - 1)
    return detail.step_out_s[step]


def _i32(values: NDArray[np.int64]) -> NDArray[np.int32]:
    return values.astype(np.int32)


def step_energy(detail: Detail, model: StepModel) -> F64:
    """Joules of each step. Shape (steps,)."""
    return np.asarray(model.busy_w * detail.step_s + detail.step_work_j, dtype=np.float64)


def _sampled_s(detail: Detail, limit_s: float, window_end_s: float) -> F64:
    """When telemetry is read: until the last step and the window have ended, or nobody waits any more."""
    last_s = max(float(detail.step_start_s[-1] + detail.step_s[-1]) if len(detail.step_s) else 0.0, window_end_s)
    return np.arange(0.0, min(limit_s, last_s) + TELEMETRY_S, TELEMETRY_S)


def _telemetry(detail: Detail, model: StepModel, energy: str | None, at: F64) -> Telemetry:
    if energy is None or not len(detail.step_s):
        return Telemetry.empty()  # type: ignore[no-any-return]
    end = detail.step_start_s + detail.step_s
    edges = np.maximum.accumulate(np.column_stack([detail.step_start_s, end]).ravel())
    spent = np.concatenate(([0.0], np.cumsum(step_energy(detail, model))))
    busy = np.concatenate(([0.0], np.cumsum(detail.step_s)))
    both = [np.interp(at, edges, np.column_stack([v[:-1], v[1:]]).ravel()) for v in (spent, busy)]
    joules = both[0] + model.idle_w * (at - both[1])
    power = np.gradient(joules, at) if len(at) > 1 else np.full(1, model.idle_w)
    name = energy.split("+")[0]
    series = np.array([name] * len(at) + [name.replace("energy_j", "power_w")] * len(at), dtype=object)
    return Telemetry(series=series, t_s=np.tile(at, 2), value=np.concatenate([joules, power]))


def _state(detail: Detail, rules: Rules, at: F64) -> Telemetry:
    """The engine's own series, sampled as a recorder would: each reading is of the step then running."""
    if not len(detail.step_s):
        return Telemetry.empty()  # type: ignore[no-any-return]
    end = detail.step_start_s + detail.step_s
    step = np.searchsorted(detail.step_start_s, at, side="right") - 1
    busy = (step >= 0) & (at < end[np.maximum(step, 0)])
    values = (detail.step_running, detail.step_waiting, detail.step_used / rules.usable_blocks)
    columns = [np.where(busy, v[np.maximum(step, 0)], 0.0) for v in values]
    names = np.repeat(np.array(STATE, dtype=object), len(at))
    return Telemetry(series=names, t_s=np.tile(at, len(STATE)), value=np.concatenate(columns))


def _joined(first: Telemetry, second: Telemetry) -> Telemetry:
    return Telemetry(**{n: np.concatenate([c, second.columns()[n]]) for n, c in first.columns().items()})


def _series(calibration: Calibration) -> tuple[SeriesInfo, ...]:
    rate = 1 / TELEMETRY_S
    state = tuple(SeriesInfo(name=n, unit="1", source="simulated", rate_hz=rate) for n in STATE)
    if calibration.energy_series is None:
        gap = calibration.why_no_energy or "the calibration has no energy"
        return (*state, SeriesInfo(name="gpu0.energy_j", unit="J", source="simulated", cumulative=True, gap=gap))
    name = calibration.energy_series.split("+")[0]
    return (
        *state,
        SeriesInfo(name=name, unit="J", source="simulated", cumulative=True, rate_hz=rate),
        SeriesInfo(name=name.replace("energy_j", "power_w"), unit="W", source="simulated", rate_hz=rate),
    )
