"""Errors beside what repeats allow, and which held-out loads reach beyond the others."""

import numpy as np
import pytest

from qmeter.simulate.validate import Comparison, scores


def row(workload, measured, predicted, low=0.0, high=9.0, edge=False):
    return Comparison("d", workload, "m", "s", measured, predicted, low, high, True, edge)


def test_scores_say_what_repeats_allow():
    """GIVEN two runs of a load that differ by 21%, alike to the model THEN no model is nearer than 10%."""
    rows = [row("a", 1.0, 1.1), row("a", 1.21, 1.1), row("b", 1.0, 2.0, edge=True), row("c", 1.0, 1.0, low=2.0)]
    (s,) = scores(rows)
    assert s.floor == pytest.approx(0.1)
    assert s.inner_error == pytest.approx(np.mean([0.1, 1 - 1.1 / 1.21, 0.0]))
    assert s.mean_error == pytest.approx(np.mean([0.1, 1 - 1.1 / 1.21, 1.0, 0.0])) and s.worst == 1.0
    assert s.coverage == 0.75


def test_without_repeats_the_floor_is_unknown():
    (s,) = scores([row("a", 1.0, 1.1, edge=True)])
    assert s.floor is None and s.inner_error is None


def test_what_was_measured_as_nothing_has_no_relative_error_but_counts_where_intervals_do():
    """GIVEN a goodput of 0 predicted as 2, then with an interval that reaches down to 0."""
    (s,) = scores([row("a", 0.0, 2.0, low=1.0), row("b", 0.0, 2.0), row("c", 1.0, 1.5)])
    assert s.cells == 3 and s.mean_error == s.worst == 0.5 and s.coverage == pytest.approx(2 / 3)
    (s,) = scores([row("a", 0.0, 2.0)])
    assert s.mean_error is s.median_error is s.worst is None and s.coverage == 1.0


def test_what_runs_differ_by_is_drawn_evenly_and_with_students_tails():
    """GIVEN 24 draws of a run's factor THEN their middle is near 1, and few cells make wider tails than many."""
    from qmeter.simulate.calibration import _normal, students

    for which in range(3):
        drawn = np.array([_normal(k, which) for k in range(24)])
        assert abs(np.median(drawn)) < 0.25 and 0.8 < drawn.std() < 1.2
    for freedom, known in ((3, 2.353), (4, 2.132), (8, 1.860), (30, 1.697)):
        assert students(1.6449, freedom) == pytest.approx(known, rel=0.02)
        assert students(-1.6449, freedom) == pytest.approx(-known, rel=0.02)
