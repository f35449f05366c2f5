"""How long a load may take at the most, and what is left of a client process that did not end by then.

Every request has its own limits, so a client process always ends by itself: at the schedule's last send or the window's
end, plus the drain, plus the time to parse what it read. One that has not is hung (stopped by a signal, swapped out, a
fault of ours): it is ended, its requests count as unsent, and the result is invalid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.load import wire
from qmeter.load.plan import LoopResult
from qmeter.record import Reason, RequestStatus
from qmeter.workload.schedule import Schedule

REPORT_S, REPORT_TOKEN_S = 60.0, 100e-6
"""Time a process has for its report: a constant, and for each token event that the schedule may bring. Units: s."""

REPORT: dict[str, Any] = {"cpu_share": 0.0, "retried": 0, "client_faults": {}, "reads": 0, "kernel_reads": 0}
"""The closing words of a process that had none."""


def allowed_s(schedule: Schedule, give_up_s: float) -> float:
    """The longest that a load may take from its common start, every report included. Units: s."""
    tokens = sum(request.output_tokens for request in schedule.requests)
    return give_up_s + REPORT_S + REPORT_TOKEN_S * tokens


def lost_share(schedule: Schedule, process: int, processes: int, start_ns: int) -> dict[str, NDArray[Any]]:
    """A hung process's columns: its requests as never sent, no token."""
    mine = np.arange(process, len(schedule), processes)
    never, nothing = np.full(len(mine), -1, np.int64), np.empty(0, np.int64)
    due = never
    if schedule.concurrency is None:
        due = start_ns + np.rint(schedule.send_s[mine] * 1e9).astype(np.int64)
    unknown = np.full(len(mine), -1, np.int32)
    why = "its client process hung and was ended"
    return {
        "request": mine, "intended_ns": due, "dispatched_ns": never, "sent_ns": never, "end_ns": never,
        "http_status": unknown, "prompt_tokens": unknown, "output_tokens": unknown,
        "status": wire.pack_texts([RequestStatus.UNSENT.value] * len(mine)),
        "finish_reason": wire.pack_texts([None] * len(mine)), "text": wire.pack_texts([None] * len(mine)),
        "error": wire.pack_texts([why] * len(mine)),
        "token_request": nothing, "token_t_ns": nothing, "token_n": np.empty(0, np.int32),
        "token_clock": np.empty(0, np.uint8), "token_coalesced": np.empty(0, np.uint8),
        "token_doubt_ns": nothing, "lag_ns": nothing,
        "loop_lag": np.zeros(len(LoopResult([], [], [], [], []).lag_buckets), np.int64),
    }  # fmt: skip


def hung_reason(hung: int, processes: int, after_s: float) -> Reason:
    """Why the result is invalid."""
    return Reason(
        kind="client_hung",
        stage="load",
        message=f"{hung} of {processes} client processes had not ended {after_s:.0f} s after the load began and were "
        "ended: their requests count as unsent",
        hint="measure again; if it comes back, look for what stops processes on this host (memory, debuggers, cgroups)",
    )
