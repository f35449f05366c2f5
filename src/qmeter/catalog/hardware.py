"""A device's data sheet: memory, bandwidth, arithmetic rates, power; and the NVML names it goes by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DeviceKind = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Device:
    """One kind of device. A number that has no single value is ``None`` and ``unknown`` says why.

    Attributes:
        memory_bytes: total memory as the driver reports it (NVML ``total``), of one device.
        bandwidth_bytes_s: peak memory bandwidth.
        rates_op_s: number type → peak dense multiply-and-add rate (2 operations each), tensor cores, no sparsity.
        tdp_w: board power limit as shipped.
        compute_capability: CUDA compute capability; ``None`` for a CPU.
        nvml_pattern: regular expression that NVML's device name matches in full.
        sources: where each number is from.
        unknown: field → why it is ``None``.
    """

    name: str
    title: str
    kind: DeviceKind
    memory_bytes: int | None
    bandwidth_bytes_s: float | None
    rates_op_s: Mapping[str, float]
    tdp_w: float | None
    compute_capability: tuple[int, int] | None
    nvml_pattern: str | None
    sources: tuple[str, ...]
    unknown: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def matches(self, nvml_name: str) -> bool:
        """Whether NVML's device name is this device's (a MIG slice, or a sibling with other memory, is not)."""
        return bool(self.nvml_pattern and re.fullmatch(self.nvml_pattern, nvml_name.strip(), re.IGNORECASE))
