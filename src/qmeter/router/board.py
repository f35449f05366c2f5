"""Which replica a request goes to: shares of the present slot, bounded queues, nobody served by what drains or died."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qmeter.router.file import RouterLimits


class State(StrEnum):
    """Where a replica stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass
class Replica:
    """One replica as the router sees it.

    Attributes:
        kind, model: its deployment's name, and the model's: only replicas of one model stand in for each other.
        served_model: what its requests must carry as ``model``. headers: sent with every request (keys: never logged).
        limit: most requests in flight. failures: health checks failed in a row.
        healthy: whether it may get requests.
    """

    name: str
    kind: str
    model: str
    base_url: str = ""
    served_model: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    limit: int = 256
    state: State = State.STARTING
    healthy: bool = True
    failures: int = 0
    in_flight: int = 0
    served: int = 0
    why: str = ""

    @property
    def live(self) -> bool:
        """Whether new requests may go to it."""
        return self.state is State.READY and self.healthy

    @property
    def open(self) -> bool:
        """Whether it is live and has room."""
        return self.live and self.in_flight < self.limit


class Full(Exception):
    """No replica has room and the class's queue is full, or the wait was too long; ``retry_after_s`` says when to try
    again."""

    def __init__(self, message: str, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Board:
    """All replicas, the present shares, and the requests that wait.

    Shares are kept by smooth weighted round robin over the kinds that can take a request now, so that a kind that was
    away does not catch up in a burst; within a kind the replica with the fewest requests in flight is taken. Where no
    replica of a class's shares is live, one of another kind of the same model stands in.

    Args:
        models: deployment → model.
    """

    def __init__(self, classes: Collection[str], models: Mapping[str, str], limits: RouterLimits):
        self.replicas: dict[str, Replica] = {}
        self.shares: dict[str, dict[str, float]] = {name: {} for name in classes}
        self.fallbacks = 0
        self._limits, self._models = limits, dict(models)
        self._credit: dict[str, dict[str, float]] = {name: {} for name in classes}
        self._waiting: dict[str, deque[asyncio.Future[Replica]]] = {name: deque() for name in classes}
        self._ended: deque[float] = deque(maxlen=64)

    def set_shares(self, shares: Mapping[str, Mapping[str, float]]) -> None:
        """Serve by these shares from now on."""
        self.shares = {c: {k: v for k, v in shares.get(c, {}).items() if v > 0} for c in self.shares}
        self._credit = {c: {} for c in self.shares}
        self.wake()

    def waiting(self, cls: str) -> int:
        """Requests of a class that wait."""
        return len(self._waiting[cls])

    async def acquire(self, cls: str, tried: Collection[str] = ()) -> Replica:
        """A replica for one request of ``cls``, now or when one has room; give it back with :meth:`release`.

        Args:
            tried: replicas to avoid if another one has room.

        Raises:
            Full: the queue is full, or ``queue_timeout`` passed.
        """
        line = self._waiting[cls]
        if tried or not line:  # a retry has waited already
            found = self._pick(cls, tried) or (self._pick(cls, ()) if tried else None)
            if found is not None:
                return self._taken(found)
        if len(line) >= self._limits.max_queue and not tried:
            raise Full(f"{len(line)} requests of class {cls!r} wait already", self._retry_after_s(len(line)))
        turn: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        line.appendleft(turn) if tried else line.append(turn)
        try:
            async with asyncio.timeout(self._limits.queue_timeout):
                return await turn
        except TimeoutError:
            self._abandon(cls, turn)
            text = f"no replica had room for class {cls!r} within {self._limits.queue_timeout:g} s"
            raise Full(text, self._retry_after_s(len(line))) from None
        except asyncio.CancelledError:
            self._abandon(cls, turn)
            raise

    def another(self, cls: str, tried: Collection[str]) -> bool:
        """Whether a replica that was not tried could serve the class now."""
        return self._pick(cls, tried, peek=True) is not None

    def release(self, replica: Replica) -> None:
        """One request of ``replica`` ended."""
        replica.in_flight -= 1
        self._ended.append(time.monotonic())
        self.wake()

    def wake(self) -> None:
        """Give waiting requests, the longest waiting first, what room there is."""
        for cls, line in self._waiting.items():
            while line:
                if line[0].done():
                    line.popleft()
                    continue
                found = self._pick(cls, ())
                if found is None:
                    break
                line.popleft().set_result(self._taken(found))

    def _abandon(self, cls: str, turn: asyncio.Future[Replica]) -> None:
        """The request left: out of the line, or, if it was just given a replica, that goes back."""
        if turn in self._waiting[cls]:
            self._waiting[cls].remove(turn)
        if turn.done() and not turn.cancelled():
            self.release(turn.result())
        else:
            turn.cancel()

    @staticmethod
    def _taken(replica: Replica) -> Replica:
        replica.in_flight += 1
        replica.served += 1
        return replica

    def _pick(self, cls: str, tried: Collection[str], peek: bool = False) -> Replica | None:
        shares, others = self.shares[cls], [r for r in self.replicas.values() if r.name not in tried]
        mine = [r for r in others if r.kind in shares]
        free = [r for r in mine if r.open]
        if peek and free:
            return free[0]
        if free:
            kind = self._kind(cls, {r.kind for r in free})
            return min((r for r in free if r.kind == kind), key=lambda r: r.in_flight)
        if any(r.live for r in mine):
            return None
        models = {self._models[k] for k in shares}
        stand_in = [r for r in others if r.open and r.kind not in shares and r.model in models]
        if not stand_in:
            return None
        self.fallbacks += not peek
        return min(stand_in, key=lambda r: r.in_flight)

    def _kind(self, cls: str, able: Collection[str]) -> str:
        if len(able) == 1:
            return next(iter(able))
        credit, shares = self._credit[cls], self.shares[cls]
        total = sum(shares[k] for k in able)
        for kind in able:
            credit[kind] = credit.get(kind, 0.0) + shares[kind]
        best = max(sorted(able), key=lambda k: credit[k])
        credit[best] -= total
        return best

    def _retry_after_s(self, ahead: int) -> int:
        """Whole seconds until a queue of ``ahead`` is gone at the present rate of ends, from 1 to 60."""
        if len(self._ended) < 2:
            return 1
        span_s = max(time.monotonic() - self._ended[0], 1e-3)
        return min(60, max(1, math.ceil((ahead + 1) * span_s / len(self._ended))))
