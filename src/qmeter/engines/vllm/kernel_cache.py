"""One cache on disk for the Triton kernels that vLLM compiles after its graphs (sampler, input preparation).

vLLM 0.25 points ``TRITON_CACHE_DIR`` into the folder of the graph that it compiled last, so each method's first start
compiles the same kernels again: 12 s of 45 s seen on an H100. Where compiled kernels are kept changes nothing in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "TRITON_CACHE_DIR"
WARM_UP = "warmup_kernels"


def share(worker: ModuleType, folder: Path) -> bool:
    """Let ``worker``'s kernel warm-up keep its kernels in ``folder``; whether this vLLM has such a warm-up.

    Args:
        worker: the module ``vllm.v1.worker.gpu_worker``.
    """
    warm_up: Callable[..., Any] | None = getattr(worker, WARM_UP, None)
    if warm_up is None:
        return False

    @wraps(warm_up)
    def kept(*args: Any, **kwargs: Any) -> Any:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(folder)
        try:
            return warm_up(*args, **kwargs)
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before

    setattr(worker, WARM_UP, kept)
    return True
