"""qMeter's knobs as vLLM's command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qmeter.errors import SpecError
from qmeter.spec.study import Parallelism

Value = str | int | float | bool


def _number(flag: str) -> Callable[[Value], list[str]]:
    return lambda value: [flag, f"{value:g}" if isinstance(value, float) else str(value)]


def _switch(flag: str) -> Callable[[Value], list[str]]:
    return lambda value: [f"--{flag}" if value else f"--no-{flag}"]


def _sizes(value: Value) -> list[str]:
    return ["--cudagraph-capture-sizes", *str(value).replace(",", " ").split()]


KNOBS: dict[str, Callable[[Value], list[str]]] = {
    "max_sequences": _number("--max-num-seqs"),
    "token_budget": _number("--max-num-batched-tokens"),
    "max_model_tokens": _number("--max-model-len"),
    "gpu_memory_fraction": _number("--gpu-memory-utilization"),
    "kv_cache_gib": lambda value: ["--kv-cache-memory-bytes", str(int(float(value) * 2**30))],
    "kv_blocks": _number("--num-gpu-blocks-override"),
    "kv_block_tokens": _number("--block-size"),
    "prefix_cache": _switch("enable-prefix-caching"),
    "chunked_prefill": _switch("enable-chunked-prefill"),
    "async_scheduling": _switch("async-scheduling"),
    "eager": lambda value: ["--enforce-eager"] if value else [],
    "cuda_graph_sizes": _sizes,
}
"""Knob → arguments. A knob that is not here goes to vLLM under its own name (``foo_bar: 3`` → ``--foo-bar 3``)."""

ADAPTER_KNOBS = ("step_log", "power_cap_w")
"""Knobs that vLLM is not told: the adapter obeys the first, ``qmeter tune`` the second."""
ENV_PREFIX = "env."
"""A knob ``env.VLLM_X`` sets that environment variable; only vLLM's own may be set, and all are recorded."""


def knob_args(options: Mapping[str, Value]) -> list[str]:
    """Arguments for an engine's options, in the options' order."""
    made: list[str] = []
    for name, value in options.items():
        if name in ADAPTER_KNOBS or name.startswith(ENV_PREFIX):
            continue
        if name in KNOBS:
            made += KNOBS[name](value)
        elif isinstance(value, bool):
            made += _switch(name.replace("_", "-"))(value)
        else:
            made += [f"--{name.replace('_', '-')}", str(value)]
    return made


def knob_env(options: Mapping[str, Value]) -> dict[str, str]:
    """Environment variables among the options.

    Raises:
        SpecError: a variable that is not vLLM's.
    """
    env = {name.removeprefix(ENV_PREFIX): str(value) for name, value in options.items() if name.startswith(ENV_PREFIX)}
    for name in env:
        if not name.startswith("VLLM_"):
            raise SpecError(
                f"engines[].options: 'env.{name}' cannot be set from a study",
                faults=[("engines[].options", "only env.VLLM_… variables are taken, since options are recorded")],
                hint="export other variables before you start qmeter",
            )
    return env


def parallel_args(parallelism: Parallelism) -> list[str]:
    """Arguments for tensor, pipeline and data parallelism; one API server in front of all replicas."""
    made: list[str] = []
    if parallelism.tp > 1:
        made += ["--tensor-parallel-size", str(parallelism.tp)]
    if parallelism.pp > 1:
        made += ["--pipeline-parallel-size", str(parallelism.pp)]
    if parallelism.dp > 1:
        made += ["--data-parallel-size", str(parallelism.dp), "--api-server-count", "1"]
    return made
