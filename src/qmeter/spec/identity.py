"""What names a deployment or a cell: a hash over everything that affects the result, and nothing else.

Left out: the folder a file lies in (its name stays; a model's content is compared by hash when a study goes on, a
trace's is in the workload) and how long readiness may take. A field that came after a study was measured counts only
where it differs from its default, so that older records keep their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

PROTOCOL = 1
"""Raised when the way of measuring changes so that results differ; part of every hash."""

FILES = frozenset({"source", "tokenizer", "path", "replay", "checkpoints"})
"""Keys whose absolute paths count by the file's name alone. An engine's ``binary`` is not among them: two installations
of one engine differ by nothing else."""
SETTLED: dict[str, Any] = {"ready_timeout": 600.0}
"""Keys that cannot affect a result → the value they count as (the default of the time when they still counted)."""
LATER: dict[str, Any] = {"placement": "alone"}
"""Keys that were added later → the default, at which they do not count."""


def digest(thing: Any, salt: int = PROTOCOL) -> str:
    """The name of plain data (a dumped deployment or cell): 16 hexadecimal digits."""
    return _hashed(essence(thing), salt)


def former_digest(thing: Any, salt: int = PROTOCOL) -> str:
    """The name that qMeter 0.1 gave it, which also hashed absolute folders and ``ready_timeout``."""
    return _hashed(_without_later(thing), salt)


def essence(thing: Any, key: str = "") -> Any:
    """The data without what cannot affect a result."""
    if isinstance(thing, Mapping):
        inner = {k: essence(v, "source" if key == "checkpoints" else k) for k, v in thing.items() if _counts(k, v)}
        return inner | {k: v for k, v in SETTLED.items() if k in inner}
    if isinstance(thing, list | tuple):
        return [essence(item, key) for item in thing]
    if isinstance(thing, str) and key in FILES and PurePath(thing).is_absolute():
        return PurePath(thing).name
    return thing


def _without_later(thing: Any) -> Any:
    if isinstance(thing, Mapping):
        return {k: _without_later(v) for k, v in thing.items() if _counts(k, v)}
    return [_without_later(item) for item in thing] if isinstance(thing, list | tuple) else thing


def _counts(key: str, value: Any) -> bool:
    return key not in LATER or value != LATER[key]


def _hashed(data: Any, salt: int) -> str:
    text = json.dumps([salt, data], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
