"""Sums, differences and products that are made from the seed: no data set, so no model has learnt it by heart."""

from __future__ import annotations

import re

import numpy as np

from qmeter.quality.tasks.base import Grade, Item, SloClass, first_line, profile

_SHOTS = "Q: 3 + 4 = ?\nA: 7\n\nQ: 25 - 8 = ?\nA: 17\n\nQ: 6 * 7 = ?\nA: 42\n\nQ: 48 + 31 = ?\nA: 79\n\n"
_SHOWN = frozenset(((3, "+", 4), (25, "-", 8), (6, "*", 7), (48, "+", 31)))
_NUMBER = re.compile(r"-?\d[\d,]*")


class Arithmetic:
    """Addition and subtraction up to 99 and the small and large multiplication table, in equal parts."""

    profile = profile(
        {"kind": "poisson", "rate": "4/s"}, (60, 70), 8, SloClass.INTERACTIVE, {"ttft": "500ms", "tpot": "100ms"}
    )

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """See :class:`qmeter.quality.tasks.base.Task`. At most 2,000 different ones."""
        rng = np.random.default_rng(seed)
        seen: set[tuple[int, str, int]] = set()
        made: list[Item] = []
        while len(made) < min(n, 2000):
            sign = "+-*"[len(made) % 3]
            a, b = (int(v) for v in rng.integers(2, 31 if sign == "*" else 100, size=2))
            a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
            if (a, sign, b) in seen or (a, sign, b) in _SHOWN:
                sign = "+"
                a, b = (int(v) for v in rng.integers(2, 1000, size=2))
                if (a, sign, b) in seen:
                    continue
            seen.add((a, sign, b))
            made.append(_item(a, sign, b))
        return tuple(made)

    def grade(self, item: Item, text: str) -> Grade:
        """Right where the first number of the first line is the result (after an echoed ``… =``)."""
        line = first_line(text)
        found = _NUMBER.search(line.rsplit("=", 1)[-1])
        said = found[0].replace(",", "") if found else None
        return Grade.of(said == item.reference, f"said {said or line[:40]!r}, right is {item.reference}")


def _item(a: int, sign: str, b: int) -> Item:
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return Item(f"{a}{sign}{b}", f"{_SHOTS}Q: {a} {sign} {b} = ?\nA:", str(result), 8, group=f"operator {sign}")
