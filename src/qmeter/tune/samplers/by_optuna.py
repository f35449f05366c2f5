"""Optuna's samplers (NSGA-II, multi-objective TPE, GP with expected hypervolume improvement) behind the seam."""

from __future__ import annotations

from typing import Any

import numpy as np

from qmeter.errors import MissingExtra
from qmeter.tune.problem import Problem, Seen
from qmeter.tune.space import METHOD, Point, Value

TRIES = 200
"""Proposals in a row that were measured before, or cannot be, after which a random new point is taken."""


class _OptunaSampler:
    """Optuna's ask and tell. A point proposed again is told its known result and costs no measurement."""

    def __init__(self, problem: Problem):
        self._problem, self._optuna = problem, _optuna()
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        count = len(problem.objectives)
        self._study = self._optuna.create_study(directions=["minimize"] * count, sampler=self._sampler())
        self._axes = {n: tuple(v) for n, v in problem.space.axes.items() if len(v) > 1}
        self._rng = np.random.default_rng(problem.seed)
        self._waiting: dict[Point, Any] = {}
        self._known: dict[Point, Seen] = {}

    def _sampler(self) -> Any:
        raise NotImplementedError

    def ask(self) -> Point | None:
        """What Optuna proposes, the first that is new and possible."""
        for _ in range(TRIES):
            trial = self._study.ask()
            point = self._point({n: self._suggest(trial, n, v) for n, v in self._axes.items()})
            if point not in self._problem.space.row:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            elif point in self._known:
                self._report(trial, self._known[point])
            elif point not in self._waiting:
                self._waiting[point] = trial
                return point
            else:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return self._new()

    def _new(self) -> Point | None:
        left = [p for p in self._problem.space.points if p not in self._known and p not in self._waiting]
        if not left:
            return None
        point = left[int(self._rng.integers(len(left)))]
        values = point.as_dict()
        self._study.enqueue_trial({n: self._code(n, values[n]) for n in self._axes})
        trial = self._study.ask()
        for name, listed in self._axes.items():
            self._suggest(trial, name, listed)
        self._waiting[point] = trial
        return point

    def tell(self, seen: Seen) -> None:
        """Report to Optuna; repeats of a point it has been told are left out."""
        self._known[seen.point] = seen
        trial = self._waiting.pop(seen.point, None)
        if trial is not None:
            self._report(trial, seen)

    def _report(self, trial: Any, seen: Seen) -> None:
        if seen.losses is None:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            return
        for term, violation in zip(self._problem.limits, seen.violations, strict=True):
            trial.set_constraint(term.key, violation)
        self._study.tell(trial, list(seen.losses))

    def _suggest(self, trial: Any, name: str, values: tuple[Value, ...]) -> Value:
        if _ordered(name, values):
            return values[int(trial.suggest_int(name, 0, len(values) - 1))]
        found: Value = trial.suggest_categorical(name, list(values))
        return found

    def _code(self, name: str, value: Value) -> Value:
        values = self._axes[name]
        return values.index(value) if _ordered(name, values) else value

    def _point(self, chosen: dict[str, Value]) -> Point:
        axes = self._problem.space.axes
        return Point(tuple((n, chosen.get(n, values[0])) for n, values in axes.items()))


def _ordered(name: str, values: tuple[Value, ...]) -> bool:
    return name != METHOD and not any(isinstance(v, bool | str) for v in values)


class TpeSampler(_OptunaSampler):
    """Multi-objective tree-structured Parzen estimator."""

    def _sampler(self) -> Any:
        return self._optuna.samplers.TPESampler(seed=self._problem.seed, multivariate=True)


class NsgaSampler(_OptunaSampler):
    """NSGA-II; the population grows with the budget, since 50 would be all of a small one."""

    def _sampler(self) -> Any:
        size = int(np.clip(self._problem.budget // 6, 8, 50))
        return self._optuna.samplers.NSGAIISampler(seed=self._problem.seed, population_size=size)


class GpSampler(_OptunaSampler):
    """Gaussian processes with expected hypervolume improvement (needs torch: extra ``tune-gp``)."""

    def _sampler(self) -> Any:
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise MissingExtra("tune-gp", "the sampler 'gp'") from error
        return self._optuna.samplers.GPSampler(seed=self._problem.seed)


def _optuna() -> Any:
    import warnings

    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("tune", "the samplers tpe, nsga2 and gp") from error
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
