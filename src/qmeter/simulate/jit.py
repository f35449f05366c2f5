"""Compile the fast kernel with numba where the ``simulate`` extra is installed; else the same code runs as plain Python."""

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
    """``numba.njit`` with an on-disk cache, or the function itself."""
    if not COMPILED:
        return function
    compiled: F = numba.njit(cache=True, error_model="numpy")(function)
    return compiled
