"""The load client: sends a schedule over HTTP streaming, stamps what comes back, and proves its own accuracy.

The names below load on first use, so that a client process, which needs none of them, starts without pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmeter.load.limits import Limits, load_limits, warn_if_beyond
    from qmeter.load.run import Progress, drive
    from qmeter.load.target import LoadResult, Target

__all__ = ["Limits", "LoadResult", "Progress", "Target", "drive", "load_limits", "warn_if_beyond"]

_HOMES = {"Limits": "limits", "load_limits": "limits", "warn_if_beyond": "limits", "Progress": "run", "drive": "run",
          "LoadResult": "target", "Target": "target"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
