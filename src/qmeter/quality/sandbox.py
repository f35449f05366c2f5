"""Runs a generated Python program where it can harm nothing, and names what it tried.

The cage (:mod:`qmeter.quality.sandbox_child`): namespaces of its own for mounts, network, processes and IPC; a root
that holds the interpreter and system libraries read-only and one small folder in memory; no network interface, no
/proc; an unprivileged user; limits on CPU time, address space, processes, file size and open files; a filter that
refuses system calls by which memory escapes those limits or the cage could be widened. This side reads its output up
to a bound, watches its memory and the clock, and ends everything at once by ending its process 1.

Where the host does not allow such a cage, nothing runs: :class:`QualityError` says which step was refused. A bug in the
kernel's ordinary calls is not defended against. The program's own process also runs its tests, so a program that sets
out to deceive its grader (by reading its own source for the closing word) can pass; it still harms nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from qmeter.errors import QualityError


class Verdict(StrEnum):
    """How a program ended. PASSED only if it ran to its very end."""

    PASSED = "passed"
    FAILED = "failed"
    CPU_TIME = "cpu_time"
    WALL_TIME = "wall_time"
    MEMORY = "memory"
    PROCESSES = "processes"
    OUTPUT = "output"
    FILES = "files"
    NETWORK = "network"
    RIGHTS = "rights"


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_s, wall_s: processor and elapsed time. Units: s.
        memory_bytes: address space of one process, and resident memory of all together.
        processes: processes and threads at once, the program itself included.
        file_bytes, files: of the writable folder in memory, all files together.
        open_files: descriptors of one process.
        output_bytes: standard output and error together.
    """

    cpu_s: int = 5
    wall_s: float = 20.0
    memory_bytes: int = 512 * 2**20
    processes: int = 16
    file_bytes: int = 16 * 2**20
    files: int = 256
    open_files: int = 64
    output_bytes: int = 64 * 2**10


@dataclass(frozen=True)
class Outcome:
    """What one program did. ``why``: the last line of its error output, or the limit it met."""

    verdict: Verdict
    why: str
    output: str
    wall_s: float


_TRACEBACK = "Traceback (most recent call last)"
_CROWDED = ("Resource temporarily unavailable", "can't start new thread")
_TRACES = (
    (Verdict.MEMORY, ("MemoryError", "Cannot allocate memory")),
    (Verdict.NETWORK, ("Network is unreachable", "Name or service not known", "name resolution", "socket.gaierror")),
    (Verdict.PROCESSES, _CROWDED),
    (Verdict.FILES, ("Read-only file system", "No space left on device", "File too large", "Permission denied",
                     "Too many open files")),
    (Verdict.RIGHTS, ("Operation not permitted",)),
)  # fmt: skip


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run ``program`` (Python source) in the cage and say how it ended.

    Its last act prints a random word that the source could not know, so leaving early with status 0 is no pass.

    Raises:
        QualityError: this host does not allow the cage; nothing was run.
    """
    bounds = limits or Limits()
    word = secrets.token_hex(16)
    interpreter = os.path.realpath(sys.executable)
    request = {
        "program": f"{program}\n\nprint({word!r}, flush=True)\n",
        "limits": asdict(bounds),
        "interpreter_root": _interpreter_root(interpreter),
        "argv": [interpreter, "-I", "-S", "-B", "/work/program.py"],
    }
    with tempfile.TemporaryDirectory(prefix="qmeter-sandbox-") as root:
        return _Keeper(bounds).keep({**request, "root": root}, interpreter, word)


def unavailable() -> str | None:
    """Why this host cannot make the cage, or ``None`` where it can (one empty program is run to know)."""
    try:
        outcome = run("pass")
    except QualityError as error:
        return error.message
    return None if outcome.verdict is Verdict.PASSED else f"an empty program ended {outcome.verdict}: {outcome.why}"


def _interpreter_root(interpreter: str) -> str:
    """The folder that the interpreter and its standard library lie in."""
    library = os.path.realpath(os.__file__)
    return os.path.commonpath([interpreter, library]) if not library.startswith("/usr/") else "/usr"


class _Keeper:
    """The watcher of one run."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.output = bytearray()
        self.ended: Verdict | None = None
        self.status: dict[str, Any] = {}
        self.most_processes = 0

    def keep(self, request: dict[str, Any], interpreter: str, word: str) -> Outcome:
        script = Path(__file__).with_name("sandbox_child.py")
        read_fd, write_fd = os.pipe()
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                [interpreter, "-I", "-S", "-B", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, pass_fds=(write_fd,), env={}, cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            assert process.stdin is not None
            process.stdin.write((json.dumps({**request, "status_fd": write_fd}) + "\n").encode())
            process.stdin.close()
            self._watch(process, read_fd, began + self.limits.wall_s)
        finally:
            self._end(process)
            os.close(read_fd)
            if process.stdout:
                process.stdout.close()
        return self._outcome(word, time.monotonic() - began)

    def _watch(self, process: subprocess.Popen[bytes], read_fd: int, deadline_s: float) -> None:
        assert process.stdout is not None
        told = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(read_fd, selectors.EVENT_READ)
            while selector.get_map() and self.ended is None:
                for key, _ in selector.select(timeout=0.05):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fd == read_fd:
                        told += data
                        self._told(told)
                    else:
                        self._wrote(data)
                if "status" in self.status or "refused" in self.status:
                    self._drain(process.stdout.fileno())
                    return
                self._check(deadline_s)

    def _told(self, told: bytearray) -> None:
        *lines, rest = bytes(told).split(b"\n")
        told[:] = rest
        for line in lines:
            self.status.update(json.loads(line))

    def _wrote(self, data: bytes) -> None:
        room = self.limits.output_bytes - len(self.output)
        self.output += data[:room]
        if len(data) > room:
            self.ended = Verdict.OUTPUT

    def _drain(self, descriptor: int) -> None:
        """What the program wrote before it ended and is still in the pipe (all writers are gone or going)."""
        os.set_blocking(descriptor, False)
        while self.ended is None:
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            self._wrote(data)

    def _check(self, deadline_s: float) -> None:
        used_bytes, processes = self._tree()
        self.most_processes = max(self.most_processes, processes)
        if used_bytes > self.limits.memory_bytes:
            self.ended = Verdict.MEMORY
        elif time.monotonic() > deadline_s:
            crowded = self.most_processes >= self.limits.processes - 1
            self.ended = Verdict.PROCESSES if crowded else Verdict.WALL_TIME

    def _tree(self) -> tuple[int, int]:
        first = self.status.get("first")
        if first is None:
            return 0, 0
        try:
            below = psutil.Process(first).children(recursive=True)
        except psutil.Error:
            return 0, 0
        used = threads = 0
        for process in below:
            try:
                used += process.memory_info().rss
                threads += process.num_threads()
            except psutil.Error:
                continue
        return used, threads

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End process 1 of the cage (the kernel then ends everything in it) and its keeper, and wait for both."""
        first = self.status.get("first")
        if first is not None and process.poll() is None:
            try:
                os.kill(first, signal.SIGKILL)
                process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
        if process.poll() is None:
            process.kill()
            process.wait()

    def _outcome(self, word: str, wall_s: float) -> Outcome:
        text = self.output.decode("utf-8", "replace")
        if "refused" in self.status or "started" not in self.status:
            why = self.status.get("refused") or f"the keeper ended early: {text[-300:].strip()}"
            raise QualityError(
                f"generated code was not run: this host refuses the sandbox ({why})", stage="quality",
                hint="allow user namespaces (or run as root), on Linux 5.12 or newer; or leave the code task out",
            )  # fmt: skip
        if self.ended is not None:
            return Outcome(self.ended, f"met the limit on {self.ended.value.replace('_', ' ')}", text, wall_s)
        return _judged(int(self.status.get("status", -1)), text, word, wall_s)


def _judged(status: int, text: str, word: str, wall_s: float) -> Outcome:
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 and text.rstrip().endswith(word):
        return Outcome(Verdict.PASSED, "ran to its end", text.rstrip().removesuffix(word), wall_s)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Outcome(Verdict.CPU_TIME, "met the limit on cpu time", text, wall_s)
    if os.WIFSIGNALED(status):
        return Outcome(Verdict.FAILED, f"ended by signal {os.WTERMSIG(status)}", text, wall_s)
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "left before its end")
    for verdict, marks in _TRACES:
        if any(mark in last for mark in marks):
            return Outcome(verdict, last[:300], text, wall_s)
    # Processes that fail together write into each other's tracebacks: the last line may be of any part of one.
    if text.count(_TRACEBACK) > 1 and (crowded := [m for m in _CROWDED if m in text]):
        return Outcome(Verdict.PROCESSES, crowded[0], text, wall_s)
    return Outcome(Verdict.FAILED, last[:300], text, wall_s)
