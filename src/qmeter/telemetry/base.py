"""The sampler seam: what it gives, one reading, close."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from qmeter.record import SeriesInfo


class Sampler(Protocol):
    """Reads one source of telemetry (a GPU, the host, an engine's metrics page)."""

    def series(self) -> tuple[SeriesInfo, ...]:
        """What it can give here: each series, or its gap with the reason. Called once before sampling."""
        ...

    def read(self) -> Mapping[str, float]:
        """The present values, by series name; a value that could not be read is left out."""
        ...

    def close(self) -> None:
        """Let go of handles."""
        ...


@runtime_checkable
class Occupied(Protocol):
    """A sampler of GPUs that can tell, when asked, how many processes have one open: too slow for every reading."""

    def processes(self) -> Mapping[str, int]:
        """GPU (``gpu0``, …) → processes with a context on it; one that does not answer is left out."""
        ...


@runtime_checkable
class Narrowable(Protocol):
    """A sampler of several GPUs that can be told to leave some alone: each one it reads delays the others' readings."""

    def narrow(self, gpus: Collection[str]) -> None:
        """Read these GPUs (``gpu0``, …) and no others from now on."""
        ...
