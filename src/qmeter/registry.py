"""Name tables: ``name → "module:attribute"``, loaded late, extended by entry points, with did-you-mean.

A new engine, sampler, task or arrival law is one file and one row in a table; nothing else names it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from qmeter.errors import UnknownName

T = TypeVar("T")


def nearest(name: str, known: Iterable[str], n: int = 2) -> list[str]:
    """The up to ``n`` known names closest to ``name`` (case-insensitive), best first; empty if none is close."""
    lowered = {k.lower(): k for k in known}
    hits = difflib.get_close_matches(name.lower(), list(lowered), n=n, cutoff=0.55)
    return [lowered[h] for h in hits]


class Registry(Generic[T]):
    """One table of named things of type ``T``.

    Args:
        what: what a row is, for messages ("engine").
        rows: ``name → "package.module:attribute"``; the attribute is a class or factory called with no
            arguments, or an object.
        group: entry-point group that third parties extend (``qmeter.engines``), or ``None``.
    """

    def __init__(self, what: str, rows: Mapping[str, str], group: str | None = None):
        self.what, self._rows, self._group = what, dict(rows), group

    def names(self) -> list[str]:
        """Every name, the built-in rows first."""
        extra = [e.name for e in self._entry_points() if e.name not in self._rows]
        return [*self._rows, *sorted(extra)]

    def get(self, name: str) -> Any:
        """The attribute behind ``name``, imported now.

        Raises:
            UnknownName: no such row; the error carries the nearest names.
        """
        if name in self._rows:
            module, _, attribute = self._rows[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        for entry in self._entry_points():
            if entry.name == name:
                return entry.load()
        known = self.names()
        raise UnknownName(self.what, name, known, nearest(name, known))

    def create(self, name: str) -> T:
        """The thing behind ``name``: its class or factory called with no arguments."""
        made: T = self.get(name)()
        return made

    def _entry_points(self) -> list[Any]:
        return list(entry_points(group=self._group)) if self._group else []
