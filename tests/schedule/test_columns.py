"""GIVEN programs of many slots, WHEN columns are generated, THEN the plan is as good as the whole program's, its bound
is one, and it keeps floors, starts and devices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made import kind, spec_of

from qmeter.schedule.columns import optimise_day, plan_day
from qmeter.schedule.milp import Infeasible, Problem, optimise


def many(seed: int, *, floor: bool, slots: int = 14) -> Problem:
    rng = np.random.default_rng(seed)
    spec = spec_of(fleet={"h200": {"count": 4, "off_power": 40}})
    if not floor:
        spec = spec.model_copy(update={"classes": (spec.classes[0].model_copy(update={"quality": {}}),)})
    kinds = (kind("bf16", (float(rng.uniform(4, 6)),), (80, 230, 270, 300), quality={"score": 0.70}),
             kind("awq-w4a16", (float(rng.uniform(7, 9)),), (80, 180, 215, 240), quality={"score": 0.66}))  # fmt: skip
    mean = rng.uniform(1.0, 12.0, (1, slots))
    before = None if seed % 2 else np.array([1, 0])
    return Problem(spec, kinds, {"h200": 40.0}, mean, mean * 1.1, before)


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_whole_programs_optimum_and_bound(seed: int, floor: bool) -> None:
    problem = many(seed, floor=floor)
    whole, made = optimise(problem, gap=2e-3), optimise_day(problem, gap=2e-3)
    own = whole.energy_j - problem.off_j
    assert made.bound_j <= whole.energy_j + 1e-4 * own
    assert whole.bound_j <= made.energy_j + 1e-4 * own
    assert made.energy_j == pytest.approx(whole.energy_j, abs=0.01 * own) and made.energy_j >= made.bound_j


def test_the_plan_keeps_floor_peak_and_devices() -> None:
    problem = many(2, floor=True, slots=12)
    made = optimise_day(problem)
    capacity = np.array([k.capacity_hz[0] for k in problem.kinds])
    need = (made.shares[:, 0, :] * problem.peak_hz.T / capacity) / problem.spec.headroom
    assert (need <= made.n + 1e-6).all()
    quality = (made.shares[:, 0, :] * problem.mean_hz.T * [0.70, 0.66]).sum() / problem.mean_hz.sum()
    assert 0.685 - 1e-6 <= quality < 0.69
    starts = np.maximum(np.diff(made.n, axis=0), 0).sum(axis=1)
    assert (made.n[:-1].sum(axis=1) + starts <= 4).all()


def test_prices_say_what_quality_is_worth() -> None:
    """More owed is dearer; with plenty banked it is worth nothing."""
    problem = many(2, floor=True, slots=12)
    _, plan = plan_day(problem)
    same, requests = np.ones((1, 12)), float(problem.mean_hz.sum()) * problem.spec.slot
    worth = [plan.prices(0, {(0, "score"): banked * requests}, same)[0, "score"] for banked in (-0.005, 0.0, 0.05)]
    assert worth[0] >= worth[1] > 0 and worth[2] == 0


def test_what_no_fleet_can_hold_is_said() -> None:
    problem = many(1, floor=False)
    with pytest.raises(Infeasible):
        optimise_day(replace(problem, mean_hz=problem.mean_hz * 10, peak_hz=problem.peak_hz * 10))
