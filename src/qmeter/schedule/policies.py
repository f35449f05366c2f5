"""Four ways through the day: static peak, reactive autoscaling, the rolling-horizon schedule, the clairvoyant one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import lower_is_better
from qmeter.errors import SpecError
from qmeter.schedule.day import Day, forecast, rate_at
from qmeter.schedule.kinds import Choice, Kind
from qmeter.schedule.milp import GAP, Infeasible, Problem, Solution, optimise
from qmeter.schedule.spec import DAY_S, ScheduleSpec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ROLLING_WHOLE = 3
"""Slots ahead whose replicas the rolling schedule takes whole; later ones may be fractions."""
SEEN_MARGIN = 1.05
"""Corrections inside a slot keep this much room above the load of the last five minutes."""
ROLLING_GAP, ROLLING_NODES = 0.003, 400


@dataclass(frozen=True)
class Course:
    """What a policy did: times at which it changed, replicas from each on, and shares.

    Attributes:
        at_s: ascending, the first 0, shape (m,). Replicas are ready then: their loading began earlier.
        n: replicas of each kind, shape (m, kinds). shares: shape (m, classes, kinds).
        solution: of the optimiser, where the whole course is one.
        seconds: spent optimising. gap: the worst relative optimality gap met.
    """

    name: str
    title: str
    at_s: F64
    n: I64
    shares: F64
    solution: Solution | None = None
    seconds: float = 0.0
    gap: float = 0.0


def slot_times(spec: ScheduleSpec) -> F64:
    """When each slot begins, shape (slots,). Units: s."""
    return np.asarray(np.arange(spec.slots) * spec.slot, dtype=np.float64)


def static_peak(spec: ScheduleSpec, choice: Choice, day: Day) -> Course:
    """The cheapest constant fleet, of any mix of kinds, that holds the day's peak and keeps the floors."""
    peak = np.repeat(day.peak_hz.max(axis=1, keepdims=True), spec.slots, axis=1)
    solution = _asked(spec, Problem(spec, choice.kinds, choice.off_w, day.mean_hz, peak, constant=True))
    return Course("static", "static peak", np.zeros(1), solution.n[:1], solution.shares[:1], solution)


def clairvoyant(spec: ScheduleSpec, choice: Choice, day: Day, gap: float = GAP) -> Course:
    """The optimum over the whole day with its true rates."""
    problem = Problem(spec, choice.kinds, choice.off_w, day.mean_hz, day.peak_hz)
    solution = _asked(spec, problem, gap)
    times = slot_times(spec)
    return Course("clairvoyant", "clairvoyant optimum", times, solution.n, solution.shares, solution, gap=solution.gap)


def planned(spec: ScheduleSpec, choice: Choice, day: Day) -> Course:
    """What can be written down beforehand: the optimum for the rates that the spec expects, with the forecast's margin.

    Only how far five minutes rise above their slot's mean is taken from a drawn day.
    """
    t = (np.arange(spec.slots * 12) + 0.5) * DAY_S / (spec.slots * 12)
    mean = np.array([rate_at(c, t).reshape(spec.slots, 12).mean(axis=1) for c in spec.classes])
    rise = np.median(day.peak_hz / np.maximum(day.mean_hz, 1e-9), axis=1)[:, None]
    problem = Problem(spec, choice.kinds, choice.off_w, mean, mean * rise * _margin(spec))
    try:
        solution = optimise(problem)
    except Infeasible:
        solution = _asked(spec, replace(problem, peak_hz=mean * rise))
    return Course("planned", "planned from the forecast", slot_times(spec), solution.n, solution.shares, solution)


def rolling(spec: ScheduleSpec, choice: Choice, day: Day, seed: int, tick: Callable[[int], None] = lambda _: None
            ) -> Course:  # fmt: skip
    """Each slot: forecast what is left of the day, optimise over it, carry the first slot out, correct its counts.

    The quality already served is banked, so that the floors hold over the day. Capacity is planned for the forecast
    with its margin, and only for what the fleet can hold.
    """
    rng = np.random.default_rng((seed, 77))
    before: I64 | None = None
    banked: dict[tuple[int, str], float] = {}
    at, n, shares, gaps = [], [], [], [0.0]
    horizon = spec.slots if spec.forecast.horizon is None else max(1, math.ceil(spec.forecast.horizon / spec.slot))
    fine = day.fine_hz.shape[1] // spec.slots
    for t in range(spec.slots):
        error = forecast(spec, day.mean_hz, t, rng)
        ahead = slice(t, min(t + horizon, spec.slots))
        mean, peak = day.mean_hz[:, ahead] * error[:, ahead], day.peak_hz[:, ahead] * error[:, ahead]
        solution = _step(spec, choice, mean, peak, _margin(spec), before, banked)
        for since_s, count in _corrected(spec, choice, solution, day.fine_hz[:, t * fine : (t + 1) * fine]):
            at.append(t * spec.slot + since_s)
            n.append(count)
            shares.append(solution.shares[0])
        gaps.append(solution.gap)
        before = n[-1]
        _bank(spec, choice.kinds, banked, day.mean_hz[:, t], solution.shares[0])
        tick(t)
    return Course("schedule", "rolling schedule", np.array(at), np.array(n), np.array(shares), gap=max(gaps))


def _corrected(spec: ScheduleSpec, choice: Choice, solution: Solution, seen_hz: F64) -> list[tuple[float, I64]]:
    """``(seconds into the slot, replicas)``: the plan's count, corrected each five minutes by the load that was seen.

    Up at once (ready after the start's time), down after two looks in a row; shares stay as planned. A kind that serves
    nothing is left as it is.
    """
    kinds, count = choice.kinds, solution.n[0].copy()
    out, low = [(0.0, count.copy())], np.zeros(len(kinds), dtype=np.int64)
    inverse = np.array([[1 / r if r > 0 else 0.0 for r in k.capacity_hz] for k in kinds])
    for look in range(1, seen_hz.shape[1]):
        work = (solution.shares[0] * seen_hz[:, look - 1][:, None] * inverse.T).sum(axis=0)
        want = np.where(work > 0, np.ceil(work * SEEN_MARGIN / spec.headroom), count).astype(np.int64)
        low = np.where(want < count, low + 1, 0)
        new = np.where((want < count) & (low < 2), count, want)
        new = np.where((want < count) & (low >= 2), np.maximum(want, 1), new)
        new = _within(spec, kinds, count, new)
        if (new != count).any():
            wait_s = max((kinds[k].load_s for k in np.flatnonzero(new > count)), default=0.0)
            at_s = look * spec.slot / seen_hz.shape[1] + wait_s
            if at_s < spec.slot and at_s > out[-1][0]:
                out.append((at_s, new.copy()))
                count = new
    return out


def _within(spec: ScheduleSpec, kinds: tuple[Kind, ...], count: I64, new: I64) -> I64:
    """``new`` as far as the devices go: additions that do not fit are left out."""
    for device, fleet in spec.fleet.items():
        own = [k for k, kind in enumerate(kinds) if kind.device == device]
        while sum(int(max(new[k], count[k])) * kinds[k].devices for k in own) > fleet.count:
            added = [k for k in own if new[k] > count[k]]
            if not added:
                break
            new[added[-1]] -= 1
    return new


def _step(spec: ScheduleSpec, choice: Choice, mean: F64, peak: F64, margin: float, before: I64 | None,
          banked: dict[tuple[int, str], float]) -> Solution:  # fmt: skip
    """One decision; where the fleet cannot hold the forecast with its margin, with less of it, down to what it can."""
    top = np.ones(peak.shape)
    for share in (1.0, 0.5, 0.0, -0.1, -0.25, -0.5):
        factor = top * (1 + (margin - 1) * share) if share >= 0 else top * (1 + share)
        problem = Problem(spec, choice.kinds, choice.off_w, np.minimum(mean, peak * factor), peak * factor, before,
                          dict(banked), whole=ROLLING_WHOLE)  # fmt: skip
        try:
            return optimise(problem, ROLLING_GAP, nodes=ROLLING_NODES)
        except Infeasible:
            continue
    raise SpecError("the fleet cannot hold half of the load forecast", hint="raise fleet counts")


def _bank(spec: ScheduleSpec, kinds: tuple[Kind, ...], banked: dict[tuple[int, str], float], mean_hz: F64, shares: F64
          ) -> None:  # fmt: skip
    for c, one in enumerate(spec.classes):
        for name, floor in one.quality.items():
            sign = -1.0 if lower_is_better(name) else 1.0
            served = sum(shares[c, k] * sign * (kind.quality[name] - floor) for k, kind in enumerate(kinds))
            banked[c, name] = banked.get((c, name), 0.0) + float(served * mean_hz[c]) * spec.slot


def _margin(spec: ScheduleSpec) -> float:
    return math.exp(spec.forecast.margin * spec.forecast.error)


def reactive(spec: ScheduleSpec, choice: Choice, day: Day) -> Course:
    """One kind, as an autoscaler runs it: replicas for the load of the interval before, up at once, down after the
    cool-down.

    The kind is the one that needs least energy over the day among those that keep every floor alone; where none does,
    the static fleet's mix is scaled as a whole.
    """
    best = _one_kind(spec, choice, day)
    if best is None:
        return _scaled_mix(spec, choice, day)
    kind = choice.kinds[best]
    step_s, ticks = spec.reactive.interval, round(DAY_S / spec.reactive.interval)
    edges = np.linspace(0, DAY_S, ticks + 1)
    count = spec.fleet[kind.device].count // kind.devices
    work = np.zeros(ticks)
    for c, rate in enumerate(kind.capacity_hz):
        work += np.histogram(day.at_s[day.group == c], edges)[0] / step_s / rate
    want = np.clip(np.ceil(work / spec.reactive.target), 1, count).astype(np.int64)
    hold = max(1, round(spec.reactive.cool_down / step_s))
    lag = math.ceil(kind.load_s / step_s)
    desired = np.array(
        [want[max(0, t - hold) : max(t, 1)].max() for t in range(ticks)]
    )  # known at the interval's start
    n = np.array([desired[max(0, t - lag) : t + 1].min() for t in range(ticks)])  # what was wanted a start ago is ready
    changed = np.flatnonzero(np.diff(n, prepend=-1))
    rows = np.zeros((len(changed), len(choice.kinds)), dtype=np.int64)
    rows[:, best] = n[changed]
    shares = np.zeros((len(changed), len(spec.classes), len(choice.kinds)))
    shares[:, :, best] = 1.0
    return Course(
        "reactive", f"reactive autoscaling of {kind.name}", np.asarray(changed * step_s, dtype=np.float64), rows, shares
    )


def _one_kind(spec: ScheduleSpec, choice: Choice, day: Day) -> int | None:
    """Index of the kind that is cheapest alone, ``None`` where no kind keeps every promise alone."""
    found = []
    for k, kind in enumerate(choice.kinds):
        for one in spec.classes:
            for name, floor in one.quality.items():
                bound = kind.quality[name]
                if bound > floor if lower_is_better(name) else bound < floor:
                    break
            else:
                continue
            break
        else:
            if all(r > 0 for r in kind.capacity_hz):
                try:
                    problem = Problem(spec, (kind,), choice.off_w, day.mean_hz, day.peak_hz)
                    found.append((optimise(problem, 0.02).energy_j, k))
                except Infeasible:
                    continue
    return min(found)[1] if found else None


def _scaled_mix(spec: ScheduleSpec, choice: Choice, day: Day) -> Course:
    """The static fleet scaled to the load of the slot before: rounded up, kind by kind."""
    static = static_peak(spec, choice, day)
    top = float(day.peak_hz.sum(axis=0).max()) * spec.reactive.target
    load = day.peak_hz.sum(axis=0)
    seen = np.concatenate([load[:1], load[:-1]])
    n = np.ceil(static.n[0][None, :] * np.minimum(seen / top, 1.0)[:, None]).astype(np.int64)
    n = np.maximum(n, (static.n[0] > 0).astype(np.int64)[None, :])
    times = slot_times(spec)
    shares = np.repeat(static.shares, spec.slots, axis=0)
    return Course("reactive", "reactive scaling of the static mix", times, n, shares)


def _asked(spec: ScheduleSpec, problem: Problem, gap: float = GAP) -> Solution:
    """Solve it, or say which promise the fleet cannot keep, and what would.

    Raises:
        SpecError: with the field and the way out.
    """
    try:
        return optimise(problem, gap)
    except Infeasible:
        pass
    worst = int(problem.peak_hz.sum(axis=0).argmax())
    alone = replace(problem, mean_hz=problem.mean_hz[:, [worst]], peak_hz=problem.peak_hz[:, [worst]], before=None)
    if not _solvable(_floorless(alone)):
        need = _devices(_floorless(alone))
        name, have = next(iter(spec.fleet)), sum(f.count for f in spec.fleet.values())
        peak = float(problem.peak_hz[:, worst].sum())
        raise SpecError("the fleet is too small for the peak",
                        faults=[(f"fleet.{name}.count", f"{have} devices; the peak of {peak:.1f} requests/s needs "
                                 f"about {need}")],
                        hint="raise the count, loosen the SLO, or lower the rate")  # fmt: skip
    floors = ", ".join(f"classes[{i}].quality.{n}" for i, c in enumerate(spec.classes) for n in c.quality)
    plenty = replace(problem, spec=_with_counts(spec, MANY))
    if _solvable(replace(plenty, mean_hz=plenty.mean_hz[:, :1], peak_hz=plenty.peak_hz[:, :1])):
        raise SpecError("the floors cannot be kept together with the load on this fleet",
                        faults=[(floors, "the methods that reach them are too slow for the peak on this many devices")],
                        hint="lower a floor, or add devices")  # fmt: skip
    text = "they contradict each other: no mix of methods keeps all of them"
    raise SpecError("no plan keeps the floors", faults=[(floors, text)], hint="lower one of them")


MANY = 512
"""Devices that are plenty."""


def _with_counts(spec: ScheduleSpec, count: int) -> ScheduleSpec:
    return spec.model_copy(update={"fleet": {n: f.model_copy(update={"count": count}) for n, f in spec.fleet.items()}})


def _floorless(problem: Problem) -> Problem:
    classes = tuple(c.model_copy(update={"quality": {}}) for c in problem.spec.classes)
    return replace(problem, spec=problem.spec.model_copy(update={"classes": classes}))


def _devices(problem: Problem) -> int:
    """Devices that one slot's peak needs, each class with the kind that serves it with fewest."""
    need = 0.0
    for c in range(len(problem.spec.classes)):
        each = [k.devices / k.capacity_hz[c] for k in problem.kinds if k.capacity_hz[c] > 0]
        need += float(problem.peak_hz[c].max()) * min(each) / problem.spec.headroom
    return math.ceil(need)


def _solvable(problem: Problem) -> bool:
    try:
        optimise(problem, 0.5, nodes=200)
    except Infeasible:
        return False
    return True
