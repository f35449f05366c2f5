"""A number with its unit, its interval, or the reason why it is not known."""

from __future__ import annotations

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class Quantity(BaseModel):
    """One measured or derived number.

    ``value is None`` means unknown and ``why`` then says why: never 0 for unknown.

    Attributes:
        value: the point estimate, in ``unit``.
        unit: SI or the field's own ("s", "J/token", "token/s", "1").
        low, high: interval bounds at the record's confidence level, or ``None`` where no interval was made.
        n: how many observations (requests, repeats, items) it rests on.
        why: the reason it is unknown, or a caveat on a known value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _unknown_has_a_reason(self) -> Self:
        if self.value is None and not self.why:
            raise ValueError("an unknown quantity must say why")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError("a quantity is finite or unknown with a reason")
        return self

    @classmethod
    def of(
        cls,
        value: float,
        unit: str,
        *,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        why: str | None = None,
    ) -> Quantity:
        """A known value; a NaN or infinity becomes unknown ("not a finite number")."""
        if not math.isfinite(value):
            return cls.unknown(unit, why or "not a finite number", n=n)
        return cls(value=float(value), unit=unit, low=low, high=high, n=n, why=why)

    @classmethod
    def unknown(cls, unit: str, why: str, *, n: int | None = None) -> Quantity:
        """An unknown value and the reason."""
        return cls(value=None, unit=unit, why=why, n=n)

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None
