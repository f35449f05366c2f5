"""The samplers there are: one row each, extended by the entry-point group ``qmeter.samplers``."""

from __future__ import annotations

from collections.abc import Sequence

from qmeter.registry import Registry
from qmeter.telemetry.base import Sampler

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


def open_samplers(names: Sequence[str]) -> list[Sampler]:
    """The named samplers, or every one there is; one that has nothing here still says its gaps."""
    return [SAMPLERS.create(name) for name in (names or SAMPLERS.names())]
