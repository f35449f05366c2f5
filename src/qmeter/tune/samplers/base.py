"""The seam that every search hides behind, and the table of them."""

from __future__ import annotations

from typing import Protocol

from qmeter.registry import Registry
from qmeter.tune.problem import Problem, Seen
from qmeter.tune.space import Point


class Sampler(Protocol):
    """Proposes points and learns what they showed. Made by calling its class with a :class:`Problem`.

    It must be the same for the same problem and the same calls: a search that was killed is brought back by asking and
    telling again what its journal holds.
    """

    def ask(self) -> Point | None:
        """The next point to measure, one not asked for before; ``None`` where none is left."""
        ...

    def tell(self, seen: Seen) -> None:
        """What a measurement of a point showed; several of one point are repeats."""
        ...


SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    {
        "informed": "qmeter.tune.samplers.informed:InformedSampler",
        "ehvi": "qmeter.tune.samplers.informed:BlackBoxSampler",
        "tpe": "qmeter.tune.samplers.by_optuna:TpeSampler",
        "nsga2": "qmeter.tune.samplers.by_optuna:NsgaSampler",
        "gp": "qmeter.tune.samplers.by_optuna:GpSampler",
        "random": "qmeter.tune.samplers.plain:RandomSampler",
        "grid": "qmeter.tune.samplers.plain:GridSampler",
    },
    group="qmeter.tune_samplers",
)


def make(name: str, problem: Problem) -> Sampler:
    """The sampler called ``name`` for a problem.

    Raises:
        UnknownName: there is none of that name.
        MissingExtra: it needs a package that is not installed.
    """
    made: Sampler = SAMPLERS.get(name)(problem)
    return made
