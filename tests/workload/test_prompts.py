from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workload_points import VOCABULARY, workload

from qmeter import catalog
from qmeter.errors import SpecError
from qmeter.spec.workload import LognormalLength
from qmeter.workload import TaskItem, Vocabulary, build
from qmeter.workload.lengths import draw_tokens, mean_tokens
from qmeter.workload.streams import Stream, stream


def _prompts(vocabulary: Vocabulary = VOCABULARY, seed: int = 1, **more: Any) -> list[tuple[int, ...]]:
    point = workload({"kind": "constant", "rate": "20/s"}, window="100s", **more)
    prompts = [r.prompt for r in build(point, seed, vocabulary).requests]
    assert all(isinstance(p, tuple) for p in prompts)
    return prompts  # type: ignore[return-value]


def test_token_counts_are_exact_and_ids_come_from_the_allowed_range() -> None:
    lengths = {"kind": "uniform", "low": 1, "high": 40}
    prompts = _prompts(prompt_tokens=lengths)
    ids = {i for p in prompts for i in p}
    assert ids == set(range(3, 999))
    assert {len(p) for p in prompts} == set(range(1, 41))


def test_every_allowed_id_is_equally_likely() -> None:
    ids = np.array(
        [
            i
            for p in _prompts(Vocabulary(50, frozenset({7, 11})), prompt_tokens={"kind": "fixed", "tokens": 100})
            for i in p
        ]
    )
    counts = np.bincount(ids, minlength=50)
    assert counts[7] == counts[11] == 0
    expected = ids.size / 48
    chi2 = float(((counts[counts > 0] - expected) ** 2 / expected).sum())
    # 47 degrees of freedom: mean 47, sd √94.
    assert abs(chi2 - 47) < 5 * math.sqrt(94)


def test_the_start_token_comes_first_and_counts() -> None:
    prompts = _prompts(
        Vocabulary(100, frozenset({0, 1}), bos=1), prompt_tokens={"kind": "uniform", "low": 1, "high": 9}
    )
    assert all(p[0] == 1 and 1 not in p[1:] for p in prompts)
    assert {len(p) for p in prompts} == set(range(1, 10))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.999])
def test_the_asked_share_of_each_prompt_is_common_to_all(share: float) -> None:
    prompts = _prompts(
        prompt_tokens={"kind": "uniform", "low": 20, "high": 60}, prompts={"kind": "synthetic", "shared_prefix": share}
    )
    longest = max(prompts, key=len)
    for prompt in prompts:
        k = min(round(share * len(prompt)), len(prompt) - 1)
        assert prompt[:k] == longest[:k]
    own = [p[min(round(share * len(p)), len(p) - 1) :] for p in prompts]
    assert all(own)
    # Beyond the shared part two prompts agree by chance alone (1 in 996).
    agree = np.mean([a[0] == b[0] for a, b in pairwise(own)])
    assert agree < 0.01


def test_a_vocabulary_without_usable_ids_is_refused() -> None:
    with pytest.raises(SpecError, match="leaves 1"):
        _prompts(Vocabulary(3, frozenset({0, 1})))


@pytest.mark.parametrize("shape", catalog.models(), ids=lambda m: m.name)
def test_a_models_vocabulary_leaves_out_the_ends_and_nothing_else(shape: catalog.ModelShape) -> None:
    allowed = Vocabulary.of(shape).allowed()
    assert (allowed[0], allowed[-1]) == (1024, shape.vocab - 1025)
    assert len(allowed) == shape.vocab - 2048


def test_a_clipped_lognormal_has_the_mean_that_the_formula_says() -> None:
    for median, sigma, low, high in ((50, 0.5, 1, 10_000), (50, 1.0, 10, 120), (500, 2.0, 1, 100), (5, 0.1, 20, 30)):
        law = LognormalLength(median=median, sigma=sigma, low=low, high=high)
        drawn = draw_tokens(law, 200_000, stream(1, Stream.PROMPT_LENGTHS))
        mean = mean_tokens(law)
        assert mean is not None
        assert drawn.min() >= low and drawn.max() <= high
        assert drawn.mean() == pytest.approx(mean, rel=0.01)
    # Unclipped, the mean is the textbook's.
    assert mean_tokens(LognormalLength(median=50, sigma=0.5, high=10**6)) == pytest.approx(
        50 * math.exp(0.125), rel=1e-3
    )


def test_a_lognormal_so_wide_that_exp_overflows_is_clipped_without_a_warning() -> None:
    law = LognormalLength(median=100, sigma=500.0, high=1000)
    with np.errstate(all="raise"):
        drawn = draw_tokens(law, 1000, stream(1, Stream.PROMPT_LENGTHS))
    assert set(np.unique(drawn)) <= set(range(1, 1001))


def test_uniform_lengths_include_both_ends_equally() -> None:
    prompts = _prompts(prompt_tokens={"kind": "uniform", "low": 3, "high": 6})
    counts = np.bincount([len(p) for p in prompts])[3:]
    expected = len(prompts) / 4
    assert (np.abs(counts - expected) < 5 * math.sqrt(expected)).all()


def _mooncake(tmp_path: Path, rows: list[tuple[int, list[int]]], **more: Any) -> list[tuple[int, ...]]:
    lines = [
        f'{{"timestamp": {1000 * i}, "input_length": {n}, "output_length": 5, "hash_ids": {ids}}}'
        for i, (n, ids) in enumerate([*rows, *[(1, [10**6 + k]) for k in range(20)]])
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(lines))
    point = workload(
        {"kind": "trace", "path": str(path), "format": "mooncake"}, prompt_tokens={"kind": "trace", **more}
    )
    return [r.prompt for r in build(point, 1, VOCABULARY).requests]  # type: ignore[misc]


def test_equal_hash_ids_become_equal_blocks_and_unequal_ones_do_not(tmp_path: Path) -> None:
    a, b, c, *_ = _mooncake(tmp_path, [(1500, [0, 1, 2]), (1200, [0, 1, 3]), (600, [4, 5])])
    assert (len(a), len(b), len(c)) == (1500, 1200, 600)
    assert a[:1024] == b[:1024]
    assert a[1024:1200] != b[1024:]
    assert a[:512] != c[:512]
    same = sum(x == y for x, y in zip(a[:512], c[:512], strict=True))
    assert same < 10


def test_a_cut_prompt_keeps_the_start_of_its_blocks(tmp_path: Path) -> None:
    whole, *_ = _mooncake(tmp_path, [(1500, [0, 1, 2])])
    cut, *_ = _mooncake(tmp_path, [(1500, [0, 1, 2])], high=700)
    assert cut == whole[:700]


def test_task_prompts_take_tasks_in_turn_and_every_item_before_any_twice() -> None:
    def items(task: str) -> list[TaskItem]:
        return [TaskItem(str(i), f"{task} {i}", output_tokens=None if task == "a" else 9) for i in range(4)]

    point = workload(
        {"kind": "constant", "rate": "1/s"}, prompts={"kind": "tasks", "tasks": ["a", "b"]},
        output_tokens={"kind": "fixed", "tokens": 33},
    )  # fmt: skip
    requests = list(build(point, 1, VOCABULARY, items).requests)
    assert [r.task for r in requests] == ["a", "b"] * 6
    for task in ("a", "b"):
        order = [r.item for r in requests if r.task == task]
        assert sorted(order[:4]) == ["0", "1", "2", "3"]  # type: ignore[type-var]
        assert order[4:6] == order[:2]
    assert {r.output_tokens for r in requests if r.task == "a"} == {33}
    assert {r.output_tokens for r in requests if r.task == "b"} == {9}
    assert {r.prompt_tokens for r in requests} == {-1}
    assert all(r.prompt == f"{r.task} {r.item}" for r in requests)


def test_tasks_without_items_are_refused() -> None:
    point = workload({"kind": "constant", "rate": "1/s"}, prompts={"kind": "tasks", "tasks": ["a"]})
    for items in (None, lambda task: []):
        with pytest.raises(SpecError):
            build(point, 1, VOCABULARY, items)
