"""One engine program started ahead: it has done its imports and waits for the launch that it will become.

An engine whose start is mostly imports names such a program in :attr:`~qmeter.engines.base.Launch.standby`. It is
started, under a guard of its own, while the deployment before it starts; it takes no device and no port. The launch
reaches it as one JSON line on its standard input: ``{"argv": […], "env": {…}, "log": path}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from qmeter.engines import guard
from qmeter.engines.base import Launch

PRIVATE_ENV = "QMETER_"
"""Variables of this prefix may differ between the program waiting and the launch: no engine reads them early."""
SWITCH = "QMETER_STANDBY"
"""``QMETER_STANDBY=0`` turns it off. It is no knob of the study: what is served is the same with and without."""

SETTLE_POLL_S, QUIET_SHARE = 0.25, 0.05
"""A program waits when it took at most this share of a core over two such intervals one after another."""


@dataclass
class Waiting:
    """A program that waits: ``write_end`` keeps its guard alive."""

    process: subprocess.Popen[bytes]
    write_end: int
    command: tuple[str, ...]
    env: dict[str, str]


_waiting: list[Waiting] = []
_lock = threading.Lock()
"""Deployments that run side by side start theirs from threads of their own."""


def spawn(argv: tuple[str, ...], log_path: Path, env: Mapping[str, str], grace_s: float, *, fed: bool) -> Waiting:
    """Start ``argv`` under a guard; ``fed`` keeps its standard input open for one line.

    Raises:
        OSError: it cannot be started.
    """
    read_end, write_end = os.pipe()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(read_end), str(grace_s), "--", *argv],
                stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                pass_fds=(read_end,),
                start_new_session=True,
            )
    except OSError:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    return Waiting(process, write_end, argv, dict(env))


def start_ahead(launch: Launch, grace_s: float) -> None:
    """Start the program that a launch like this one can become, unless one waits already. Failing is no error."""
    if launch.standby is None or os.environ.get(SWITCH) == "0":
        return
    log = launch.log_path.with_name("standby.log")
    with _lock, contextlib.suppress(OSError):
        if any(_fits(waiting, launch) for waiting in _waiting):
            return
        _waiting.append(spawn(launch.standby, log, launch.env, grace_s, fed=True))


def take(launch: Launch) -> Waiting | None:
    """A waiting program, turned into ``launch``; ``None`` where none waits that this launch can use.

    Those for launches unlike this one wait on, for the deployments beside it: see :func:`discard_all`.
    """
    with _lock:
        found = next((waiting for waiting in _waiting if _fits(waiting, launch)), None)
        if found is None:
            return None
        _waiting.remove(found)
    if found.process.poll() is not None or found.process.stdin is None:
        _discard(found)
        return None
    launch.log_path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"argv": launch.argv, "env": dict(launch.env), "log": str(launch.log_path)})
    try:
        found.process.stdin.write(line.encode() + b"\n")
        found.process.stdin.close()
    except OSError:
        _discard(found)
        return None
    return found


def is_waiting() -> bool:
    """Whether a program started ahead waits, or will once its imports are done."""
    return bool(_waiting)


def alive() -> int:
    """How many programs started ahead are alive now, their imports done or not."""
    with _lock:
        return sum(waiting.process.poll() is None for waiting in _waiting)


def settle(limit_s: float = 60.0) -> None:
    """Wait until the program started ahead only waits: its imports must not run beside a measurement."""
    deadline, quiet = time.monotonic() + limit_s, 0
    while _waiting and quiet < 2 and time.monotonic() < deadline:
        before_s = sum(map(_cpu_s, _waiting))
        time.sleep(SETTLE_POLL_S)
        quiet = quiet + 1 if sum(map(_cpu_s, _waiting)) - before_s <= QUIET_SHARE * SETTLE_POLL_S else 0


def discard_all() -> None:
    """End whatever still waits."""
    while _waiting:
        _discard(_waiting.pop())


def _cpu_s(waiting: Waiting) -> float:
    """Processor time of the program and what it started so far, without its guard. Units: s."""
    total_s = 0.0
    for pid in guard.children(waiting.process.pid):
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total_s += times.user + times.system
    return total_s


def _fits(waiting: Waiting, launch: Launch) -> bool:
    return waiting.command == launch.standby and _public(waiting.env) == _public(launch.env)


def _public(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(PRIVATE_ENV)}


def _discard(waiting: Waiting) -> None:
    os.close(waiting.write_end)
    if waiting.process.stdin:
        with contextlib.suppress(OSError):
            waiting.process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        waiting.process.wait(timeout=15.0)
