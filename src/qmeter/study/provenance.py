"""Where a record comes from: versions, host, hashes. No secrets: only what is named here is read."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import qmeter

PACKAGES = ("duckdb", "numpy", "openvino", "openvino-genai", "pydantic", "torch", "transformers", "uvloop", "vllm")
"""Packages whose versions can change a result."""


@cache
def versions() -> dict[str, str]:
    """Version of Python and of each of :data:`PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def host() -> dict[str, Any]:
    """CPU model and counts, memory, kernel, NVIDIA GPUs. The host's name is left out on purpose."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "gpus": _gpus(),
    }


@cache
def git_commit() -> str | None:
    """The commit of the qMeter that runs, with ``+`` where files differ from it; ``None`` outside a checkout.

    ``QMETER_COMMIT`` names it where qMeter was copied without its repository.
    """
    if named := os.environ.get("QMETER_COMMIT"):
        return named
    folder = Path(qmeter.__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        dirty = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if dirty else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or sys.platform


def _gpus() -> list[dict[str, Any]]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver or no card: there is nothing to list
        return []
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        found.append(
            {
                "name": str(pynvml.nvmlDeviceGetName(handle)),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            }
        )
    return found
