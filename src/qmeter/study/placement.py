"""Which deployments run when, and on which of the host's GPUs.

A deployment that runs alone takes the first GPUs, as many as its parallelism asks for. Those that run side by side are
packed, in the study's order, onto the GPUs of the host. The packing follows from the study and the number of GPUs
alone, so that a study that goes on meets the same neighbours again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from qmeter.engines.table import gpus_of
from qmeter.spec.study import Cell, Deployment, Placement

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


@dataclass(frozen=True)
class Member:
    """One deployment in a group: its cells, in the study's order, and its GPUs.

    ``devices``: indexes among the GPUs that this process may use, in NVML's order; ``None``: whichever the engine takes
    (the host's GPUs are not known, or the engine does not place itself by GPU).
    """

    deployment: Deployment
    cells: tuple[Cell, ...]
    devices: tuple[int, ...] | None


@dataclass(frozen=True)
class Group:
    """Deployments that are up at the same time. ``waits``: why it cannot run on this host; ``None`` where it can."""

    members: tuple[Member, ...]
    waits: str | None = None

    @property
    def devices(self) -> tuple[int, ...]:
        """All GPUs of the group."""
        return tuple(sorted(d for m in self.members for d in m.devices or ()))


def plan_groups(cells: Iterable[Cell], gpus: int | None) -> list[Group]:
    """The groups in which the deployments of these cells run, in order.

    Args:
        cells: of a whole study, as :func:`~qmeter.spec.study.expand` orders them.
        gpus: how many GPUs the host has; ``None``: not known.
    """
    members = [_placed(list(found), gpus) for _, found in groupby(cells, key=lambda cell: cell.deployment.id)]
    groups: list[Group] = []
    for placement, some in groupby(members, key=lambda m: m.deployment.placement):
        if placement is Placement.ALONE:
            groups += [Group((m,), _lacking(m, gpus)) for m in some]
        else:
            groups += _packed(list(some), gpus)
    return groups


def visible_env(devices: Sequence[int] | None, gpus: int | None) -> dict[str, str]:
    """Variables that show an engine these GPUs and no others; none where it takes all that there are.

    Indexes count among what ``CUDA_VISIBLE_DEVICES`` leaves this process; its entries (numbers or UUIDs) are passed on.
    """
    if not devices or gpus is None or tuple(devices) == tuple(range(gpus)):
        return {}
    named = [w.strip() for w in os.environ.get(VISIBLE, "").split(",") if w.strip()]
    shown = [named[d] if d < len(named) else str(d) for d in devices]
    return {VISIBLE: ",".join(shown), ORDER: "PCI_BUS_ID"}


def _placed(cells: list[Cell], gpus: int | None) -> Member:
    deployment = cells[0].deployment
    count = gpus_of(deployment.engine.name, deployment.parallelism.devices)
    if gpus is None or count is None or count > gpus:
        return Member(deployment, tuple(cells), None)
    return Member(deployment, tuple(cells), tuple(range(count)))


def _lacking(member: Member, gpus: int | None) -> str | None:
    need = gpus_of(member.deployment.engine.name, member.deployment.parallelism.devices)
    if gpus is None or need is None or need <= gpus:
        return None
    return f"it needs {need} GPUs; this host has {gpus}"


def _packed(members: list[Member], gpus: int | None) -> list[Group]:
    groups: list[Group] = []
    here: list[Member] = []
    used = 0
    for member in members:
        need = member.deployment.parallelism.devices
        if gpus is None or need > gpus:
            why = "the host's GPUs are not known" if gpus is None else _lacking(member, gpus) or "no GPU"
            groups.append(Group((member,), f"side by side: {why}"))
            continue
        if used + need > gpus:
            groups.append(_group(here, gpus))
            here, used = [], 0
        here.append(Member(member.deployment, member.cells, tuple(range(used, used + need))))
        used += need
    return [*groups, *([_group(here, gpus or 0)] if here else [])]


def _group(members: list[Member], gpus: int) -> Group:
    alone = f"side by side: no other deployment of the study is left that fits beside it on {gpus} GPUs"
    return Group(tuple(members), alone if len(members) < 2 else None)
