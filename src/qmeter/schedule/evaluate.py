"""A course through the day, simulated whole: energy, broken promises, quality as served, power over the day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.schedule.day import Day
from qmeter.schedule.kinds import Choice, Kind
from qmeter.schedule.policies import Course
from qmeter.schedule.spec import DAY_S, ScheduleSpec
from qmeter.simulate.fleet import Change, Fleet, FleetEvent, FleetResult, ReplicaKind, run_fleet
from qmeter.simulate.load import SimLoad

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, fill [0, 1) evenly at every length: shares hold over short stretches too."""


@dataclass(frozen=True)
class Outcome:
    """What a course came to over the day.

    Attributes:
        energy_j: all devices of the fleet: steps, idle, loading, and those with nothing loaded. ``load_j``,
            ``off_j``, ``idle_j``: parts of it.
        violations: share of all requests that broke their class's SLO; ``by_class`` of each class's; ``by_kind`` of
            those of each class that each kind served, shape (classes, kinds), ``nan`` where it served none.
        quality: (class, metric) → mean over the class's requests, of the intervals' worse ends.
        starts: replicas started after the first ones. lost: requests that nobody served.
        served: share of requests by kind.
    """

    course: Course
    energy_j: float
    load_j: float
    off_j: float
    idle_j: float
    violations: float
    by_class: tuple[float, ...]
    by_kind: F64
    quality: Mapping[tuple[str, str], float]
    starts: int
    lost: int
    served: tuple[float, ...]
    ttft_p99_s: float
    tpot_p99_s: float


def evaluate(spec: ScheduleSpec, choice: Choice, day: Day, course: Course) -> Outcome:
    """Simulate the day with the course's starts and stops, every request routed by its shares."""
    kinds = choice.kinds
    late_s = max(k.offer.calibration.input_s for k in kinds)
    kind_of = routed(course, day, len(kinds), late_s)
    fleet = _fleet(kinds, course)
    input_s = np.array([k.offer.calibration.input_s for k in kinds])[kind_of]
    arrival = _awaited(course, day, kind_of, day.at_s + input_s, late_s)
    order = np.argsort(arrival, kind="stable")
    load = SimLoad(arrival[order], day.prompt[order], day.output[order])
    result = run_fleet(fleet, load, kind_of[order])
    first, end = np.empty(len(day)), np.empty(len(day))
    first[order], end[order] = result.first_out_s, result.end_out_s
    out_s = np.array([k.offer.calibration.output_s for k in kinds])[kind_of]
    ttft = first + out_s - day.at_s
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(day.output > 1, (end - first) / (day.output - 1), 0.0)
        total = end + out_s - day.at_s
    broken = _broken(spec, day, ttft, tpot, total)
    load_j, idle_j, off_j, energy = _energy(spec, choice, fleet, result)
    classes = range(len(spec.classes))
    starts = sum(1 for e in fleet.events if e.change is Change.START)
    return Outcome(
        course, energy, load_j, off_j, idle_j, float(broken.mean()),
        tuple(float(broken[day.group == c].mean()) if (day.group == c).any() else 0.0 for c in classes),
        _by_kind(broken, day.group, kind_of, len(spec.classes), len(kinds)),
        _quality(spec, kinds, day, kind_of), starts, int(np.isnan(end).sum()),
        tuple(float((kind_of == k).mean()) for k in range(len(kinds))),
        float(np.nanquantile(ttft, 0.99)), float(np.nanquantile(tpot, 0.99)),
    )  # fmt: skip


def _awaited(course: Course, day: Day, kind_of: I64, arrival_s: F64, late_s: float) -> F64:
    """Arrivals, where a kind's first replica is ready only milliseconds after them: then, as a router would wait."""
    row = np.searchsorted(course.at_s, day.at_s + late_s, side="right") - 1
    fresh = (row > 0) & (course.n[np.maximum(row - 1, 0), kind_of] == 0)
    return np.where(fresh, np.maximum(arrival_s, course.at_s[row] + 1e-6), arrival_s)


def routed(course: Course, day: Day, kinds: int, late_s: float = 0.0) -> I64:
    """The kind that serves each request: the shares in force when it arrives (``late_s`` after it was sent), spread
    evenly within each class."""
    row = np.searchsorted(course.at_s, day.at_s + late_s, side="right") - 1
    kind_of = np.zeros(len(day), dtype=np.int64)
    for c in range(course.shares.shape[1]):
        own = np.flatnonzero(day.group == c)
        point = np.arange(1, len(own) + 1) * GOLDEN % 1.0
        edges = np.cumsum(course.shares[:, c, :], axis=1)[row[own]]
        kind_of[own] = np.minimum((point[:, None] >= edges).sum(axis=1), kinds - 1)
    up = course.n[row, kind_of]
    if np.any(up == 0):  # a share rounded to nothing: the kind with most replicas takes it
        lost = np.flatnonzero(up == 0)
        kind_of[lost] = course.n[row[lost]].argmax(axis=1)
    return kind_of


def _fleet(kinds: tuple[Kind, ...], course: Course) -> Fleet:
    most = course.n.max(axis=0)
    replicas = tuple(int(k) for k in np.repeat(np.arange(len(kinds)), most))
    number = np.concatenate([np.arange(m) for m in most]) if len(replicas) else np.zeros(0, dtype=np.int64)
    up = [bool(course.n[0, k] > i) for k, i in zip(replicas, number, strict=True)]
    events = []
    for r, (k, i) in enumerate(zip(replicas, number, strict=True)):
        here, free_s = course.n[:, k] > i, 0.0
        for m in range(1, len(here)):
            if here[m] and not here[m - 1]:
                begin = max(float(course.at_s[m]) - kinds[k].load_s, free_s)
                events.append(FleetEvent(begin, r, Change.START))
            elif here[m - 1] and not here[m]:
                free_s = float(course.at_s[m]) + 1e-3
                events.append(FleetEvent(float(course.at_s[m]), r, Change.STOP))
    made = tuple(
        ReplicaKind(k.name, k.offer.calibration.scheduler(), k.offer.calibration.step_model(seed=i), k.load_s,
                    k.load_j / max(k.load_s, 1e-9))
        for i, k in enumerate(kinds)
    )  # fmt: skip
    serves = tuple(frozenset({k}) for k in replicas)
    return Fleet(made, replicas, serves, "least-loaded", tuple(up), tuple(events))


def _broken(spec: ScheduleSpec, day: Day, ttft: F64, tpot: F64, total: F64) -> NDArray[np.bool_]:
    broken = np.isnan(total)
    for c, one in enumerate(spec.classes):
        own = day.group == c
        for limit, value in ((one.slo.ttft, ttft), (one.slo.tpot, tpot), (one.slo.e2e, total)):
            if limit is not None:
                broken |= own & (value > limit)
    return broken


def _by_kind(broken: NDArray[np.bool_], group: I64, kind_of: I64, classes: int, kinds: int) -> F64:
    cell = group * kinds + kind_of
    served = np.bincount(cell, minlength=classes * kinds)
    with np.errstate(invalid="ignore"):
        share = np.bincount(cell, weights=broken, minlength=classes * kinds) / served
    return share.reshape(classes, kinds)


def _energy(spec: ScheduleSpec, choice: Choice, fleet: Fleet, result: FleetResult) -> tuple[float, float, float, float]:
    """Joules of loading, idle, empty devices, and in all. The day is 24 h: idle beyond it is not counted."""
    end = max(DAY_S, result.end_of_work_s)
    off = 0.0
    for name, devices in spec.fleet.items():
        up = sum(
            float(result.up_s[r]) * choice.kinds[k].devices
            for r, k in enumerate(fleet.replicas)
            if choice.kinds[k].device == name
        )
        off += choice.off_w[name] * max(devices.count * end - up, 0.0)
    load, idle = float(result.load_energy_j.sum()), float(result.idle_energy_j.sum())
    return load, idle, off, result.energy_j + off


def _quality(spec: ScheduleSpec, kinds: tuple[Kind, ...], day: Day, kind_of: I64) -> dict[tuple[str, str], float]:
    out = {}
    for c, one in enumerate(spec.classes):
        own = kind_of[day.group == c]
        for name in one.quality:
            value = np.array([k.quality[name] for k in kinds])
            out[one.name, name] = float(value[own].mean()) if len(own) else float("nan")
    return out
