"""The task seam: items, a grader and the profile of the load that such an application makes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from pydantic import TypeAdapter

from qmeter.spec.workload import SLO, Arrivals


class SloClass(StrEnum):
    """How long a person or program behind such a request is ready to wait."""

    INTERACTIVE = "interactive"
    ASSISTANT = "assistant"
    BATCH = "batch"


@dataclass(frozen=True)
class Profile:
    """The load that an application of this kind makes.

    Attributes:
        arrivals: its arrival law at a rate that one small deployment sustains; scale the rate, keep the law.
        prompt_tokens: typical shortest and longest prompt (the items themselves decide).
        output_tokens: the largest answer budget.
        slo_class, slo: what its users expect.
    """

    arrivals: Arrivals
    prompt_tokens: tuple[int, int]
    output_tokens: int
    slo_class: SloClass
    slo: SLO


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: the same for the same question in every study; unique in its task.
        prompt: the text sent.
        reference: the right answer, or what is checked, in words a person can read.
        output_tokens: what the answer may take at most.
        accepted: spellings that count as right (empty: only ``reference``).
        rejected: answers that are wrong beside a right one (the other members of a closed set).
        data: whatever else the task's grader needs (plain JSON values).
        group: what kind of item it is within the task ("depth 0.5, 1024 tokens").
    """

    id: str
    prompt: str
    reference: str
    output_tokens: int
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    data: Mapping[str, object] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Grade:
    """``score`` in 0..1, whether that counts as passed, and why, in one short sentence."""

    score: float
    passed: bool
    why: str

    @classmethod
    def of(cls, passed: bool, why: str) -> Grade:
        """All or nothing."""
        return cls(float(passed), passed, why)


class Task(Protocol):
    """A kind of work with answers that a program can check. New task: one file with these and one row in the table."""

    profile: Profile

    def items(self, seed: int, n: int) -> tuple[Item, ...]:
        """``n`` items (fewer where there are not so many), the same for the same seed.

        Raises:
            MissingExtra: the data package is not installed.
        """
        ...

    def grade(self, item: Item, text: str) -> Grade:
        """Grade one generated text; never raises on what a model may write."""
        ...


def profile(arrivals: Mapping[str, object], prompt_tokens: tuple[int, int], output_tokens: int, slo_class: SloClass,
            slo: Mapping[str, object]) -> Profile:  # fmt: skip
    """A profile whose arrivals and SLO are written as in a study file (``{"kind": "poisson", "rate": "2/s"}``)."""
    law: Arrivals = TypeAdapter(Arrivals).validate_python(dict(arrivals))
    return Profile(law, prompt_tokens, output_tokens, slo_class, SLO.model_validate(dict(slo)))


def choose(items: list[Item], seed: int, n: int) -> tuple[Item, ...]:
    """``n`` of ``items`` in a seeded order (all of them where there are fewer)."""
    order = np.random.default_rng(seed).permutation(len(items))[:n]
    return tuple(items[i] for i in order)


def first_line(text: str) -> str:
    """The first line that says something: few-shot answers end at the line's end, what follows is no answer."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def first_block(text: str) -> str:
    """Everything up to the first empty line after something was said."""
    return re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].strip()


def plain(text: str) -> str:
    """Lower case without accents, punctuation and articles, single spaces: for comparing names."""
    flat = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().casefold()
    words = re.sub(r"[^a-z0-9]+", " ", flat.replace("'", "")).split()
    return " ".join(w for w in words if w not in ("the", "a", "an"))


def names(text: str, wanted: str) -> bool:
    """Whether ``wanted`` stands in ``text`` as whole words, by :func:`plain` spelling."""
    return f" {plain(wanted)} " in f" {plain(text)} "
