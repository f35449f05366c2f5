"""Instructions whose fulfilment a program can check: made from templates and the seed, one checker a kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qmeter.quality.tasks.base import Grade, Item, SloClass, first_block, first_line, profile

TOPICS = (
    "the sea", "winter", "a train journey", "cooking", "friendship", "the moon", "a garden", "music", "a library",
    "mountains", "coffee", "a small town", "rain", "football", "an old house", "spring", "a market", "horses",
    "painting", "the night sky", "a river", "bread", "birds", "travel", "a school day", "snow", "a bicycle", "cats",
)  # fmt: skip
WORDS = (
    "silver", "morning", "bridge", "lantern", "whisper", "orange", "window", "journey", "shadow", "garden", "winter",
    "copper", "harbor", "meadow", "pepper", "ribbon", "thunder", "velvet", "willow", "candle",
)  # fmt: skip
_SHOTS = (
    "Follow each instruction exactly.\n\n"
    'Instruction: Write one sentence about dogs that contains the word "gentle".\n'
    "Response: The gentle dog slept beside the warm fire.\n\n"
    "Instruction: Write exactly three words about summer.\n"
    "Response: Long warm days\n\n"
)
_WORD = re.compile(r"[A-Za-z0-9]+(?:['’-][A-Za-z0-9]+)*")


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _json_keys(text: str, data: Mapping[str, Any]) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and sorted(value) == sorted(data["keys"])


def _items_listed(text: str, data: Mapping[str, Any]) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) == data["count"] and all(re.match(r"\s*-\s+\S", line) for line in lines)


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "contains": lambda text, d: str(d["word"]) in [w.lower() for w in _words(first_line(text))],
    "starts": lambda text, d: [w.lower() for w in _words(first_line(text))[:1]] == [d["word"]],
    "count": lambda text, d: len(_words(first_line(text))) == d["count"],
    "fewer": lambda text, d: 0 < len(_words(first_line(text))) < d["count"],
    "lower": lambda text, d: bool(_words(text)) and first_line(text) == first_line(text).lower(),
    "upper": lambda text, d: bool(_words(text)) and first_line(text) == first_line(text).upper(),
    "without": lambda text, d: bool(_words(text)) and str(d["letter"]) not in first_line(text).lower(),
    "list": lambda text, d: _items_listed(first_block(text), d),
    "json": lambda text, d: _json_keys(first_block(text), d),
    "question": lambda text, d: first_line(text).endswith("?"),
}
"""Kind of constraint → does the response fulfil it? Given the response and the item's data."""


class Instructions:
    """Ten kinds of constraint in equal parts, each with its own checker."""

    profile = profile(
        {"kind": "gamma", "rate": "1/s", "burstiness": 0.5},
        (75, 95),
        40,
        SloClass.ASSISTANT,
        {"ttft": "1s", "tpot": "100ms"},
    )

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """See :class:`qmeter.quality.tasks.base.Task`. Kinds in turn; as many as there are different ones."""
        rng = np.random.default_rng(seed)
        kinds, made = list(CHECKS), dict[str, Item]()
        for i in range(3 * n):
            if len(made) >= n:
                break
            item = _item(kinds[i % len(kinds)], rng)
            made.setdefault(item.id, item)
        return tuple(made.values())

    def grade(self, item: Item, text: str) -> Grade:
        """Checks the response's first line (lists and JSON: its first block) by the item's kind."""
        answer = text.split("Instruction:")[0]
        passed = CHECKS[item.group](answer, item.data)
        return Grade.of(passed, f"{item.reference}: {'yes' if passed else 'no'}; said {first_line(answer)[:60]!r}")


def _item(kind: str, rng: np.random.Generator) -> Item:
    topic, word = str(rng.choice(TOPICS)), str(rng.choice(WORDS))
    count, letter = int(rng.integers(3, 9)), str(rng.choice(list("zqxjkvw")))
    keys = sorted(str(w) for w in rng.choice(WORDS, size=2, replace=False))
    wording: dict[str, tuple[str, dict[str, object]]] = {
        "contains": (f'Write one sentence about {topic} that contains the word "{word}".', {"word": word}),
        "starts": (f'Write one sentence about {topic} that starts with the word "{word}".', {"word": word}),
        "count": (f"Write exactly {count} words about {topic}.", {"count": count}),
        "fewer": (f"Write a sentence about {topic} with fewer than {count + 5} words.", {"count": count + 5}),
        "lower": (f"Write one sentence about {topic} in lowercase letters only.", {"topic": topic}),
        "upper": (f"Write one sentence about {topic} in CAPITAL letters only.", {"topic": topic}),
        "without": (f'Write one sentence about {topic} without the letter "{letter}".', {"letter": letter}),
        "list": (f"List exactly {count} things about {topic}, one a line, each line starting with a dash.",
                 {"count": count}),
        "json": (f'Write a JSON object about {topic} with exactly the keys "{keys[0]}" and "{keys[1]}".',
                 {"keys": keys}),
        "question": (f"Write one question about {topic}.", {"topic": topic}),
    }  # fmt: skip
    text, data = wording[kind]
    key = f"{kind}:{topic}:{json.dumps(data, sort_keys=True)}"
    return Item(key, f"{_SHOTS}Instruction: {text}\nResponse:", text, 40, data=data, group=kind)
