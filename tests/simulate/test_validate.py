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
