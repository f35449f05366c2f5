"""What a simulation is driven with, and what comes out: plain arrays, one entry a request."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import AnalysisError
from qmeter.simulate.rules import Rules
from qmeter.workload.schedule import PackedRequests, Schedule

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def _none() -> I64:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class SimLoad:
    """Requests for one replica, in the order they reach it.

    Attributes:
        arrival_s: when each reaches the scheduler, ascending, shape (n,); for a closed loop only its length counts.
        prompt, output: tokens, shape (n,), both at least 1.
        unit_tokens: tokens that one prefix unit covers: a multiple of the block size; 0: no prefixes known.
        units: prefix-unit ids of all requests, one after the other: equal ids mean an equal prefix up to there.
        unit_start: where each request's units begin, shape (n + 1,).
        concurrency, think_s: closed loop: requests in flight, and the pause between an end and the next send.
        stop_s: closed loop: no request is sent from then on.
        spacing_s: closed loop: the front end lets requests through one at a time, this far apart.
    """

    arrival_s: F64
    prompt: I64
    output: I64
    unit_tokens: int = 0
    units: I64 = field(default_factory=_none)
    unit_start: I64 = field(default_factory=_none)
    concurrency: int | None = None
    think_s: float = 0.0
    stop_s: float = float("inf")
    spacing_s: float = 0.0

    def __len__(self) -> int:
        return len(self.prompt)

    def check(self, rules: Rules) -> None:
        """Refuse what no run could be right for.

        Raises:
            AnalysisError: arrivals out of order, an empty request, one that can never fit, or units that cut blocks.
        """
        if len(self) and int(min(self.prompt.min(), self.output.min())) < 1:
            raise AnalysisError("every request needs at least one prompt and one output token")
        if self.concurrency is None and np.any(np.diff(self.arrival_s) < 0):
            raise AnalysisError("arrivals must ascend", hint="sort the requests by arrival time")
        longest = int((self.prompt + self.output).max()) if len(self) else 0
        if longest > rules.longest_tokens:
            raise AnalysisError(
                f"a request of {longest} tokens can never run: the replica takes {rules.longest_tokens} at most",
                hint="leave such requests out, or use a deployment with more KV blocks or a longer limit",
            )
        if not rules.chunked_prefill and len(self) and longest > rules.token_budget:
            raise AnalysisError(
                f"without chunked prefill no prompt may exceed the budget of {rules.token_budget} tokens"
            )
        if self.unit_tokens % rules.block_tokens:
            raise AnalysisError(f"a prefix unit of {self.unit_tokens} tokens cuts blocks of {rules.block_tokens}")


def load_of(schedule: Schedule, rules: Rules) -> SimLoad:
    """The load of a study's schedule; with a prefix cache, prompts of token ids are hashed block by block."""
    n = len(schedule)
    prompt, output = _lengths(schedule)
    units, start = _units(schedule, rules.block_tokens) if rules.prefix_cache else (_none(), _none())
    closed = schedule.concurrency is not None
    return SimLoad(
        arrival_s=np.zeros(n) if closed else np.asarray(schedule.send_s, dtype=np.float64),
        prompt=prompt,
        output=output,
        unit_tokens=rules.block_tokens if len(units) else 0,
        units=units,
        unit_start=start,
        concurrency=schedule.concurrency,
        think_s=schedule.think_s,
        stop_s=schedule.warmup_s + schedule.window_s if closed else float("inf"),
    )


def _lengths(schedule: Schedule) -> tuple[I64, I64]:
    """Tokens of every prompt and output; packed requests tell them without being made (a closed loop has thousands)."""
    if isinstance(schedule.requests, PackedRequests):
        prompt, output = schedule.requests.lengths
        return prompt.astype(np.int64), output.astype(np.int64)
    both = [(r.prompt_tokens, r.output_tokens) for r in schedule.requests]
    prompts, outputs = np.array(both, dtype=np.int64).reshape(-1, 2).T
    return np.ascontiguousarray(prompts), np.ascontiguousarray(outputs)


def _units(schedule: Schedule, block_tokens: int) -> tuple[I64, I64]:
    known: dict[tuple[int, object], int] = {}
    units: list[int] = []
    start = [0]
    for request in schedule.requests:
        parent = -1
        ids = request.prompt
        for at in range(0, len(ids) - block_tokens + 1, block_tokens):
            parent = known.setdefault((parent, ids[at : at + block_tokens]), len(known))
            units.append(parent)
        start.append(len(units))
    return np.array(units, dtype=np.int64), np.array(start, dtype=np.int64)


@dataclass(frozen=True)
class Detail:
    """Every token and every step of a run.

    Attributes:
        token_start: where each request's tokens begin in ``token_s``, shape (n + 1,).
        token_s: when each token left the engine, by request.
        step_start_s, step_s: start and duration of each step.
        step_decodes, step_prefill, step_kv, step_pairs: what each step computed.
        step_running, step_waiting, step_used: sequences and held blocks after its scheduling.
        step_out_s: when the front end had sent on all tokens of each step.
        step_work_j: energy of each step's work, beside the power that any running step draws.
        step_clock: its clock, as a share of the full one.
    """

    token_start: I64
    token_s: F64
    step_start_s: F64
    step_s: F64
    step_decodes: I64
    step_prefill: I64
    step_kv: F64
    step_pairs: F64
    step_running: I64
    step_waiting: I64
    step_used: I64
    step_out_s: F64
    step_work_j: F64
    step_clock: F64


@dataclass(frozen=True)
class SimResult:
    """What one replica did. Times in seconds on the load's clock; NaN: it never happened.

    Attributes:
        arrival_s, first_s, end_s: per request: arrival at the front end, and when the engine gave its first and last
            token.
        first_out_s, end_out_s: when the front end had sent these on; the client has them ``output_s`` later.
        preemptions, hit_tokens: per request: times preempted, prompt tokens found in the prefix cache.
        steps: scheduler iterations, each decode step of a batch counted, also where a run was advanced in closed form.
        decode_runs: closed-form runs (0 in the step-by-step mode).
        busy_s: seconds in which a step ran.
        energy_j: energy of the steps alone, without idle time.
        end_of_work_s: when the last step ended.
        marks: energy and busy time up to each time that was asked for.
    """

    arrival_s: F64
    first_s: F64
    end_s: F64
    first_out_s: F64
    end_out_s: F64
    preemptions: I64
    hit_tokens: I64
    steps: int
    decode_runs: int
    busy_s: float
    energy_j: float
    end_of_work_s: float
    detail: Detail | None = None
    marks: tuple[tuple[float, float], ...] = ()
