"""GIVEN small fleets, WHEN the optimiser schedules them, THEN it equals exhaustive search and keeps every promise."""

from __future__ import annotations

import numpy as np
import pytest
from made import brute_force, kind, spec_of

from qmeter.schedule.kinds import BANDS
from qmeter.schedule.milp import Infeasible, Problem, optimise


@pytest.mark.parametrize("seed", range(30))
def test_it_equals_exhaustive_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = spec_of(fleet={"h200": {"count": int(rng.integers(2, 5)), "off_power": 40}}, switch_energy=0.0)
    spec = spec.model_copy(update={"classes": (spec.classes[0].model_copy(update={"quality": {}}),), "slot": 1800.0})
    kinds = []
    for name in ("bf16", "fp8")[: int(rng.integers(1, 3))]:
        full = rng.uniform(200, 400)
        power = (80.0, *sorted(rng.uniform(0.5, 0.99, len(BANDS) - 2) * full), full)
        kinds.append(kind(name, (float(rng.uniform(3, 10)),), power, load_j=float(rng.uniform(1e3, 2e5))))
    count = spec.fleet["h200"].count
    most = count * min(k.capacity_hz[0] for k in kinds) * spec.headroom / 1.1
    mean = rng.uniform(0.1, 1.0, (1, 3)) * most
    before = None if seed % 2 else np.array([1] + [0] * (len(kinds) - 1))
    expected = brute_force(spec, tuple(kinds), 40.0, mean, mean * 1.1, before)
    problem = Problem(spec, tuple(kinds), {"h200": 40.0}, mean, mean * 1.1, before)
    if not np.isfinite(expected):
        with pytest.raises(Infeasible):
            optimise(problem)
        return
    solution = optimise(problem, gap=1e-7)
    assert solution.energy_j == pytest.approx(expected, rel=2e-5)


def two() -> tuple:
    fine = kind("bf16", (5.0,), (80, 230, 270, 300), quality={"score": 0.70})
    coarse = kind("awq-w4a16", (9.0,), (80, 180, 215, 240), quality={"score": 0.66})
    return fine, coarse


def test_the_floor_is_averaged_over_requests_of_the_day() -> None:
    spec = spec_of()
    mean = np.array([[2.0, 4.0, 15.0, 6.0]])
    solution = optimise(Problem(spec, two(), {"h200": 40.0}, mean, mean * 1.05))
    quality = (solution.shares[:, 0, :] * mean.T * [0.70, 0.66]).sum() / mean.sum()
    assert quality >= 0.685 - 1e-6
    assert quality < 0.69, "no better than promised, since the finer one costs more"
    assert len({tuple(np.round(s, 3)) for s in solution.shares[:, 0, :]}) > 1, "the method is a scheduled knob"


def test_what_was_served_before_counts_towards_the_floor() -> None:
    spec, mean = spec_of(), np.array([[4.0, 4.0]])
    owed = optimise(Problem(spec, two(), {"h200": 40.0}, mean, mean, banked={(0, "score"): -0.010 * 4 * 3600}))
    saved = optimise(Problem(spec, two(), {"h200": 40.0}, mean, mean, banked={(0, "score"): 0.060 * 4 * 3600}))
    assert owed.shares[:, 0, 0].mean() > 0.7 and saved.shares[:, 0, 0].mean() < 0.01


def test_a_replica_loads_beside_those_that_serve() -> None:
    """On a full fleet no replica can be exchanged for one of another kind."""
    spec = spec_of(fleet={"h200": {"count": 2, "off_power": 40}})
    spec = spec.model_copy(update={"classes": (spec.classes[0].model_copy(update={"quality": {}}),)})
    mean = np.array([[8.0, 12.0]])
    before = np.array([2, 0])
    with pytest.raises(Infeasible):
        optimise(Problem(spec, two(), {"h200": 40.0}, mean, mean, before))


def test_constant_means_constant() -> None:
    spec, mean = spec_of(), np.array([[2.0, 9.0, 4.0]])
    solution = optimise(Problem(spec, two(), {"h200": 40.0}, mean, np.full((1, 3), 9.0), constant=True))
    assert (solution.n == solution.n[0]).all() and np.ptp(solution.shares, axis=0).max() < 1e-6
