"""``python -m qmeter.engines.vllm.standby``: vLLM's imports done ahead; becomes ``vllm serve`` when told to.

It waits, with everything imported and no device touched, for one JSON line on standard input (see
:mod:`qmeter.engines.standby`), points its output at the launch's log, and runs vLLM's command line in this very
process. vLLM then forks its engine process, which has the imports too. The end of input without a line ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
import time
from pathlib import Path

from qmeter.engines.vllm import kernel_cache

MODULES = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.openai",
    "vllm.entrypoints.cli.launch",
    "vllm.entrypoints.cli.collect_env",
    "vllm.entrypoints.cli.run_batch",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.v1.attention.backends.triton_attn",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.layers.quantization.auto_gptq",
    "vllm.model_executor.layers.quantization.auto_awq",
    "vllm.model_executor.layers.quantization.fp8",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.compilation.backends",
    "torch._inductor.compile_fx",
    "torch._dynamo",
    "transformers.models.llama",
    "qmeter.engines.vllm.steplog",
    "qmeter.sources.synth.inplace",
)
"""What a server imports until it is ready; one that is not there is left out, it would be imported later anyway."""


def main() -> int:
    """Import, wait for the line, become the server."""
    started = time.monotonic()
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError, AttributeError):
        root = Path(importlib.import_module("vllm.envs").VLLM_CACHE_ROOT)
        kernel_cache.share(importlib.import_module("vllm.v1.worker.gpu_worker"), root / "qmeter_triton")
    fresh = cuda_touched()
    print(f"standby: imports took {time.monotonic() - started:.1f} s", flush=True)
    line = sys.stdin.readline()
    if not line:
        return 0
    launch = json.loads(line)
    become(launch["env"], launch["log"])
    if fresh:
        print("standby: the imports initialised CUDA, which must not be forked: starting afresh", flush=True)
        os.execvp(launch["argv"][0], launch["argv"])
    sys.argv = ["vllm", *launch["argv"][3:]]
    importlib.import_module("vllm.entrypoints.cli.main").main()
    return 0


def cuda_touched() -> bool:
    """Whether this process initialised CUDA; its children could then not use it. Source: CUDA driver API."""
    not_initialized = 3  # CUDA_ERROR_NOT_INITIALIZED
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != not_initialized


def become(env: dict[str, str], log: str) -> None:
    """Take over a launch's environment and log; standard input becomes the null device."""
    os.environ.update(env)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    print(f"standby: became the server at {time.monotonic():.3f} s (monotonic)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
