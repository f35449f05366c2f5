"""Power caps: set one for a while, and put back what was there, whatever happens.

A cap belongs to the card and whoever else uses it, so nothing is set unless the user allows it by name
(``allow=True``, the ``--allow-power-cap`` option). NVML lets only root set it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qmeter.errors import TelemetryError
from qmeter.telemetry.nvml import open_gpus


@dataclass(frozen=True)
class CapRange:
    """What one GPU takes, and has now. Units: W."""

    gpu: str
    lowest_w: float
    highest_w: float
    present_w: float


def cap_ranges(nvml: Any = None) -> tuple[CapRange, ...]:
    """Each visible GPU's limits; empty where there is no NVIDIA GPU.

    Raises:
        TelemetryError: a card does not tell its limits.
    """
    gpus = open_gpus(nvml)
    made = []
    for name, handle in gpus.handles:
        try:
            low, high = gpus.nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            present = gpus.nvml.nvmlDeviceGetPowerManagementLimit(handle)
        except gpus.nvml.NVMLError as error:
            raise TelemetryError(f"{name} tells no power limits: {error}", hint="this card has no power cap") from error
        made.append(CapRange(name, low / 1e3, high / 1e3, present / 1e3))
    return tuple(made)


@contextmanager
def power_cap(watts: float, *, allow: bool, nvml: Any = None) -> Iterator[tuple[CapRange, ...]]:
    """Every visible GPU capped at ``watts`` inside the block; the caps found are restored after it.

    Raises:
        TelemetryError: not allowed, out of a card's range, refused by the driver, or not restored.
    """
    if not allow:
        raise TelemetryError(
            "setting a power cap was not allowed", hint="it changes the card for everyone: pass --allow-power-cap"
        )
    gpus = open_gpus(nvml)
    if gpus.gap:
        raise TelemetryError(gpus.gap, hint="power caps need an NVIDIA GPU")
    found = cap_ranges(gpus.nvml)
    for item in found:
        if not item.lowest_w <= watts <= item.highest_w:
            raise TelemetryError(
                f"{item.gpu} takes caps from {item.lowest_w:.0f} to {item.highest_w:.0f} W, not {watts:.0f} W",
                hint="choose a cap inside the range",
            )
    changed: list[tuple[Any, CapRange]] = []
    try:
        for (_, handle), item in zip(gpus.handles, found, strict=True):
            changed.append((handle, item))
            _set(gpus.nvml, handle, item.gpu, watts)
        yield found
    finally:
        _restore(gpus.nvml, changed)


def sweep(watts: Sequence[float], *, allow: bool, nvml: Any = None) -> Iterator[float]:
    """Each cap in turn, in force while the caller works on it; the caps found are restored at the end."""
    for value in watts:
        with power_cap(value, allow=allow, nvml=nvml):
            yield value


def _set(nvml: Any, handle: Any, gpu: str, watts: float) -> None:
    try:
        nvml.nvmlDeviceSetPowerManagementLimit(handle, int(watts * 1e3))
    except nvml.NVMLError as error:
        raise TelemetryError(
            f"{gpu}: the driver refuses a cap of {watts:.0f} W: {error}", hint="it needs root"
        ) from error


def _restore(nvml: Any, changed: list[tuple[Any, CapRange]]) -> None:
    """Put every cap back, all of them even if one fails, and say which did not go back."""
    failed = []
    for handle, item in changed:
        try:
            nvml.nvmlDeviceSetPowerManagementLimit(handle, int(item.present_w * 1e3))
        except nvml.NVMLError as error:
            failed.append(f"{item.gpu} ({error})")
    if failed:
        watts = ", ".join(f"{item.gpu} {item.present_w:.0f} W" for _, item in changed)
        raise TelemetryError(
            f"the power cap was not restored on {', '.join(failed)}", hint=f"set by hand what was there: {watts}"
        )


def set_cap(gpu: str, watts: float, nvml: Any = None) -> None:
    """Cap one GPU (``gpu0``, …) until somebody sets another cap; the caller restores it.

    Raises:
        TelemetryError: no such GPU, out of its range, or refused by the driver.
    """
    gpus = open_gpus(nvml)
    handle = dict(gpus.handles).get(gpu)
    if handle is None:
        raise TelemetryError(gpus.gap or f"there is no {gpu} here", hint="power caps need an NVIDIA GPU")
    item = next(r for r in cap_ranges(gpus.nvml) if r.gpu == gpu)
    if not item.lowest_w <= watts <= item.highest_w:
        raise TelemetryError(
            f"{gpu} takes caps from {item.lowest_w:.0f} to {item.highest_w:.0f} W, not {watts:.0f} W",
            hint="choose a cap inside the range",
        )
    _set(gpus.nvml, handle, gpu, watts)
