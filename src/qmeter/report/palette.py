"""Series styles: Okabe-Ito colours with a shape each, told apart without colour; grey for the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A5A00")
"""Okabe and Ito's colours that hold on white and on black, and a brown; their yellow is too faint on white."""
REFERENCE = "#7A7F87"
SHAPES = ("square", "triangle-up", "diamond", "cross", "triangle-down", "circle", "triangle-right")
"""Vega's point shapes that stay apart when small."""


@dataclass(frozen=True)
class Style:
    """A series' look, the same in every chart."""

    name: str
    colour: str
    shape: str


def styles(names: Sequence[str], references: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Style]:
    """A style for each name, in order; references are grey. 49 pairs of colour and shape differ.

    Args:
        methods: each name's method. Where several names share one (at several parallelisms), they share its colour and
            differ in shape.
    """
    if len(set(methods)) < len(methods):
        return _by_method(names, references, methods)
    out, k = [], 0
    for name in names:
        if name in references:
            out.append(Style(name, REFERENCE, "circle"))
            continue
        out.append(Style(name, COLOURS[k % len(COLOURS)], SHAPES[(k + k // len(COLOURS)) % len(SHAPES)]))
        k += 1
    return out


def _by_method(names: Sequence[str], references: Sequence[str], methods: Sequence[str]) -> list[Style]:
    grey = {m for name, m in zip(names, methods, strict=True) if name in references}
    others = [m for m in dict.fromkeys(methods) if m not in grey]
    kinds = list(dict.fromkeys(name[len(m) :] for name, m in zip(names, methods, strict=True)))
    out = []
    for name, method in zip(names, methods, strict=True):
        colour = REFERENCE if method in grey else COLOURS[others.index(method) % len(COLOURS)]
        out.append(Style(name, colour, SHAPES[kinds.index(name[len(method) :]) % len(SHAPES)]))
    return out


SVG_PATHS = {
    "circle": "M5 0a5 5 0 1 0 .001 0z",
    "square": "M.7.7h8.6v8.6H.7z",
    "triangle-up": "M5 .3 10 9.2H0z",
    "triangle-down": "M5 9.7 0 .8h10z",
    "triangle-right": "M9.7 5 .8 10V0z",
    "diamond": "M5 0 9.5 5 5 10 .5 5z",
    "cross": "M3.4.5h3.2v2.9h2.9v3.2H6.6v2.9H3.4V6.6H.5V3.4h2.9z",
}
"""Shape → path in a 10 × 10 box, for the page's own legend."""
