"""The record: everything qMeter knows about one cell, measured or simulated, one JSON line and its tables."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qmeter.record.effective import EffectiveConfig, Verification
from qmeter.record.quantity import Quantity

SCHEMA_VERSION = 1
"""Raised when a field changes meaning; the store refuses newer schemas and upgrades older ones on load."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordKind(StrEnum):
    """Where the numbers come from."""

    MEASURED = "measured"
    SIMULATED = "simulated"


class CellStatus(StrEnum):
    """How a cell ended. INVALID: it ran, but its numbers must not be used. FAILED: it did not finish."""

    OK = "ok"
    INVALID = "invalid"
    FAILED = "failed"


class Reason(_Frozen):
    """Why a cell failed or is invalid, or a warning on a valid one.

    Attributes:
        kind: an error class name ("OutOfMemory") or a check's name ("client_lateness").
        stage: launch, ready, verify, warmup, load, quality, analyse.
        message: what happened, one sentence.
        hint: the next step.
    """

    kind: str
    stage: str
    message: str
    hint: str | None = None


class Clock(_Frozen):
    """The cell's clock: t_s = CLOCK_MONOTONIC - ``origin_monotonic_s``; the wall clock is for the reader only.

    The origin is the start of the load: schedule times are cell times, and the planned window is
    [warmup, warmup + window].
    """

    origin_monotonic_s: float
    origin_unix_s: float


class Window(_Frozen):
    """The stationary window that every quantity of the cell is computed over, on the cell's clock.

    ``method`` names how it was found; ``stationary`` is ``False`` where no stationary stretch was found, and ``why``
    says what drifted.
    """

    start_s: float
    end_s: float
    method: str
    stationary: bool
    why: str | None = None

    @property
    def length_s(self) -> float:
        """Length. Units: s."""
        return self.end_s - self.start_s


class SeriesInfo(_Frozen):
    """One telemetry series: its name, unit and source, its real rate, or the reason that it has no readings."""

    name: str
    unit: str
    source: str
    cumulative: bool = False
    rate_hz: float | None = None
    gap: str | None = None


class ClientProof(_Frozen):
    """The client's own accuracy in this very run; ``failures`` non-empty makes the cell invalid.

    Attributes:
        checks: name → quantity: ``send_lateness_p50``/``p99`` and ``_max``, ``loop_lag_p99``, ``rate_asked``,
            ``rate_achieved``, ``arrival_ks_p`` (KS against the asked law), ``kernel_stamp_share``, ``coalesced_share``,
            ``ttft_stamp_doubt_p99``, ``itl_stamp_doubt_p99`` (by how much late reads may have made stamps late),
            ``cpu_share`` (of one core, the busiest client process).
        failures: thresholds broken, each with what to change.
        processes: client processes used.
    """

    checks: dict[str, Quantity]
    failures: tuple[Reason, ...] = ()
    processes: int = 1


class Provenance(_Frozen):
    """What is needed to believe and to repeat the cell. No secrets: only named, allowed environment variables."""

    qmeter_version: str
    git_commit: str | None
    started_unix_s: float
    host: dict[str, Any]
    versions: dict[str, str]
    engine_command: tuple[str, ...] | None
    engine_env: dict[str, str]
    model: dict[str, Any]
    hashes: dict[str, str]
    seed: int
    calibration: str | None = None
    """For a simulated record: the calibration it rests on."""
    analysed: str | None = None
    """The version and commit of the qMeter that analysed its tables again later; ``None``: never."""


class Neighbour(_Frozen):
    """Another deployment that was up on the same host, on other GPUs. ``cell_id``: what ran there meanwhile."""

    deployment_id: str
    label: str
    devices: tuple[int, ...]
    cell_id: str | None = None


class Record(_Frozen):
    """One cell's result.

    Attributes:
        cell_id, deployment_id: hashes over everything that affects the result (see :mod:`qmeter.spec`).
        cell: the resolved cell spec, as plain data.
        metrics: name → quantity over ``window``: see docs/measurement.md for each name's definition
            (``ttft_p99_s``, ``tpot_mean_s``, ``itl_p99_s``, ``e2e_p50_s``, ``throughput_tok_s``,
            ``request_rate_hz``, ``goodput_hz``, ``slo_attainment``, …).
        energy: name → quantity (``energy_j``, ``j_per_output_token``, ``power_mean_w``, ``idle_power_w``, …).
        quality: name → quantity (``ppl_ratio``, ``logprob_gap``, ``task.<name>.accuracy``, …).
        timings: stage → seconds of wall time this cell (or its deployment's share) took.
        devices: indexes of the GPUs that the deployment ran on, in NVML's order; ``None``: not placed by qMeter.
        neighbours: deployments that were up beside it on other GPUs; empty: it had the host to itself.
        files: table name → path relative to the study folder.
    """

    schema_version: int = SCHEMA_VERSION
    kind: RecordKind
    study: str
    cell_id: str
    deployment_id: str
    status: CellStatus
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[Reason, ...] = ()
    cell: dict[str, Any]
    clock: Clock | None = None
    window: Window | None = None
    effective: EffectiveConfig | None = None
    verification: Verification | None = None
    proof: ClientProof | None = None
    metrics: dict[str, Quantity] = Field(default_factory=dict)
    energy: dict[str, Quantity] = Field(default_factory=dict)
    quality: dict[str, Quantity] = Field(default_factory=dict)
    series: tuple[SeriesInfo, ...] = ()
    timings: dict[str, float] = Field(default_factory=dict)
    devices: tuple[int, ...] | None = None
    neighbours: tuple[Neighbour, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)
    provenance: Provenance
