"""Starting, watching and ending one server: always ended, with all it started, however this process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qmeter.engines import guard, standby
from qmeter.engines.base import Artifact, Engine, Launch
from qmeter.errors import EngineCrashed, EngineNotReady, EngineUnavailable
from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment

GRACE_S = 10.0
"""How long an engine may take to end after SIGTERM before SIGKILL. Units: s."""
READY_POLL_S = 0.1
LOG_TAIL_LINES = 12


@dataclass
class RunningServer:
    """A server that is ready.

    Attributes:
        launch: how it was started and how to reach it.
        effective: what it says it runs.
        guard: the guarding process, ``None`` where qMeter only attached.
        startup_s: launch to ready. Units: s.
    """

    launch: Launch
    effective: EffectiveConfig
    guard: subprocess.Popen[bytes] | None
    startup_s: float

    @property
    def alive(self) -> bool:
        """Whether it still runs, as far as this host can tell (an attached server is taken to)."""
        return self.guard is None or self.guard.poll() is None

    @property
    def pids(self) -> list[int]:
        """The engine's processes, ``[]`` where it is not ours."""
        return guard.children(self.guard.pid) if self.guard and self.alive else []

    def check_alive(self, stage: str) -> None:
        """Raises:
        EngineCrashed: it ended; the message carries the end of its log.
        """
        if self.guard is not None and (code := self.guard.poll()) is not None:
            raise _crashed(code, self.launch.log_path, stage)


@contextmanager
def serve(
    engine: Engine,
    deployment: Deployment,
    artifact: Artifact,
    workdir: Path,
    *,
    env: Mapping[str, str] | None = None,
    on_launch: Callable[[Launch], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[RunningServer]:
    """Start the server (or attach to it), wait until it is ready, give it, and end it whatever happens.

    Args:
        workdir: where the log (``server.log``) and the engine's own files go.
        env: variables to add to the launch's (the GPUs it may see).
        on_launch: told the launch before the wait begins.
        check: called while it waits; what it raises ends the wait.

    Raises:
        EngineUnavailable, MethodUnsupported, OutOfMemory: the engine or its log says so.
        EngineCrashed: it ended before it was ready.
        EngineNotReady: the engine's ``ready_timeout`` passed.
    """
    launch = engine.launch_command(deployment, artifact, free_port(), workdir)
    launch = replace(launch, env={**launch.env, **(env or {})})
    _set_log_aside(launch.log_path)
    if on_launch:
        on_launch(launch)
    started = time.monotonic()
    with _guarded(launch) as process:
        standby.start_ahead(launch, GRACE_S)  # now: its imports end while this one compiles, not beside its loads
        effective = _wait_ready(engine, launch, process, started + deployment.engine.ready_timeout, check)
        took_s = time.monotonic() - started
        yield RunningServer(launch, effective, process, took_s)


def _set_log_aside(log: Path) -> None:
    """Number an earlier start's log: adapters read the log, and must not take its end for this start's."""
    if log.exists():
        earlier = len(list(log.parent.glob(f"{log.stem}.*{log.suffix}")))
        log.rename(log.with_name(f"{log.stem}.{earlier + 1}{log.suffix}"))


_given: set[int] = set()


def free_port() -> int:
    """A loopback TCP port that is free now and was given to no other launch of this process."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


@contextmanager
def _guarded(launch: Launch) -> Iterator[subprocess.Popen[bytes] | None]:
    if launch.argv is None:
        yield None
        return
    try:
        taken = standby.take(launch) or standby.spawn(launch.argv, launch.log_path, launch.env, GRACE_S, fed=False)
    except OSError as error:
        raise EngineUnavailable(f"cannot start {launch.argv[0]}: {error}", stage="launch") from error
    process = taken.process
    try:
        yield process
    finally:
        os.close(taken.write_end)
        _wait_ended(process)


def _wait_ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the guard, through interrupts, which are raised after it: an engine must not be left behind."""
    deadline, interrupted = time.monotonic() + GRACE_S + 10.0, False
    while process.poll() is None and time.monotonic() < deadline:
        try:
            process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            interrupted = True
    if process.poll() is None:
        for pid in [*guard.children(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if interrupted:
        raise KeyboardInterrupt


def _wait_ready(
    engine: Engine,
    launch: Launch,
    process: subprocess.Popen[bytes] | None,
    deadline: float,
    check: Callable[[], None],
) -> EffectiveConfig:
    while True:
        check()
        code = process.poll() if process else None
        effective = engine.effective(launch)  # after poll: a log that names the cause beats "it ended"
        if effective is not None and code is None:
            return effective
        if code is not None:
            raise _crashed(code, launch.log_path, "ready")
        if time.monotonic() > deadline:
            raise EngineNotReady(
                "the server was not ready in time",
                stage="ready",
                hint=f"raise engines[].ready_timeout, or read {launch.log_path.name}:\n{_tail(launch.log_path)}",
            )
        time.sleep(READY_POLL_S)


def _crashed(code: int, log: Path, stage: str) -> EngineCrashed:
    return EngineCrashed(
        f"the engine ended with status {code}", stage=stage, hint=f"the end of its log ({log.name}):\n{_tail(log)}"
    )


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join("    " + line[:300] for line in lines[-LOG_TAIL_LINES:])
