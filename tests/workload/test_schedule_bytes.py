"""Same seed, same bytes: here, in another process, and as long ago as the golden digests."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workload_points import VOCABULARY, workload

from qmeter.workload import PackedRequests, Schedule, TaskItem, build, schedule_digest

DATA = Path(__file__).parent / "data"
TRACED: dict[str, Any] = {"prompt_tokens": {"kind": "trace"}, "output_tokens": {"kind": "trace"}}

POINTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "constant": ({"kind": "constant", "rate": "3/s"}, {}),
    "poisson": ({"kind": "poisson", "rate": "7/s"}, {"prompts": {"kind": "synthetic", "shared_prefix": 0.5}}),
    "gamma": (
        {"kind": "gamma", "rate": "7/s", "burstiness": 0.3},
        {"prompt_tokens": {"kind": "lognormal", "median": 40, "sigma": 0.9, "low": 4, "high": 200}},
    ),
    "ramp": (
        {"kind": "ramp", "start": "1/s", "end": "9/s"},
        {"output_tokens": {"kind": "uniform", "low": 3, "high": 99}},
    ),
    "closed": ({"kind": "closed", "concurrency": 2}, {}),
    "azure": ({"kind": "trace", "path": "azure.csv", "format": "azure", "time_scale": 1.5, "offset": "1s"}, TRACED),
    "mooncake": ({"kind": "trace", "path": "mooncake.jsonl", "format": "mooncake"}, TRACED),
    "tasks": ({"kind": "poisson", "rate": "3/s"}, {"prompts": {"kind": "tasks", "tasks": ["sums", "words"]}}),
}


def items(task: str) -> list[TaskItem]:
    return [TaskItem(f"{task}-{i}", f"{task} number {i}: é?", None if i % 2 else 9, i or None) for i in range(5)]


def schedule(name: str, seed: int = 7) -> Schedule:
    arrivals, more = POINTS[name]
    if "path" in arrivals:
        arrivals = {**arrivals, "path": str(DATA / arrivals["path"])}
    return build(workload(arrivals, **more), seed, VOCABULARY, items)


def digests() -> dict[str, str]:
    return {name: schedule_digest(schedule(name)) for name in POINTS}


def test_golden_digests() -> None:
    """A change here means that old studies can no longer be repeated to the byte: say so in the changelog."""
    assert digests() == json.loads((DATA / "digests.json").read_text())


def test_another_process_with_another_hash_seed_makes_the_same_bytes() -> None:
    code = "import json, test_schedule_bytes; print(json.dumps(test_schedule_bytes.digests()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env={"PYTHONHASHSEED": "12345", "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == digests()


@pytest.mark.parametrize("name", POINTS)
def test_the_seed_matters_and_nothing_else_does(name: str) -> None:
    assert schedule_digest(schedule(name)) == schedule_digest(schedule(name))
    if name not in ("azure",):
        assert schedule_digest(schedule(name, 8)) != schedule_digest(schedule(name))


def test_the_digest_sees_every_field_and_not_how_requests_are_held() -> None:
    made = schedule("constant")
    same = dataclasses.replace(made, requests=tuple(made.requests))
    assert schedule_digest(same) == schedule_digest(made)
    first = made.requests[0]
    assert isinstance(first.prompt, tuple)
    for changed in (
        dataclasses.replace(first, prompt=(*first.prompt[:-1], first.prompt[-1] + 1)),
        dataclasses.replace(first, prompt="text"),
        dataclasses.replace(first, output_tokens=first.output_tokens + 1),
        dataclasses.replace(first, task="t"),
        dataclasses.replace(first, item="i"),
    ):
        other = dataclasses.replace(made, requests=(changed, *made.requests[1:]))
        assert schedule_digest(other) != schedule_digest(made)
    for update in ({"send_s": made.send_s + 1e-9}, {"warmup_s": 3.0}, {"concurrency": 1}, {"law": ("poisson", {})}):
        assert schedule_digest(dataclasses.replace(made, **update)) != schedule_digest(made)  # type: ignore[arg-type]


def test_changing_one_law_leaves_what_the_others_drew() -> None:
    def made(**more: Any) -> Schedule:
        arrivals = more.pop("arrivals", {"kind": "poisson", "rate": "5/s"})
        lengths = {
            "prompt_tokens": {"kind": "uniform", "low": 5, "high": 50},
            "output_tokens": {"kind": "fixed", "tokens": 3},
        }
        return build(workload(arrivals, **{**lengths, **more}), 3, VOCABULARY)

    base = made()
    n = len(base)
    longer = made(output_tokens={"kind": "uniform", "low": 5, "high": 50})
    assert np.array_equal(longer.send_s, base.send_s)
    assert [r.prompt for r in longer.requests] == [r.prompt for r in base.requests]
    assert [r.output_tokens for r in longer.requests] != [r.prompt_tokens for r in longer.requests]
    other = made(arrivals={"kind": "constant", "rate": "50/s"})
    assert [r.prompt for r in other.requests][:n] == [r.prompt for r in base.requests]
    short = made(prompt_tokens={"kind": "fixed", "tokens": 9})
    assert np.array_equal(short.send_s, base.send_s)


def test_packed_requests_are_a_sequence_of_plain_requests() -> None:
    made = schedule("poisson")
    requests = made.requests
    assert isinstance(requests, PackedRequests)
    assert len(requests) == len(made) == len(list(requests)) == len(made.send_s)
    assert requests[-1] == list(requests)[-1]
    assert list(requests[2:5]) == list(requests)[2:5]
    assert all(type(i) is int for i in requests[0].prompt)
    assert json.loads(json.dumps(requests[0].prompt)) == list(requests[0].prompt)
    with pytest.raises(IndexError):
        requests[len(requests)]
    with pytest.raises(ValueError, match="read-only"):
        requests.prompt_ids(0)[0] = 1


def test_a_hundred_thousand_requests_are_built_quickly_and_compactly() -> None:
    point = workload(
        {"kind": "constant", "rate": "10000/s"}, prompt_tokens={"kind": "fixed", "tokens": 256}, warmup="0s"
    )
    made = build(point, 1, VOCABULARY)
    assert len(made) == 100_000
    assert isinstance(made.requests, PackedRequests)
    assert made.requests._ids.nbytes == 100_000 * 256 * 4
