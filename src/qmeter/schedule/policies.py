"""What the schedule stands beside: static peak, reactive autoscaling, the clairvoyant optimum; and the written plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import lower_is_better
from qmeter.errors import SpecError
from qmeter.schedule.columns import Prices, optimise_day
from qmeter.schedule.day import Day, rate_at
from qmeter.schedule.kinds import Choice
from qmeter.schedule.milp import GAP, Infeasible, Problem, Solution, optimise
from qmeter.schedule.spec import DAY_S, ScheduleSpec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

CONSTANT_NODES = 20_000
LIKE_SLOTS = 4
"""Kinds of slot, by load, that the constant fleet's energy is summed over."""


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
    mean, length_s = _like_slots(spec, day)
    peak = np.repeat(day.peak_hz.max(axis=1, keepdims=True), mean.shape[1], axis=1)
    problem = Problem(spec, choice.kinds, choice.off_w, mean, peak, length_s=length_s, constant=True)
    solution = _asked(spec, problem)
    return Course("static", "static peak", np.zeros(1), solution.n[:1], solution.shares[:1], solution)


def _like_slots(spec: ScheduleSpec, day: Day) -> tuple[F64, F64]:
    """Mean rates and summed lengths of slots of like load, joined, since the constant fleet does the same in all."""
    order = np.argsort((day.mean_hz / day.mean_hz.mean(axis=1, keepdims=True).clip(1e-9)).sum(axis=0))
    parts = np.array_split(order, min(LIKE_SLOTS, spec.slots))
    mean = np.array([day.mean_hz[:, own].mean(axis=1) for own in parts]).T
    return mean, np.array([len(own) * spec.slot for own in parts])


def clairvoyant(spec: ScheduleSpec, choice: Choice, day: Day, guess: Prices | None = None) -> Course:
    """The optimum over the whole day with its true rates. ``guess``: what quality is worth on a day like this one."""
    problem = Problem(spec, choice.kinds, choice.off_w, day.mean_hz, day.peak_hz)
    solution = _asked(spec, problem, guess)
    times = slot_times(spec)
    return Course("clairvoyant", "clairvoyant optimum", times, solution.n, solution.shares, solution, gap=solution.gap)


def planned(spec: ScheduleSpec, choice: Choice, day: Day) -> Course:
    """What can be written down beforehand: the optimum for the rates that the spec expects, with the forecast's margin.

    Only how far five minutes rise above their slot's mean is taken from a drawn day.
    """
    t = (np.arange(spec.slots * 12) + 0.5) * DAY_S / (spec.slots * 12)
    mean = np.array([rate_at(c, t).reshape(spec.slots, 12).mean(axis=1) for c in spec.classes])
    rise = np.median(day.peak_hz / np.maximum(day.mean_hz, 1e-9), axis=1)[:, None]
    margin = math.exp(spec.forecast.margin * spec.forecast.error)
    problem = Problem(spec, choice.kinds, choice.off_w, mean, mean * rise * margin)
    try:
        solution = optimise_day(problem)
    except Infeasible:
        solution = _asked(spec, replace(problem, peak_hz=mean * rise))
    return Course("planned", "planned from the forecast", slot_times(spec), solution.n, solution.shares, solution)


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
                    found.append((optimise_day(problem, 0.01).energy_j, k))
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


def _asked(spec: ScheduleSpec, problem: Problem, guess: Prices | None = None) -> Solution:
    """Solve it, or say which promise the fleet cannot keep, and what would.

    Raises:
        SpecError: with the field and the way out.
    """
    try:
        return optimise(problem, GAP, CONSTANT_NODES) if problem.constant else optimise_day(problem, GAP, guess)
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
