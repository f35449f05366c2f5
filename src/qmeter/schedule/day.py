"""A day of requests: each class's arrivals and lengths, and the rates that a planner would see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import Drawn, Empirical, LengthLaw
from qmeter.errors import SpecError
from qmeter.schedule.spec import DAY_S, HOURS, ScheduleSpec, TrafficClass
from qmeter.workload.traces import Trace, read_trace

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FINE_S = 300.0
"""Length of the bins in which a slot's highest rate is looked for. Units: s."""


@dataclass(frozen=True)
class Day:
    """All requests of a day, in order of arrival.

    Attributes:
        at_s, prompt, output, group: arrival, lengths in tokens, and class of each request, shape (n,).
        mean_hz: mean rate of each class in each slot, shape (classes, slots).
        peak_hz: its highest rate over five minutes of the slot. fine_hz: its rate in each five minutes.
    """

    at_s: F64
    prompt: I64
    output: I64
    group: I64
    mean_hz: F64
    peak_hz: F64
    fine_hz: F64
    slot_s: float

    def __len__(self) -> int:
        return len(self.at_s)


def lengths_of(c: TrafficClass, longest_tokens: int | None = None) -> LengthLaw:
    """The class's law of lengths: the trace's pairs (those that are not too long), or two laws.

    Raises:
        SpecError: the trace cannot be read.
    """
    if c.trace is None:
        return Drawn(c.prompt_tokens, c.output_tokens)
    trace = _trace(c, longest_tokens)
    return Empirical(tuple(int(p) for p in trace.prompt_tokens), tuple(int(o) for o in trace.output_tokens))


def too_long(c: TrafficClass, longest_tokens: int) -> float:
    """Share of a trace's requests that no engine here accepts; 0 without a trace."""
    if c.trace is None:
        return 0.0
    trace = _trace(c)
    return float((trace.prompt_tokens.astype(np.int64) + trace.output_tokens > longest_tokens).mean())


def make_day(spec: ScheduleSpec, seed: int, longest_tokens: int | None = None) -> Day:
    """The day's requests.

    A class with a trace is a sum of copies of the trace, each shifted round by a random time and repeated over the day,
    thinned to the rate that the shape asks for at each moment: bursts keep their length in time, and each request its
    pair of lengths. The rate is that of the requests left. Without a trace: a Poisson process of that rate.

    Args:
        longest_tokens: requests whose prompt and output together are longer are left out, as an engine refuses them.

    Raises:
        SpecError: a trace cannot be read.
    """
    parts = []
    for i, c in enumerate(spec.classes):
        rng = np.random.default_rng((seed, i))
        at, prompt, output = _traced(c, rng, longest_tokens) if c.trace else _drawn(c, rng)
        keep = np.ones(len(at), dtype=bool) if longest_tokens is None else prompt + output <= longest_tokens
        parts.append((at[keep], prompt[keep], output[keep], np.full(int(keep.sum()), i)))
    at, prompt, output, group = (np.concatenate([p[k] for p in parts]) for k in range(4))
    order = np.argsort(at, kind="stable")
    at, group = at[order], group[order].astype(np.int64)
    mean, peak, fine = _rates(at, group, len(spec.classes), spec.slots)
    return Day(at, prompt[order].astype(np.int64), output[order].astype(np.int64), group, mean, peak, fine, spec.slot)


def rate_at(c: TrafficClass, t_s: F64) -> F64:
    """The class's expected rate at times of the day: its shape, linear between full hours and round midnight. Units:
    1/s."""
    shape = np.asarray([*c.shape, c.shape[0]], dtype=np.float64)
    mean = float(np.mean((shape[1:] + shape[:-1]) / 2))
    return np.asarray(c.rate * np.interp(t_s / 3600.0 % HOURS, np.arange(HOURS + 1), shape) / mean)


def _trace(c: TrafficClass, longest_tokens: int | None = None) -> Trace:
    """The trace without empty requests, and without those that are too long."""
    trace = read_trace(Path(c.trace or ""), c.format)
    keep = (trace.prompt_tokens > 0) & (trace.output_tokens > 0)
    if longest_tokens is not None:
        keep &= trace.prompt_tokens.astype(np.int64) + trace.output_tokens <= longest_tokens
    if keep.sum() < 100:
        raise SpecError(f"{c.trace} has {int(keep.sum())} requests: too few to make a day of",
                        hint="name a longer trace")  # fmt: skip
    return Trace(trace.time_ns[keep], trace.prompt_tokens[keep], trace.output_tokens[keep], None, trace.covered_s)


def _traced(c: TrafficClass, rng: np.random.Generator, longest_tokens: int | None) -> tuple[F64, I64, I64]:
    trace = _trace(c, longest_tokens)
    own_s = trace.time_ns / 1e9
    span = float(own_s[-1]) * len(own_s) / (len(own_s) - 1)
    own_hz = len(own_s) / span
    top = float(rate_at(c, np.arange(0, DAY_S, 60.0)).max())
    copies = max(1, math.ceil(top / own_hz))
    rounds = math.ceil(DAY_S / span) + 1
    times, picks = [], []
    for _ in range(copies):
        shift = rng.uniform(0, span)
        at = np.concatenate([own_s + r * span - shift for r in range(rounds)])
        inside = (at >= 0) & (at < DAY_S)
        keep = inside & (rng.random(len(at)) < rate_at(c, np.clip(at, 0, DAY_S)) / (copies * own_hz))
        times.append(at[keep])
        picks.append(np.tile(np.arange(len(own_s)), rounds)[keep])
    pick = np.concatenate(picks)
    return np.concatenate(times), trace.prompt_tokens[pick].astype(np.int64), trace.output_tokens[pick].astype(np.int64)


def _drawn(c: TrafficClass, rng: np.random.Generator) -> tuple[F64, I64, I64]:
    top = float(rate_at(c, np.arange(0, DAY_S, 60.0)).max())
    at = np.sort(rng.uniform(0, DAY_S, rng.poisson(top * DAY_S)))
    at = at[rng.random(len(at)) < rate_at(c, at) / top]
    prompt, output = lengths_of(c).draw(len(at), rng)
    return at, prompt, output


def _rates(at: F64, group: I64, classes: int, slots: int) -> tuple[F64, F64, F64]:
    slot_s = DAY_S / slots
    bins = max(1, round(slot_s / FINE_S))
    edges = np.linspace(0, DAY_S, slots * bins + 1)
    fine = np.array([np.histogram(at[group == c], edges)[0] for c in range(classes)]) / (slot_s / bins)
    by_slot = fine.reshape(classes, slots, bins)
    return by_slot.mean(axis=2), by_slot.max(axis=2), fine


def forecast(spec: ScheduleSpec, truth: F64, now: int, rng: np.random.Generator) -> F64:
    """Relative forecast made at the start of slot ``now`` for slots ``now``.. : factors on ``truth``, shape like it.

    Each class's log error is a stationary AR(1) series over the slots ahead with standard deviation
    ``forecast.error``; a later forecast draws anew.
    """
    f = spec.forecast
    classes, slots = truth.shape
    ahead = slots - now
    log = np.zeros((classes, slots))
    step = math.sqrt(1 - f.persistence**2)
    for c in range(classes):
        e = rng.standard_normal()
        for h in range(ahead):
            log[c, now + h] = f.error * e
            e = f.persistence * e + step * rng.standard_normal()
    return np.asarray(np.exp(log))
