"""Ground truth: a server that streams tokens at exact times and logs them, and its log, to judge a client by.

The server is C (``ground_truth.c`` beside this file), compiled on first use with the host's ``cc`` into the user's
cache; where there is no compiler a pure-Python one of the same protocol (:mod:`qmeter.testing.ground_truth_server`)
takes its place and holds about a quarter of the events. Both put token k of a request at ``received + ttft + k * itl``
on CLOCK_MONOTONIC.

The error of a client is its own stamp against this log, so that the server's lateness cancels; :meth:`Log.lateness_s`
states that lateness all the same. How it was checked: docs/client_accuracy.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import LoadError

SOURCE = Path(__file__).with_name("ground_truth.c")
_MAGIC = 0x3154474D51
_REQUEST = np.dtype([("id", "<i8"), ("received", "<i8"), ("read_at", "<i8"), ("first", "<i8"),
                     ("tokens", "<i4"), ("written", "<i4")])  # fmt: skip


@dataclass(frozen=True)
class Log:
    """What the server saw. Times in ns on CLOCK_MONOTONIC.

    Attributes:
        id: number from ``X-Request-Id: qmeter-<n>`` of each request, -1 without one; shape (n,), in order of arrival.
        received_ns: when the request's last segment arrived (kernel stamp); ``read_ns`` when the server read it.
        first: index of each request's first event in ``written_ns``; ``events`` how many it has.
        written_ns: when each event was written; -1: never.
        ttft_ns, gap_ns: the truth asked for: first event after receipt, then each after ``gap_ns``.
        blocked: writes that the client's full receive buffer held up.
    """

    id: NDArray[np.int64]
    received_ns: NDArray[np.int64]
    read_ns: NDArray[np.int64]
    first: NDArray[np.int64]
    events: NDArray[np.int32]
    written_ns: NDArray[np.int64]
    ttft_ns: int
    gap_ns: int
    blocked: int

    def owner(self) -> NDArray[np.int64]:
        """Row of the request that each event belongs to, in the order of ``written_ns``."""
        order = np.argsort(self.first, kind="stable")
        return np.repeat(order, self.events[order])

    def lateness_s(self) -> NDArray[np.float64]:
        """How late each event was written against its deadline. Units: s."""
        row = self.owner()
        index = np.arange(len(row)) - self.first[row]
        late = self.written_ns[: len(row)] - (self.received_ns[row] + self.ttft_ns + index * self.gap_ns)
        return np.asarray(late[self.written_ns[: len(row)] >= 0] / 1e9, np.float64)

    def events_hz(self) -> float:
        """Events a second between the first and the last. Units: 1/s."""
        at = self.written_ns[self.written_ns >= 0]
        return float((len(at) - 1) / ((at.max() - at.min()) / 1e9)) if len(at) > 1 else 0.0


def read_log(data: bytes) -> Log:
    """Parse what ``GET /qmeter/log`` answers.

    Raises:
        LoadError: it is not a log.
    """
    head = np.frombuffer(data[:48].ljust(48, b"\0"), "<i8")
    if head[0] != _MAGIC:
        raise LoadError("the answer is not a ground-truth log")
    n, writes = int(head[1]), int(head[2])
    rows = np.frombuffer(data, _REQUEST, n, 48)
    written = np.frombuffer(data, "<i8", writes, 48 + n * _REQUEST.itemsize)
    return Log(
        id=rows["id"].copy(), received_ns=rows["received"].copy(), read_ns=rows["read_at"].copy(),
        first=rows["first"].copy(), events=rows["tokens"].copy(), written_ns=written.copy(),
        ttft_ns=int(head[3]), gap_ns=int(head[4]), blocked=int(head[5]),
    )  # fmt: skip


def compiled() -> Path | None:
    """The C server's program, compiled now if it was not yet; ``None`` where there is no working compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    digest = hashlib.sha256(SOURCE.read_bytes() + os.uname().machine.encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(cache) if cache else Path.home() / ".cache") / "qmeter"
    program = folder / f"ground_truth-{digest}"
    if program.exists():
        return program
    if compiler is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as build:
            made = Path(build) / "ground_truth"
            subprocess.run([*compiler.split(), "-O2", "-o", str(made), str(SOURCE)], check=True, capture_output=True,
                           timeout=60)  # fmt: skip
            made.replace(program)
    except (OSError, subprocess.SubprocessError):
        return None
    return program


@dataclass(frozen=True)
class GroundTruth:
    """A running ground-truth server. ``kind`` is "c" or "python"."""

    base_url: str
    kind: str
    pid: int

    def log(self) -> Log:
        """Everything since the start or the last :meth:`reset`."""
        with urllib.request.urlopen(f"{self.base_url}/qmeter/log", timeout=60) as answer:
            return read_log(answer.read())

    def reset(self) -> None:
        """Forget the log (only while nothing streams)."""
        urllib.request.urlopen(urllib.request.Request(f"{self.base_url}/qmeter/reset", data=b""), timeout=60).close()


@contextlib.contextmanager
def ground_truth(ttft_s: float = 0.02, itl_s: float = 0.005, *, tokens_per_event: int = 1,
                 cores: tuple[int, ...] = (), prefer: Literal["c", "python"] = "c", port: int = 0
                 ) -> Iterator[GroundTruth]:  # fmt: skip
    """Run the server on loopback; it ends with the block, and with this process.

    Args:
        ttft_s, itl_s: the truth: first token after receipt, then one token each.
        tokens_per_event: tokens in one event; events then come ``tokens_per_event * itl_s`` apart.
        cores: pin it to these.
        prefer: "python" for the pure-Python one even where there is a compiler.
        port: 0 for any.

    Raises:
        LoadError: it did not start.
    """
    program = compiled() if prefer == "c" else None
    command = [str(program)] if program else [sys.executable, "-m", "qmeter.testing.ground_truth_server"]
    numbers = [str(round(ttft_s * 1e9)), str(round(itl_s * 1e9)), str(tokens_per_event), str(port)]
    process = subprocess.Popen([*command, *numbers], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) != 2:
            raise LoadError("the ground-truth server did not start", hint=f"run {' '.join(command)} to see why")
        if cores:
            os.sched_setaffinity(process.pid, cores)
        yield GroundTruth(f"http://127.0.0.1:{int(words[1])}", "c" if program else "python", process.pid)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()
