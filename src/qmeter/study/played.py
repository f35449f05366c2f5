"""A study of any engine played by the simulator, knobs and all: records of the same type, marked simulated.

Unlike ``engine: simulated`` (one calibration as it was measured), the knobs are applied and a bootstrap draw plays the
deployment: what a search measures where no engine is at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import qmeter
from qmeter.analysis.cell import analyse
from qmeter.errors import QMeterError
from qmeter.record import CellStatus, Clock, Provenance, Reason, Record, RecordKind
from qmeter.simulate import Calibration, run_cell
from qmeter.spec.study import Cell, Study, expand
from qmeter.store import StudyStore
from qmeter.study import provenance
from qmeter.study.context import reason_of
from qmeter.study.events import CellEnded, Listener, StudyEnded, StudyStarted, silent
from qmeter.workload import Vocabulary, build

VOCABULARY = 32000


def play_study(
    study: Study,
    store: StudyStore,
    calibration_of: Callable[[Cell], Calibration],
    *,
    draw: int | None = None,
    listener: Listener = silent,
) -> StudyEnded:
    """Simulate every cell that the store lacks; on return each cell of the study has a record.

    Args:
        calibration_of: the calibration of a cell's deployment, its knobs applied; what it raises fails the cell.
        draw: which bootstrap draw of the parameters plays the deployment; ``None``: the fitted ones.

    Raises:
        StoreError: the folder cannot be written.
    """
    began_s = time.monotonic()
    with store.lock():
        cells = expand(study)
        done = {r.cell_id for r in store.records()}
        pending = [c for c in cells if c.id not in done]
        listener(StudyStarted(study.name, str(store.folder), len(cells), len(cells) - len(pending)))
        for k, cell in enumerate(pending):
            record = _record(study, store, cell, calibration_of, draw)
            store.append(record)
            listener(CellEnded(cell.label, record, len(pending) - k - 1))
        statuses = [r.status for r in store.records()]
    ended = StudyEnded(str(store.folder), statuses.count(CellStatus.OK), statuses.count(CellStatus.INVALID),
                       statuses.count(CellStatus.FAILED), time.monotonic() - began_s)  # fmt: skip
    listener(ended)
    return ended


def _record(
    study: Study, store: StudyStore, cell: Cell, calibration_of: Callable[[Cell], Calibration], draw: int | None
) -> Record:
    common: dict[str, Any] = {
        "kind": RecordKind.SIMULATED, "study": study.name, "cell_id": cell.id, "deployment_id": cell.deployment.id,
        "cell": cell.model_dump(mode="json"),
    }  # fmt: skip
    try:
        calibration = calibration_of(cell)
        schedule = build(cell.workload, cell.seed, Vocabulary(size=VOCABULARY))
        made = run_cell(calibration, schedule, seed=cell.seed, draw=draw, allow_extrapolation=True)
        found = analyse(made.tables, cell.workload, made.series, seed=cell.seed)
    except QMeterError as error:
        error.stage = error.stage or "launch"
        return Record(**common, status=CellStatus.FAILED, reasons=(reason_of(error),), provenance=_from(cell, None))
    edge = [Reason(kind="extrapolated", stage="load", message=n, hint="measure there") for n in made.notes]
    return Record(
        **common, status=CellStatus.OK, warnings=(*edge, *found.warnings), window=found.window, metrics=found.metrics,
        energy=found.energy, series=made.series, effective=made.effective,
        clock=Clock(origin_monotonic_s=0.0, origin_unix_s=time.time()),
        files=store.write_tables(cell.id, made.tables), provenance=_from(cell, made.calibration),
    )  # fmt: skip


def _from(cell: Cell, calibration: str | None) -> Provenance:
    return Provenance(
        qmeter_version=qmeter.__version__, git_commit=provenance.git_commit(), started_unix_s=time.time(),
        host={}, versions=provenance.versions(), engine_command=None, engine_env={},
        model={"source": cell.deployment.model.source}, hashes={"cell": cell.id}, seed=cell.seed,
        calibration=calibration,
    )  # fmt: skip
