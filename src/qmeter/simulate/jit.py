"""Compile the fast kernel with numba where the ``simulate`` extra is installed; else it runs as plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba

    COMPILED = True
except ImportError:
    COMPILED = False


def jit(function: F) -> F:
    """``numba.njit`` with an on-disk cache, or the function itself.

    The kernels allocate nothing, so numba's reference counting is off: counting the dozens of arrays that each call
    passes on took nine tenths of the time.
    """
    if not COMPILED:
        return function
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
    compiled: F = numba.njit(**options)(function)
    return compiled
