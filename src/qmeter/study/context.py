"""What the stages of one deployment share, and how records are made from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import qmeter
from qmeter.catalog import Method, ModelShape
from qmeter.engines.base import Artifact, Launch
from qmeter.errors import QMeterError
from qmeter.record import (
    CellStatus,
    Clock,
    EffectiveConfig,
    Neighbour,
    Provenance,
    Quantity,
    Reason,
    Record,
    RecordKind,
    Verification,
)
from qmeter.spec.study import Cell, Deployment
from qmeter.store import StudyStore
from qmeter.study import provenance
from qmeter.study.events import Listener, StageStarted
from qmeter.study.idle import Baseline


@dataclass
class DeploymentContext:
    """One deployment on its way through the stages; each stage adds what it learns.

    ``timings`` holds seconds of wall time by stage, on the monotonic clock: those of the deployment and of the present
    cell, as they go into its record. ``totals`` sums every stage over all cells.
    """

    store: StudyStore
    study_name: str
    deployment: Deployment
    method: Method
    shape: ModelShape
    listener: Listener
    artifact: Artifact | None = None
    launch: Launch | None = None
    effective: EffectiveConfig | None = None
    verification: Verification | None = None
    idle: Baseline = field(default_factory=Baseline)
    quality: dict[str, Quantity] = field(default_factory=dict)
    warnings: list[Reason] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    began_unix_s: float = field(default_factory=time.time)
    devices: tuple[int, ...] | None = None
    """GPUs that it was placed on."""
    neighbours: tuple[Neighbour, ...] = ()
    """Deployments that are up beside it, as of the present cell."""

    def warn(self, reason: Reason) -> None:
        """Note a warning for every record that follows, once."""
        if reason not in self.warnings:
            self.warnings.append(reason)

    @contextmanager
    def stage(self, name: str, label: str | None = None, expected_s: float | None = None) -> Iterator[None]:
        """Announce and time one stage; an error raised in it learns the stage's name."""
        self.listener(StageStarted(name, label or self.deployment.label, expected_s))
        started = time.monotonic()
        try:
            yield
        except QMeterError as error:
            error.stage = error.stage or name
            raise
        finally:
            took_s = time.monotonic() - started
            for book in (self.timings, self.totals):
                book[name] = book.get(name, 0.0) + took_s

    def record(self, cell: Cell, kind: RecordKind, status: CellStatus, **parts: Any) -> Record:
        """A record of ``cell`` with everything this context knows; ``parts`` are further fields."""
        parts.setdefault("timings", dict(self.timings))
        parts.setdefault("quality", dict(self.quality))
        parts["warnings"] = (*self.warnings, *parts.get("warnings", ()))
        clock: Clock | None = parts.get("clock")
        return Record(
            kind=kind,
            study=self.study_name,
            cell_id=cell.id,
            deployment_id=cell.deployment.id,
            status=status,
            cell=cell.model_dump(mode="json"),
            effective=self.effective,
            verification=self.verification,
            devices=self.devices,
            neighbours=self.neighbours,
            provenance=self._provenance(cell, clock.origin_unix_s if clock else self.began_unix_s),
            **parts,
        )

    def failure(self, cell: Cell, error: BaseException, **parts: Any) -> Record:
        """The record of a cell that ended in ``error``."""
        return self.record(cell, RecordKind.MEASURED, CellStatus.FAILED, reasons=(reason_of(error),), **parts)

    def _provenance(self, cell: Cell, started_unix_s: float) -> Provenance:
        model: dict[str, Any] = {"source": self.deployment.model.source}
        hashes = {"cell": cell.id, "deployment": cell.deployment.id}
        if self.artifact:
            model.update(
                format=self.artifact.format, weight_bytes=self.artifact.weight_bytes, notes=self.artifact.notes
            )
            hashes["model_sha256"] = self.artifact.sha256
        return Provenance(
            qmeter_version=qmeter.__version__,
            git_commit=provenance.git_commit(),
            started_unix_s=started_unix_s,
            host=provenance.host(),
            versions=provenance.versions(),
            engine_command=self.launch.argv if self.launch else None,
            engine_env=dict(self.launch.env) if self.launch else {},
            model=model,
            hashes=hashes,
            seed=cell.seed,
        )


def reason_of(error: BaseException) -> Reason:
    """An error as a record's reason; one that qMeter did not raise on purpose says so."""
    if isinstance(error, QMeterError):
        return Reason(kind=error.kind, stage=error.stage or "unknown", message=error.message, hint=error.hint)
    return Reason(
        kind=f"Unexpected.{type(error).__name__}",
        stage="unknown",
        message=str(error) or type(error).__name__,
        hint="this is a fault of qMeter: the traceback stands in the deployment's errors.log; please report it",
    )
