"""From a spec to the answer: kinds, days, four courses simulated on each day, and what they came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.stats import t_interval
from qmeter.capacity import Precision
from qmeter.errors import SpecError
from qmeter.record import Quantity
from qmeter.schedule import policies
from qmeter.schedule.columns import Prices, optimise_day, plan_day
from qmeter.schedule.day import Day, make_day
from qmeter.schedule.evaluate import Outcome, evaluate
from qmeter.schedule.kinds import Choice, Kind, beaten_by, choose
from qmeter.schedule.milp import Infeasible, Problem
from qmeter.schedule.policies import Course
from qmeter.schedule.rolling import rolling
from qmeter.schedule.spec import DAY_S, ScheduleSpec

F64 = NDArray[np.float64]
NAMES = ("static", "reactive", "schedule", "clairvoyant")
KWH_J = 3.6e6
YESTERDAY = 1000
"""Added to the seed for the day on which capacities are tried."""
PEAK_HOURS_S, CUT, MOST_CUTS = 3 * 3600.0, 0.87, 16


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        days: the simulated days, the first one is drawn. outcomes: policy → one outcome a day, in order of
            :data:`NAMES`.
        plan: what can be written down beforehand: goes into the schedule file.
    """

    spec: ScheduleSpec
    choice: Choice
    days: tuple[Day, ...]
    outcomes: Mapping[str, tuple[Outcome, ...]]
    plan: Course
    seconds: float

    def over_days(self, values: Sequence[float], unit: str) -> Quantity:
        """The mean over the days, with a t interval where there are several."""
        if len(values) < 2:
            return Quantity.of(float(values[0]), unit, n=1, why="one simulated day: no interval (raise days)")
        e = t_interval(values)
        return Quantity.of(e.value, unit, low=e.low, high=e.high, n=e.n)

    def energy_j(self, name: str) -> Quantity:
        """Energy of a day."""
        return self.over_days([o.energy_j for o in self.outcomes[name]], "J")

    def violations(self, name: str) -> Quantity:
        """Share of requests that broke their SLO."""
        return self.over_days([o.violations for o in self.outcomes[name]], "1")

    def saving(self, name: str) -> Quantity:
        """Energy saved over static peak, as a share of it, day by day."""
        pairs = zip(self.outcomes["static"], self.outcomes[name], strict=True)
        return self.over_days([1 - o.energy_j / s.energy_j for s, o in pairs], "1")

    def closed(self, name: str) -> Quantity:
        """Share of the clairvoyant optimum's saving that a policy has, day by day."""
        rows = zip(self.outcomes["static"], self.outcomes["clairvoyant"], self.outcomes[name], strict=True)
        values = [(s.energy_j - o.energy_j) / (s.energy_j - c.energy_j) for s, c, o in rows if s.energy_j > c.energy_j]
        if len(values) < len(self.days):
            return Quantity.unknown("1", "the clairvoyant optimum saves nothing over static peak on some day")
        return self.over_days(values, "1")


def solve(spec: ScheduleSpec, say: Callable[[str], None] = lambda _: None, precision: Precision | None = None
          ) -> Answer:  # fmt: skip
    """Answer a scheduling spec.

    Raises:
        SpecError: what is asked cannot be, with the field and the way out.
    """
    began = time.perf_counter()
    choice = choose(spec, say, precision)
    history = make_day(spec, spec.seed + YESTERDAY, choice.longest_tokens)
    choice, guess = _tried(spec, choice, history, say)
    days: list[Day] = []
    outcomes: dict[str, list[Outcome]] = {name: [] for name in NAMES}
    plan: Course | None = None
    for i in range(spec.days):
        seed = spec.seed + i
        say(f"day {i + 1} of {spec.days}: requests")
        day = make_day(spec, seed, choice.longest_tokens)
        days.append(day)
        plan = plan or policies.planned(spec, choice, day)
        for course in _courses(spec, choice, day, history, guess, seed, say):
            say(f"day {i + 1} of {spec.days}: simulating {course.title} over {len(day):,} requests")
            outcomes[course.name].append(evaluate(spec, choice, day, course))
    assert plan is not None
    made = {name: tuple(found) for name, found in outcomes.items()}
    return Answer(spec, choice, tuple(days), made, plan, time.perf_counter() - began)


def _tried(spec: ScheduleSpec, choice: Choice, seen: Day, say: Callable[[str], None]) -> tuple[Choice, Prices]:
    """The choice with capacities tried on a day before (:func:`_tightened`); kinds that were left out for one that did
    not hold what it promised are tried too."""
    made = choice
    while True:
        found, guess = _tightened(spec, made, seen, say)
        every = (*found.kinds, *found.beaten)
        by = beaten_by(every, spec)[len(found.kinds) :]
        back = tuple(k for k, better in zip(found.beaten, by, strict=True) if better is None)
        if not back:
            break
        made = replace(found, kinds=found.kinds + back, beaten=tuple(k for k in found.beaten if k not in back))
    left = tuple(f"{k.name} is not scheduled: {better.name} is better in all that counts here"
                 for k, better in zip(found.beaten, by, strict=True) if better is not None)  # fmt: skip
    notes = found.notes + left + _cuts(spec, (*choice.kinds, *choice.beaten), found.kinds)
    return replace(found, notes=notes), guess


def _tightened(spec: ScheduleSpec, choice: Choice, seen: Day, say: Callable[[str], None]) -> tuple[Choice, Prices]:
    """The kinds with capacities at which a day like those to come, but none of them, keeps its promises at its peak;
    and what quality is worth on that day.

    A replica's capacity was found with arrivals of its own; the day's classes share replicas, and traces are burstier.
    Only what breaks is cut: where a class breaks its promise, its capacity on the kinds whose share of it does.
    """
    guess = _worth(spec, choice, seen)
    top_s = float(seen.peak_hz.sum(axis=0).argmax()) * spec.slot
    begin_s, end_s = max(top_s - PEAK_HOURS_S / 2, 0.0), min(top_s + PEAK_HOURS_S / 2, DAY_S)
    inside = (seen.at_s >= begin_s) & (seen.at_s < end_s)
    peak = replace(seen, **{k: getattr(seen, k)[inside] for k in ("at_s", "prompt", "output", "group")})
    slots = slice(int(begin_s // spec.slot), max(int(end_s // spec.slot), int(begin_s // spec.slot) + 1))
    made, least = choice, np.array([1.0 - c.slo.percentile for c in spec.classes])
    for _ in range(MOST_CUTS):
        problem = Problem(spec, made.kinds, made.off_w, seen.mean_hz[:, slots], seen.peak_hz[:, slots],
                          price_j=guess)  # fmt: skip
        try:
            solution = optimise_day(problem, 0.01)
        except Infeasible:
            break  # the courses say what is lacking
        at_s = policies.slot_times(spec)[slots]
        at_s[0] = 0.0
        say("simulating the peak of a day before")
        found = evaluate(spec, made, peak, Course("peak", "peak", at_s, solution.n, solution.shares))
        broken = (np.array(found.by_class) > least)[:, None] & (np.nan_to_num(found.by_kind) > least[:, None])
        if not broken.any():
            break
        cut = replace(made, kinds=tuple(k.cut(CUT, broken[:, i]) for i, k in enumerate(made.kinds)))
        try:
            policies.static_peak(spec, cut, seen)
        except SpecError:
            break  # the fleet has no more room: the courses say what breaks
        made = cut
    return made, guess


def _cuts(spec: ScheduleSpec, before: Sequence[Kind], after: Sequence[Kind]) -> tuple[str, ...]:
    """In words, what was cut."""
    was = {k.name: k for k in before}
    return tuple(
        f"{now.name}: {c.name} counts with {now.capacity_hz[i] / was[now.name].capacity_hz[i]:.0%} of the capacity "
        "found before: at a former day's peak its requests broke their SLO"
        for now in after for i, c in enumerate(spec.classes) if now.capacity_hz[i] < was[now.name].capacity_hz[i]
    )  # fmt: skip


def _worth(spec: ScheduleSpec, choice: Choice, day: Day) -> Prices:
    """What quality is worth on a day, from its hours (or its slots, where they are longer)."""
    joined = max(1, round(3600.0 / spec.slot))
    joined = joined if spec.slots % joined == 0 else 1
    parts = (len(spec.classes), spec.slots // joined, joined)
    mean, peak = day.mean_hz.reshape(parts).mean(axis=2), day.peak_hz.reshape(parts).max(axis=2)
    length_s = np.full(parts[1], joined * spec.slot)
    try:
        _, plan = plan_day(Problem(spec, choice.kinds, choice.off_w, mean, peak, length_s=length_s), 0.02)
    except Infeasible:
        return {(c, name): 0.0 for c, one in enumerate(spec.classes) for name in one.quality}
    return plan.prices(0, {}, np.ones(mean.shape))


def _courses(spec: ScheduleSpec, choice: Choice, day: Day, history: Day, guess: Prices, seed: int,
             say: Callable[[str], None]             ) -> list[Course]:  # fmt: skip
    out = []
    makers: dict[str, Callable[[], Course]] = {
        "static peak": lambda: policies.static_peak(spec, choice, day),
        "reactive autoscaling": lambda: policies.reactive(spec, choice, day),
        "rolling schedule": lambda: rolling(spec, choice, day, seed, history, guess),
        "clairvoyant optimum": lambda: policies.clairvoyant(spec, choice, day, guess),
    }
    for title, make in makers.items():
        say(f"optimising: {title}")
        began = time.perf_counter()
        made = make()
        out.append(replace(made, seconds=time.perf_counter() - began))
    return out


@dataclass(frozen=True)
class Timeline:
    """A course by slot, for pictures: replicas of each kind, shape (slots, kinds), and the power that the kinds' curves
    give for the day's mean rates, devices with nothing loaded included, shape (slots,)."""

    at_s: F64
    replicas: F64
    power_w: F64


def timeline(spec: ScheduleSpec, choice: Choice, day: Day, course: Course) -> Timeline:
    """Mean replicas and expected power in each slot."""
    slots = spec.slots
    fine = max(1, round(spec.slot / 60.0))
    at = (np.arange(slots * fine) + 0.5) * DAY_S / (slots * fine)
    row = np.searchsorted(course.at_s, at, side="right") - 1
    n = course.n[row].astype(np.float64)
    slot = (at / spec.slot).astype(np.int64)
    work = np.einsum(
        "tck,kc,ct->tk", course.shares[row], np.array([k.work for k in choice.kinds]), day.mean_hz[:, slot]
    )
    watts = np.zeros(len(at))
    for k, kind in enumerate(choice.kinds):
        load = np.divide(work[:, k], n[:, k], out=np.zeros(len(at)), where=n[:, k] > 0)
        watts += n[:, k] * kind.watts(load)
        watts -= n[:, k] * kind.devices * choice.off_w[kind.device]
    watts += sum(f.count * choice.off_w[name] for name, f in spec.fleet.items())
    replicas = n.reshape(slots, fine, -1).mean(axis=1)
    return Timeline(policies.slot_times(spec), replicas, watts.reshape(slots, fine).mean(axis=1))
