"""GIVEN vLLM's kernel warm-up, WHEN its cache is shared, THEN Triton's folder is the shared one for just that long."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from qmeter.engines.vllm import kernel_cache


@pytest.mark.parametrize("before", [None, "/graphs/one"])
def test_the_folder_is_set_during_the_warm_up_alone(tmp_path, monkeypatch, before):
    monkeypatch.delenv(kernel_cache.VARIABLE, raising=False)
    if before:
        monkeypatch.setenv(kernel_cache.VARIABLE, before)
    worker = ModuleType("gpu_worker")
    worker.warmup_kernels = lambda runner, *, steps: (runner, steps, os.environ[kernel_cache.VARIABLE])
    assert kernel_cache.share(worker, tmp_path)
    assert worker.warmup_kernels("runner", steps=2) == ("runner", 2, str(tmp_path))
    assert os.environ.get(kernel_cache.VARIABLE) == before


def test_a_failing_warm_up_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv(kernel_cache.VARIABLE, "/graphs/one")
    worker = ModuleType("gpu_worker")

    def warm_up() -> None:
        raise RuntimeError("out of memory")

    worker.warmup_kernels = warm_up
    kernel_cache.share(worker, tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.warmup_kernels()
    assert os.environ[kernel_cache.VARIABLE] == "/graphs/one"


def test_a_vllm_without_that_warm_up_is_left_alone(tmp_path):
    worker = ModuleType("gpu_worker")
    assert not kernel_cache.share(worker, tmp_path)
    assert not hasattr(worker, "warmup_kernels")
