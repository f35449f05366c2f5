"""Quantities in study files: a number with its unit, parsed to SI. A bare number is refused: "2" of what?

A resolved study, read back from JSON (``model_validate_json``), holds SI numbers, and there they are taken as such.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

_NUMBER = re.compile(r"^\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ/%]*)\s*$")
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_HZ = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600, "Hz": 1.0}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _parse(text: Any, table: dict[str, float] | dict[str, int], what: str, example: str) -> float:
    if isinstance(text, bool) or not isinstance(text, str):
        if isinstance(text, int | float):
            raise ValueError(f"{what} needs a unit: write {example!r}, not {text!r} (units: {', '.join(table)})")
        raise ValueError(f"expected {what} such as {example!r}, found {text!r}")
    match = _NUMBER.match(text)
    if not match or match[2] not in table:
        unit = f"unit {match[2]!r}" if match and match[2] else "no unit" if match else "not a number with a unit"
        raise ValueError(f"expected {what} such as {example!r}, found {text!r}: {unit} (units: {', '.join(table)})")
    value = float(match[1]) * table[match[2]]
    if value < 0:
        raise ValueError(f"expected {what} such as {example!r}, found {text!r}: it must not be negative")
    if not math.isfinite(value):
        raise ValueError(f"expected {what} such as {example!r}, found {text!r}: too large")
    return value


def parse_duration_s(text: Any) -> float:
    """``"250ms"`` → 0.25. Units: s. Raises ``ValueError`` on a bare number or a wrong unit."""
    return _parse(text, _SECONDS, "a duration", "12s")


def parse_rate_hz(text: Any) -> float:
    """``"90/min"`` → 1.5. Units: 1/s."""
    return _parse(text, _HZ, "a rate", "4/s")


def parse_bytes(text: Any) -> float:
    """``"2GiB"`` → 2147483648. Units: bytes."""
    return _parse(text, _BYTES, "a size", "2GiB")


def _si(parse: Callable[[Any], float]) -> BeforeValidator:
    def read(value: Any, info: ValidationInfo) -> float:
        return value if info.mode == "json" and type(value) in (int, float) else parse(value)

    return BeforeValidator(read)


@dataclass(frozen=True)
class Written:
    """How a quantity is written in a study, for messages."""

    example: str


DurationS = Annotated[float, _si(parse_duration_s), Written("a duration such as '12s'")]
RateHz = Annotated[float, _si(parse_rate_hz), Written("a rate such as '4/s'")]
SizeBytes = Annotated[float, _si(parse_bytes), Written("a size such as '2GiB'")]
