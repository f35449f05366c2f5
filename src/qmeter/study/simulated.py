"""Cells of engines that are ``predicted`` by their traits: simulated from a calibration, marked simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from qmeter import catalog
from qmeter.engines.table import traits
from qmeter.errors import AnalysisError, IncompatibleRecords, QMeterError, StoreError
from qmeter.record import CellStatus, Quantity, Reason, Record, RecordKind
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.predict import DRAWS, Prediction, predict
from qmeter.simulate.sources import calibrations_of
from qmeter.spec.study import Cell, Deployment, Study
from qmeter.store import StudyStore
from qmeter.study.context import DeploymentContext, reason_of
from qmeter.study.events import CellEnded, Listener
from qmeter.study.findings import Findings
from qmeter.study.idle import Baseline
from qmeter.workload import Schedule, Vocabulary, build

CONFIDENCE = 0.95
"""Of the intervals, as in measured records."""
NO_QUALITY = "a simulated deployment answers nothing: measure quality on a real one"
OPTIONS = ("calibration", "engine", "model", "draws", "extrapolate")
"""Options of the simulated engine: which file, folder or profile; which engine's and model's calibration in it, where
it holds several; runs behind each interval; whether to answer beyond what was calibrated."""


def run_simulated(
    study: Study, store: StudyStore, pending: Sequence[Cell], listener: Listener, warnings: Iterable[Reason] = ()
) -> list[Cell]:
    """Predict the pending cells that are predicted; returns the others, in order.

    Raises:
        StoreError: a record cannot be written.
        IncompatibleRecords: the folder's records of a deployment rest on another calibration.
    """
    mine = [c for c in pending if is_predicted(c)]
    remaining = len(pending)
    for _, group in groupby(mine, key=lambda cell: cell.deployment.id):
        cells = list(group)
        context = _context(study, store, cells[0].deployment, listener)
        for warning in warnings:
            context.warn(warning)
        calibration, fault = _calibration(context, store)
        for cell in cells:
            record = _failed(context, cell, fault) if fault else _predicted(context, cell, calibration)
            store.append(record)
            remaining -= 1
            listener(CellEnded(cell.label, record, remaining))
    return [c for c in pending if not is_predicted(c)]


def is_predicted(cell: Cell) -> bool:
    """Whether the cell is predicted from a calibration, and nothing is started for it."""
    return traits(cell.deployment.engine.name).predicted


def calibration_of(deployment: Deployment) -> Calibration:
    """The calibration that a simulated deployment rests on.

    Raises:
        AnalysisError: none is named, none matches model, method and parallelism, or several do.
        StoreError: there is no such folder or profile.
    """
    options = deployment.engine.options
    source, engine, model = options.get("calibration"), options.get("engine"), options.get("model")
    if not source:
        raise AnalysisError(f"engine {deployment.engine.name} needs options.calibration",
                            hint="name a calibration file, a study's folder or a profile: qmeter profiles")  # fmt: skip
    found = calibrations_of(
        str(source),
        shape=deployment.model.shape,
        method=deployment.method,
        engine=str(engine) if engine else None,
        model=str(model) if model else None,
        device=None if deployment.device == "auto" else deployment.device,
    )
    asked = deployment.parallelism.model_dump()
    able = [c for c in found if {k: int(c.deployment["parallelism"].get(k, 1)) for k in asked} == asked]
    if not able:
        has = ", ".join(sorted({_degrees(c.deployment["parallelism"]) for c in found}))
        raise AnalysisError(f"{source} has {deployment.method} with {has} only, not {_degrees(asked)}",
                            hint="measure that parallelism, or carry one over: qmeter simulate --devices")  # fmt: skip
    if len(able) > 1:
        labels = ", ".join(f"{c.label} on {c.deployment['device']}" for c in able)
        raise AnalysisError(
            f"{source} has several calibrations of {deployment.model.shape}/{deployment.method}: {labels}",
            hint="name one by options.engine, options.model or the study's device",
        )
    return able[0]


def check(study: Study, findings: Findings) -> None:
    """Faults of a study's simulated engines that need no calibration to be read."""
    for i, engine in enumerate(study.engines):
        if not traits(engine.name).predicted:
            continue
        if not engine.options.get("calibration"):
            findings.fault(("engines", i, "options", "calibration"),
                           "name a calibration file, a study's folder, or a profile (qmeter profiles)")  # fmt: skip
        for name in engine.options:
            if name not in OPTIONS:
                text = f"engine {engine.name} takes {', '.join(OPTIONS)}; its limits are the calibration's own"
                findings.fault(("engines", i, "options", name), text)


def _degrees(parallelism: dict[str, int]) -> str:
    return " ".join(f"{k} {parallelism.get(k, 1)}" for k in ("tp", "pp", "dp"))


def _context(study: Study, store: StudyStore, deployment: Deployment, listener: Listener) -> DeploymentContext:
    return DeploymentContext(
        store=store, study_name=study.name, deployment=deployment, method=catalog.method(deployment.method),
        shape=catalog.model(deployment.model.shape), listener=listener,
        idle=Baseline(Quantity.unknown("W", "nothing was measured: the deployment is simulated")),
        quality={"ppl_ratio": Quantity.unknown("1", NO_QUALITY)},
    )  # fmt: skip


def _calibration(context: DeploymentContext, store: StudyStore) -> tuple[Calibration, None] | tuple[None, QMeterError]:
    try:
        with context.stage("calibrate"):
            found = calibration_of(context.deployment)
    except QMeterError as error:
        return None, error
    _require_same(context.deployment, found, store.records())
    return found, None


def _require_same(deployment: Deployment, calibration: Calibration, records: Sequence[Record]) -> None:
    earlier = {r.provenance.calibration for r in records if r.deployment_id == deployment.id}
    if other := earlier - {calibration.id, None}:
        raise IncompatibleRecords(
            f"{deployment.label}: its earlier cells rest on calibration {min(str(o) for o in other)}, "
            f"the one named now is {calibration.id}",
            hint="put that calibration back, or predict into a new folder with --out",
        )


def _predicted(context: DeploymentContext, cell: Cell, calibration: Calibration | None) -> Record:
    assert calibration is not None
    options = cell.deployment.engine.options
    try:
        with context.stage("load", cell.label):
            found = predict(
                calibration, cell.workload, seed=cell.seed, draws=int(options.get("draws", DRAWS)),
                confidence=CONFIDENCE, allow_extrapolation=bool(options.get("extrapolate", False)),
                schedule=_schedule(context, cell),
            )  # fmt: skip
        with context.stage("analyse", cell.label):
            return _record(context, cell, found)
    except StoreError:
        raise
    except QMeterError as error:
        return _failed(context, cell, error)
    finally:
        for stage in ("load", "analyse"):
            context.timings.pop(stage, None)


def _record(context: DeploymentContext, cell: Cell, found: Prediction) -> Record:
    notes = [
        Reason(kind="near_the_edge", stage="load", message=note, hint="measure a cell there and calibrate again")
        for note in (*found.notes, *((found.calibration.moved,) if found.calibration.moved else ()))
    ]
    context.effective = found.cell.effective
    return _marked(
        context.record(
            cell, RecordKind.SIMULATED, CellStatus.OK, warnings=(*notes, *found.warnings), window=found.window,
            metrics=dict(found.metrics), energy=dict(found.energy), series=found.cell.series,
            files=context.store.write_tables(cell.id, found.cell.tables),
        ),
        found.calibration.id,
    )  # fmt: skip


def _failed(context: DeploymentContext, cell: Cell, error: QMeterError | None) -> Record:
    assert error is not None
    return context.record(cell, RecordKind.SIMULATED, CellStatus.FAILED, reasons=(reason_of(error),))


def _marked(record: Record, calibration: str) -> Record:
    return record.model_copy(update={"provenance": record.provenance.model_copy(update={"calibration": calibration})})


def _schedule(context: DeploymentContext, cell: Cell) -> Schedule:
    """The very requests that a measurement of this cell would send."""
    items = None
    if cell.workload.prompts.kind == "tasks":
        from qmeter.quality.tasks import task_items

        items = task_items(cell.workload.prompts.tasks, cell.seed)
    return build(cell.workload, cell.seed, Vocabulary.of(context.shape), items)
