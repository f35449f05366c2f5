"""The rolling schedule: it plans the rest of the day from a forecast, and acts on what it sees, every five minutes.

Once a slot, what is left of the day is optimised for the forecast. That says what quality is worth (the floors'
prices: over the day, promised quality must be bought where it is cheapest). At each look, the next minutes' rates are
estimated from those just seen and the forecast's slope, and the program for them and for the half hour behind them says
which replicas run and who serves what at these prices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import SpecError
from qmeter.schedule.columns import Master, Prices, plan_day
from qmeter.schedule.day import Day, forecast
from qmeter.schedule.kinds import Choice
from qmeter.schedule.milp import Infeasible, Problem, Solution, optimise
from qmeter.schedule.policies import Course
from qmeter.schedule.spec import ScheduleSpec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LAST_SLOTS = 3
"""So near to the day's end floors are kept as constraints: no later slot makes up for them."""
BEHIND_S = 900.0
"""A start must pay off within so much time behind the next look. Units: s."""
SAME = 0.015
"""Rates that differ by less are not planned for anew."""
RESERVE = 0.005
"""Floors are aimed at with so much of the kinds' spread in quality on top: the last look's load is not known either."""
PLAN_GAP = 0.01
LOOK_GAP, LOOK_NODES = 0.002, 200


@dataclass
class _State:
    """What runs, what was served, what it was planned for, what quality is worth."""

    n: I64 | None = None
    shares: F64 | None = None
    banked: dict[tuple[int, str], float] = field(default_factory=dict)
    planned_hz: F64 | None = None
    price_j: dict[tuple[int, str], float] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Seen:
    """How well the next minutes are known: standard deviation of the log error of :func:`nowcast`, shape (classes,),
    found on a day before, and the time for which it holds. Units: s."""

    error: F64
    ahead_s: float


def rolling(spec: ScheduleSpec, choice: Choice, day: Day, seed: int, history: Day,
            guess: Prices | None = None, tick: Callable[[int], None] = lambda _: None) -> Course:  # fmt: skip
    """The day as an online controller goes through it: it knows what has been, and forecasts.

    The quality already served is banked, so that the floors hold over the day. Capacity is planned for the estimate of
    the next minutes with a margin of ``forecast.look_margin`` standard deviations of its own error.

    Args:
        history: a day like this one, on which that error is measured. guess: what quality was worth on it.
    """
    rng = np.random.default_rng((seed, 77))
    known = backtest(spec, choice, history, seed)
    looks = day.fine_hz.shape[1] // spec.slots
    horizon = spec.slots if spec.forecast.horizon is None else max(1, math.ceil(spec.forecast.horizon / spec.slot))
    state = _State()
    told = day.mean_hz * forecast(spec, day.mean_hz, 0, rng)
    rise = np.median(history.peak_hz / np.maximum(history.mean_hz, 1e-9), axis=1)[:, None]
    first, plan = _first(Problem(spec, choice.kinds, choice.off_w, told, told * rise), guess)
    for key, gain in plan.gains.items():
        state.banked[key] = -RESERVE * float(np.ptp(gain)) * plan.total[key]
    state.used = {int(k) for k in np.flatnonzero(first.n.sum(axis=0))}
    at: list[float] = []
    n, shares = [], []
    for t in range(spec.slots):
        told = day.mean_hz * forecast(spec, day.mean_hz, t, rng) if t else told
        for j in range(looks):
            rate = nowcast(spec, day, told, t, j, known.ahead_s)
            if j == 0:
                factor = _mended(spec, told, t, rate) / np.maximum(plan.p.mean_hz, 1e-9)
                state.price_j = plan.prices(t, state.banked, factor, min(t + horizon, spec.slots))
            before, old, wait_s = state.n, state.shares, 0.0
            if _stale(spec, state, rate, last=spec.slots - t <= LAST_SLOTS):
                _look(spec, choice, rate, known, (spec.slots - t - j / looks) * spec.slot, state)
                assert state.n is not None and state.shares is not None
                new = np.zeros(0, dtype=int) if before is None else np.flatnonzero(state.n > before)
                wait_s = max((choice.kinds[k].load_s for k in new), default=0.0)
                ready_s = max((t + j / looks) * spec.slot + wait_s, at[-1] + 1e-3 if at else 0.0)
                at.append(ready_s)
                n.append(state.n)
                shares.append(state.shares)
            assert state.shares is not None
            late = min(wait_s * looks / spec.slot, 1.0) if old is not None else 0.0
            shares_as_served = state.shares if old is None else late * old + (1 - late) * state.shares
            _bank(plan.p, state, shares_as_served, day.fine_hz[:, t * looks + j] * spec.slot / looks)
        tick(t)
    return Course("schedule", "rolling schedule", np.array(at), np.array(n), np.array(shares), gap=first.gap)


def nowcast(spec: ScheduleSpec, day: Day, told: F64, t: int, look: int, ahead_s: float) -> F64:
    """Rates that look ``look`` of slot ``t`` expects from now until its replicas have done their work.

    The rate of the bin just seen, carried on along the slope of the forecast told for this slot and the next (its level
    may be wrong, its slope is less so). Before anything was seen: the forecast. Shape (classes,); units: 1/s.
    """
    looks = day.fine_hz.shape[1] // spec.slots
    bin_s, now = spec.slot / looks, t * looks + look
    least = 1.0 / bin_s  # somebody must be there for the first request after silence
    if now == 0:
        return np.asarray(np.maximum(told[:, 0], least), dtype=np.float64)
    seen = day.fine_hz[:, now - 1]
    after = told[:, min(t + 1, spec.slots - 1)]
    rise = np.log(np.maximum(after, 1e-9) / np.maximum(told[:, t], 1e-9)) * (bin_s + ahead_s) / spec.slot
    carried = seen * np.exp(np.clip(rise, -1.0, 1.0))
    return np.asarray(np.maximum(np.where(seen > 0, carried, told[:, t]), least), dtype=np.float64)


def backtest(spec: ScheduleSpec, choice: Choice, history: Day, seed: int) -> Seen:
    """The error of :func:`nowcast` over another day, with forecasts of the error that the spec gives."""
    rng = np.random.default_rng((seed, 78))
    ahead_s = max(k.load_s for k in choice.kinds)
    looks = history.fine_hz.shape[1] // spec.slots
    later = ahead_s / (spec.slot / looks)
    errors = []
    for t in range(spec.slots):
        told = history.mean_hz * forecast(spec, history.mean_hz, t, rng)
        for j in range(looks):
            now = t * looks + j + min(math.floor(later), history.fine_hz.shape[1])
            ends = [min(now + i, history.fine_hz.shape[1] - 1) for i in (0, 1)]
            part = later - math.floor(later)
            true = history.fine_hz[:, ends[0]] * (1 - part) + history.fine_hz[:, ends[1]] * part
            if t + j:
                guess = nowcast(spec, history, told, t, j, ahead_s)
                errors.append(np.log(np.maximum(true, 1e-9) / np.maximum(guess, 1e-9)))
    kept = np.clip(np.array(errors), -1.0, 1.0)
    return Seen(np.asarray(np.sqrt((kept**2).mean(axis=0))), ahead_s)


def _mended(spec: ScheduleSpec, told: F64, t: int, rate: F64) -> F64:
    """The forecast, moved to the level that is seen: its error now goes on with the persistence that is known of it."""
    off = np.log(np.maximum(rate, 1e-9) / np.maximum(told[:, t], 1e-9))
    fade = spec.forecast.persistence ** np.arange(told.shape[1] - t)
    out = told.copy()
    out[:, t:] = told[:, t:] * np.exp(off[:, None] * fade[None, :])
    return out


def _first(problem: Problem, guess: Prices | None) -> tuple[Solution, Master]:
    """The day as the first forecast has it; where the fleet cannot hold it, as much of the load as it can."""
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        top = problem.peak_hz * share
        try:
            return plan_day(replace(problem, mean_hz=np.minimum(problem.mean_hz, top), peak_hz=top), PLAN_GAP, guess)
        except Infeasible:
            continue
    raise SpecError("the fleet cannot hold half of the load forecast", hint="raise fleet counts")


def _stale(spec: ScheduleSpec, state: _State, rate: F64, *, last: bool) -> bool:
    if state.planned_hz is None or last:
        return True
    return bool(np.any(np.abs(rate / np.maximum(state.planned_hz, 1e-9) - 1) > SAME))


def _look(spec: ScheduleSpec, choice: Choice, rate: F64, known: Seen, left_s: float, state: _State) -> None:
    """Decide what runs from this look on, as if it were to last until a start has paid off."""
    near = left_s <= LAST_SLOTS * spec.slot
    length_s = np.array([left_s if near else min(BEHIND_S, left_s)])
    used = sorted(state.used | ({int(k) for k in np.flatnonzero(state.n)} if state.n is not None else set()))
    margin = np.exp(spec.forecast.look_margin * known.error)
    for share in (1.0, 0.5, 0.0, -0.1, -0.25, -0.5):
        factor = 1 + (margin - 1) * share if share >= 0 else np.full(len(margin), 1 + share)
        peak = (rate * factor)[:, None]
        problem = Problem(spec, choice.kinds, choice.off_w, np.minimum(rate[:, None], peak), peak, state.n,
                          dict(state.banked), length_s=length_s, price_j=None if near else state.price_j)  # fmt: skip
        for kinds in (used, list(range(len(choice.kinds)))):
            try:
                solution = optimise(_only(problem, kinds), LOOK_GAP, nodes=LOOK_NODES)
            except Infeasible:
                continue
            state.n, state.shares = (
                np.zeros(len(choice.kinds), dtype=np.int64),
                np.zeros((len(rate), len(choice.kinds))),
            )
            state.n[kinds], state.shares[:, kinds], state.planned_hz = solution.n[0], solution.shares[0], rate
            return
    raise SpecError("the fleet cannot hold half of the load forecast", hint="raise fleet counts")


def _only(problem: Problem, kinds: list[int]) -> Problem:
    """The program with these kinds alone: those that a plan uses are nearly always enough, and few are quick."""
    before = None if problem.before is None else problem.before[kinds]
    return replace(problem, kinds=tuple(problem.kinds[k] for k in kinds), before=before)


def _bank(problem: Problem, state: _State, shares: F64, requests: F64) -> None:
    """Quality of what was just served, above the floors."""
    for (c, name), gain in problem.gains().items():
        served = float(shares[c] @ gain) * float(requests[c])
        state.banked[c, name] = state.banked.get((c, name), 0.0) + served
