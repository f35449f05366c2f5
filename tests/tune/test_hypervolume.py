"""GIVEN points and boxes, THEN volumes, expected gains and fronts are those that counting or sampling gives."""

from __future__ import annotations

import numpy as np
import pytest

from qmeter.tune.hypervolume import Partition, front_mask, hypervolume


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_volume_equals_counting_cells(m):
    rng = np.random.default_rng(m)
    for _ in range(20):
        points = rng.integers(0, 6, (int(rng.integers(1, 9)), m)).astype(float)
        grid = np.stack(np.meshgrid(*[np.arange(5) + 0.5] * m, indexing="ij"), axis=-1).reshape(-1, m)
        counted = sum(bool(np.any(np.all(points <= cell, axis=1))) for cell in grid)
        assert hypervolume(points, np.full(m, 5.0), np.zeros(m)) == pytest.approx(counted)


def test_boxes_never_overlap_and_order_does_not_matter():
    rng = np.random.default_rng(5)
    points = rng.random((25, 3))
    volumes = []
    for order in (points, points[::-1]):
        made = Partition(np.ones(3), np.zeros(3))
        for p in order:
            made.add(p)
        inside = rng.random((2000, 3))
        hits = (np.all(inside[:, None] >= made.low, axis=2) & np.all(inside[:, None] < made.high, axis=2)).sum(axis=1)
        assert set(hits) <= {0, 1}
        volumes.append(made.volume)
    assert volumes[0] == pytest.approx(volumes[1])


def test_expected_improvement_equals_sampling():
    rng = np.random.default_rng(2)
    made = Partition(np.ones(3), np.zeros(3) - 2)
    for p in rng.random((12, 3)):
        made.add(p)
    mean, sigma = rng.random((5, 3)) * 0.8, np.full((5, 3), 0.2)
    exact = made.expected_improvement(mean, sigma)
    for i in range(5):
        gains = []
        for z in mean[i] + sigma[i] * rng.standard_normal((4000, 3)):
            edge = np.maximum(made.low, np.maximum(z, made.floor))
            gains.append(np.prod(np.maximum(made.high - edge, 0), axis=1).sum())
        assert exact[i] == pytest.approx(np.mean(gains), rel=0.08, abs=2e-4)


def test_a_dominated_point_takes_nothing_and_equal_points_stay():
    made = Partition(np.ones(2), np.zeros(2))
    assert made.add(np.array([0.2, 0.2])) and not made.add(np.array([0.3, 0.3])) and not made.add(np.array([1.5, 0.0]))
    assert list(front_mask(np.array([[1.0, 2], [1, 2], [2, 1], [2, 2]]))) == [True, True, True, False]
