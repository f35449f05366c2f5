"""The mixed-integer solver behind the deciding rooms: scipy's HiGHS, with what it prints kept off standard output."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STDOUT, STDERR = 1, 2


class _Diversion:
    """Descriptor 1 while solvers run, in one or several threads: the first turns it away, the last puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.saved: int | None = None

    def enter(self) -> None:
        with self.lock:
            if not self.inside:
                _flush()
                with suppress(OSError):  # a closed descriptor needs no protection
                    self.saved = os.dup(STDOUT)
                    os.dup2(STDERR, STDOUT)
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.saved is not None:
                _flush()
                os.dup2(self.saved, STDOUT)
                os.close(self.saved)
                self.saved = None


_DIVERSION = _Diversion()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What anything writes to file descriptor 1 meanwhile, compiled code too, goes to standard error.

    Threads may be inside at once; whatever else the process prints meanwhile goes there as well, and is not lost.
    """
    _DIVERSION.enter()
    try:
        yield
    finally:
        _DIVERSION.leave()


def milp(*args: Any, **more: Any) -> Any:
    """``scipy.optimize.milp``, same arguments and result: HiGHS prints lines of its own even where it is told not to.

    Raises:
        ImportError: scipy is not installed.
    """
    from scipy.optimize import milp as solve

    with stdout_to_stderr():
        return solve(*args, **more)


def _flush() -> None:
    """Write out what Python and the C library hold back, so that it goes where it was meant to go."""
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(AttributeError, OSError, ValueError):  # no stream, or a closed one
            stream.flush()  # type: ignore[union-attr]
    with suppress(AttributeError, OSError, TypeError):  # no C library by that name
        ctypes.CDLL(None).fflush(None)
