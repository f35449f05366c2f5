"""Studies damaged at random: each is a study or a SpecError that names something, never another exception."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import yaml

from qmeter.errors import SpecError
from qmeter.study.check import open_study_text
from qmeter.study.findings import HostFacts

HOST = HostFacts(cores=frozenset({0, 1}), gpus=2, environment={})
TEMPLATES = [p.read_text() for p in sorted((files("qmeter.study") / "templates").iterdir(), key=lambda p: p.name)]
JUNK: list[Any] = [
    None, True, 0, -1, 1e308, float("inf"), 10**30, "", "x", "4/s", "a" * 300, [], {}, [[]], [None], [{}], ["2/s"],
    {"": 1}, {"kind": "closed"}, {"kind": ["a"]}, {"kind": "trace", "path": "/dev/null", "format": "azure"},
    {"kind": "poisson", "rate": [{}]}, {"kind": "gamma", "rate": [[1]], "burstiness": {}},
]  # fmt: skip


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield (*path, key)
        yield from _places(value, (*path, key))


def _damaged_values(rng: random.Random) -> str:
    data = yaml.safe_load(rng.choice(TEMPLATES))
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(_places(data)))
        owner = data
        for key in path[:-1]:
            owner = owner[key]
        if rng.random() < 0.7:
            owner[path[-1]] = copy.deepcopy(rng.choice(JUNK))
        else:
            del owner[path[-1]]
        if not data:
            break
    return yaml.safe_dump(data, sort_keys=False)


def _damaged_text(rng: random.Random) -> str:
    letters = list(rng.choice(TEMPLATES))
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(letters))
        letters[at : at + rng.choice([0, 1, 1, 15])] = rng.choice("{}[]:,&*!|>-#\"'\t\n x0\x00é")
    return "".join(letters)


@pytest.mark.parametrize("seed", range(120))
def test_a_damaged_study_is_refused_or_valid(seed: int) -> None:
    rng = random.Random(seed)
    text = _damaged_values(rng) if seed % 3 else _damaged_text(rng)
    try:
        open_study_text(text, "damaged.yaml", HOST)
    except SpecError as error:
        assert error.faults
        assert str(error)
