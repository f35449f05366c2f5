"""Many runs at once: one seam, three ways: in this process, over its cores, over a Ray cluster (extra ``ray``)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Protocol, TypeVar

from qmeter.errors import MissingExtra
from qmeter.registry import Registry

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Spread(Protocol):
    """Runs one function over many items; answers come in the items' order."""

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """``function`` of each item; function and items must pickle."""
        ...


class Here:
    """One after the other in this process."""

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """``function`` of each item."""
        return map(function, items)


class Cores:
    """Over processes of this host; ``workers`` 0: one a core."""

    def __init__(self, workers: int = 0):
        self.workers = workers or len(os.sched_getaffinity(0))

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """``function`` of each item, in a pool that ends with the last answer."""
        todo = list(items)
        size = max(1, len(todo) // (8 * self.workers))
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            yield from pool.map(function, todo, chunksize=size)


class RayTasks:
    """Over a Ray cluster: the one that RAY_ADDRESS names, else one started on this host."""

    def map(self, function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """``function`` of each item, as Ray tasks.

        Raises:
            MissingExtra: ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "spreading runs over a cluster") from error
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        task = ray.remote(function)
        for reference in [task.remote(item) for item in items]:
            yield ray.get(reference)


SPREADS: Registry[Spread] = Registry(
    "way to spread runs",
    {
        "here": "qmeter.simulate.spread:Here",
        "cores": "qmeter.simulate.spread:Cores",
        "ray": "qmeter.simulate.spread:RayTasks",
    },
    group="qmeter.spreads",
)
"""How many runs are spread over machines."""
