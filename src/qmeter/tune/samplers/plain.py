"""The baselines: random points without replacement, and the grid in order from coarse to fine."""

from __future__ import annotations

import numpy as np

from qmeter.tune.problem import Problem, Seen
from qmeter.tune.space import Point


class RandomSampler:
    """Every point once, in random order."""

    def __init__(self, problem: Problem):
        order = np.random.default_rng(problem.seed).permutation(len(problem.space))
        self._left = [problem.space.points[i] for i in order[::-1]]

    def ask(self) -> Point | None:
        """The next one."""
        return self._left.pop() if self._left else None

    def tell(self, seen: Seen) -> None:
        """Nothing is learned."""


class GridSampler:
    """What a person's grid does: the corners and middles of all axes first, then ever finer grids."""

    def __init__(self, problem: Problem):
        rank = {name: _coarse_to_fine(len(values)) for name, values in problem.space.axes.items()}
        place = {name: {v: rank[name][i] for i, v in enumerate(vs)} for name, vs in problem.space.axes.items()}
        rng = np.random.default_rng(problem.seed)
        ties = rng.random(len(problem.space))

        def level(i: int) -> tuple[int, float]:
            return max(place[name][v] for name, v in problem.space.points[i].values), float(ties[i])

        order = sorted(range(len(problem.space)), key=level)
        self._left = [problem.space.points[i] for i in order[::-1]]

    def ask(self) -> Point | None:
        """The next one."""
        return self._left.pop() if self._left else None

    def tell(self, seen: Seen) -> None:
        """Nothing is learned."""


def _coarse_to_fine(n: int) -> list[int]:
    """Level of each of ``n`` places: 0 the ends, 1 the middle, 2 the middles of the halves, and so on."""
    level = [0] * n
    spans, depth = [(0, n - 1)], 0
    while spans:
        depth += 1
        following = []
        for low, high in spans:
            if high - low > 1:
                middle = (low + high) // 2
                level[middle] = depth
                following += [(low, middle), (middle, high)]
        spans = following
    return level
