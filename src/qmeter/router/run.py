"""``serve_schedule``: deployments, router and schedule together, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmeter.engines.base import Artifact
from qmeter.errors import MissingExtra
from qmeter.router.board import Board
from qmeter.router.caps import Caps
from qmeter.router.file import ScheduleFile


@dataclass(frozen=True)
class Served:
    """How a schedule went: seconds it ran, slot changes, restarts of replicas, and requests by outcome."""

    wall_s: float
    slots_changed: int
    restarts: int
    outcomes: dict[str, int]


async def serve_schedule(
    schedule: ScheduleFile,
    artifacts: dict[str, Artifact],
    folder: Path,
    *,
    port: int = 0,
    speed: float = 1.0,
    for_s: float | None = None,
    offset_s: float = 0.0,
    caps: Caps | None = None,
    on_ready: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> Served:
    """Start the first slot's replicas, then the router, and carry the schedule out until it ends or is told to stop.

    Args:
        folder: where the replicas' logs go.
        for_s: end after that long, whatever the schedule says. Units: s of wall time.
        on_ready: told the router's port once requests are served.
        stop: set it to end; SIGINT and SIGTERM do so too.

    Raises:
        MissingExtra: the serve extra is not installed.
        EngineError: a replica of the first slot could not be started.
        OSError: the port is taken.
    """
    try:
        from qmeter.router.app import router
        from qmeter.router.fleet import Fleet
        from qmeter.router.health import watch
        from qmeter.router.metrics import Metrics
    except ImportError as error:
        raise MissingExtra("serve", "the router") from error
    stop = stop or asyncio.Event()
    board = Board(schedule.classes, {d.name: d.model.name for d in schedule.deployments}, schedule.router)
    metrics = Metrics(board)
    caps = caps or Caps(allow=False)
    caps.check(any(slot.power_caps for slot in schedule.slots))
    fleet = Fleet(schedule, artifacts, board, metrics, folder, caps, speed=speed, offset_s=offset_s, say=say)
    tasks: list[asyncio.Task[Any]] = []
    began = time.monotonic()
    with _signals(stop):
        try:
            starting, told = asyncio.create_task(fleet.begin()), asyncio.create_task(stop.wait())
            await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                async with router(board, metrics, schedule.router, port, fleet.state) as bound:
                    tasks = [asyncio.create_task(fleet.run()), asyncio.create_task(watch(board, schedule.router))]
                    on_ready(bound)
                    await _until(stop, fleet, for_s, tasks)
            starting.cancel()
            told.cancel()
        finally:
            for task in tasks:
                task.cancel()
            await fleet.close()
    return Served(time.monotonic() - began, metrics.slots_changed, metrics.restarts, metrics.outcomes())


async def _until(stop: asyncio.Event, fleet: Any, for_s: float | None, tasks: list[asyncio.Task[Any]]) -> None:
    """Wait for the end: told, the schedule over, the time up, or a fault in a task, which is raised."""
    deadline = None if for_s is None else time.monotonic() + for_s
    while not stop.is_set() and not fleet.ended and (deadline is None or time.monotonic() < deadline):
        for task in tasks:
            if task.done():
                task.result()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await stop.wait()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Any:
    """SIGINT and SIGTERM set ``stop`` inside the block (where this is the main thread); a second one raises."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def told(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    put = []
    for number in numbers:
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, told, number)
            put.append(number)
    try:
        yield
    finally:
        for number in put:
            loop.remove_signal_handler(number)
