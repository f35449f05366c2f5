"""``vllm bench serve`` without paying for vLLM's imports each time: a process that has them, and forks for each run.

Reads one JSON line a run on standard input, ``{"argv": […], "log": path, "limit_s": s}``; the child becomes vLLM's own
command line with that ``argv``, and is ended after so long. Answers ``{"rc": …}``, one line a run, after a first line
``{"ready": seconds}``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback

MODULES = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.openai",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.cli.launch",
    "vllm.entrypoints.cli.collect_env",
    "vllm.entrypoints.cli.run_batch",
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.benchmark.latency",
    "vllm.entrypoints.cli.benchmark.mm_processor",
    "vllm.entrypoints.cli.benchmark.serve",
    "vllm.entrypoints.cli.benchmark.startup",
    "vllm.entrypoints.cli.benchmark.sweep",
    "vllm.entrypoints.cli.benchmark.throughput",
    "vllm.benchmarks.serve",
    "vllm.tokenizers.hf",
    "transformers",
    "pandas",
)


def run(argv: list[str], log: str, limit_s: float) -> int:
    """One run in a child; returns its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        sys.argv = ["vllm", *argv]
        importlib.import_module("vllm.entrypoints.cli.main").main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the imports say goes to the log
    began = time.monotonic()
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    print(json.dumps({"ready": time.monotonic() - began}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"rc": run(job["argv"], job["log"], job["limit_s"])}), file=answers)


if __name__ == "__main__":
    main()
