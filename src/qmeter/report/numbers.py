"""Numbers for people: three significant digits, a unit that fits, intervals as 123 [118, 129]."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qmeter.record import Quantity

DIGITS = 3
_MINUS = "−"

_SCALES: dict[str, list[tuple[float, str]]] = {
    "s": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")],
    "B": [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")],
    "B/s": [(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")],
    "B/token": [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")],
    "J": [(1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")],
    "J/token": [(1.0, "J"), (1e-3, "mJ")],
    "J/request": [(1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")],
    "W": [(1e3, "kW"), (1.0, "W")],
    "1/s": [(1.0, "req/s")],
    "token/s": [(1.0, "tok/s")],
    "token": [(1.0, "")],
    "nat/token": [(1.0, "nat")],
    "J·s": [(1.0, "J·s")],
    "1": [(1.0, "")],
}
"""SI unit → (factor, shown unit), largest first; a unit that is not here is shown as it is."""


@dataclass(frozen=True)
class Shown:
    """A quantity as text: value and interval without the unit, and the unit."""

    value: str
    interval: str
    unit: str

    def __str__(self) -> str:
        text = f"{self.value} {self.interval}".strip()
        if self.unit in ("%", "") or not self.unit:
            return text
        return f"{text} {self.unit}"


def scale(value: float, unit: str) -> tuple[float, str]:
    """The factor and unit to show ``value`` in."""
    rows = _SCALES.get(unit, [(1.0, unit)])
    size = abs(value)
    for factor, shown in rows:
        if size >= factor * 0.9995:
            return factor, shown
    return rows[-1] if size > 0 else next((row for row in rows if row[0] == 1.0), rows[0])


def decimals(value: float, digits: int = DIGITS) -> int:
    """Decimal places that show ``value`` with so many significant digits (0 for large ones)."""
    if value == 0 or not math.isfinite(value):
        return 0
    size = float(f"{abs(value):.{digits}g}")
    return min(12, max(0, digits - 1 - math.floor(math.log10(size) + 1e-12)))


def plain(value: float, places: int) -> str:
    """Fixed-point text with thousands separators and a true minus sign."""
    text = f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", _MINUS)


def shown(q: Quantity) -> Shown:
    """A known quantity as text; the interval's ends have the value's decimals. Unknown: the word, no interval."""
    if q.value is None:
        return Shown("unknown", "", "")
    factor, unit = scale(q.value, q.unit)
    low, high = (None if b is None else b / factor for b in (q.low, q.high))
    return _shown(q.value / factor, low, high, unit)


def share(q: Quantity) -> Shown:
    """A share (0..1) in percent."""
    if q.value is None:
        return Shown("unknown", "", "")
    low, high = (None if b is None else b * 100 for b in (q.low, q.high))
    value = 100 * q.value
    places = 0 if value in (0, 100) and low is None else 1
    interval = "" if low is None or high is None else f"[{plain(low, places)}, {plain(high, places)}]"
    return Shown(f"{plain(value, places)}%", interval, "%")


def change(q: Quantity) -> Shown:
    """A ratio as a signed change in percent: 1.031 → +3.1%."""
    if q.value is None:
        return Shown("unknown", "", "")
    value = 100 * (q.value - 1)
    bounds = [None if b is None else 100 * (b - 1) for b in (q.low, q.high)]
    size = max(abs(value), *(abs(b) for b in bounds if b is not None)) if any(b is not None for b in bounds) else value
    places = 2 if abs(size) < 1 else 1 if abs(size) < 100 else 0
    interval = "" if None in bounds else "[" + ", ".join(_signed(b or 0.0, places) for b in bounds) + "]"
    return Shown(f"{_signed(value, places)}%", interval, "%")


def _signed(value: float, places: int) -> str:
    text = plain(value, places)
    return text if text.startswith(_MINUS) or float(text.replace(",", "")) == 0 else f"+{text}"


def _shown(value: float, low: float | None, high: float | None, unit: str) -> Shown:
    places = decimals(value) if value else max(decimals(b) for b in (low or 0.0, high or 0.0))
    interval = ""
    if low is not None and high is not None:
        places = min(places, decimals((high - low) / 2, 2)) if high > low else places
        interval = f"[{plain(low, places)}, {plain(high, places)}]"
    elif low is not None or high is not None:
        interval = f"[{'?' if low is None else plain(low, places)}, {'?' if high is None else plain(high, places)}]"
    return Shown(plain(value, places), interval, unit)


def seconds(value: float) -> str:
    """A duration as text, trimmed: 0.3 → 300 ms."""
    factor, unit = scale(value, "s")
    return f"{value / factor:.4g} {unit}"
