"""The columnar parts of a record: requests, token times, telemetry and the engine's iteration log.

Every time is in seconds on the cell's clock: CLOCK_MONOTONIC minus the cell's origin
(:attr:`qmeter.record.Clock.origin_monotonic_s`), the same for client, sampler and engine of one host.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Str = NDArray[np.object_]


class RequestStatus(StrEnum):
    """How one request ended. Everything but OK counts against goodput; each failure has a name of its own."""

    OK = "ok"
    CONNECT = "connect_failed"
    RESET = "connection_reset"
    EARLY_CLOSE = "early_close"
    STALL = "stalled"
    TIMEOUT = "timeout"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    HTTP_503 = "http_503"
    GARBAGE = "garbage"
    ERROR_EVENT = "error_event"
    CANCELLED = "cancelled"
    UNSENT = "unsent"


class _Columns:
    """Equal-length numpy columns, checked and cast at construction."""

    dtypes: ClassVar[dict[str, Any]]
    later: ClassVar[dict[str, Any]] = {}
    """Columns that older files lack → the value of every row there."""

    def __post_init__(self) -> None:
        lengths = set()
        for f in fields(self):  # type: ignore[arg-type]
            column = np.asarray(getattr(self, f.name), dtype=self.dtypes[f.name])
            object.__setattr__(self, f.name, column)
            lengths.add(len(column))
        if len(lengths) > 1:
            raise ValueError(f"{type(self).__name__}: columns differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self.dtypes))))

    def columns(self) -> dict[str, NDArray[Any]]:
        """Column name → array, in declaration order."""
        return {name: getattr(self, name) for name in self.dtypes}

    @classmethod
    def empty(cls) -> Any:
        """A table with no rows."""
        return cls(**{name: np.empty(0, dtype=dtype) for name, dtype in cls.dtypes.items()})


@dataclass(frozen=True)
class Requests(_Columns):
    """One row a request, in schedule order; row i is request i.

    ``intended_s`` is the scheduled send time, from which every latency counts (no coordinated omission); NaN
    times mean that it never happened. Token counts: ``prompt_tokens_asked``/``output_tokens_asked`` from the
    schedule, ``prompt_tokens``/``output_tokens`` as the server reported (-1: it did not); the client's own
    count is the sum of :class:`Tokens` rows. ``text`` is the generated text where the workload keeps it.
    """

    dtypes: ClassVar[dict[str, Any]] = {
        "intended_s": np.float64, "sent_s": np.float64, "first_token_s": np.float64, "last_token_s": np.float64,
        "end_s": np.float64, "prompt_tokens_asked": np.int32, "output_tokens_asked": np.int32,
        "prompt_tokens": np.int32, "output_tokens": np.int32, "status": np.object_, "http_status": np.int32,
        "finish_reason": np.object_, "task": np.object_, "item": np.object_, "text": np.object_, "error": np.object_,
    }  # fmt: skip

    intended_s: F64
    sent_s: F64
    first_token_s: F64
    last_token_s: F64
    end_s: F64
    prompt_tokens_asked: I32
    output_tokens_asked: I32
    prompt_tokens: I32
    output_tokens: I32
    status: Str
    http_status: I32
    finish_reason: Str
    task: Str
    item: Str
    text: Str
    error: Str


@dataclass(frozen=True)
class Tokens(_Columns):
    """One row a token event, in order of (request, time).

    ``n`` tokens arrived in the event; ``clock`` is 0 for a kernel receive stamp, 1 for a user-space one;
    ``coalesced`` marks events read together with later ones, whose kernel stamp names the read's last segment.
    """

    dtypes: ClassVar[dict[str, Any]] = {
        "request": np.int32, "t_s": np.float64, "n": np.int16, "clock": np.int8, "coalesced": np.bool_,
    }  # fmt: skip

    request: I32
    t_s: F64
    n: NDArray[np.int16]
    clock: NDArray[np.int8]
    coalesced: NDArray[np.bool_]


@dataclass(frozen=True)
class Telemetry(_Columns):
    """Sampled series in long form: one row a reading. A reading that failed has no row (see the series' gap)."""

    dtypes: ClassVar[dict[str, Any]] = {"series": np.object_, "t_s": np.float64, "value": np.float64}

    series: Str
    t_s: F64
    value: F64

    def of(self, name: str) -> tuple[F64, F64]:
        """``(t_s, value)`` of one series, in time order; empty arrays where it has no rows."""
        mask = self.series == name
        order = np.argsort(self.t_s[mask], kind="stable")
        return self.t_s[mask][order], self.value[mask][order]


@dataclass(frozen=True)
class Steps(_Columns):
    """The engine's iteration log: one row a scheduler step; -1 or NaN where the engine does not say.

    ``start_s`` and ``duration_s`` of the step, sequences ``running`` and ``waiting`` after scheduling,
    ``prefill_tokens`` and ``decode_tokens`` batched in it, ``kv_use`` in 0..1 after it. ``replica``: which of the
    engine's data-parallel ranks made it; steps of one replica follow each other, those of several overlap.
    """

    dtypes: ClassVar[dict[str, Any]] = {
        "start_s": np.float64, "duration_s": np.float64, "running": np.int32, "waiting": np.int32,
        "prefill_tokens": np.int32, "decode_tokens": np.int32, "kv_use": np.float64, "replica": np.int16,
    }  # fmt: skip
    later: ClassVar[dict[str, Any]] = {"replica": 0}

    start_s: F64
    duration_s: F64
    running: I32
    waiting: I32
    prefill_tokens: I32
    decode_tokens: I32
    kv_use: F64
    replica: NDArray[np.int16] | None = None

    def __post_init__(self) -> None:
        if self.replica is None:
            object.__setattr__(self, "replica", np.zeros(len(np.asarray(self.start_s)), dtype=np.int16))
        super().__post_init__()


@dataclass(frozen=True)
class CellTables:
    """The four tables of one cell, as the store writes and reads them."""

    requests: Requests
    tokens: Tokens
    telemetry: Telemetry = field(default_factory=Telemetry.empty)
    steps: Steps = field(default_factory=Steps.empty)


TABLES: dict[str, type[_Columns]] = {"requests": Requests, "tokens": Tokens, "telemetry": Telemetry, "steps": Steps}
"""Table name (and Parquet file stem) → type."""
