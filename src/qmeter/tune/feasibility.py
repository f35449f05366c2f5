"""What is learned from evaluations that failed: by rule where the cause is one, by neighbourhood where it is not.

=============================  ==================================================================================
MethodUnsupported,             the method on that parallelism: no knob makes it run
MethodNotApplied
OutOfMemory                    everything that needs at least as much of every kind of memory
anything else                  likelier to fail the nearer it is to what failed, and less where neighbours ran
=============================  ==================================================================================
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmeter import catalog
from qmeter.tune.problem import Seen
from qmeter.tune.space import PARALLEL, Space, features

F64 = NDArray[np.float64]

OF_METHOD = ("MethodUnsupported", "MethodNotApplied")
OF_MEMORY = ("OutOfMemory",)
HUNGRY = ("max_sequences", "token_budget", "max_model_tokens", "kv_cache_gib", "kv_blocks")
"""Knobs of which more takes more memory."""
PRIOR_SUCCESS, PRIOR_WEIGHT, LENGTH = 0.9, 0.5, 0.25


class Feasibility:
    """The chance of each point to run, given what ran and what failed.

    Args:
        prior: chance of each point before anything was measured, shape (points,).
    """

    def __init__(self, space: Space, prior: F64 | None = None):
        self._space = space
        self._prior = np.full(len(space), PRIOR_SUCCESS) if prior is None else prior
        self._numbers, self._kinds = features(space)
        self._methods = np.array([space.method_of(p) for p in space.points], dtype=object)
        self._split = np.array([[int(p.get(a) or 1) for a in PARALLEL] for p in space.points])
        self._needs = self._memory()
        self._ruled = np.zeros(len(space), dtype=bool)
        self._weight = np.zeros(len(space))
        self._ran = np.zeros(len(space))
        self.lessons: list[str] = []

    def tell(self, seen: Seen) -> None:
        """Learn from one evaluation."""
        row = self._space.row[seen.point]
        if seen.failure in OF_METHOD:
            hit = (self._methods == self._methods[row]) & np.all(self._split == self._split[row], axis=1)
            self._rule(hit, f"{self._methods[row]}: {seen.failure}")
        elif seen.failure in OF_MEMORY:
            hit = np.all(self._needs >= self._needs[row] - 1e-9, axis=1)
            self._rule(hit, f"as much memory as {seen.point.label}: {seen.failure}")
        near = np.exp(-((self._numbers - self._numbers[row]) ** 2).sum(axis=1) / (2 * LENGTH**2))
        near *= np.where((self._kinds != self._kinds[row]).any(axis=1), 0.5, 1.0)
        self._weight += near
        self._ran += near * (seen.failure is None or seen.losses is not None)

    def probability(self, rows: NDArray[np.int64]) -> F64:
        """Chance to run of some points. Shape (n,)."""
        chance = (self._ran[rows] + PRIOR_WEIGHT * self._prior[rows]) / (self._weight[rows] + PRIOR_WEIGHT)
        return np.asarray(np.where(self._ruled[rows], 0.0, chance), dtype=np.float64)

    def ruled_out(self, row: int) -> bool:
        """Whether a rule says that the point cannot run."""
        return bool(self._ruled[row])

    def _rule(self, hit: NDArray[np.bool_], why: str) -> None:
        new = int((hit & ~self._ruled).sum())
        self._ruled |= hit
        if new > 1:
            self.lessons.append(f"{new - 1} more points ruled out ({why})")

    def _memory(self) -> F64:
        """What each point asks of memory, each column larger for more. Shape (n, k)."""
        shape, engine = self._space.shape, self._space.engine
        cost = {m: float(catalog.method(m).expected_weight_bytes(shape, engine)) for m in set(self._methods)}
        columns = [np.array([cost[m] for m in self._methods]) / np.maximum(self._split[:, 0] * self._split[:, 1], 1)]
        for name in HUNGRY:
            columns.append(np.array([float(p.get(name) or 0.0) for p in self._space.points]))
        return np.column_stack(columns)
