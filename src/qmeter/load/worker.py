"""One client process: ``python -m qmeter.load.worker``, started and fed by :mod:`qmeter.load.run`.

It reads one JSON line from stdin, opens its sockets, says ``{"ready": …}``, waits for the common start, runs its share
of the schedule, parses, leaves the arrays in its memory file and says ``{"done": …}``. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import ssl
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.load import wire
from qmeter.load.connection import Route
from qmeter.load.http import Origin
from qmeter.load.loop import Loop
from qmeter.load.parse import Parsed, StampStatistics, parse_spool
from qmeter.load.plan import LoopPlan, LoopResult
from qmeter.load.spool import Spool
from qmeter.load.stamps import StampKeeper

_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29


def main() -> None:
    """Run one share of a load, as told on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends us
    task = json.loads(sys.stdin.readline())
    _settle_in(task["cores"], task["parent"])
    arrays = wire.read_arrays(task["arrays_fd"])
    payloads = wire.map_payloads(task["payload_fd"], arrays["offsets"])
    mine = np.arange(task["process"], len(arrays["offsets"]) - 1, task["processes"])
    keeper = StampKeeper()
    kernel_stamps = keeper.wait()
    spool = Spool()
    progress = Progress()
    if not kernel_stamps:
        task["nap_ns"] = 0  # a late read would be a late stamp
    loop = Loop(_plan(task, arrays, payloads, mine), _route(task), spool, watch_fd=0, on_progress=progress)
    ready = loop.warm()
    gc.collect()
    gc.freeze()
    gc.disable()
    with RealTime() as real_time:  # from here, so that the start itself is not missed on a busy host
        _say({"ready": ready})
        line = sys.stdin.readline()
        if not line:
            return
        start_ns = json.loads(line)["start_ns"]
        progress.real_time = real_time
        before_s, began_ns = time.process_time(), time.monotonic_ns()
        result = loop.run(start_ns)
    cpu_s, length_s = time.process_time() - before_s, (time.monotonic_ns() - began_ns) / 1e9
    if loop.orphaned:
        return
    parsed, stamps = parse_spool(spool, loop.anchors, result.outcome, result.errors, keep_text=task["keep_text"],
                                 sent_ns=result.sent_ns)  # fmt: skip
    spool.close()
    keeper.close()
    wire.write_arrays(task["result_fd"], _columns(mine, result, parsed, stamps))
    busy = max(cpu_s - result.idle_spin_ns / 1e9, 0.0) / max(length_s, 1e-9)
    _say({"done": True, "cpu_share": busy, "retried": result.retried, "client_faults": result.client_faults,
          "reads": stamps.reads, "kernel_reads": stamps.kernel})  # fmt: skip


def _say(message: dict[str, Any]) -> None:
    os.write(1, (json.dumps(message) + "\n").encode())


class RealTime:
    """The lowest real-time priority while the loop runs: it wakes on time on a host that the engine keeps busy.

    Few hosts allow it without privileges; without it, the proof shows the lateness that results. A loop that hardly
    ever sleeps leaves it at once, since it would keep the kernel's own threads from its core.
    """

    MOST_CPU = 0.9
    """Left after two looks in a row at which the process used more of its core than this."""

    def __enter__(self) -> RealTime:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        self._at_ns, self._cpu_ns, self._hot = time.monotonic_ns(), time.process_time_ns(), 0
        return self

    def look(self) -> None:
        """Note how busy the process was since the last look."""
        at_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
        busy = (cpu_ns - self._cpu_ns) / max(at_ns - self._at_ns, 1)
        self._hot = self._hot + 1 if busy > self.MOST_CPU else 0
        self._at_ns, self._cpu_ns = at_ns, cpu_ns
        if self._hot == 2:
            self._leave()

    def __exit__(self, *_: object) -> None:
        self._leave()

    @staticmethod
    def _leave() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Progress:
    """Says how far the load is, and looks after the priority, about ten times a second."""

    real_time: RealTime | None = None

    def __call__(self, sent: int, ended: int, failed: int) -> None:
        """Called by the loop."""
        if self.real_time is not None:
            self.real_time.look()
        with contextlib.suppress(OSError):
            os.write(1, b'{"progress": [%d, %d, %d]}\n' % (sent, ended, failed))


def _settle_in(cores: list[int], parent: int) -> None:
    """Die with the parent, wake on time, and be allowed many sockets; each where the host lets us."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")
    if cores:
        os.sched_setaffinity(0, cores)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _plan(task: dict[str, Any], arrays: dict[str, NDArray[Any]], payloads: wire.Payloads,
          mine: NDArray[np.int64]) -> LoopPlan:  # fmt: skip
    numbers = mine.tolist()
    return LoopPlan(
        payload=lambda i: payloads[numbers[i]],
        count=len(numbers),
        send_ns=arrays["send_ns"][mine].tolist() if task["open_loop"] else None,
        concurrency=task["concurrency"],
        think_ns=task["think_ns"],
        send_until_ns=task["send_until_ns"],
        give_up_ns=task["give_up_ns"],
        stall_ns=task["stall_ns"],
        timeout_ns=task["timeout_ns"],
        open_ahead=task["open_ahead"],
        spin_ns=task["spin_ns"],
        nap_ns=task["nap_ns"],
        keep_alive=task["keep_alive"],
    )


def _route(task: dict[str, Any]) -> Route:
    origin = Origin(**task["origin"])
    tls = None
    if origin.tls:
        tls = ssl.create_default_context()
        tls.set_alpn_protocols(["http/1.1"])
        if task["ca_file"]:
            tls.load_verify_locations(cafile=task["ca_file"])
    addresses = tuple((family, tuple(address)) for family, address in task["addresses"])
    return Route(addresses, origin, tls, task["proxy_authorization"])


def _columns(mine: NDArray[np.int64], result: LoopResult, parsed: list[Parsed],
             stamps: StampStatistics) -> dict[str, NDArray[Any]]:  # fmt: skip
    tokens = [np.frombuffer(p.t_ns, np.int64) if len(p.t_ns) else np.empty(0, np.int64) for p in parsed]
    lengths = np.fromiter((len(t) for t in tokens), np.int64, len(tokens))
    join = np.concatenate
    empty = [np.empty(0, np.int64)]
    return {
        "request": mine,
        "intended_ns": np.asarray(result.intended_ns, np.int64),
        "dispatched_ns": np.asarray(result.dispatched_ns, np.int64),
        "sent_ns": np.asarray(result.sent_ns, np.int64),
        "end_ns": np.asarray(result.end_ns, np.int64),
        "http_status": np.asarray([p.http_status for p in parsed], np.int32),
        "prompt_tokens": np.asarray([p.prompt_tokens for p in parsed], np.int32),
        "output_tokens": np.asarray([p.output_tokens for p in parsed], np.int32),
        "status": wire.pack_texts(p.status.value for p in parsed),
        "finish_reason": wire.pack_texts(p.finish_reason for p in parsed),
        "text": wire.pack_texts(p.text for p in parsed),
        "error": wire.pack_texts(p.error for p in parsed),
        "token_request": np.repeat(mine, lengths),
        "token_t_ns": join(tokens or empty),
        "token_n": join([np.frombuffer(p.n, np.int32) if len(p.n) else np.empty(0, np.int32) for p in parsed] or empty),
        "token_clock": np.frombuffer(b"".join(p.user_clock for p in parsed), np.uint8),
        "token_coalesced": np.frombuffer(b"".join(p.coalesced for p in parsed), np.uint8),
        "token_doubt_ns": join(
            [np.frombuffer(p.doubt_ns, np.int64) if len(p.t_ns) else empty[0] for p in parsed] or empty
        ),
        "lag_ns": stamps.lag_ns,
        "loop_lag": np.asarray(result.lag_buckets, np.int64),
    }


if __name__ == "__main__":
    main()
