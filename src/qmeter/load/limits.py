"""What this host's client can hold, as ``qmeter calibrate`` measured it: read before a study asks for more."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from qmeter.errors import LoadError
from qmeter.record import Reason
from qmeter.workload.schedule import Schedule

FORMAT = 1
UNCALIBRATED_EVENTS_HZ = 40_000.0
"""Token events a second that one process is trusted with where nothing was measured."""


@dataclass(frozen=True)
class Limits:
    """The most one client process of this host held within the proof's thresholds.

    Attributes:
        events_hz: token events a second.
        requests_hz: requests a second.
        ttft_error_p99_s: error against the ground truth at that load.
        python, machine: what was measured; limits of another machine or interpreter do not count.
        measured_unix_s: when.
    """

    events_hz: float
    requests_hz: float
    ttft_error_p99_s: float
    python: str
    machine: str
    measured_unix_s: float


def limits_path() -> Path:
    """Where they are kept: ``$XDG_STATE_HOME/qmeter/client_limits.json`` (default ``~/.local/state``)."""
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state and Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "qmeter" / "client_limits.json"


def machine_name() -> str:
    """What the limits belong to: architecture, kernel release and number of cores."""
    system = os.uname()
    return f"{system.machine} {system.release} {os.cpu_count()} cores"


def load_limits(path: Path | None = None) -> Limits | None:
    """The limits measured on this machine, or ``None`` (never measured, another machine, or a broken file)."""
    try:
        data = json.loads((path or limits_path()).read_text())
        if data.pop("format") != FORMAT:
            return None
        limits = Limits(**data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return limits if limits.machine == machine_name() else None


def save_limits(limits: Limits, path: Path | None = None) -> Path:
    """Store limits for :func:`load_limits`; returns where.

    Raises:
        LoadError: the folder cannot be written.
    """
    path = path or limits_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"format": FORMAT, **asdict(limits)}, indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error}", hint="set XDG_STATE_HOME to a folder you can write") from None
    return path


def demand(schedule: Schedule) -> tuple[float, float]:
    """``(requests/s, token events/s)`` that a schedule asks for; (0, 0) for a closed loop (the server paces it)."""
    if schedule.concurrency is not None or len(schedule) < 2:
        return 0.0, 0.0
    span_s = float(schedule.send_s[-1] - schedule.send_s[0])
    if span_s <= 0:
        return float(len(schedule)), float(sum(r.output_tokens for r in schedule.requests))
    rate = (len(schedule) - 1) / span_s
    return rate, rate * sum(r.output_tokens for r in schedule.requests) / len(schedule)


def processes_for(schedule: Schedule, limits: Limits | None = None, cores: int | None = None) -> int:
    """Client processes that a schedule needs, leaving a core to the server where there is more than one."""
    limits = limits or load_limits()
    _, events = demand(schedule)
    each = limits.events_hz if limits else UNCALIBRATED_EVENTS_HZ
    most = max(1, (cores or len(os.sched_getaffinity(0))) - 1)
    return max(1, min(most, math.ceil(events / each)))


def warn_if_beyond(schedule: Schedule, processes: int = 0, limits: Limits | None = None) -> Reason | None:
    """A warning where a schedule asks for more than the client held when it was calibrated, else ``None``."""
    limits = limits or load_limits()
    if limits is None:
        return None
    rate, events = demand(schedule)
    processes = processes or processes_for(schedule, limits)
    if events <= limits.events_hz * processes and rate <= limits.requests_hz * processes:
        return None
    return Reason(
        kind="client_limits",
        stage="load",
        message=(
            f"the workload asks for {rate:.4g} requests/s and up to {events:.4g} token events/s; {processes} client "
            f"process(es) of this host held {limits.requests_hz * processes:.4g} and {limits.events_hz * processes:.4g}"
        ),
        hint="lower the rate, give client.processes more cores, or run 'qmeter calibrate' on a quiet machine",
    )
