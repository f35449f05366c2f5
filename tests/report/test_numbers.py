"""Numbers for people."""

from __future__ import annotations

import pytest

from qmeter.record import Quantity
from qmeter.report.numbers import change, seconds, share, shown


@pytest.mark.parametrize(
    ("value", "unit", "low", "high", "text"),
    [
        (0.123, "s", 0.118, 0.129, "123 [118, 129] ms"),
        (1.234, "s", None, None, "1.23 s"),
        (0.0000004, "s", None, None, "0.400 µs"),
        (2059.05, "token/s", 2010.0, 2101.0, "2,059 [2,010, 2,101] tok/s"),
        (0.20477, "J/token", 0.195, 0.215, "205 [195, 215] mJ"),
        (16.06e9, "B", None, None, "16.1 GB"),
        (0.0, "1/s", 0.0, 0.377, "0.00 [0.00, 0.38] req/s"),
        (0.000782, "nat/token", -0.0206, 0.0193, "0.001 [−0.021, 0.019] nat"),
        (0.9996, "s", None, None, "1.00 s"),
        (-3.2, "W", None, None, "−3.20 W"),
    ],
)
def test_shown(value: float, unit: str, low: float | None, high: float | None, text: str) -> None:
    assert str(shown(Quantity.of(value, unit, low=low, high=high))) == text


def test_unknown_is_a_word_never_a_number() -> None:
    nothing = Quantity.unknown("J", "no counter")
    assert {str(f(nothing)) for f in (shown, share, change)} == {"unknown"}


def test_a_missing_bound_is_a_question_mark() -> None:
    assert str(shown(Quantity.of(0.123, "s", low=0.118))) == "123 [118, ?] ms"


def test_shares_and_changes() -> None:
    assert str(share(Quantity.of(0.9286, "1", low=0.889, high=0.955))) == "92.9% [88.9, 95.5]"
    assert str(change(Quantity.of(1.031, "1", low=1.019, high=1.043))) == "+3.1% [+1.9, +4.3]"
    assert str(change(Quantity.of(0.997, "1"))) == "−0.30%"
    assert str(change(Quantity.of(1.0, "1", low=1.0, high=1.0))) == "0.00% [0.00, 0.00]"
    assert seconds(0.3) == "300 ms"
