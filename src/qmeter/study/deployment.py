"""One deployment from model source to teardown, every cell on it ending in a record."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qmeter import catalog, sources
from qmeter.engines import standby
from qmeter.engines.base import Engine, Launch
from qmeter.engines.server import RunningServer, serve
from qmeter.engines.table import ENGINES
from qmeter.engines.verify import verify
from qmeter.errors import MethodNotApplied, QMeterError, StoreError
from qmeter.record import Quantity, Reason, Record
from qmeter.spec.study import Cell, Study
from qmeter.store import StudyStore, write_atomic
from qmeter.study.cell import Bench, measure_cell, warm_up
from qmeter.study.company import CELL, IDLE, LAUNCH, Seat
from qmeter.study.context import DeploymentContext, reason_of
from qmeter.study.continuity import require_same_model
from qmeter.study.events import CellEnded, Listener
from qmeter.study.fidelity import measure_fidelity
from qmeter.study.idle import measure_idle
from qmeter.telemetry.base import Sampler
from qmeter.telemetry.host import EngineProcessSampler
from qmeter.telemetry.prometheus import EngineSampler
from qmeter.workload import Vocabulary

ALONE = Seat()
WORK = ("source", "idle", "launch", "warmup", "quality", "settle", "load", "alone")
"""Stages that are a deployment's own work (``settle``: the next one's imports); the rest is the harness's overhead."""
MOST_STARTS = 2
"""How often a deployment is started again after its engine crashed under load, first start included."""


class DeploymentRun:
    """Runs the given cells, all of one deployment; every one of them ends as a record in the store.

    Args:
        samplers: the host's, open for the whole study.
        cache: where models are kept.
        remaining: cells left in the study, for the events.
        seat: its GPUs, and the deployments that run beside it.
    """

    def __init__(
        self, store: StudyStore, study: Study, cells: Sequence[Cell], samplers: Sequence[Sampler], cache: Path,
        listener: Listener, remaining: int, seat: Seat = ALONE,
    ):  # fmt: skip
        deployment = cells[0].deployment
        self._seat = seat
        self._store, self._study, self._listener = store, study, listener
        self._samplers, self._cache, self._remaining = list(samplers), cache, remaining
        self._pending = list(cells)
        self._context = DeploymentContext(
            store=store,
            study_name=study.name,
            deployment=deployment,
            method=catalog.method(deployment.method),
            shape=catalog.model(deployment.model.shape),
            listener=listener,
            devices=seat.devices,
        )

    def warn(self, reasons: Iterable[Reason]) -> None:
        """Warnings that every record of this deployment is to carry."""
        for reason in reasons:
            self._context.warn(reason)

    def run(self) -> None:
        """Measure every cell; whatever goes wrong becomes the record of the cells it cost."""
        started_s = time.monotonic()
        try:
            engine: Engine = ENGINES.create(self._context.deployment.engine.name)
            with self._context.stage("source"):
                name = self._context.deployment.engine.name
                self._context.artifact = sources.prepare(
                    self._context.deployment.model, self._context.method, name, self._cache
                )
                require_same_model(self._context.deployment, self._context.artifact, self._store.records())
            self._turn(IDLE)
            with self._context.stage("idle"):
                rate_hz = self._pending[0].telemetry.rate_hz
                self._context.idle = measure_idle(self._samplers, self._context.deployment, self._seat.devices, rate_hz)
            self._turn(LAUNCH)
            for attempt in range(1, MOST_STARTS + 1):
                self._serve_and_measure(engine, last=attempt == MOST_STARTS)
                if not self._pending:
                    break
        except StoreError:
            raise  # what cannot be kept need not be measured: the study ends, and resume goes on
        except Exception as error:  # a failed deployment is a record for each of its cells, not the study's end
            self._log(error)
            for cell in list(self._pending):
                self._end(cell, self._context.failure(cell, error))
        self._write_timings(time.monotonic() - started_s)

    def _turn(self, kind: int, cell: Cell | None = None) -> None:
        """Wait for this deployment's turn among those that run beside it, and note which of them are at work."""
        if (company := self._seat.company) is not None:
            place = self._seat.places[cell.id] if cell else 0
            self._context.neighbours = company.turn(self._context.deployment.id, (kind, place), cell)

    def _serve_and_measure(self, engine: Engine, *, last: bool) -> None:
        context, folder = self._context, self._store.deployment_folder(self._context.deployment.id)
        assert context.artifact is not None
        with self._serving(engine, folder) as server:
            self._check_method(server)
            mapping = engine.metrics_map()
            own: list[Sampler] = [EngineSampler(server.launch, mapping), EngineProcessSampler(lambda: server.pids)]
            vocabulary = Vocabulary.of(context.shape)
            bench = Bench(context, server, mapping, [*self._samplers, *own], vocabulary, self._check, self._seat.client)
            try:
                with context.stage("warmup"):
                    warm_up(bench, self._pending[0])
                server.check_alive("warmup")
                if not context.quality:
                    with context.stage("quality"):
                        self._score(bench)
                if standby.is_waiting():
                    with context.stage("settle"):
                        standby.settle()
                if server.alive or last:  # else scoring ended it: start again, and measure without
                    self._measure_all(bench, last=last)
            finally:
                for sampler in own:
                    sampler.close()

    @contextmanager
    def _serving(self, engine: Engine, folder: Path) -> Iterator[RunningServer]:
        """The server, with launch and teardown timed as stages."""
        context = self._context
        assert context.artifact is not None

        def launched(launch: Launch) -> None:
            context.launch = launch

        serving = serve(engine, context.deployment, context.artifact, folder, env=self._seat.env, on_launch=launched,
                        check=self._check)  # fmt: skip
        with context.stage("launch"):
            server = serving.__enter__()
        failure: BaseException | None = None
        try:
            yield server
        except BaseException as error:
            failure = error
            raise
        finally:
            with context.stage("teardown"):
                serving.__exit__(type(failure) if failure else None, failure, None)

    def _check(self) -> None:
        """Raises where the study was interrupted while this deployment runs in a thread of its own."""
        if self._seat.company is not None:
            self._seat.company.check()

    def _check_method(self, server: RunningServer) -> None:
        context = self._context
        assert context.artifact is not None
        context.effective = server.effective
        with context.stage("verify"):
            context.verification = verify(
                context.deployment, context.method, context.shape, context.artifact, server.effective
            )
            if failed := context.verification.failed:
                said = "; ".join(f"{c.name}: expected {c.expected}, the engine runs {c.seen}" for c in failed)
                raise MethodNotApplied(
                    f"the engine does not run {context.method.name}: {said}",
                    hint="the checkpoint or the flags do not give this method on this engine: see the server's log",
                )
            if not context.verification.verified:
                why = "; ".join(f"{c.name}: {c.why}" for c in context.verification.checks if c.passed is None)
                context.warn(
                    Reason(
                        kind="unverified_method",
                        stage="verify",
                        message=f"the method could not be verified: {why}",
                        hint="look into the server's log for what it runs before trusting the comparison",
                    )
                )

    def _score(self, bench: Bench) -> None:
        """Fidelity; whatever goes wrong there leaves it unknown, and the cells are measured all the same."""
        try:
            measure_fidelity(bench, self._study, self._pending[0])
        except StoreError:
            raise
        except Exception as error:
            self._log(error)
            reason = reason_of(error)
            self._context.quality["ppl_ratio"] = Quantity.unknown("1", f"{reason.kind}: {reason.message}")
            self._context.warn(reason.model_copy(update={"stage": "quality"}))

    def _measure_all(self, bench: Bench, *, last: bool) -> None:
        """Measure what is pending; returns early where the engine ended, unless this was its last start.

        Raises:
            EngineCrashed: the engine ended, and is not to be started again.
        """
        for cell in list(self._pending):
            self._turn(CELL, cell)
            try:
                record = measure_cell(bench, cell)
            except StoreError:
                raise
            except Exception as error:  # this cell failed; while the server runs, the next one may not
                self._log(error)
                record = self._context.failure(cell, error)
            self._end(cell, record)
            if not bench.server.alive:
                if last:
                    bench.server.check_alive("load")
                return

    def _end(self, cell: Cell, record: Record) -> None:
        self._store.append(record)
        self._pending.remove(cell)
        self._remaining -= 1
        for stage in ("load", "analyse", "alone"):
            self._context.timings.pop(stage, None)
        self._listener(CellEnded(cell.label, record, self._remaining))

    def _write_timings(self, wall_s: float) -> None:
        """Keep where this deployment's time went; ``overhead`` is what no stage of :data:`WORK` accounts for."""
        totals = self._context.totals
        overhead_s = wall_s - sum(totals.get(stage, 0.0) for stage in WORK)
        folder = self._store.deployment_folder(self._context.deployment.id)
        write_atomic(folder / "timings.json", json.dumps({**totals, "wall": wall_s, "overhead": overhead_s}, indent=1))

    def _log(self, error: BaseException) -> None:
        """Keep the traceback beside the server's log; the record has the reason in any case."""
        folder = self._store.deployment_folder(self._context.deployment.id)
        kind = error.kind if isinstance(error, QMeterError) else "Unexpected"
        with contextlib.suppress(OSError), open(folder / "errors.log", "a", encoding="utf-8") as file:
            file.write(f"--- {kind}\n{''.join(traceback.format_exception(error))}\n")
