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
