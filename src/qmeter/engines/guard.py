"""Runs one engine and ends it, with everything it started, as soon as qMeter is gone, however qMeter ended.

A program of its own (``python -I guard.py PARENT_FD GRACE_S -- COMMAND…``, standard library only): it holds the read
end of a pipe whose write end only qMeter has. End of file there means that qMeter ended or wants the engine ended:
SIGTERM to the engine's group, after ``GRACE_S`` SIGKILL, and SIGKILL to every descendant that left the group. As a
child subreaper it inherits those, so none escapes. The kernel kills the engine should the guard itself be killed. It
exits with the engine's own status.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_S = 0.05


def children(pid: int) -> list[int]:
    """Every descendant of ``pid``, children first, from /proc."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            parents.setdefault(parent, []).append(int(name))
    found, todo = [], [pid]
    while todo:
        here = parents.get(todo.pop(), [])
        found += here
        todo += here
    return found


def end_all(engine: int, grace_s: float) -> None:
    """SIGTERM to the group, wait up to ``grace_s``, then SIGKILL to the group and every descendant left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(engine, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while children(os.getpid()) and time.monotonic() < deadline:
        reap()
        time.sleep(POLL_S)
    for _ in range(40):
        left = children(os.getpid())
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(POLL_S)


def reap() -> dict[int, int]:
    """Collect ended children: pid → wait status."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def main(argv: list[str]) -> int:
    """Run the command in a group of its own and wait for it, or for the end of the pipe."""
    parent_fd, grace_s, command = int(argv[1]), float(argv[2]), argv[4:]
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    engine = os.fork()
    if engine == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        os.close(parent_fd)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
            os._exit(127)
    status: int | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(parent_fd, selectors.EVENT_READ)
        while status is None:
            if selector.select(POLL_S) and not os.read(parent_fd, 1):
                break
            status = reap().get(engine)
    end_all(engine, grace_s if status is None else 0.0)
    return 0 if status is None else os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv))
