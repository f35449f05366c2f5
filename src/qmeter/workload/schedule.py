"""The schedule: every request of a cell, made ahead, the same to the byte for the same seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScheduledRequest:
    """One request: ``prompt`` is text, or token ids where the engine takes them (exact counts)."""

    prompt: str | tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    task: str | None = None
    item: str | None = None


@dataclass(frozen=True)
class Schedule:
    """Requests and when to send them.

    Attributes:
        send_s: intended send times from the load's start, ascending, shape (n,); for a closed loop all NaN:
            ``concurrency`` says how many are kept in flight, requests taken in order.
        requests: the n requests.
        concurrency, think_s: closed loop only.
        law: what the arrivals claim to be, for the client's own test ("poisson", {"rate_hz": 4.0}).
        warmup_s, window_s, drain_s: the phases.
    """

    send_s: NDArray[np.float64]
    requests: tuple[ScheduledRequest, ...]
    law: tuple[str, dict[str, float]]
    warmup_s: float
    window_s: float
    drain_s: float
    concurrency: int | None = None
    think_s: float = 0.0

    def __len__(self) -> int:
        return len(self.requests)
