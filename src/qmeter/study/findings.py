"""What checking a study gathers, and what it must know of the host."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from qmeter import catalog
from qmeter.catalog import Device
from qmeter.errors import UnknownName
from qmeter.record import Reason
from qmeter.spec.document import YamlPath
from qmeter.spec.study import Study
from qmeter.study import provenance
from qmeter.telemetry.nvml import open_gpus

T = TypeVar("T")


@dataclass
class Findings:
    """Faults by path, and warnings."""

    faults: list[tuple[YamlPath, str]] = field(default_factory=list)
    warnings: list[Reason] = field(default_factory=list)

    def fault(self, path: YamlPath, message: str) -> None:
        """The study cannot give what it asks for at ``path``."""
        if (path, message) not in self.faults:
            self.faults.append((path, message))

    def warn(self, kind: str, message: str, hint: str | None = None) -> None:
        """The study can run, but a reader would be misled or something will be missing."""
        reason = Reason(kind=kind, stage="spec", message=message, hint=hint)
        if reason not in self.warnings:
            self.warnings.append(reason)


@dataclass(frozen=True)
class HostFacts:
    """The host as far as a study depends on it.

    Attributes:
        cores: ids of the cores that this process may use; empty: not known.
        gpus: how many GPUs there are; ``None``: not known, and then not checked.
        device: the catalog's GPU that a study with ``device: auto`` meets here; ``None``: none, or not in the catalog.
        environment: the environment's variables (names are looked up, values never shown).
    """

    cores: frozenset[int] = frozenset()
    gpus: int | None = None
    device: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of_this_host(cls) -> HostFacts:
        """Cores and environment of this process; NVIDIA GPUs where NVML shows any (others the engine counts)."""
        found = provenance.host()["gpus"]
        gpus = len(open_gpus().handles) or None
        device = catalog.device_from_nvml(found[0]["name"]) if found else None
        cores = frozenset(os.sched_getaffinity(0))
        return cls(cores=cores, gpus=gpus, device=device.name if device else None, environment=os.environ)

    def device_of(self, study: Study) -> Device | None:
        """The device that the study's deployments meet here, where the catalog knows it."""
        name = self.device if study.device == "auto" else study.device
        return known(catalog.device, name) if name else None


def known(lookup: Callable[[str], T], name: str) -> T | None:
    """The row of that name, or ``None`` (an unknown name is a fault of its own)."""
    try:
        return lookup(name)
    except UnknownName:
        return None
