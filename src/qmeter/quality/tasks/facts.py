"""Factual questions with one short answer, from data packages: countries (countryinfo) and elements (periodictable)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from qmeter.errors import MissingExtra
from qmeter.quality.tasks.base import Grade, Item, SloClass, choose, first_line, names, profile

CONTINENTS = ("Africa", "Americas", "Asia", "Europe", "Oceania")
_CONTINENT_SPELLINGS = {
    "Americas": ("America", "Americas", "North America", "South America", "Central America"),
    "Oceania": ("Oceania", "Australia"),
}
_DISPUTED = frozenset((
    "Israel", "Palestine", "Palestine, State of", "South Africa", "Bolivia", "Burundi", "Kazakhstan", "Swaziland",
    "Equatorial Guinea", "Sri Lanka", "Benin", "Ivory Coast", "Tanzania", "Western Sahara", "Hong Kong", "Macau",
    "Serbia and Montenegro", "Antilles néerlandaises", "Taiwan", "Malaysia", "Chile", "Georgia", "Montserrat",
))  # fmt: skip
"""Capital moved, shared, renamed or not agreed on, or a record of the package that is no longer a country."""
_TWO_CONTINENTS = frozenset(
    ("Russia", "Turkey", "Egypt", "Kazakhstan", "Azerbaijan", "Georgia", "Cyprus", "Armenia", "Indonesia", "East Timor")
)
_EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "capital of country": (
        ("What is the capital of France?", "Paris"), ("What is the capital of Norway?", "Oslo"),
        ("What is the capital of Peru?", "Lima"), ("What is the capital of Kenya?", "Nairobi"),
    ),
    "country of capital": (
        ("Which country has the capital Oslo?", "Norway"), ("Which country has the capital Paris?", "France"),
        ("Which country has the capital Nairobi?", "Kenya"), ("Which country has the capital Lima?", "Peru"),
    ),
    "continent": (
        ("On which continent is France?", "Europe"), ("On which continent is Peru?", "Americas"),
        ("On which continent is Kenya?", "Africa"), ("On which continent is Nepal?", "Asia"),
    ),
    "symbol of element": (
        ("What is the chemical symbol of gold?", "Au"), ("What is the chemical symbol of helium?", "He"),
        ("What is the chemical symbol of chlorine?", "Cl"), ("What is the chemical symbol of iron?", "Fe"),
    ),
    "element of symbol": (
        ("Which chemical element has the symbol He?", "helium"), ("Which chemical element has the symbol Au?", "gold"),
        ("Which chemical element has the symbol Fe?", "iron"),
        ("Which chemical element has the symbol Cl?", "chlorine"),
    ),
}  # fmt: skip
"""Four solved questions of the same kind go before each question; none of them is an item."""
_SHOWN = frozenset(("France", "Peru", "Norway", "Kenya", "Nepal", "gold", "helium", "iron", "chlorine"))


class Facts:
    """Capitals, countries, continents, element names and symbols: about 700 questions."""

    profile = profile(
        {"kind": "poisson", "rate": "2/s"}, (55, 75), 12, SloClass.INTERACTIVE, {"ttft": "500ms", "tpot": "100ms"}
    )

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """See :class:`qmeter.quality.tasks.base.Task`."""
        return choose([*_geography(), *_chemistry()], seed, n)

    def grade(self, item: Item, text: str) -> Grade:
        """Right where the first line names an accepted answer and, from a closed set, no other member of it.

        Element symbols must be spelled exactly, upper and lower case included, as the line's first word.
        """
        line = first_line(text)
        if item.group == "symbol of element":
            word = re.split(r"[^A-Za-z]+", line.removeprefix("A:").strip(), maxsplit=1)[0]
            return Grade.of(word == item.reference, f"said {word!r}, right is {item.reference!r}")
        right = any(names(line, a) for a in (item.reference, *item.accepted))
        other = next((r for r in item.rejected if names(line, r)), None)
        if right and other:
            return Grade.of(False, f"named {other!r} beside {item.reference!r}")
        return Grade.of(right, f"said {line[:60]!r}, right is {item.reference!r}")


def _item(key: str, question: str, reference: str, group: str, accepted: tuple[str, ...] = (),
          rejected: tuple[str, ...] = ()) -> Item:  # fmt: skip
    shots = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in _EXAMPLES[group])
    return Item(key, f"{shots}Q: {question}\nA:", reference, 12, accepted, rejected, group=group)


@lru_cache(maxsize=1)
def _geography() -> list[Item]:
    try:
        folder = files("countryinfo") / "data"
    except ModuleNotFoundError:
        raise MissingExtra("tasks", "the task 'facts'") from None
    read = (json.loads(f.read_text(encoding="utf-8")) for f in folder.iterdir() if f.name.endswith(".json"))
    rows = {c["name"]: c for c in read if (c.get("population") or 0) >= 100_000 and c["name"] not in _SHOWN}
    made = []
    for name in sorted(rows):
        made += _country(rows[name])
    return made


def _country(row: dict[str, Any]) -> list[Item]:
    name, key, capital, region = row["name"], row["ISO"]["alpha2"], row.get("capital"), row.get("region")
    made = []
    if isinstance(capital, str) and capital and name not in _DISPUTED:
        made.append(_item(f"capital:{key}", f"What is the capital of {name}?", capital, "capital of country"))
        if not names(capital, name) and not names(name, capital):
            question = f"Which country has the capital {capital}?"
            aliases = tuple(s for s in row.get("altSpellings", ()) if len(s) > 3)
            made.append(_item(f"country:{key}", question, name, "country of capital", aliases))
    if region in CONTINENTS and name not in _TWO_CONTINENTS:
        spelled = _CONTINENT_SPELLINGS.get(region, (region,))
        others = tuple(s for r in CONTINENTS if r != region for s in _CONTINENT_SPELLINGS.get(r, (r,)))
        kept = tuple(o for o in others if not names(name, o))
        made.append(_item(f"continent:{key}", f"On which continent is {name}?", region, "continent", spelled, kept))
    return made


@lru_cache(maxsize=1)
def _chemistry() -> list[Item]:
    try:
        from periodictable import elements
    except ModuleNotFoundError:
        raise MissingExtra("tasks", "the task 'facts'") from None
    made = []
    for element in elements:
        if element.number < 1 or element.name in _SHOWN:
            continue
        name, symbol = str(element.name), str(element.symbol)
        accepted = {"aluminum": ("aluminium",), "sulfur": ("sulphur",), "cesium": ("caesium",)}.get(name, ())
        question = f"What is the chemical symbol of {name}?"
        made.append(_item(f"symbol:{symbol}", question, symbol, "symbol of element"))
        question = f"Which chemical element has the symbol {symbol}?"
        made.append(_item(f"element:{symbol}", question, name, "element of symbol", accepted))
    return made
