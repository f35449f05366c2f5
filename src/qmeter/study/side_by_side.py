"""Running the deployments of one group: one by itself, or several at the same time, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qmeter.record import Reason, Record
from qmeter.spec.study import Cell, ClientSpec, Study
from qmeter.store import StudyStore
from qmeter.study.company import Aborted, Company, Seat
from qmeter.study.deployment import DeploymentRun
from qmeter.study.events import Event, Listener
from qmeter.study.placement import Group, Member, visible_env
from qmeter.telemetry.base import Sampler
from qmeter.telemetry.replay import ReplaySampler
from qmeter.telemetry.table import open_samplers

JOIN_S = 0.5
"""How often the main thread looks for an interrupt while deployments run in theirs. Units: s."""


@dataclass
class GroupRun:
    """One group's run: what all of its deployments share.

    Attributes:
        gpus: of the host; ``None``: not known.
        pending: ids of the cells that lack a record.
        remaining: cells left in the study, this group's included.
        warnings: for every record.
    """

    store: StudyStore
    study: Study
    cache: Path
    listener: Listener
    gpus: int | None
    pending: set[str]
    remaining: int
    warnings: Sequence[Reason]

    def run(self, group: Group) -> None:
        """Measure the group's cells that are pending; of deployments side by side, all of a workload that one lacks."""
        if len(group.members) == 1:
            member = group.members[0]
            cells = [c for c in member.cells if c.id in self.pending]
            with samplers(self.study, member.devices) as own:
                seat = Seat(member.devices, visible_env(member.devices, self.gpus))
                self._deployment(cells, own, seat).run()
            return
        places = _places(group)
        wanted = {places[c.id] for m in group.members for c in m.cells if c.id in self.pending}
        company = Company()
        for member in group.members:
            company.join(member.deployment, member.devices or ())
        self.listener = _locked(self.listener)
        outer, self.store = self.store, _OneAtATime(self.store)
        try:
            _together(
                [self._thread(m, k, group, company, places, wanted) for k, m in enumerate(group.members)], company
            )
        finally:
            self.store = outer

    def _thread(
        self, member: Member, number: int, group: Group, company: Company, places: dict[str, int], wanted: set[int]
    ) -> Callable[[], None]:
        cells = [c for c in member.cells if places[c.id] in wanted]
        client = _share(self.study.client, number, len(group.members))
        seat = Seat(member.devices, visible_env(member.devices, self.gpus), company, places, client)

        def body() -> None:
            try:
                if cells:
                    with samplers(self.study, member.devices) as own:
                        self._deployment(cells, own, seat).run()
            finally:
                company.leave(member.deployment.id)

        return body

    def _deployment(self, cells: list[Cell], own: Sequence[Sampler], seat: Seat) -> DeploymentRun:
        run = DeploymentRun(self.store, self.study, cells, own, self.cache, self.listener, self.remaining, seat)
        run.warn(self.warnings)
        return run


@contextmanager
def samplers(study: Study, devices: tuple[int, ...] | None) -> Iterator[list[Sampler]]:
    """The study's samplers, open; those that read GPUs read only ``devices``."""
    replayed = [ReplaySampler(Path(study.telemetry.replay), loop=True)] if study.telemetry.replay else []
    opened: list[Sampler] = [*replayed, *open_samplers(study.telemetry.samplers, devices)]
    try:
        yield opened
    finally:
        for sampler in opened:
            sampler.close()


class _OneAtATime(StudyStore):
    """The same store, whose journal takes one record at a time."""

    def __init__(self, store: StudyStore):
        super().__init__(store.folder)
        self._writing = threading.Lock()

    def append(self, record: Record) -> None:
        """As the store appends."""
        with self._writing:
            super().append(record)

    def records(self) -> list[Record]:
        """As the store reads, never a line that is being written."""
        with self._writing:
            return super().records()


def _places(group: Group) -> dict[str, int]:
    """Cell id → place of its workload and repeat in the study's order, the same for every member."""
    order: dict[tuple[int, str], int] = {}
    keys = [(c.repeat, c.workload.name) for m in group.members for c in m.cells]
    names = list(dict.fromkeys(name for _, name in keys))
    for key in sorted(set(keys), key=lambda k: (k[0], names.index(k[1]))):
        order[key] = len(order)
    return {c.id: order[c.repeat, c.workload.name] for m in group.members for c in m.cells}


def _share(client: ClientSpec, number: int, parts: int) -> ClientSpec | None:
    """This lane's part of the client's cores; the whole where there are too few to divide."""
    if len(client.cores) < parts:
        return None
    return client.model_copy(update={"cores": client.cores[number::parts]})


def _locked(listener: Listener) -> Listener:
    lock = threading.Lock()

    def heard(event: Event) -> None:
        with lock:
            listener(event)

    return heard


def _together(bodies: Sequence[Callable[[], None]], company: Company) -> None:
    """Run all in threads of their own; an interrupt, or what one of them raises, ends them all and is raised here."""
    raised: list[BaseException] = []

    def kept(body: Callable[[], None]) -> None:
        try:
            body()
        except Aborted:
            pass
        except BaseException as error:
            raised.append(error)
            company.abort()

    threads = [threading.Thread(target=kept, args=(body,), name="qmeter-deployment") for body in bodies]
    for thread in threads:
        thread.start()
    interrupted: KeyboardInterrupt | None = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join(JOIN_S)
            except KeyboardInterrupt as error:
                interrupted = error
                company.abort()
    if interrupted is not None or raised:
        raise interrupted or raised[0]
