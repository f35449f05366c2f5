"""Runs a study: the cells it lacks, a deployment at a time, in the study's order."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from qmeter.engines import standby
from qmeter.record import CellStatus, Reason, Record
from qmeter.spec.study import Cell, Study, cell_names, expand
from qmeter.store import StudyStore
from qmeter.study.continuity import changes, require_known_cells
from qmeter.study.events import Listener, StudyEnded, StudyStarted, silent
from qmeter.study.findings import HostFacts
from qmeter.study.gpu_lock import gpu_uuids, hold_gpus
from qmeter.study.placement import Group, plan_groups
from qmeter.study.side_by_side import GroupRun
from qmeter.study.simulated import is_predicted, run_simulated


def run_study(
    study: Study,
    store: StudyStore,
    *,
    listener: Listener = silent,
    cache: Path | None = None,
    retry_failed: bool = False,
    host: HostFacts | None = None,
    keep_standby: bool = False,
) -> StudyEnded:
    """Measure every cell that the store lacks; on return each has a record, but for those that need more GPUs.

    Args:
        host: whose GPUs deployments are placed on (default: this host).
        cache: where models are kept (default: :func:`default_cache`).
        retry_failed: measure again the cells whose latest record is failed or invalid.
        keep_standby: leave the engine program that was started ahead to the study that follows in this process; the
            caller ends it (:func:`qmeter.engines.standby.discard_all`).

    Raises:
        StoreError: another run holds the folder or a GPU, or the folder cannot be written.
        IncompatibleRecords: the folder's records are of other cells or models than the study's.
        TelemetryError: the recording to replay cannot be read.
    """
    started_s = time.monotonic()
    host = host or HostFacts.of_this_host()
    with store.lock():
        cells = expand(study)
        records = store.records()
        require_known_cells(cells, records)
        for former, now in {(c.deployment.former_id, c.deployment.id) for c in cells}:
            store.adopt_deployment(former, now)
        pending = missing_cells(cells, records, retry_failed=retry_failed)
        warnings = [*(changes(records) if pending else []), *_replay_warnings(study)]
        listener(StudyStarted(study.name, str(store.folder), len(cells), len(cells) - len(pending)))
        measured = run_simulated(study, store, pending, listener, warnings)
        ours = [cell for cell in cells if not is_predicted(cell)]
        groups, left = plan_groups(ours, host.gpus), {cell.id for cell in measured}
        used = {d for g in groups if g.waits is None and _pending_of(g, left) for d in g.devices}
        with hold_gpus(gpu_uuids(used) if used else (), str(store.folder.resolve())):
            run = GroupRun(store, study, cache or default_cache(), listener, host.gpus, set(), 0, warnings)
            try:
                waiting = _run_groups(groups, left, run)
            finally:
                if not keep_standby:
                    standby.discard_all()
        ended = replace(_outcome(store, cell_names(cells), time.monotonic() - started_s), waiting=waiting)
    listener(ended)
    return ended


def missing_cells(cells: list[Cell], records: list[Record], *, retry_failed: bool) -> list[Cell]:
    """The cells without a record, in order; with ``retry_failed`` also those whose record is not OK."""
    done = {r.cell_id for r in records if r.status is CellStatus.OK or not retry_failed}
    return [cell for cell in cells if not done & {cell.id, cell.former_id}]


def default_cache() -> Path:
    """Where models are kept: ``$QMETER_CACHE``, else the user's cache folder."""
    if named := os.environ.get("QMETER_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmeter"


def _run_groups(groups: list[Group], pending: set[str], run: GroupRun) -> int:
    """Run the groups that this host can; returns how many pending cells wait for another host."""
    waiting, last = 0, tuple[int, ...]()
    run.pending, run.remaining = pending, len(pending)
    for group in groups:
        mine = _pending_of(group, pending)
        if group.waits is not None:
            waiting += mine
        elif mine:
            if last and group.devices != last:
                standby.discard_all()  # they would see other GPUs than these
            run.run(group)
            last = group.devices
        run.remaining -= mine
    return waiting


def _pending_of(group: Group, pending: set[str]) -> int:
    return sum(cell.id in pending for member in group.members for cell in member.cells)


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
