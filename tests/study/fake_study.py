"""A study on the fake engine, and a program that runs it as ``qmeter`` would (for tests that kill it)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import qmeter.sources
from qmeter import catalog
from qmeter.catalog import Method
from qmeter.engines.base import Artifact
from qmeter.engines.table import ENGINES
from qmeter.spec import load_study_text
from qmeter.spec.study import ModelRef, Study

TEXT = """
qmeter: 1
name: fake
models: [{name: tiny, source: ./none.gguf, shape: smollm2-135m}]
engines: [{name: fake, ready_timeout: 30s, options: {OPTIONS}}]
methods: [f16, w8a16]
workloads:
  - {name: light, arrivals: {kind: poisson, rate: 20/s}, prompt_tokens: {kind: fixed, tokens: 16},
     output_tokens: {kind: fixed, tokens: 8}, warmup: 200ms, window: 1s, drain: 5s}
  - {name: busy, arrivals: {kind: poisson, rate: 40/s}, prompt_tokens: {kind: fixed, tokens: 16},
     output_tokens: {kind: fixed, tokens: 8}, warmup: 200ms, window: 1s, drain: 5s}
slo: {ttft: 200ms, tpot: 50ms}
telemetry: {samplers: [host, rapl]}
quality: {prompts: 3, tokens: 8, top_k: 3}
"""


def fake_study(options: str = "", **changes: Any) -> Study:
    """The study; ``options`` are YAML pairs for the fake engine."""
    study = load_study_text(TEXT.replace("OPTIONS", options), "fake.yaml")
    return study.model_copy(update=changes)


def prepare(model: ModelRef, method: Method, engine: str, cache: Path) -> Artifact:
    """Stands for fetching a model: nothing on disk, the right size."""
    size = method.expected_weight_bytes(catalog.model(model.shape))
    return Artifact(Path("none.gguf"), "gguf", "0" * 64, weight_bytes=size, notes=("a fake",))


def install(patch: pytest.MonkeyPatch | None = None) -> None:
    """Put the fake engine into the table and the fake fetch in place of the real one.

    Without a ``patch`` for good: only a program of its own may do that, a test process would leak it into other tests.
    """
    patch = patch or pytest.MonkeyPatch()
    patch.setitem(ENGINES._rows, "fake", "qmeter.testing.fake_engine:FakeEngine")
    patch.setattr(qmeter.sources, "prepare", prepare)


@contextmanager
def installed() -> Iterator[None]:
    """The fakes for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        yield


if __name__ == "__main__":
    from qmeter.store import StudyStore
    from qmeter.study.runner import run_study

    install()
    made = fake_study(sys.argv[2] if len(sys.argv) > 2 else "")
    run_study(made, StudyStore.create(Path(sys.argv[1]), made, TEXT))
