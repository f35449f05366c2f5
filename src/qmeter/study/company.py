"""Deployments that are up together take turns: what must not disturb the others' measurements happens between cells.

Each turn has a key. A member that asks for a turn waits until every other member waits too, or is gone; then those with
the lowest key go on together. So all idle baselines are taken before anything is launched, no cell runs beside a start,
and the cells of one workload and repeat run at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qmeter.record import Neighbour
from qmeter.spec.study import Cell, ClientSpec, Deployment

Key = tuple[int, ...]
IDLE, LAUNCH, CELL = 0, 1, 2
"""First part of a turn's key: the idle baseline, the launch, a cell (then by its place in the study)."""


class Aborted(BaseException):
    """The study was interrupted: raised in the threads of the other deployments."""


@dataclass
class _Chair:
    deployment: Deployment
    devices: tuple[int, ...]
    key: Key | None = None
    cell: Cell | None = None
    gone: bool = False
    company: tuple[Neighbour, ...] = field(default=())


class Company:
    """The members of one group and their turns; used by a thread each."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._chairs: dict[str, _Chair] = {}
        self._aborted = False

    def join(self, deployment: Deployment, devices: tuple[int, ...]) -> None:
        """Add a member; before any of them takes a turn."""
        self._chairs[deployment.id] = _Chair(deployment, devices)

    def turn(self, deployment_id: str, key: Key, cell: Cell | None = None) -> tuple[Neighbour, ...]:
        """Wait for this turn; returns the other members that are up, with the cells that they measure now.

        Raises:
            Aborted: the study was interrupted.
        """
        seat = self._chairs[deployment_id]
        with self._changed:
            seat.key, seat.cell = key, cell
            self._release()
            self._changed.wait_for(lambda: self._aborted or seat.key is None)
            self.check()
            return seat.company

    def leave(self, deployment_id: str) -> None:
        """This member is done, or its deployment failed: nobody waits for it any more."""
        with self._changed:
            self._chairs[deployment_id].gone = True
            self._release()

    def abort(self) -> None:
        """End every wait with :class:`Aborted`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raises:
        Aborted: the study was interrupted.
        """
        if self._aborted:
            raise Aborted

    def guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """``call``, one thread at a time."""

        def locked(*args: object) -> None:
            with self._changed:
                call(*args)

        return locked

    def _release(self) -> None:
        """Let the lowest key go on, once everybody who is here waits."""
        here = [s for s in self._chairs.values() if not s.gone]
        if not here or any(s.key is None for s in here):
            return
        lowest = min(s.key for s in here if s.key is not None)
        going = [s for s in here if s.key == lowest]
        for seat in going:
            others = [o for o in here if o is not seat]
            seat.company = tuple(_neighbour(o, at_work=o in going) for o in others)
        for seat in going:
            seat.key = None
        self._changed.notify_all()


@dataclass(frozen=True)
class Seat:
    """What a deployment is given for its run: its GPUs, and what it shares with those beside it.

    Attributes:
        devices: its GPUs, ``None`` where qMeter does not place it; ``env`` shows them, and no others, to the engine.
        company: those that are up beside it; ``None``: it has the host to itself.
        places: cell id → its place in the study's order, the same for every member.
        client: the load client's share of the study's cores, where several share them.
    """

    devices: tuple[int, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    company: Company | None = None
    places: Mapping[str, int] = field(default_factory=dict)
    client: ClientSpec | None = None


def _neighbour(seat: _Chair, *, at_work: bool) -> Neighbour:
    cell = seat.cell if at_work else None
    return Neighbour(
        deployment_id=seat.deployment.id,
        label=seat.deployment.label,
        devices=seat.devices,
        cell_id=cell.id if cell else None,
    )
