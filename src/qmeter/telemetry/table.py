"""The samplers there are: one row each, extended by the entry-point group ``qmeter.samplers``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qmeter.registry import Registry
from qmeter.telemetry.base import Narrowable, Sampler

SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    {
        "host": "qmeter.telemetry.host:HostSampler",
        "rapl": "qmeter.telemetry.rapl:RaplSampler",
        "nvml": "qmeter.telemetry.nvml:NvmlSampler",
        "gpm": "qmeter.telemetry.gpm:GpmSampler",
        "amd": "qmeter.telemetry.amd:AmdSampler",
    },
    group="qmeter.samplers",
)


def open_samplers(names: Sequence[str], gpus: Collection[int] | None = None) -> list[Sampler]:
    """The named samplers, or every one there is; one that has nothing here still says its gaps.

    Args:
        gpus: the GPUs whose readings are wanted, by index; ``None``: all. Those that read GPUs read only these.
    """
    made = [SAMPLERS.create(name) for name in (names or SAMPLERS.names())]
    for sampler in made if gpus is not None else ():
        if isinstance(sampler, Narrowable):
            sampler.narrow({f"gpu{index}" for index in gpus or ()})
    return made
