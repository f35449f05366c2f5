"""Runs a study: the cells it lacks, a deployment at a time, in the study's order."""

from __future__ import annotations

import os
import time
from itertools import groupby
from pathlib import Path

from qmeter.engines import standby
from qmeter.record import CellStatus, Reason, Record
from qmeter.spec.study import Cell, Study, expand
from qmeter.store import StudyStore
from qmeter.study.continuity import changes, require_known_cells
from qmeter.study.deployment import DeploymentRun
from qmeter.study.events import Listener, StudyEnded, StudyStarted, silent
from qmeter.telemetry.base import Sampler
from qmeter.telemetry.replay import ReplaySampler
from qmeter.telemetry.table import open_samplers


def run_study(
    study: Study,
    store: StudyStore,
    *,
    listener: Listener = silent,
    cache: Path | None = None,
    retry_failed: bool = False,
    allow_power_cap: bool = False,
) -> StudyEnded:
    """Measure every cell that the store lacks; on return each cell of the study has a record.

    Args:
        cache: where models are kept (default: :func:`default_cache`).
        retry_failed: measure again the cells whose latest record is failed or invalid.
        allow_power_cap: let the knob ``power_cap_w`` cap the GPUs; without it such deployments fail, saying so.

    Raises:
        StoreError: another run holds the folder, or it cannot be written.
        IncompatibleRecords: the folder's records are of other cells or models than the study's.
        TelemetryError: the recording to replay cannot be read.
    """
    started_s = time.monotonic()
    with store.lock():
        cells = expand(study)
        records = store.records()
        require_known_cells(cells, records)
        pending = missing_cells(cells, records, retry_failed=retry_failed)
        warnings = changes(records) if pending else []
        listener(StudyStarted(study.name, str(store.folder), len(cells), len(cells) - len(pending)))
        samplers = _open_samplers(study) if pending else []
        warnings += _replay_warnings(study)
        remaining = len(pending)
        try:
            for _, group in groupby(pending, key=lambda cell: cell.deployment.id):
                members = list(group)
                run = DeploymentRun(store, study, members, samplers, cache or default_cache(), listener, remaining,
                                    allow_power_cap)  # fmt: skip
                run.warn(warnings)
                run.run()
                remaining -= len(members)
        finally:
            standby.discard_all()
            for sampler in samplers:
                sampler.close()
        ended = _outcome(store, {cell.id for cell in cells}, time.monotonic() - started_s)
    listener(ended)
    return ended


def missing_cells(cells: list[Cell], records: list[Record], *, retry_failed: bool) -> list[Cell]:
    """The cells without a record, in order; with ``retry_failed`` also those whose record is not OK."""
    done = {r.cell_id for r in records if r.status is CellStatus.OK or not retry_failed}
    return [cell for cell in cells if cell.id not in done]


def default_cache() -> Path:
    """Where models are kept: ``$QMETER_CACHE``, else the user's cache folder."""
    if named := os.environ.get("QMETER_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmeter"


def _open_samplers(study: Study) -> list[Sampler]:
    replayed = [ReplaySampler(Path(study.telemetry.replay), loop=True)] if study.telemetry.replay else []
    return [*replayed, *open_samplers(study.telemetry.samplers)]


def _replay_warnings(study: Study) -> list[Reason]:
    if not study.telemetry.replay:
        return []
    return [
        Reason(
            kind="replayed_telemetry",
            stage="load",
            message="telemetry of a recording was played back: power and energy are not this run's",
            hint="take telemetry.replay out of the study to measure",
        )
    ]


def _outcome(store: StudyStore, ids: set[str], wall_s: float) -> StudyEnded:
    statuses = [r.status for r in store.records() if r.cell_id in ids]
    return StudyEnded(
        folder=str(store.folder),
        ok=statuses.count(CellStatus.OK),
        invalid=statuses.count(CellStatus.INVALID),
        failed=statuses.count(CellStatus.FAILED),
        wall_s=wall_s,
    )
