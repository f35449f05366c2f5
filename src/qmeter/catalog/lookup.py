"""Finding methods, models and devices by name, with did-you-mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from qmeter.catalog.device_rows import DEVICES
from qmeter.catalog.hardware import Device
from qmeter.catalog.method_rows import METHODS
from qmeter.catalog.model_rows import MODELS
from qmeter.catalog.scheme import Method
from qmeter.catalog.shape import ModelShape
from qmeter.errors import UnknownName
from qmeter.registry import nearest

ENDPOINT = "endpoint"
"""The engine that only attaches: it takes every method on its operator's word."""
DEVICE_KINDS: dict[str, tuple[str, ...]] = {"openvino": ("cpu",), "vllm": ("gpu",)}
"""Engine → kinds of device that qMeter runs it on, where that is not all."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


def methods() -> tuple[Method, ...]:
    """Every quantization method, the unquantized ones first."""
    return METHODS


def models() -> tuple[ModelShape, ...]:
    """Every model shape."""
    return MODELS


def devices() -> tuple[Device, ...]:
    """Every device."""
    return DEVICES


def method(name: str) -> Method:
    """The method of this name or alias.

    Raises:
        UnknownName: no such method; the error carries the nearest names.
    """
    return _find("method", name, METHODS)


def model(name: str) -> ModelShape:
    """The model of this name (case-insensitive), or of this Hugging Face id.

    Raises:
        UnknownName: no such model; the error carries the nearest names.
    """
    for shape in MODELS:
        if shape.hf_id.lower() == name.lower():
            return shape
    return _find("model", name, MODELS)


def device(name: str) -> Device:
    """The device of this name or alias.

    Raises:
        UnknownName: no such device; the error carries the nearest names.
    """
    return _find("device", name, DEVICES)


def device_from_nvml(nvml_name: str) -> Device | None:
    """The device that NVML calls ``nvml_name`` ("NVIDIA H200"), or ``None``: a kind that is not catalogued."""
    return next((row for row in DEVICES if row.matches(nvml_name)), None)


def _find(what: str, name: str, rows: Sequence[T]) -> T:
    wanted = name.lower()
    for row in rows:
        if wanted in (row.name, *getattr(row, "aliases", ())):
            return row
    known = [row.name for row in rows]
    raise UnknownName(what, name, known, nearest(name, known))


def why_not(method: Method, engine: str | None, device: Device | None) -> str | None:
    """Why ``method`` does not run on ``engine`` (any of them where ``None``) and ``device``; ``None``: it does."""
    if engine is not None and engine not in method.engines:
        able = ", ".join(name for name in method.engines if name != ENDPOINT)
        return f"{engine} has no way to run it; engines that have: {able}"
    candidates = [engine] if engine else [name for name in method.engines if name != ENDPOINT]
    if device is None:
        return None
    refusals = {name: _refusal(method, name, device) for name in candidates}
    if any(why is None for why in refusals.values()):
        return None
    return "; ".join(f"{name}: {why}" for name, why in refusals.items())


def _refusal(method: Method, engine: str, device: Device) -> str | None:
    kinds = DEVICE_KINDS.get(engine)
    if kinds and device.kind not in kinds:
        return f"qMeter runs it on a {' or '.join(kinds).upper()} only"
    return method.engines[engine].refuses(device.compute_capability)
