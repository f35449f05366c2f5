"""The schedule file: deployments, and per time slot how many replicas of each are up and what share each serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qmeter import catalog
from qmeter.engines.table import ENGINES
from qmeter.registry import nearest
from qmeter.spec.document import Fault
from qmeter.spec.explain import unknown
from qmeter.spec.read import read_file
from qmeter.spec.study import NAME, Deployment, EngineRef, ModelRef, Parallelism
from qmeter.spec.units import DurationS
from qmeter.spec.workload import Frozen

Name = Annotated[str, Field(pattern=NAME)]
Positive = Annotated[float, Field(gt=0)]
SHARE_SLACK = 0.005
"""How far the shares of a class may be from 1 in all (they are scaled to 1): rounding in the file."""


class ScheduledDeployment(Frozen):
    """One kind of replica.

    Attributes:
        model, engine, method, device, parallelism: as in a study; one kind is one deployment of it.
        replicas: most that are ever up; for endpoints the number of ``urls``.
        urls: for the ``endpoint`` engine: one base URL a replica.
        gpus: one list of GPU numbers a replica (sets CUDA_VISIBLE_DEVICES); empty: the engine's own choice. Replicas
            that share a GPU are started one after another.
        max_in_flight: requests one replica has at once; ``None``: the engine's own sequence limit, else 256.
        startup: how long before a slot its new replicas are started.
    """

    name: Name
    model: ModelRef
    engine: EngineRef
    method: str
    device: str = "auto"
    parallelism: Parallelism = Parallelism()
    replicas: int = Field(default=1, ge=1, le=4096)
    urls: tuple[str, ...] = ()
    gpus: tuple[tuple[int, ...], ...] = ()
    max_in_flight: int | None = Field(default=None, ge=1)
    startup: DurationS = 0.0

    def deployment(self, replica: int) -> Deployment:
        """What replica number ``replica`` runs."""
        engine = self.engine.model_copy(update={"url": self.urls[replica]}) if self.urls else self.engine
        return Deployment(
            model=self.model, engine=engine, method=self.method, device=self.device, parallelism=self.parallelism
        )


class Slot(Frozen):
    """From ``at`` to the next slot: replicas of each deployment that are up, and each class's shares.

    Attributes:
        at: since the schedule's start.
        up: deployment → replicas; those not named are not up.
        shares: class → deployment → share of the class's requests.
        power_caps: deployment → watts a GPU, where a cap other than the card's own is wanted.
    """

    at: DurationS
    up: dict[str, int]
    shares: dict[str, dict[str, float]]
    power_caps: dict[str, Positive] = Field(default_factory=dict)


class RouterLimits(Frozen):
    """What the router bears.

    Attributes:
        max_queue: requests of one class that may wait; beyond it the answer is 503 with Retry-After.
        queue_timeout: longest wait for a replica. max_connections: open client connections.
        max_body_bytes: largest request. body_timeout: longest time for a client to send it.
        keep_alive: longest silence on a client's connection between requests, and before the first one is whole.
        connect_timeout, first_token_timeout, stall_timeout: for each try: to connect, to the first byte of the answer's
            body, and between two reads of it. request_timeout: for a request in all.
        tries: most tries of one request.
        drain_timeout: longest wait for a replica's last requests before it is stopped.
        health_interval, health_timeout, health_failures: checks of every replica; that many failures in a row and it
            gets no requests until a check succeeds.
        hosts: Host headers answered besides the loopback names.
    """

    max_queue: int = Field(default=256, ge=0)
    queue_timeout: DurationS = 30.0
    max_connections: int = Field(default=4096, ge=1)
    max_body_bytes: int = Field(default=8 << 20, ge=1)
    body_timeout: DurationS = 30.0
    keep_alive: DurationS = 75.0
    connect_timeout: DurationS = 2.0
    first_token_timeout: DurationS = 60.0
    stall_timeout: DurationS = 30.0
    request_timeout: DurationS = 600.0
    tries: int = Field(default=3, ge=1, le=16)
    drain_timeout: DurationS = 600.0
    health_interval: DurationS = 1.0
    health_timeout: DurationS = 2.0
    health_failures: int = Field(default=2, ge=1)
    hosts: tuple[str, ...] = ()


class ScheduleFile(Frozen):
    """A whole schedule.

    Attributes:
        length: where it ends, or begins again with ``repeat``; without it the last slot lasts.
        most_running: replicas that may run at once, those that load or drain included; ``None``: no limit. With a
            limit, a switch that does not fit drains the old replica before it starts the new one.
    """

    qmeter_schedule: Literal[1]
    name: Name
    description: str = ""
    classes: tuple[Name, ...] = Field(min_length=1)
    deployments: tuple[ScheduledDeployment, ...] = Field(min_length=1)
    slots: tuple[Slot, ...] = Field(min_length=1)
    length: DurationS | None = None
    repeat: bool = False
    most_running: int | None = Field(default=None, ge=1)
    router: RouterLimits = RouterLimits()

    def kind(self, name: str) -> ScheduledDeployment:
        """The deployment of that name."""
        return next(d for d in self.deployments if d.name == name)

    def shares_gpus(self, kind: ScheduledDeployment) -> bool:
        """Whether another deployment has a replica on one of its GPUs."""
        mine = {gpu for gpus in kind.gpus for gpu in gpus}
        return any(mine & {gpu for gpus in d.gpus for gpu in gpus} for d in self.deployments if d.name != kind.name)

    def slot_at(self, t_s: float) -> int:
        """The number of the slot that holds at ``t_s`` since the start."""
        t = t_s % self.length if self.repeat and self.length else t_s
        return max((i for i, slot in enumerate(self.slots) if slot.at <= t), default=0)

    def needed(self, t_s: float, speed: float = 1.0) -> dict[str, int]:
        """Replicas of each deployment that should be up or starting at ``t_s``: this slot's, and in time the next's.

        ``speed``: seconds of the schedule in one second; a start takes its time whatever the speed.
        """
        want = dict.fromkeys((d.name for d in self.deployments), 0)
        for d in self.deployments:
            now, ahead = self.slot_at(t_s), self.slot_at(t_s + d.startup * speed)
            span = [now]
            while span[-1] != ahead and len(span) <= len(self.slots):
                span.append((span[-1] + 1) % len(self.slots))
            want[d.name] = max(self.slots[i].up.get(d.name, 0) for i in span)
        return want


def load_schedule(path: Path) -> ScheduleFile:
    """Read and validate a schedule file.

    Raises:
        SpecError: with every fault: its path, the value found, what is valid, the line.
    """
    return read_file(path, ScheduleFile, _broken_rules)


def _broken_rules(schedule: ScheduleFile) -> Iterator[Fault]:
    names = [d.name for d in schedule.deployments]
    for i, name in enumerate(names):
        if name in names[:i]:
            yield Fault(("deployments", i, "name"), f"{name!r} stands twice")
    for i, name in enumerate(schedule.classes):
        if name in schedule.classes[:i]:
            yield Fault(("classes", i), f"{name!r} stands twice")
    for i, d in enumerate(schedule.deployments):
        yield from _deployment_faults(i, d)
    if schedule.slots[0].at != 0:
        yield Fault(("slots", 0, "at"), "the first slot must begin at 0s")
    for i, slot in enumerate(schedule.slots):
        if i and slot.at <= schedule.slots[i - 1].at:
            yield Fault(("slots", i, "at"), "must be later than the slot before it: sort the slots")
        yield from _slot_faults(schedule, i, slot)
    if schedule.length is not None and schedule.length <= schedule.slots[-1].at:
        yield Fault(("length",), "must be later than the last slot's begin")
    if schedule.repeat and schedule.length is None:
        yield Fault(("repeat",), "a schedule that repeats needs its length, as in 'length: 24h'")


def _deployment_faults(i: int, d: ScheduledDeployment) -> Iterator[Fault]:
    at = ("deployments", i)
    if d.engine.name not in ENGINES.names():
        yield Fault((*at, "engine", "name"), unknown("engine", d.engine.name, ENGINES.names()))
    try:
        catalog.method(d.method)
    except Exception as error:
        yield Fault((*at, "method"), f"{getattr(error, 'message', error)}: {getattr(error, 'hint', '')}")
    if d.engine.name == "endpoint":
        if not d.urls and not d.engine.url:
            yield Fault((*at, "urls"), "an endpoint needs a base URL a replica, as in ['http://127.0.0.1:8000']")
        elif d.urls and len(d.urls) != d.replicas:
            yield Fault((*at, "urls"), f"{len(d.urls)} URLs for {d.replicas} replicas: one URL a replica")
        elif not d.urls and d.replicas > 1:
            yield Fault((*at, "urls"), f"{d.replicas} replicas need {d.replicas} URLs in 'urls'")
    elif d.urls:
        yield Fault((*at, "urls"), f"only the endpoint engine takes URLs; {d.engine.name} is started here")
    if d.gpus and len(d.gpus) != d.replicas:
        yield Fault((*at, "gpus"), f"{len(d.gpus)} GPU lists for {d.replicas} replicas: one list a replica")


def _slot_faults(schedule: ScheduleFile, i: int, slot: Slot) -> Iterator[Fault]:
    names = [d.name for d in schedule.deployments]
    at = ("slots", i)
    for name, count in slot.up.items():
        if name not in names:
            yield Fault((*at, "up", name), unknown("deployment", name, names))
        elif not 0 <= count <= schedule.kind(name).replicas:
            yield Fault((*at, "up", name), f"must be from 0 to {schedule.kind(name).replicas}, found {count}")
    if not any(slot.up.values()):
        yield Fault((*at, "up"), "no replica is up: at least one must be, or every request fails")
    elif schedule.most_running and sum(slot.up.values()) > schedule.most_running:
        yield Fault((*at, "up"), f"{sum(slot.up.values())} replicas are above most_running {schedule.most_running}")
    for name in slot.shares:
        if name not in schedule.classes:
            yield Fault((*at, "shares", name), unknown("class", name, list(schedule.classes)))
    for name in schedule.classes:
        shares = slot.shares.get(name)
        if not shares:
            yield Fault((*at, "shares", name), "the class has no shares: who serves it?")
            continue
        for kind, share in shares.items():
            if kind not in names:
                yield Fault((*at, "shares", name, kind), unknown("deployment", kind, names))
            elif share < 0:
                yield Fault((*at, "shares", name, kind), f"a share must not be negative, found {share:g}")
            elif share > 0 and not slot.up.get(kind):
                yield Fault((*at, "shares", name, kind), f"{kind} is not up in this slot: give it replicas in 'up'")
        total = sum(shares.values())
        if abs(total - 1.0) > SHARE_SLACK:
            yield Fault((*at, "shares", name), f"the shares of a class add up to 1, found {total:g}")
    for name in slot.power_caps:
        if name not in names:
            yield Fault((*at, "power_caps", name), f"no such deployment; nearest: {', '.join(nearest(name, names))}")


__all__ = ["RouterLimits", "ScheduleFile", "ScheduledDeployment", "Slot", "load_schedule"]
