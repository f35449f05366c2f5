"""Fleets: many replicas, of several kinds, behind a router; replicas that start, stop and fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import AnalysisError, UnknownName
from qmeter.simulate import routing as ro
from qmeter.simulate import state as st
from qmeter.simulate.load import SimLoad
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ROUTERS: dict[str, int] = {
    "round-robin": ro.ROUND_ROBIN,
    "least-loaded": ro.LEAST_LOADED,
    "kv-aware": ro.KV_AWARE,
}
"""Router → policy. Routing by class is no policy of its own: a replica serves the classes it names."""
MOST_CLASSES = 62


@dataclass(frozen=True)
class ReplicaKind:
    """One kind of replica.

    Attributes:
        name: for people.
        rules, model: its scheduler and its step time and energy.
        load_s: from the decision to start until it serves (engine start and weights).
        load_w: power while it loads.
    """

    name: str
    rules: Rules
    model: StepModel
    load_s: float = 0.0
    load_w: float = 0.0


class Change(StrEnum):
    """What happens to a replica: START loads it, STOP lets it finish what it has, FAIL loses what it has."""

    START = "start"
    STOP = "stop"
    FAIL = "fail"


@dataclass(frozen=True)
class FleetEvent:
    """A change of one replica at a time. A failed replica comes back only by a START."""

    at_s: float
    replica: int
    change: Change


@dataclass(frozen=True)
class Fleet:
    """Replicas behind a router.

    Attributes:
        kinds: kinds of replica.
        replicas: for each replica its kind's index.
        serves: for each replica the request classes that it takes; empty: every class, for all of them.
        router: a name of :data:`ROUTERS`.
        up: for each replica whether it serves from the start; empty: all do.
        events: what changes, in any order.
    """

    kinds: tuple[ReplicaKind, ...]
    replicas: tuple[int, ...]
    serves: tuple[frozenset[int], ...] = ()
    router: str = "least-loaded"
    up: tuple[bool, ...] = ()
    events: tuple[FleetEvent, ...] = ()


@dataclass(frozen=True)
class FleetResult:
    """What a fleet did, per request and per replica. Times in seconds; NaN: never.

    Attributes:
        first_s, end_s, home: per request: when its replica gave the first and last token, and which one it was (-1:
            nobody).
        first_out_s, end_out_s: when that replica's front end had sent these on; the client has them ``output_s`` later.
        restarts: per request: times it was lost with a failed replica and sent again.
        hit_tokens: per request: prompt tokens found in the prefix cache.
        steps, busy_s, step_energy_j, up_s, load_energy_j, idle_energy_j: per replica.
        end_of_work_s: when the last step ended.
    """

    arrival_s: F64
    first_s: F64
    end_s: F64
    first_out_s: F64
    end_out_s: F64
    home: I64
    restarts: I64
    hit_tokens: I64
    steps: I64
    busy_s: F64
    step_energy_j: F64
    up_s: F64
    load_energy_j: F64
    idle_energy_j: F64
    end_of_work_s: float

    @property
    def energy_j(self) -> float:
        """Energy of steps, idle time and model loads of all replicas. Units: J."""
        return float(self.step_energy_j.sum() + self.load_energy_j.sum() + self.idle_energy_j.sum())


def run_fleet(fleet: Fleet, load: SimLoad, classes: I64 | None = None) -> FleetResult:
    """Serve a load (open loop) with a fleet.

    Args:
        classes: class of each request (0..61), for replicas that serve some only; default: all 0.

    Raises:
        AnalysisError: the fleet or the load makes no sense.
        UnknownName: no such router.
    """
    return _Run(fleet, load, classes).run()


@dataclass
class _Run:
    fleet: Fleet
    load: SimLoad
    classes: I64 | None
    up_since: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fleet, load, n = self.fleet, self.load, len(self.load)
        if fleet.router not in ROUTERS:
            raise UnknownName("router", fleet.router, list(ROUTERS))
        if load.concurrency is not None or not fleet.replicas:
            raise AnalysisError("a fleet needs at least one replica and an open-loop load (arrival times)")
        for kind in fleet.kinds:
            load.check(kind.rules)
        self.group = np.zeros(n, dtype=np.int64) if self.classes is None else np.asarray(self.classes, dtype=np.int64)
        if n and not 0 <= int(self.group.min()) <= int(self.group.max()) < MOST_CLASSES:
            raise AnalysisError(f"request classes are numbers from 0 to {MOST_CLASSES - 1}")
        caching = any(k.rules.prefix_cache for k in fleet.kinds)
        if caching and len({(k.rules.prefix_cache, k.rules.block_tokens) for k in fleet.kinds}) > 1:
            raise AnalysisError("replicas with a prefix cache need one block size, and all or none cache")
        self.work = st.work(load)
        cache = st.cache(load, fleet.kinds[0].rules)
        self.start, self.units = cache.start, cache.units
        self.stack = _stack(fleet, len(cache.resident) if caching else 0)
        self.kinds = _kinds(fleet, load)
        self.log, self.turn = st.log(0, 0, 0), np.zeros(1, dtype=np.int64)
        self.home, self.restarts = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.queue_arrival = self.work.arrival.copy()
        r = len(fleet.replicas)
        self.up_s, self.load_j = np.zeros(r), np.zeros(r)
        self.up_since = {i: 0.0 for i in range(r) if not fleet.up or fleet.up[i]}
        self.ready: list[tuple[float, int]] = []

    def run(self) -> FleetResult:
        done = 0
        events = sorted(self.fleet.events, key=lambda e: e.at_s)
        while events or self.ready:
            at = min([e.at_s for e in events[:1]] + [t for t, _ in self.ready])
            stop = int(np.searchsorted(self.load.arrival_s, at, side="left"))
            self._route(done, stop)
            done = stop
            for ready_at, r in [x for x in self.ready if x[0] <= at]:
                self.ready.remove((ready_at, r))
                self.stack.accepts[r] = 1
            while events and events[0].at_s <= at:
                self._change(events.pop(0))
        self._route(done, len(self.load))
        if ro.drain(*self._parts()) == st.STUCK:
            raise AnalysisError("a queue's head can never start", hint="report this as a fault")
        return self._result()

    def _parts(self) -> tuple[ro.Stack, ro.Kinds, st.Work, I64, I64, st.Log]:
        return self.stack, self.kinds, self.work, self.start, self.units, self.log

    def _route(self, begin: int, end: int) -> None:
        policy = ROUTERS[self.fleet.router]
        if ro.route(*self._parts(), self.group, policy, self.turn, self.home, begin, end) == st.STUCK:
            raise AnalysisError("a queue's head can never start", hint="report this as a fault")

    def _change(self, event: FleetEvent) -> None:
        r, kind = event.replica, self.fleet.kinds[self.fleet.replicas[event.replica]]
        if event.change is Change.START:
            if r not in self.up_since:
                self.up_since[r] = event.at_s
                self.load_j[r] += kind.load_s * kind.load_w
                self.ready.append((event.at_s + kind.load_s, r))
            return
        self.stack.accepts[r] = 0
        self.ready = [x for x in self.ready if x[1] != r]
        ro.advance_one(*self._parts(), r, event.at_s)
        since = self.up_since.pop(r, None)
        if event.change is Change.STOP:
            ro.advance_one(*self._parts(), r, np.inf)
        end = max(event.at_s, float(self.stack.floats[r, st.NOW])) if event.change is Change.STOP else event.at_s
        self.up_s[r] += end - since if since is not None else 0.0
        if event.change is Change.FAIL:
            self._lose(r, event.at_s)

    def _lose(self, r: int, at_s: float) -> None:
        """What the failed replica had is sent again, from the first token, when the failure is seen."""
        own = np.flatnonzero((self.home == r) & np.isnan(self.work.end))
        if self.fleet.kinds[self.fleet.replicas[r]].rules.prefix_cache and len(self.stack.resident) > 1:
            self.stack.resident[r], self.stack.holders[r] = 0, 0
            self.stack.prev[r], self.stack.next[r] = -1, -1
        kept = {c: self.stack.ints[r, c] for c in (st.STEPS, st.DONE, st.PREEMPTS)}
        fresh = st.replica(self.fleet.kinds[self.fleet.replicas[r]].rules)
        self.stack.ints[r] = fresh.ints
        for c, value in kept.items():
            self.stack.ints[r, c] = value
        self.stack.phase[r] = 0
        self.stack.floats[r, [st.NOW, st.DEC, st.DEVICE, st.PSTART, st.FRONT, st.BEFORE, st.OUT_AT]] = at_s
        self.stack.floats[r, [st.KSUM, st.OUT_COST]] = 0.0
        self.stack.assigned[r] = kept[st.DONE]
        self.stack.next_end[r] = np.inf
        for i in own:
            self.work.generated[i] = self.work.shared_blocks[i] = self.work.shared_units[i] = 0
            self.work.first[i] = self.work.first_out[i] = np.nan
            self.work.queue_next[i] = -1
            self.work.arrival[i] = self.work.door[i] = at_s
            self.work.passed[i] = 0
            self.restarts[i] += 1
            self._route(int(i), int(i) + 1)

    def _result(self) -> FleetResult:
        s, w = self.stack, self.work
        end = float(s.floats[:, st.NOW].max()) if len(self.load) else 0.0
        last = max(end, float(self.load.arrival_s[-1]) if len(self.load) else 0.0)
        for r, since in self.up_since.items():
            self.up_s[r] += last - since
        idle_w = np.array([self.fleet.kinds[k].model.idle_w for k in self.fleet.replicas])
        load_s = np.array([self.fleet.kinds[k].load_s for k in self.fleet.replicas])
        loads = np.array([sum(1 for e in self.fleet.events if e.replica == r and e.change is Change.START)
                          for r in range(len(load_s))])  # fmt: skip
        idle = np.maximum(self.up_s - s.floats[:, st.BUSY] - load_s * loads, 0.0)
        return FleetResult(
            arrival_s=self.load.arrival_s, first_s=w.first, end_s=w.end, first_out_s=w.first_out, end_out_s=w.end_out,
            home=self.home, restarts=self.restarts, hit_tokens=w.hit, steps=s.ints[:, st.STEPS].copy(),
            busy_s=s.floats[:, st.BUSY].copy(), step_energy_j=s.floats[:, st.ENERGY].copy(), up_s=self.up_s,
            load_energy_j=self.load_j, idle_energy_j=idle * idle_w, end_of_work_s=end,
        )  # fmt: skip


def _stack(fleet: Fleet, nodes: int) -> ro.Stack:
    seats = max(k.rules.max_sequences for k in fleet.kinds)
    block = max(k.rules.block_tokens for k in fleet.kinds)
    rows = [st.replica(fleet.kinds[k].rules) for k in fleet.replicas]
    r = len(rows)

    def padded(name: str, width: int) -> I64:
        out = np.zeros((r, width), dtype=np.int64)
        for i, row in enumerate(rows):
            own = getattr(row, name)
            out[i, : len(own)] = own
        return out

    everyone = (1 << MOST_CLASSES) - 1
    serves = [sum(1 << c for c in s) for s in fleet.serves] if fleet.serves else [everyone] * r
    accepts = np.array(fleet.up if fleet.up else [True] * r, dtype=np.int64)
    cached = (r, nodes) if nodes else (1, 1)
    wide = seats + 1
    return ro.Stack(
        ints=np.array([row.ints for row in rows]), floats=np.zeros((r, st.N_FLOATS)),
        heap_key=padded("heap_key", wide), heap_req=padded("heap_req", wide), phase=padded("phase", block),
        ended=padded("ended", wide), first_req=padded("first_req", wide),
        chunk_req=padded("chunk_req", wide), chunk_n=padded("chunk_n", wide), chunk_at=padded("chunk_at", wide),
        kind=np.array(fleet.replicas, dtype=np.int64), accepts=accepts,
        serves=np.array(serves, dtype=np.int64), assigned=np.zeros(r, dtype=np.int64), next_end=np.full(r, np.inf),
        resident=np.zeros(cached, dtype=np.int64), holders=np.zeros(cached, dtype=np.int64),
        prev=np.full(cached, -1, dtype=np.int64), next=np.full(cached, -1, dtype=np.int64),
    )  # fmt: skip


def _kinds(fleet: Fleet, load: SimLoad) -> ro.Kinds:
    made = [st.coefficients(k.rules, k.model, load) for k in fleet.kinds]

    def table(name: str) -> F64:
        rows: Sequence[F64] = [getattr(m, name) for m in made]
        width = max(len(row) for row in rows)
        if name.startswith("noise"):
            width = width if all(len(row) in (1, width) for row in rows) else min(len(x) for x in rows if len(x) > 1)
            return np.array([np.resize(row, width) for row in rows])
        return np.array([np.concatenate([row, np.full(width - len(row), row[-1])]) for row in rows])

    least = [float(min(m.noise_decode.min(), m.noise_mixed.min())) for m in made]
    return ro.Kinds(
        np.array([m.rule for m in made]), np.array([m.c for m in made]), table("decode_s"), table("mixed_s"),
        table("mixed_clock_s"), table("decode_j"), table("mixed_j"), table("padding_j"), table("noise_decode"),
        table("noise_mixed"), np.array(least),
    )  # fmt: skip
