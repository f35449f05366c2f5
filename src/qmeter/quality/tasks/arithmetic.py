"""Sums, differences and products that are made from the seed: no data set, so no model has learnt it by heart."""

from __future__ import annotations

import re

import numpy as np

from qmeter.quality.tasks.base import Grade, Item, SloClass, first_line, profile

_SHOTS = {
    "+": "Q: 3 + 4 = ?\nA: 7\n\nQ: 21 + 6 = ?\nA: 27\n\nQ: 48 + 31 = ?\nA: 79\n\n",
    "-": "Q: 9 - 4 = ?\nA: 5\n\nQ: 25 - 8 = ?\nA: 17\n\nQ: 68 - 31 = ?\nA: 37\n\n",
    "*": "Q: 3 * 4 = ?\nA: 12\n\nQ: 6 * 7 = ?\nA: 42\n\nQ: 21 * 3 = ?\nA: 63\n\n",
}
_SHOWN = frozenset(
    (
        (3, "+", 4),
        (21, "+", 6),
        (48, "+", 31),
        (9, "-", 4),
        (25, "-", 8),
        (68, "-", 31),
        (3, "*", 4),
        (6, "*", 7),
        (21, "*", 3),
    )
)
_LEVELS = {"one digit": (10, 10), "easy": (100, 10), "hard": (100, 100)}
"""Level → the numbers that the first and second operand stay below (easy products: the first below 13)."""
_NUMBER = re.compile(r"-?\d[\d,]*")


class Arithmetic:
    """Sums, differences and products in equal parts: a third each with one, one of two and two two-digit numbers."""

    profile = profile(
        {"kind": "poisson", "rate": "4/s"}, (35, 40), 8, SloClass.INTERACTIVE, {"ttft": "500ms", "tpot": "100ms"}
    )

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """See :class:`qmeter.quality.tasks.base.Task`. As many as there are different ones (thousands)."""
        rng = np.random.default_rng(seed)
        made: dict[str, Item] = {}
        for i in range(20 * n):
            if len(made) >= n:
                break
            sign, level = "+-*"[i % 3], tuple(_LEVELS)[i // 3 % 3]
            below, second = _LEVELS[level]
            first = 13 if sign == "*" and level == "easy" else below
            a, b = int(rng.integers(2, first)), int(rng.integers(2, second))
            a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
            if (a, sign, b) not in _SHOWN:
                made.setdefault(f"{a}{sign}{b}", _item(a, sign, b, level))
        return tuple(made.values())

    def grade(self, item: Item, text: str) -> Grade:
        """Right where the first number of the first line is the result (after an echoed ``… =``)."""
        line = first_line(text)
        found = _NUMBER.search(line.rsplit("=", 1)[-1])
        said = found[0].replace(",", "") if found else None
        return Grade.of(said == item.reference, f"said {said or line[:40]!r}, right is {item.reference}")


def _item(a: int, sign: str, b: int, level: str) -> Item:
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return Item(f"{a}{sign}{b}", f"{_SHOTS[sign]}Q: {a} {sign} {b} = ?\nA:", str(result), 8, group=f"{sign} {level}")
