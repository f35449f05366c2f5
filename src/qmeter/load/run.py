"""Driving a load: encode, start the client processes, give them one common start, merge what they saw.

The requests of **one** schedule are dealt to the processes by turns (request i to process i mod P), each sent at
its own absolute time; the merged arrivals are therefore the schedule itself, whatever its law.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import IO, Any

import numpy as np

from qmeter.errors import LoadError
from qmeter.load import wire
from qmeter.load.deadline import REPORT, allowed_s, hung_reason, lost_share
from qmeter.load.http import Origin, RequestEncoder, origin_of, proxy_authorization
from qmeter.load.limits import demand, processes_for
from qmeter.load.merge import merge
from qmeter.load.target import LoadResult, Target
from qmeter.spec.study import ClientSpec
from qmeter.workload.schedule import Schedule

READY_TIMEOUT_S = 60.0
END_S = 10.0
"""How long a killed process may take to be gone. Units: s."""
SPIN_LEAST_S, SPIN_MOST_S, SPIN_SHARE = 50e-6, 150e-6, 0.1
"""A process spins before each send for this share of its mean gap, within these bounds (timers wake late)."""
SPIN_SHARED_S = 10e-6
"""Where processes share a core they hardly spin: it would hold up the others' sends."""
NAP_S, NAP_FROM_HZ = 200e-6, 5000.0
"""From this many token events a second, an open loop with kernel stamps lets its reads gather for so long. A closed
loop does not: its next send waits for the read."""
START_AFTER_S = 0.05
"""The common start lies this long after the last process said that it is ready."""


@dataclass(frozen=True)
class Progress:
    """Where a load stands: requests ``sent``, ``ended`` (of those, ``failed``), of ``total``."""

    sent: int
    ended: int
    failed: int
    total: int


def drive(
    schedule: Schedule,
    target: Target,
    *,
    origin_monotonic_s: float,
    client: ClientSpec,
    on_progress: Callable[[Progress], None] | None = None,
) -> LoadResult:
    """Send a schedule to a server and return every request, every token event and the client's proof.

    Runs in processes of its own, so that what else the caller does (telemetry, a display) does not disturb it; they end
    with the caller. The load starts when all of them are ready. One that has not ended by the schedule's end, the drain
    and the time for its report is ended, and the result is invalid (``client_hung``).

    Args:
        schedule: what to send, and when (or how many at once).
        target: where to.
        origin_monotonic_s: the cell's zero on CLOCK_MONOTONIC; every time in the result counts from it.
        client: processes (0: as many as the load needs) and cores to pin them to.
        on_progress: called about ten times a second from the calling thread.

    Raises:
        LoadError: nothing to send, a wrong target, or a client process that died. A server that is not there is no
            error: its requests end as ``connect_failed``.
        KeyboardInterrupt: a client process ended by an interrupt, of which this process may not have heard yet.
    """
    if not len(schedule):
        raise LoadError("the schedule holds no request", stage="load", hint="raise the rate or the window")
    origin = origin_of(target)
    addresses = _resolve(origin)
    encoder = RequestEncoder(target)
    processes = client.processes or processes_for(schedule)
    processes = max(1, min(processes, len(schedule), schedule.concurrency or len(schedule)))
    with contextlib.ExitStack() as stack:
        fds = [_closing(stack, wire.memory_file(name)) for name in ("payload", "arrays")]
        offsets = wire.write_payloads(fds[0], (encoder.encode(i, r) for i, r in enumerate(schedule.requests)))
        send_ns = np.rint(np.nan_to_num(schedule.send_s) * 1e9).astype(np.int64)
        wire.write_arrays(fds[1], {"offsets": offsets, "send_ns": send_ns})
        task = _task(schedule, target, origin, addresses) | {"payload_fd": fds[0], "arrays_fd": fds[1]}
        workers = [stack.enter_context(_worker(task, k, processes, schedule, target, client)) for k in range(processes)]
        longest_s = allowed_s(schedule, task["give_up_ns"] / 1e9)
        start_ns = _run(workers, len(schedule), on_progress, longest_s)
        shares = [
            lost_share(schedule, k, processes, start_ns) if w.hung else wire.read_arrays(w.result_fd)
            for k, w in enumerate(workers)
        ]
        hung = sum(w.hung for w in workers)
        result = merge(schedule, shares, [w.report or REPORT for w in workers], start_ns, origin_monotonic_s)
    if not hung:
        return result
    failures = (hung_reason(hung, processes, longest_s), *result.proof.failures)
    return replace(result, proof=result.proof.model_copy(update={"failures": failures}))


def _closing(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _resolve(origin: Origin) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(origin.hop_host, origin.hop_port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LoadError(
            f"cannot resolve {origin.hop_host!r}: {error}", stage="load", hint="check the server's or proxy's host name"
        ) from None
    return [(int(family), list(address)) for family, _, _, _, address in found]


def _task(schedule: Schedule, target: Target, origin: Origin, addresses: list[tuple[int, Any]]) -> dict[str, Any]:
    """What every process is told alike. Secrets travel in the payloads and over the pipe, never on a command line."""
    load_s = schedule.warmup_s + schedule.window_s
    open_loop = schedule.concurrency is None
    last_s = float(schedule.send_s[-1]) if open_loop else load_s
    return {
        "parent": os.getpid(),
        "open_loop": open_loop,
        "think_ns": round(schedule.think_s * 1e9),
        "send_until_ns": round(load_s * 1e9),
        "give_up_ns": round((max(last_s, load_s) + schedule.drain_s) * 1e9),
        "stall_ns": round(target.stall_s * 1e9),
        "timeout_ns": round(target.timeout_s * 1e9),
        "keep_alive": target.keep_alive,
        "keep_text": target.keep_text,
        "ca_file": target.ca_file,
        "origin": asdict(origin),
        "addresses": addresses,
        "proxy_authorization": proxy_authorization(target),
    }


def _share(total: int, k: int, parts: int) -> int:
    return total // parts + (k < total % parts)


def _open_ahead(schedule: Schedule, target: Target, k: int, processes: int) -> int:
    if target.open_ahead is not None:
        return _share(target.open_ahead, k, processes)
    if schedule.concurrency is not None:
        return _share(schedule.concurrency, k, processes)
    span_s = float(schedule.send_s[-1] - schedule.send_s[0])
    rate = len(schedule) / span_s if span_s > 0 else len(schedule)
    return min(math.ceil(rate * 0.1 / processes) + 4, 1000)


def _spin_ns(schedule: Schedule, client: ClientSpec, processes: int) -> int:
    cores = len(client.cores) or len(os.sched_getaffinity(0))
    if processes > cores:
        return round(SPIN_SHARED_S * 1e9)
    rate_hz = demand(schedule)[0] / processes
    spin_s = SPIN_SHARE / rate_hz if rate_hz else SPIN_MOST_S
    return round(min(max(spin_s, SPIN_LEAST_S), SPIN_MOST_S) * 1e9)


def _nap_ns(schedule: Schedule, processes: int) -> int:
    return round(NAP_S * 1e9) if demand(schedule)[1] / processes >= NAP_FROM_HZ else 0


class Worker:
    """The parent's side of one client process."""

    def __init__(self, process: subprocess.Popen[bytes], result_fd: int, stderr: IO[bytes]):
        assert process.stdout is not None and process.stdin is not None
        self.process, self.result_fd = process, result_fd
        self.stdout: IO[bytes] = process.stdout
        self._stdin, self._stderr = process.stdin, stderr
        os.set_blocking(self.stdout.fileno(), False)
        self._tail = b""
        self.ready = False
        self.hung = False
        self.progress = (0, 0, 0)
        self.report: dict[str, Any] = {}

    def tell(self, message: dict[str, Any]) -> None:
        """Send one JSON line."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write((json.dumps(message) + "\n").encode())
            self._stdin.flush()

    def listen(self) -> bool:
        """Take what the process said; ``False`` when it will say no more.

        Raises:
            LoadError: it died without a report.
            KeyboardInterrupt: an interrupt ended it.
        """
        piece: bytes | None = self.stdout.read()
        if piece is None:
            return True
        if not piece:
            if not self.report:
                raise self._died()
            return False
        *lines, self._tail = (self._tail + piece).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.ready = self.ready or "ready" in message
            self.progress = tuple(message.get("progress", self.progress))
            if message.get("done"):
                self.report = message
        return True

    def _died(self) -> LoadError | KeyboardInterrupt:
        """Why it died. Ctrl-C goes to the whole process group, and reaches a process that does not ignore it yet (its
        imports take a while) perhaps before ours, or while a thread waits here: that is the run's end, not its own."""
        code = self.process.wait(5)
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        if code == -signal.SIGINT or any(line.startswith(KeyboardInterrupt.__name__) for line in lines):
            return KeyboardInterrupt("it ended a client process")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        why = f": {lines[-1]}" if lines else ""
        return LoadError(
            f"a client process died ({how}){why}", stage="load",
            hint="run again; with signal SIGKILL look for the kernel's out-of-memory killer (dmesg)",
        )  # fmt: skip

    def end(self) -> None:
        """Make sure that the process is gone."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2 if self.report else 0)
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it ends when that lets it
            self.process.wait(END_S)
        self.stdout.close()


@contextlib.contextmanager
def _worker(task: dict[str, Any], k: int, processes: int, schedule: Schedule, target: Target,
            client: ClientSpec) -> Iterator[Worker]:  # fmt: skip
    result_fd = wire.memory_file(f"result-{k}")
    try:
        with tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "qmeter.load.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, pass_fds=(task["payload_fd"], task["arrays_fd"], result_fd), bufsize=0,
            )  # fmt: skip
            worker = Worker(process, result_fd, stderr)
            try:
                worker.tell(task | {
                    "process": k, "processes": processes, "result_fd": result_fd,
                    "concurrency": _share(schedule.concurrency or 0, k, processes),
                    "spin_ns": _spin_ns(schedule, client, processes),
                    "nap_ns": _nap_ns(schedule, processes),
                    "open_ahead": _open_ahead(schedule, target, k, processes),
                    "cores": [client.cores[k % len(client.cores)]] if client.cores else [],
                })  # fmt: skip
                yield worker
            finally:
                worker.end()
    finally:
        os.close(result_fd)


def _run(workers: list[Worker], total: int, on_progress: Callable[[Progress], None] | None, longest_s: float) -> int:
    """Wait until all are ready, start them together, wait until all are done or ``hung``; return the common start."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.stdout, selectors.EVENT_READ, worker)
        until = time.monotonic() + READY_TIMEOUT_S
        while not all(w.ready for w in workers):
            if time.monotonic() > until:
                raise LoadError(f"the client was not ready within {READY_TIMEOUT_S:g} s", stage="load")
            for key, _ in selector.select(0.5):
                key.data.listen()
        start_ns = time.monotonic_ns() + round(START_AFTER_S * 1e9)
        for worker in workers:
            worker.tell({"start_ns": start_ns})
        running, until = len(workers), start_ns / 1e9 + longest_s
        while running and time.monotonic() < until:
            for key, _ in selector.select(0.5):
                if not key.data.listen():
                    selector.unregister(key.fileobj)
                    running -= 1
            if on_progress is not None:
                sums = [sum(w.progress[i] for w in workers) for i in range(3)]
                on_progress(Progress(sums[0], sums[1], sums[2], total))
        for worker in workers:
            worker.hung = not worker.report
    return start_ns
