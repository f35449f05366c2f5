"""The step-by-step mode: one scheduler iteration at a time, in plain Python. Slow; the fast mode must equal it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from qmeter.errors import AnalysisError
from qmeter.simulate import rules as r
from qmeter.simulate.blocks import BlockPool
from qmeter.simulate.clocks import averaged, capped_clock, power_of, saved_share
from qmeter.simulate.load import Detail, SimLoad, SimResult
from qmeter.simulate.steptime import Pipeline, StepModel


@dataclass
class _Sequence:
    """One request as the scheduler sees it."""

    index: int
    prompt: int
    output: int
    hashes: list[Hashable]
    generated: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    decoding: bool = False

    @property
    def tokens(self) -> int:
        """All tokens that it has by now."""
        return self.prompt + self.generated


def simulate_steps(load: SimLoad, rules: r.Rules, model: StepModel) -> SimResult:
    """Run one replica step by step until all requests ended.

    Raises:
        AnalysisError: the load cannot be served by these rules.
    """
    load.check(rules)
    return _Replica(load, rules, model).run()


@dataclass
class _Cap:
    """Power averaged up to ``at_s``, the clock then, and energy of decodes since: :mod:`qmeter.simulate.clocks`."""

    average_w: float = 0.0
    at_s: float = 0.0
    joules: float = 0.0
    last: float = 1.0

    @staticmethod
    def waited(model: StepModel, pipeline: Pipeline, host: float, device: float) -> float:
        """Seconds in which the device waits for the launch of the step about to be launched."""
        begin = max(pipeline.device_s, pipeline.decide_s)
        return max(0.0, pipeline.decide_s + host + model.tail_s - begin - device)

    def clock(self, model: StepModel, pipeline: Pipeline, host: float, device: float, clocked: float,
              work: tuple[int, float, int, float]) -> tuple[float, float]:  # fmt: skip
        """The clock of the step about to be launched, and what the decodes before it saved; of (decodes, KV tokens,
        prefill, pairs)."""
        if not np.isfinite(model.cap_w):
            return 1.0, 0.0
        begin = max(pipeline.device_s, pipeline.decide_s)
        self.average_w = self.average_w or model.idle_w
        idle, saved = max(0.0, pipeline.decide_s - max(pipeline.device_s, self.at_s)), 0.0
        ran = begin - self.at_s - idle
        if ran > 0:
            if self.last < 1 and self.at_s > 0:
                saved = self.joules * saved_share(self.last, ran, model.settle_s)
            self._pass(model, model.busy_w + (self.joules - saved) / ran, ran)
        if idle > 0:
            self._pass(model, model.idle_w, idle)
        least, joules = pipeline.decide_s + host + model.tail_s - begin, model.mixed_energy(*work, 0.0)
        clock = capped_clock(self.average_w, model.cap_w, model.settle_s, device - clocked, clocked, least,
                             model.busy_w, model.waiting_w, joules)  # fmt: skip
        longer = device - clocked + clocked / clock
        seconds = max(longer, least)
        self._pass(model, power_of(clock, longer, seconds, model.busy_w, model.waiting_w, joules), seconds)
        self.at_s, self.joules, self.last = begin + seconds, 0.0, clock
        return clock, saved

    def _pass(self, model: StepModel, power_w: float, seconds: float) -> None:
        self.average_w = averaged(self.average_w, power_w, seconds, model.settle_s)


class _Replica:
    def __init__(self, load: SimLoad, rules: r.Rules, model: StepModel):
        self.load, self.rules, self.model = load, rules, model
        self.pool = BlockPool(rules.usable_blocks, rules.prefix_cache)
        self.waiting: deque[_Sequence] = deque()
        self.running: list[_Sequence] = []
        self.ended: list[_Sequence] = []
        self.now = 0.0
        self.pipeline, self.cap = Pipeline(rules.async_scheduling, model.tail_s), _Cap()
        n = len(load)
        self.arrival = np.array(load.arrival_s, dtype=np.float64)
        self.sent = n if load.concurrency is None else min(n, load.concurrency)
        if load.concurrency is not None:
            self.arrival[:] = np.nan
            self.arrival[: self.sent] = load.spacing_s * np.arange(self.sent)
        self.door, self.passed = self.arrival.copy(), 0
        self.front, self.outputs, self.mixed_steps = 0.0, 0, 0
        self.before, self.out_at, self.out_cost = 0.0, -np.inf, 0.0
        self.seen = 0
        self.tokens: list[list[float]] = [[] for _ in range(n)]
        self.outs: list[list[float]] = [[] for _ in range(n)]
        self.preemptions, self.hits = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.busy, self.energy = 0.0, 0.0
        self.log: list[list[float]] = []

    def run(self) -> SimResult:
        pipeline = self.pipeline
        while True:
            self._see_arrivals(pipeline.decide_s)
            old = [s for s in self.ended if not pipeline.running or s.index not in self.fresh]
            for sequence in old:
                self.pool.release(sequence.blocks)
            self.ended = [s for s in self.ended if s not in old]
            batch, preempted = self._schedule()
            if batch:
                self._execute(batch)
            elif pipeline.running:
                self._see_results(pipeline.drain())
            elif not (self.waiting or self.running or preempted):
                if self.seen >= self.sent:
                    return self._result()
                reached = self.door[self.passed] if self.seen <= self.passed < self.sent else np.inf
                pipeline.decide_s = max(self.now, float(min(self.door[self.seen], reached)))
            elif not preempted:
                raise AnalysisError("the queue's head can never start", hint="report this as a fault")

    fresh: frozenset[int] = frozenset()
    """Requests that ended in the newest step."""
    unseen: tuple[_Sequence, ...] = ()
    """Requests that got a token in the newest step, whose result was not seen yet."""

    def _pass_front(self, until: float) -> None:
        """Requests that have reached the front end by now get through it together, ahead of outputs that came later."""
        each = self.model.input_each_s
        end = self.passed
        while end < self.sent and self.door[end] <= until:
            end += 1
        if end > self.passed:
            first, cost = float(self.door[self.passed]), each * (end - self.passed)
            if first <= self.out_at:
                through = self.before = max(self.before, first) + cost
                self.front = max(through, self.out_at) + self.out_cost
            else:
                through = self.front = max(self.front, first) + cost
            mine = slice(self.passed, end)
            self.door[mine] = np.maximum(self.door[mine] + each, through)
            self.passed = end

    def _see_arrivals(self, until: float) -> None:
        if self.model.input_each_s or self.model.output_seq_s:
            self._pass_front(until)
        while self.seen < self.sent and self.door[self.seen] <= until:
            i = self.seen
            sequence = _Sequence(i, int(self.load.prompt[i]), int(self.load.output[i]), self._hashes(i))
            self.waiting.append(sequence)
            self.seen += 1

    def _hashes(self, i: int) -> list[Hashable]:
        blocks = r.blocks_for(int(self.load.prompt[i] + self.load.output[i]), self.rules.block_tokens)
        shared: list[Hashable] = []
        if self.load.unit_tokens and len(self.load.unit_start):
            ids = self.load.units[self.load.unit_start[i] : self.load.unit_start[i + 1]]
            whole = ids[: int(self.load.prompt[i]) // self.load.unit_tokens]
            inside = self.load.unit_tokens // self.rules.block_tokens
            shared = [(int(u), k) for u in whole for k in range(inside)]
        return [*shared, *(("own", i, k) for k in range(len(shared), blocks))]

    def _schedule(self) -> tuple[list[tuple[_Sequence, int]], bool]:
        if not self.rules.mixed:
            prompts = self._admit(self._running(only_prompts=True)[0], self.rules.token_budget)
            if prompts:
                return prompts, False
        batch, preempted = self._running(only_prompts=False)
        if not preempted and self.rules.mixed:
            budget = self.rules.token_budget - sum(n for _, n in batch)
            batch = self._admit(batch, budget)
        return batch, preempted

    def _running(self, only_prompts: bool) -> tuple[list[tuple[_Sequence, int]], bool]:
        batch: list[tuple[_Sequence, int]] = []
        budget, preempted, at = self.rules.token_budget, False, 0
        while at < len(self.running) and budget > 0:
            sequence = self.running[at]
            at += 1
            if only_prompts and sequence.decoding:
                continue
            tokens = min(sequence.tokens - sequence.computed, budget)
            while not self._allocate(sequence, tokens):
                preempted = True
                victim = self.running.pop()
                self._preempt(victim)
                if victim is sequence:
                    return batch, True
            batch.append((sequence, tokens))
            budget -= tokens
        return batch, preempted

    def _allocate(self, sequence: _Sequence, tokens: int) -> bool:
        size = self.rules.block_tokens
        need = r.blocks_for(sequence.computed + tokens, size) - len(sequence.blocks)
        if need > self.pool.free:
            return False
        sequence.blocks += self.pool.take(need)
        self._name(sequence, sequence.computed + tokens)
        return True

    def _name(self, sequence: _Sequence, computed: int) -> None:
        for k in range(computed // self.rules.block_tokens):
            self.pool.name(sequence.blocks[k], sequence.hashes[k])

    def _preempt(self, victim: _Sequence) -> None:
        self.pool.release(victim.blocks)
        victim.blocks, victim.computed, victim.decoding = [], 0, False
        self.preemptions[victim.index] += 1
        self.waiting.appendleft(victim)

    def _admit(self, batch: list[tuple[_Sequence, int]], budget: int) -> list[tuple[_Sequence, int]]:
        budget -= 0 if self.rules.mixed else sum(n for _, n in batch)
        while self.waiting and budget > 0 and len(self.running) + len(self.ended) < self.rules.max_sequences:
            head = self.waiting[0]
            found = self.pool.hits(head.hashes, r.hit_limit(head.tokens, self.rules.block_tokens))
            computed = len(found) * self.rules.block_tokens
            tokens = r.chunk(head.tokens - computed, budget, self.rules.chunked_prefill)
            idle = self.pool.idle(found)
            if not tokens or not r.admissible(self.rules, head.tokens, len(found), idle, tokens, self.pool.free):
                break
            self.waiting.popleft()
            self.pool.take_found(found)
            head.blocks, head.computed = list(found), computed
            if not head.generated:
                self.hits[head.index] = computed
            if not self._allocate(head, tokens):
                raise AnalysisError("an admitted request has no blocks", hint="report this as a fault")
            self.running.append(head)
            batch.append((head, tokens))
            budget -= tokens
        return batch

    def _execute(self, batch: list[tuple[_Sequence, int]]) -> None:
        decodes = [s for s, _ in batch if s.decoding]
        chunks = [(s, n) for s, n in batch if not s.decoding]
        kv = float(sum(s.computed + 1 for s in decodes))
        prefill = sum(n for _, n in chunks)
        pairs = float(sum(r.chunk_pairs(n, s.computed) for s, n in chunks))
        step, model = len(self.log), self.model
        if chunks:
            noise = float(model.noise_mixed[self.mixed_steps % len(model.noise_mixed)])
            self.mixed_steps += 1
            host = noise * model.mixed_host(len(decodes) + len(chunks))
            scale = 1.0 if model.host_mixed_s else noise
            device = scale * model.mixed_device(len(decodes), kv, prefill, pairs, len(chunks))
            clocked = scale * model.mixed_clocked(len(decodes), prefill, pairs)
            mix = (len(decodes), kv, prefill, pairs)
            clock, saved = self.cap.clock(model, self.pipeline, host, device, clocked, mix)
            device += clocked / clock - clocked
            joules = model.mixed_energy(*mix, 0.0, clock) - saved
            joules -= (model.busy_w - model.waiting_w) * self.cap.waited(model, self.pipeline, host, device)
        else:
            noise = float(model.noise_decode[step % len(model.noise_decode)])
            device, host = noise * model.decode_device(len(decodes), kv), noise * model.decode_host(len(decodes))
            joules = model.decode_energy(len(decodes), kv, 0.0)
            clock = 1.0
            self.cap.joules += joules
        self.energy += joules
        decided = self.pipeline.decide_s
        seen = self.pipeline.launch(host, device)
        if self.rules.async_scheduling and seen is not None:
            self._see_results(seen)
        self.outputs = len(decodes) + len(chunks)
        used = self.pool.blocks - self.pool.free
        start = max(decided, self.now)
        counts = (len(self.running), len(self.waiting), used)
        self.log.append([start, 0.0, len(decodes), prefill, kv, pairs, *counts, 0.0, joules, clock])
        self._finish(batch)
        if not self.rules.async_scheduling and seen is not None:
            self._see_results(seen)

    def _see_results(self, at_s: float) -> None:
        """The newest step's tokens are out, and its time is known."""
        row = self.log[-1]
        row[1] = at_s - row[0]
        self.now = at_s
        self.busy += row[1]
        self.energy += self.model.busy_w * row[1]
        self.before, self.out_at, self.out_cost = self.front, at_s, self.model.output_seq_s * self.outputs
        self.front = row[9] = max(self.front, at_s) + self.out_cost
        for sequence in self.unseen:
            self.tokens[sequence.index].append(at_s)
            self.outs[sequence.index].append(self.front)
        for _ in self.fresh:
            self._send_next()
        self.unseen = ()

    def _finish(self, batch: list[tuple[_Sequence, int]]) -> None:
        ended, got = [], []
        for sequence, tokens in batch:
            sequence.computed += tokens
            if sequence.computed < sequence.tokens:
                continue
            sequence.generated += 1
            sequence.decoding = True
            got.append(sequence)
            if sequence.generated == sequence.output:
                ended.append(sequence)
        for sequence in ended:
            self.running.remove(sequence)
        self.ended += ended
        self.fresh, self.unseen = frozenset(s.index for s in ended), tuple(got)

    def _send_next(self) -> None:
        at = self.front + self.load.think_s
        if self.load.concurrency is not None and self.sent < len(self.load) and at < self.load.stop_s:
            at = max(at, float(self.arrival[self.sent - 1]) + self.load.spacing_s)
            self.arrival[self.sent] = self.door[self.sent] = at
            self.sent += 1

    def _result(self) -> SimResult:
        counts = [len(t) for t in self.tokens]
        start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        flat = np.array([t for own in self.tokens for t in own], dtype=np.float64)
        nan = float("nan")
        log = np.array(self.log, dtype=np.float64).reshape(-1, 12)
        whole = log.astype(np.int64)
        detail = Detail(
            start, flat, step_start_s=log[:, 0], step_s=log[:, 1], step_decodes=whole[:, 2], step_prefill=whole[:, 3],
            step_kv=log[:, 4], step_pairs=log[:, 5], step_running=whole[:, 6], step_waiting=whole[:, 7],
            step_used=whole[:, 8], step_out_s=log[:, 9],
            step_work_j=log[:, 10], step_clock=log[:, 11],
        )  # fmt: skip
        return SimResult(
            arrival_s=self.arrival,
            first_s=np.array([t[0] if t else nan for t in self.tokens], dtype=np.float64),
            end_s=np.array([t[-1] if t else nan for t in self.tokens], dtype=np.float64),
            first_out_s=np.array([t[0] if t else nan for t in self.outs], dtype=np.float64),
            end_out_s=np.array([t[-1] if t else nan for t in self.outs], dtype=np.float64),
            preemptions=self.preemptions,
            hit_tokens=self.hits,
            steps=len(self.log),
            decode_runs=0,
            busy_s=self.busy,
            energy_j=self.energy,
            end_of_work_s=self.now,
            detail=detail,
        )
