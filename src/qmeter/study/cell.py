"""Measuring one cell on a running server: load, telemetry, tables, analysis, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from qmeter.analysis.cell import analyse
from qmeter.engines.base import Launch, MetricsMap
from qmeter.engines.server import RunningServer
from qmeter.errors import EngineError, LoadError, QMeterError
from qmeter.load import LoadResult, Target, drive
from qmeter.record import (
    CellStatus,
    CellTables,
    Clock,
    Quantity,
    Reason,
    Record,
    RecordKind,
    Requests,
    RequestStatus,
    SeriesInfo,
    Steps,
    Telemetry,
    Tokens,
)
from qmeter.spec.study import Cell, ClientSpec, Placement
from qmeter.spec.workload import ClosedArrivals, FixedLength, SyntheticPrompts, WorkloadSpec
from qmeter.study.attribution import misplaced, own_readings
from qmeter.study.context import DeploymentContext, reason_of
from qmeter.telemetry.base import Sampler
from qmeter.telemetry.prometheus import EngineSampler
from qmeter.telemetry.recorder import Recorder
from qmeter.workload import Schedule, Vocabulary, build

DRAINED_S, DRAINED_POLL_S = 10.0, 0.1
"""How long an engine may take to let go of what an earlier cell's clients gave up. Units: s."""

AFTER_WINDOW_S = 0.75
"""Sampling goes on so long after the window: counters refresh at 10 Hz, averaged power is half a second late."""

Table = TypeVar("Table", Requests, Tokens, Telemetry)


@dataclass(frozen=True)
class Bench:
    """A running server made ready to be measured: what every cell on it uses.

    ``check`` is called while a load runs, and raises where the study was interrupted; ``client`` stands in for the
    study's where clients that run at the same time share its cores.
    """

    context: DeploymentContext
    server: RunningServer
    mapping: MetricsMap
    samplers: Sequence[Sampler]
    vocabulary: Vocabulary
    check: Callable[[], None] = lambda: None
    client: ClientSpec | None = None

    def target(self, workload: WorkloadSpec) -> Target:
        """Where and how this workload's requests go."""
        launch = self.server.launch
        return Target(
            base_url=launch.base_url,
            model=launch.served_model,
            headers=launch.headers,
            temperature=workload.temperature,
            ignore_eos=workload.ignore_eos,
            keep_text=workload.prompts.kind == "tasks",
            timeout_s=workload.warmup + workload.window + workload.drain,
        )


def warm_up(bench: Bench, cell: Cell) -> None:
    """A few concurrent requests of the cell's size, so that no cell pays for first-use work. Nothing is kept."""
    workload = cell.workload.model_copy(
        update={
            "name": "warm-up",
            "arrivals": ClosedArrivals(concurrency=4),
            "prompt_tokens": FixedLength(tokens=64),
            "output_tokens": FixedLength(tokens=16),
            "warmup": 0.0,
            "window": 1.0,
        }
    )
    schedule = _schedule(bench, workload.model_copy(update={"prompts": SyntheticPrompts()}), seed=0)
    result = drive(
        replace(schedule, requests=schedule.requests[:8], send_s=schedule.send_s[:8]),
        bench.target(workload),
        origin_monotonic_s=time.monotonic(),
        client=bench.client or cell.client,
        on_progress=lambda _: bench.check(),
    )
    if result.proof.failures and result.proof.failures[0].kind == "client_hung":
        raise LoadError(result.proof.failures[0].message, stage="warmup", hint=result.proof.failures[0].hint)


def measure_cell(bench: Bench, cell: Cell) -> Record:
    """Drive the cell's load, sample while it runs, write its tables, and make its record.

    Where the engine ended, or no request was completed, the record is a failure with all that was seen.
    """
    context, workload = bench.context, cell.workload
    schedule = _schedule(bench, workload, cell.seed)
    warnings = [] if (busy := _left_over(bench)) is None else [busy]
    with context.stage("load", cell.label, workload.warmup + workload.window):
        result, tables, series, clock = _run_load(bench, cell, schedule)
    with context.stage("analyse", cell.label):
        steps, missing = _steps(bench.mapping, bench.server.launch, clock.origin_monotonic_s)
        warnings += missing
        tables = replace(tables, steps=steps)
        seen = {
            "clock": clock,
            "proof": result.proof,
            "series": series,
            "files": context.store.write_tables(cell.id, tables),
        }
        try:
            bench.server.check_alive("load")
            _require_completions(tables)
        except QMeterError as error:
            error.stage = error.stage or "load"
            if isinstance(error, LoadError) and result.proof.failures:  # nothing came back, and the client is why
                reasons = (*result.proof.failures, reason_of(error))
                return context.record(cell, RecordKind.MEASURED, CellStatus.INVALID, reasons=reasons,
                                      warnings=tuple(warnings), **seen)  # fmt: skip
            return context.failure(cell, error, warnings=tuple(warnings), **seen)
        found = analyse(tables, workload, series, idle_power=context.idle.power, seed=cell.seed)
        quality = dict(context.quality)
        if workload.prompts.kind == "tasks":
            from qmeter.quality.tasks import grade_requests

            quality.update(grade_requests(tables.requests))
    alone, unasked = _ask_alone(bench, cell, schedule, tables.requests)
    quality.update(alone)
    weights = bench.server.effective.weight_bytes
    elsewhere = misplaced(context.devices, weights, tables.telemetry)
    reasons = (*result.proof.failures, *_without_company(context, cell), *([elsewhere] if elsewhere else []))
    return context.record(
        cell,
        RecordKind.MEASURED,
        CellStatus.INVALID if reasons else CellStatus.OK,
        reasons=reasons,
        warnings=(*warnings, *found.warnings, *unasked),
        window=found.window,
        metrics=found.metrics,
        energy={**found.energy, **context.idle.conditions},
        quality=quality,
        **seen,
    )


def _without_company(context: DeploymentContext, cell: Cell) -> list[Reason]:
    """Why a cell that was to run side by side with others did not."""
    at_work = any(n.cell_id for n in context.neighbours)
    if cell.deployment.placement is Placement.ALONE or at_work:
        return []
    return [
        Reason(
            kind="no_neighbour",
            stage="load",
            message="it was to be measured beside another deployment under load, and none ran",
            hint="see the neighbour's record, then: qmeter resume DIR --retry-failed",
        )
    ]


def _ask_alone(
    bench: Bench, cell: Cell, schedule: Schedule, requests: Requests
) -> tuple[dict[str, Quantity], list[Reason]]:
    """Whether batching changed answers, where the workload asks that; a failure there is a warning."""
    prompts = cell.workload.prompts
    if prompts.kind != "tasks" or not prompts.alone:
        return {}, []
    from qmeter.quality.answering import changed_under_load

    try:
        with bench.context.stage("alone", cell.label):
            return changed_under_load(bench.target(cell.workload), schedule, requests, prompts.alone), []
    except QMeterError as error:
        reason = Reason(kind="not_asked_alone", stage="alone", message=error.message, hint=error.hint or "")
        return {}, [reason]


def _left_over(bench: Bench) -> Reason | None:
    """Wait until the engine has nothing left of what came before; what remains after :data:`DRAINED_S` is said."""
    reader, deadline_s = EngineSampler(bench.server.launch, bench.mapping), time.monotonic() + DRAINED_S
    try:
        while True:
            values = reader.read()
            left = int(values.get("engine.running", 0.0) + values.get("engine.waiting", 0.0))
            if not left:
                return None
            if time.monotonic() > deadline_s:
                break
            time.sleep(DRAINED_POLL_S)
    finally:
        reader.close()
    return Reason(
        kind="engine_busy",
        stage="load",
        message=f"{left} requests from before were still in the engine when the load began",
        hint="lengthen the drain, or lower the load of the cell before",
    )


def _run_load(
    bench: Bench, cell: Cell, schedule: Schedule
) -> tuple[LoadResult, CellTables, tuple[SeriesInfo, ...], Clock]:
    """Everything but the iteration log, times counted from the start of the load."""
    origin_s = time.monotonic()
    recorder = Recorder(bench.samplers, cell.telemetry.rate_hz, origin_s)
    recorder.start()
    try:
        result = drive(schedule, bench.target(cell.workload), origin_monotonic_s=origin_s,
                       client=bench.client or cell.client, on_progress=lambda _: bench.check())  # fmt: skip
        ends_s = origin_s + result.start_s + cell.workload.warmup + cell.workload.window
        time.sleep(max(0.0, ends_s + AFTER_WINDOW_S - time.monotonic()))  # requests may all have ended before it
    finally:
        recorded = recorder.stop()
    telemetry, series = own_readings(cell.deployment, bench.server.launch, *recorded, bench.context.devices)
    begin_s = result.start_s
    tables = CellTables(
        requests=_moved(result.requests, -begin_s, "intended_s", "sent_s", "first_token_s", "last_token_s", "end_s"),
        tokens=_moved(result.tokens, -begin_s, "t_s"),
        telemetry=_moved(telemetry, -begin_s, "t_s"),
    )
    clock = Clock(
        origin_monotonic_s=origin_s + begin_s, origin_unix_s=time.time() - time.monotonic() + origin_s + begin_s
    )
    return result, tables, series, clock


def _steps(mapping: MetricsMap, launch: Launch, origin_s: float) -> tuple[Steps, list[Reason]]:
    """The iteration log; one that cannot be read is a warning, the cell's own numbers do not need it."""
    if mapping.steps is None:
        return Steps.empty(), []
    try:
        found = mapping.steps(launch, origin_s)
        if not isinstance(found, Steps):
            raise EngineError("it is not a Steps table", hint="correct the engine's adapter")
    except EngineError as error:
        hint = error.hint or "see the server's log"
        return Steps.empty(), [
            Reason(kind="no_steps", stage="load", message=f"no iteration log: {error.message}", hint=hint)
        ]
    return found, []


def _moved(table: Table, by_s: float, *columns: str) -> Table:
    """The table with the named time columns moved by ``by_s``."""
    return replace(table, **{c: getattr(table, c) + by_s for c in columns})


def _schedule(bench: Bench, workload: WorkloadSpec, seed: int) -> Schedule:
    items = None
    if workload.prompts.kind == "tasks":
        from qmeter.quality.tasks import task_items

        items = task_items(workload.prompts.tasks, seed)
    return build(workload, seed, bench.vocabulary, items)


def _require_completions(tables: CellTables) -> None:
    statuses = tables.requests.status
    if np.any(statuses == RequestStatus.OK.value):
        return
    kinds, counts = np.unique(statuses.astype(str), return_counts=True)
    seen = ", ".join(f"{n} {k}" for k, n in zip(kinds, counts, strict=True)) or "none was sent"
    errors = [e for e in tables.requests.error if e]
    raise LoadError(
        f"no request was completed ({seen})", hint=f"first error: {errors[0]}" if errors else "lower the load"
    )
