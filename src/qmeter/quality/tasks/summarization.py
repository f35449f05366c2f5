"""Summaries of made-up reports against the facts they were made from, by ROUGE-L.

ROUGE-L F1 (Lin 2004): with the longest common subsequence of the two word lists, F1 of its share of each. Words are
lower-case letters and digits; no stemming. It rewards the source's words in the source's order: it can compare methods
on the same items, and says little about how good a summary is.
"""

from __future__ import annotations

import re

import numpy as np

from qmeter.quality.tasks.base import Grade, Item, SloClass, first_block, profile

PASS = 0.3
"""ROUGE-L F1 from which a summary counts as passed (for the tests that need yes or no)."""

_TOWNS = ("Marrow Bay", "Eastford", "Tallis", "Greenholm", "Port Venner", "Low Barton", "Kesten", "Silver Hill")
_PROJECTS = (
    "library",
    "tram line",
    "swimming pool",
    "solar park",
    "hospital wing",
    "flood wall",
    "market hall",
    "cycle path",
)
_LEADERS = ("Ada Brook", "Tom Harlow", "Mina Castell", "Peter Lindqvist", "Rosa Delgado", "Yusuf Khan")
_REASONS = (
    "costs had risen faster than planned",
    "the old building was no longer safe",
    "more families had moved to the area",
    "the state offered to pay half",
    "a storm had damaged the site",
)
_EFFECTS = (
    "create 40 jobs",
    "shorten waiting times",
    "lower energy bills",
    "bring visitors in winter",
    "make the centre quieter",
)
_CRITICS = ("shop owners near the site", "the fishing club", "two members of the council", "a group of students")
_COMPLAINTS = (
    "feared noise and dust",
    "asked for a cheaper plan",
    "wanted a public vote first",
    "said that parking would disappear",
)
_FILLERS = (
    "The meeting was held in the town hall and lasted almost three hours.",
    "About sixty people came to listen, some of them with children.",
    "Coffee and cake were sold by the local choir during the break.",
    "The mayor thanked everyone for a calm discussion.",
    "Drawings of the plan can be seen in the entrance hall until Friday.",
    "A similar proposal was turned down eight years ago.",
)
_SHOT = (
    "Report: The council of Oakley decided on Monday to close the old mill bridge for six months. Engineers had found "
    "cracks in two pillars. Traffic will use the northern road. Repairs cost 900,000 dollars and start in June. "
    "Many people came to the meeting. Residents asked for a bus.\n"
    "Summary: Oakley will close the old mill bridge for six months because of cracks in two pillars. Repairs cost "
    "900,000 dollars and start in June.\n\n"
)


class Summarization:
    """Reports of about 120 words with known facts; the reference summary states the facts."""

    profile = profile({"kind": "poisson", "rate": "30/min"}, (260, 330), 64, SloClass.BATCH, {"e2e": "15s"})

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """See :class:`qmeter.quality.tasks.base.Task`."""
        rng = np.random.default_rng(seed)
        return tuple(_item(seed, i, rng) for i in range(n))

    def grade(self, item: Item, text: str) -> Grade:
        """ROUGE-L F1 of the first block against the reference summary."""
        score = rouge_l(first_block(text.split("Report:")[0]), item.reference)
        return Grade(score, score >= PASS, f"ROUGE-L F1 {score:.3f}")


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F1 of two texts, in 0..1; 0 where either has no word."""
    a, b = (re.findall(r"[a-z0-9]+", t.lower()) for t in (candidate, reference))
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            kept = row[j]
            row[j] = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal = kept
    precision, recall = row[-1] / len(a), row[-1] / len(b)
    return 0.0 if row[-1] == 0 else 2 * precision * recall / (precision + recall)


def _item(seed: int, i: int, rng: np.random.Generator) -> Item:
    town, project, leader, reason, effect, critic, complaint = (
        str(rng.choice(options)) for options in (_TOWNS, _PROJECTS, _LEADERS, _REASONS, _EFFECTS, _CRITICS, _COMPLAINTS)
    )
    cost, year, votes = int(rng.integers(2, 80)), int(rng.integers(2026, 2033)), int(rng.integers(8, 15))
    filler = [str(f) for f in rng.choice(_FILLERS, size=3, replace=False)]
    report = (
        f"The council of {town} voted on Tuesday evening to build a new {project}. {filler[0]} The vote was {votes} to "
        f"{15 - votes}. Council leader {leader} said that {reason}, so the town could not wait any longer. {filler[1]} "
        f"The {project} will cost {cost} million dollars and is expected to open in {year}. Supporters say it will "
        f"{effect}. However, {critic} {complaint}. {filler[2]} Work is to begin next spring."
    )
    reference = (
        f"The council of {town} voted {votes} to {15 - votes} to build a new {project} because {reason}. It will cost "
        f"{cost} million dollars and open in {year}. Supporters say it will {effect}, but {critic} {complaint}."
    )
    return Item(f"{seed}:{i}", f"{_SHOT}Report: {report}\nSummary:", reference, 64, group="council report")
