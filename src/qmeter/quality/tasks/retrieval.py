"""Long-context retrieval: one sentence with a number is hidden in made-up text, at several depths and lengths."""

from __future__ import annotations

import re

import numpy as np

from qmeter.quality.tasks.base import Grade, Item, SloClass, profile

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TOKENS_PER_WORD = 1.1
"""Of this text in common vocabularies (SmolLM2: 1.1); lengths are approximate (the record counts exactly)."""

_WHO = ("The baker", "A tall student", "The old gardener", "Her neighbour", "The ferry captain", "A quiet painter",
        "The night nurse", "A young engineer", "The postman", "His grandmother")  # fmt: skip
_DID = ("walked slowly to", "wrote a letter about", "remembered", "took a photograph of", "told a story about",
        "waited near", "painted", "looked for", "sold a map of", "often dreamed of")  # fmt: skip
_WHAT = (
    "the stone bridge",
    "the empty station",
    "a field of barley",
    "the red lighthouse",
    "the winter market",
    "an orchard of pears",
    "the narrow street",
    "the village school",
    "a broken clock",
    "the quiet harbour",
)
_WHEN = ("before the rain came", "on a cold evening", "while the bells rang", "after the long holiday",
         "as the sun went down", "early in spring", "when nobody was there", "for the second time")  # fmt: skip
ANIMALS = ("falcon", "otter", "badger", "heron", "lynx", "beaver", "raven", "tiger", "dolphin", "turtle", "camel",
           "panda", "wolf", "eagle", "zebra", "koala")  # fmt: skip


class Retrieval:
    """Needles at five depths and the given lengths, each with a distractor needle elsewhere.

    Args:
        lengths: approximate prompt lengths. Units: tokens.
    """

    def __init__(self, lengths: tuple[int, ...] = (256, 512, 1024)):
        self.lengths = lengths
        self.profile = profile(
            {"kind": "poisson", "rate": "30/min"},
            (min(lengths), max(lengths)),
            12,
            SloClass.ASSISTANT,
            {"ttft": f"{2.0 * max(lengths) / 1024:g}s", "tpot": "100ms"},
        )

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """See :class:`qmeter.quality.tasks.base.Task`. Lengths and depths in turn."""
        rng = np.random.default_rng(seed)
        grid = [(length, depth) for depth in DEPTHS for length in self.lengths]
        return tuple(_item(seed, i, *grid[i % len(grid)], rng) for i in range(n))

    def grade(self, item: Item, text: str) -> Grade:
        """Right where the first number of the answer is the hidden one."""
        found = re.search(r"\d+", text)
        said = found[0] if found else None
        if said == item.data["distractor"]:
            return Grade.of(False, f"gave the other animal's number {said}")
        return Grade.of(said == item.reference, f"said {said}, right is {item.reference}")


def long_retrieval() -> Retrieval:
    """The same at lengths for deployments with a long context."""
    return Retrieval((4096, 8192, 16384))


def _item(seed: int, i: int, length: int, depth: float, rng: np.random.Generator) -> Item:
    animals = [str(a) for a in rng.choice(ANIMALS, size=2, replace=False)]
    codes = [str(c) for c in rng.choice(np.arange(1000, 10000), size=2, replace=False)]
    needle, distractor = (f"The secret number of the {a} is {c}." for a, c in zip(animals, codes, strict=True))
    sentences = _filler(int((length - 45) / TOKENS_PER_WORD), rng)
    at = round(depth * len(sentences))
    sentences.insert(int(rng.integers(0, len(sentences) + 1)), distractor)
    sentences.insert(min(at, len(sentences)), needle)
    prompt = f"{' '.join(sentences)}\n\nQuestion: What is the secret number of the {animals[0]}?\n"
    return Item(
        f"{seed}:{i}:{length}:{depth}", f"{prompt}Answer: The secret number of the {animals[0]} is", codes[0], 12,
        data={"distractor": codes[1], "length": length, "depth": depth}, group=f"{length} tokens, depth {depth:g}",
    )  # fmt: skip


def _filler(words: int, rng: np.random.Generator) -> list[str]:
    made: list[str] = []
    parts = (_WHO, _DID, _WHAT, _WHEN)
    count = 0
    for draw in rng.random((words // 8 + 1, len(parts))):
        made.append(" ".join(p[int(u * len(p))] for p, u in zip(parts, draw, strict=True)) + ".")
        count += len(made[-1].split())
        if count >= words:
            break
    return made
