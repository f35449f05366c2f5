"""Starting, watching and ending replicas: each under the engines' guard, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qmeter.engines.base import Artifact, Engine, Launch, MetricsMap
from qmeter.engines.server import RunningServer, serve
from qmeter.engines.table import ENGINES
from qmeter.errors import QMeterError
from qmeter.record import EffectiveConfig
from qmeter.router.board import Replica, State
from qmeter.router.file import ScheduledDeployment
from qmeter.spec.study import Deployment

ALIVE_POLL_S = 0.05
DEFAULT_LIMIT = 256


class _OnGpus:
    """An engine whose launches see only some GPUs; ``ahead`` keeps what its launches have started ahead of them."""

    def __init__(self, engine: Engine, gpus: tuple[int, ...], ahead: bool):
        self._engine, self._gpus, self._ahead = engine, gpus, ahead

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """The engine's own, with CUDA_VISIBLE_DEVICES set."""
        launch = self._engine.launch_command(deployment, artifact, port, workdir)
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(str(g) for g in self._gpus)} if self._gpus else {}
        return replace(launch, env={**launch.env, **seen}, standby=launch.standby if self._ahead else None)

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """The engine's own."""
        return self._engine.effective(launch)

    def metrics_map(self) -> MetricsMap:
        """The engine's own."""
        return self._engine.metrics_map()


@dataclass
class Process:
    """One replica's server and the thread that keeps it.

    Attributes:
        replica: what the router sees of it. number: which one of its kind.
        ahead: whether its start lets the next one do its imports meanwhile (the next waits for the same GPUs).
        ended: set when the thread is done; ``error`` says why it could not start or died, ``None`` where it was told.
        startup_s: launch to ready, once it is. pids: of the engine.
    """

    replica: Replica
    kind: ScheduledDeployment
    number: int
    artifact: Artifact
    workdir: Path
    loop: asyncio.AbstractEventLoop
    changed: Callable[[], None]
    ahead: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    error: str | None = None
    startup_s: float | None = None
    pids: Callable[[], list[int]] = list
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def gpus(self) -> tuple[int, ...]:
        """The GPUs that it is confined to; empty: the engine's own choice."""
        return self.kind.gpus[self.number] if self.kind.gpus else ()

    def start(self) -> None:
        """Start the server in a thread."""
        threading.Thread(target=self._keep, name=self.replica.name, daemon=False).start()

    def stop(self) -> None:
        """Have it ended; :attr:`ended` is set when it is."""
        self._stop.set()

    def _keep(self) -> None:
        told = None
        try:
            engine = _OnGpus(_Stoppable(ENGINES.create(self.kind.engine.name), self._stop), self.gpus, self.ahead)
            with serve(engine, self.kind.deployment(self.number), self.artifact, self.workdir) as server:
                self.loop.call_soon_threadsafe(self._ready, server)
                while server.alive and not self._stop.wait(ALIVE_POLL_S):
                    pass
                if not self._stop.is_set():
                    server.check_alive("serve")
        except _Stopped:
            pass
        except QMeterError as error:
            told = str(error)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        self.loop.call_soon_threadsafe(self._done, told)

    def _ready(self, server: RunningServer) -> None:
        launch, effective = server.launch, server.effective
        r = self.replica
        r.base_url, r.served_model, r.headers = launch.base_url, launch.served_model, dict(launch.headers)
        r.limit = self.kind.max_in_flight or effective.max_sequences or DEFAULT_LIMIT
        self.startup_s, self.pids = server.startup_s, lambda: server.pids
        if r.state is State.STARTING:
            r.state, r.healthy, r.failures = State.READY, True, 0
        self.changed()

    def _done(self, error: str | None) -> None:
        self.error = error
        self.replica.state = State.STOPPED if error is None else State.FAILED
        self.replica.why = error or ""
        self.ended.set()
        self.changed()


class _Stopped(Exception):
    """Told to stop while it was starting."""


class _Stoppable:
    """An engine whose wait for readiness ends when it is told to stop."""

    def __init__(self, engine: Engine, stop: threading.Event):
        self._engine, self._stop = engine, stop

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """The engine's own."""
        return self._engine.launch_command(deployment, artifact, port, workdir)

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """The engine's own, unless it is to stop."""
        if self._stop.is_set():
            raise _Stopped
        return self._engine.effective(launch)

    def metrics_map(self) -> MetricsMap:
        """The engine's own."""
        return self._engine.metrics_map()


def artifacts(kinds: Mapping[str, ScheduledDeployment], cache: Path, progress: Callable[[str], None]
              ) -> dict[str, Artifact]:  # fmt: skip
    """Each kind's model on disk, fetched and converted before anything starts.

    Raises:
        QMeterError: a model cannot be had.
    """
    from qmeter import catalog, sources

    return {
        name: sources.prepare(kind.model, catalog.method(kind.method), kind.engine.name, cache, progress=progress)
        for name, kind in kinds.items()
    }
