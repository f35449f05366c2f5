"""Compile the fast kernel with numba where the ``simulate`` extra is installed; else it runs as plain Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba

    COMPILED = True
except ImportError:
    COMPILED = False

PARTS = ("cap", "clocks", "heap", "kernel", "prefix", "runs", "state")
"""Modules whose functions or constants end up in what other modules compile."""


def digest(paths: Iterable[Path]) -> str:
    """Hash of the files' content."""
    made = hashlib.sha256()
    for path in paths:
        made.update(path.read_bytes())
    return made.hexdigest()


SOURCES = digest(Path(__file__).with_name(f"{name}.py") for name in PARTS)


def jit(function: F) -> F:
    """``numba.njit`` with an on-disk cache, or the function itself.

    The kernels allocate nothing, so numba's reference counting is off: counting the dozens of arrays that each call
    passes on took nine tenths of the time.
    """
    if not COMPILED:
        return function
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
    compiled: F = numba.njit(**options)(function)
    _keyed_by_sources(compiled)
    return compiled


def _keyed_by_sources(compiled: Any) -> None:
    """Let the on-disk cache forget a function when any of :data:`PARTS` was edited.

    numba looks at the function's own file alone, and would go on using what it inlined from another one.
    """
    cache = compiled._cache
    plain = cache._index_key

    def index_key(sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*plain(sig, codegen), SOURCES)

    cache._index_key = index_key
