"""The schedule carried out: replicas started ahead of their slot, switched only when ready, drained, then ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qmeter.engines import standby
from qmeter.engines.base import Artifact
from qmeter.errors import EngineError
from qmeter.router.board import Board, Replica, State
from qmeter.router.caps import Caps
from qmeter.router.file import ScheduleFile
from qmeter.router.metrics import Metrics
from qmeter.router.replicas import Process

TICK_S = 0.1
MOST_BACKOFF_S = 60.0
UP = (State.STARTING, State.READY)


class Fleet:
    """Replicas of a schedule.

    Args:
        speed: seconds of the schedule that pass in one second.
        say: told what happens, in a line.
    """

    def __init__(
        self, schedule: ScheduleFile, artifacts: Mapping[str, Artifact], board: Board, metrics: Metrics, folder: Path,
        caps: Caps, *, speed: float = 1.0, offset_s: float = 0.0, say: Callable[[str], None] = lambda _: None,
    ):  # fmt: skip
        self._schedule, self._artifacts, self._board, self._metrics = schedule, artifacts, board, metrics
        self._folder, self._caps, self._speed, self._say = folder, caps, speed, say
        self._offset_s = offset_s
        self._began: float | None = None
        self._processes: dict[str, Process] = {}
        self._draining: dict[str, asyncio.Task[None]] = {}
        self._again_at: dict[str, float] = {}
        self._falls: dict[str, int] = {}
        self._changed = asyncio.Event()
        self.slot: int | None = None

    @property
    def t_s(self) -> float:
        """The schedule's time: it begins when its first slot's replicas are ready."""
        past = 0.0 if self._began is None else (time.monotonic() - self._began) * self._speed
        return self._offset_s + past

    @property
    def ended(self) -> bool:
        """Whether the schedule is over."""
        s = self._schedule
        return s.length is not None and not s.repeat and self.t_s >= s.length

    def state(self) -> dict[str, Any]:
        """Slot, shares and replicas, for ``/qmeter/schedule``."""
        rows = [
            {"name": r.name, "deployment": r.kind, "state": r.state.value, "healthy": r.healthy,
             "in_flight": r.in_flight, "served": r.served, "base_url": r.base_url, "why": r.why,
             "startup_s": p.startup_s, "pids": p.pids() if r.state in (State.READY, State.DRAINING) else []}
            for p in self._processes.values() for r in (p.replica,)
        ]  # fmt: skip
        return {"schedule": self._schedule.name, "t_s": round(self.t_s, 3), "slot": self.slot,
                "shares": self._board.shares, "replicas": rows}  # fmt: skip

    async def begin(self) -> None:
        """Bring the first slot up and begin its time.

        Raises:
            EngineError: a replica of the first slot could not be started.
        """
        first = self._schedule.slot_at(self.t_s)
        while not self._in_force(first):
            self._reconcile(self._schedule.slots[first].up)
            failed = next((p for p in self._processes.values() if p.replica.state is State.FAILED), None)
            if failed is not None:
                raise EngineError(f"{failed.replica.name} could not be started: {failed.error}", stage="launch")
            await self._pause()
        await asyncio.to_thread(standby.discard_all)
        self._began = time.monotonic()
        self._switch(first)

    async def run(self) -> None:
        """Carry the schedule out, for ever."""
        while True:
            due = self._schedule.slot_at(self.t_s)
            if due != self.slot and self._in_force(due):
                self._switch(due)
            wanted = self._schedule.needed(self.t_s, self._speed)
            self._reconcile(wanted)
            await self._pause()

    async def close(self) -> None:
        """End every replica, at once: what still streams gets its error event."""
        for task in self._draining.values():
            task.cancel()
        for process in self._processes.values():
            process.stop()
        await asyncio.gather(*(p.ended.wait() for p in self._processes.values()))
        await asyncio.to_thread(standby.discard_all)
        self._caps.restore()

    async def _pause(self) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(TICK_S):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _in_force(self, slot: int) -> bool:
        """Whether every replica that the slot wants is ready: before that, the slot before it lasts."""
        up = self._schedule.slots[slot].up
        return all(self._count(kind, (State.READY,)) >= n for kind, n in up.items())

    def _switch(self, slot: int) -> None:
        chosen = self._schedule.slots[slot]
        if self.slot is not None:
            self._metrics.slots_changed += 1
        self.slot = self._metrics.slot = slot
        self._board.set_shares(chosen.shares)
        self._set_caps(chosen.power_caps)
        up = ", ".join(f"{n} x {kind}" for kind, n in chosen.up.items() if n)
        self._say(f"{self.t_s:8.1f} s  slot {slot}: {up}")

    def _set_caps(self, caps: Mapping[str, float]) -> None:
        for process in self._processes.values():
            kind = process.kind
            if kind.gpus:
                self._caps.put(kind.gpus[process.number], caps.get(kind.name))

    def _reconcile(self, wanted: Mapping[str, int]) -> None:
        """Start what is missing; drain what is too much as soon as nothing is missing, or where it takes the room."""
        self._reap()
        missing = []
        for kind in self._schedule.deployments:
            here = self._count(kind.name, UP)
            for _ in range(wanted.get(kind.name, 0) - here):
                if not self._start(kind.name):
                    missing.append(kind.name)
        waiting = bool(missing) or any(p.replica.state is State.STARTING for p in self._processes.values())
        if waiting and not (missing and self._no_room()):
            return
        if self.slot is not None and self.slot != self._schedule.slot_at(self.t_s) and not missing:
            return  # the slot changes first
        spare = len(missing)
        for kind in self._schedule.deployments:
            extra = self._count(kind.name, UP) - wanted.get(kind.name, 0)
            for process in self._last_ready(kind.name)[: max(extra, 0)]:
                if missing and spare <= len(self._draining):
                    return
                self._drain(process)

    def _no_room(self) -> bool:
        most = self._schedule.most_running
        return most is not None and len(self._processes) >= most

    def _start(self, kind_name: str) -> bool:
        """Start one replica of the kind; False where there is no room, or none that may be started yet."""
        kind = self._schedule.kind(kind_name)
        for number in range(kind.replicas):
            name = f"{kind_name}-{number}"
            if name in self._processes or time.monotonic() < self._again_at.get(name, 0.0):
                continue
            if self._beside_a_start(kind.gpus[number] if kind.gpus else ()):
                continue
            if self._no_room():
                return False
            replica = Replica(name, kind_name, kind.model.name)
            process = Process(
                replica, kind, number, self._artifacts[kind_name], self._folder / name, asyncio.get_running_loop(),
                self._note, ahead=self._schedule.shares_gpus(kind),
            )  # fmt: skip
            self._processes[name] = process
            self._board.replicas[name] = replica
            process.start()
            return True
        return False

    def _beside_a_start(self, gpus: tuple[int, ...]) -> bool:
        """Whether another replica is starting on one of these GPUs: engines take what memory is free, and would
        count each other's."""
        return any(p.replica.state is State.STARTING and set(p.gpus) & set(gpus) for p in self._processes.values())

    def _note(self) -> None:
        self._changed.set()
        self._board.wake()

    def _count(self, kind: str, states: tuple[State, ...]) -> int:
        return sum(1 for p in self._processes.values() if p.kind.name == kind and p.replica.state in states)

    def _last_ready(self, kind: str) -> list[Process]:
        ready = [p for p in self._processes.values() if p.kind.name == kind and p.replica.state is State.READY]
        return sorted(ready, key=lambda p: -p.number)

    def _reap(self) -> None:
        """Forget what ended; what died is started again after a pause that doubles with each fall."""
        for name, process in list(self._processes.items()):
            if process.replica.state is State.READY and process.startup_s and process.replica.served > 0:
                self._falls.pop(name, None)
            if not process.ended.is_set():
                continue
            if process.error is not None:
                if self._began is None:
                    continue  # begin() reports it
                falls = self._falls[name] = self._falls.get(name, 0) + 1
                pause = min(2.0 ** (falls - 1) - 1.0, MOST_BACKOFF_S)
                self._again_at[name] = time.monotonic() + pause
                self._metrics.restarts += 1
                first = process.error.splitlines()[0]
                self._say(f"{self.t_s:8.1f} s  {name} is gone ({first}); it is started again in {pause:.0f} s")
            del self._processes[name], self._board.replicas[name]

    def _drain(self, process: Process) -> None:
        process.replica.state = State.DRAINING
        self._draining[process.replica.name] = asyncio.create_task(self._drained(process))

    async def _drained(self, process: Process) -> None:
        """Let its requests end, then end it."""
        limit = time.monotonic() + self._schedule.router.drain_timeout
        while process.replica.in_flight and time.monotonic() < limit and not process.ended.is_set():
            await asyncio.sleep(0.05)
        if process.replica.in_flight:
            self._say(f"{process.replica.name}: {process.replica.in_flight} requests did not end within "
                      f"{self._schedule.router.drain_timeout:g} s and are cut off")  # fmt: skip
        process.stop()
        await process.ended.wait()
        self._draining.pop(process.replica.name, None)
