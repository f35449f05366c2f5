"""Comparing quantities that carry intervals, and the Pareto set that knows its noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from qmeter.analysis.metrics import Better
from qmeter.analysis.stats import t_interval
from qmeter.record import Quantity

K = TypeVar("K")

SAME = 0.005
"""Values without intervals closer than this share of each other are not told apart."""


class Relation(StrEnum):
    """How one quantity stands to another: apart only where their intervals do not overlap."""

    BETTER = "better"
    WORSE = "worse"
    TIED = "tied"
    UNKNOWN = "unknown"


def bounds(q: Quantity) -> tuple[float, float]:
    """``(low, high)``; the value itself where there is no interval. Only for known quantities."""
    value = q.value or 0.0
    return (value if q.low is None else q.low, value if q.high is None else q.high)


def relation(a: Quantity, b: Quantity, better: Better) -> Relation:
    """How ``a`` stands to ``b``. Intervals that overlap are a tie (conservative: 95% intervals, about 0.6% level)."""
    if a.value is None or b.value is None:
        return Relation.UNKNOWN
    a_low, a_high = bounds(a)
    b_low, b_high = bounds(b)
    exact = a_low == a_high and b_low == b_high
    if exact and abs(a.value - b.value) <= SAME * max(abs(a.value), abs(b.value)):
        return Relation.TIED
    if a_low > b_high:
        return Relation.BETTER if better is Better.HIGHER else Relation.WORSE
    if a_high < b_low:
        return Relation.WORSE if better is Better.HIGHER else Relation.BETTER
    return Relation.TIED


def log_gain(a: Quantity, b: Quantity, better: Better) -> float:
    """By how much ``a`` is better than ``b``: the logarithm of their ratio; 0 where that is not defined."""
    if a.value is None or b.value is None or min(a.value, b.value) <= 0:
        return 0.0
    made = math.log(a.value / b.value)
    return made if better is Better.HIGHER else -made


def paired_relation(a: Mapping[K, float], b: Mapping[K, float], better: Better) -> Relation:
    """How ``a`` stands to ``b`` by what both have (repeats, loads): a t interval on the log ratio within each pair.

    Every method sees the same requests at the same times in one workload and repeat, so what the arrivals do cancels:
    far sharper than comparing two intervals. UNKNOWN with fewer than two pairs or values that are not positive.
    """
    shared = [k for k in a if k in b]
    if len(shared) < 2 or min(min(a[k], b[k]) for k in shared) <= 0:
        return Relation.UNKNOWN
    made = t_interval([math.log(a[k] / b[k]) for k in shared])
    if made.low <= 0 <= made.high or abs(made.value) <= SAME:
        return Relation.TIED
    return Relation.BETTER if (made.value > 0) == (better is Better.HIGHER) else Relation.WORSE


RATES = ("goodput_hz", "throughput_tok_s", "total_tok_s", "request_rate_hz")
"""What more GPUs give more of."""


def counts_per_gpu(name: str, gpus: Iterable[int]) -> bool:
    """Whether a quantity is compared a GPU, among deployments of these numbers of GPUs: a rate, where they differ.

    Twice the goodput of twice the GPUs is no gain: what one deployment does not need, a replica can use.
    """
    return name in RATES and len(set(gpus)) > 1


@dataclass(frozen=True)
class Axis:
    """One objective: a quantity's name, which way is better, and whether it counts a GPU of the deployment's."""

    name: str
    better: Better
    per_gpu: bool = False


def dominates(relations: Sequence[Relation]) -> bool:
    """Whether something that stands so on every axis dominates: better beyond noise on one, and worse on none.

    An axis on which either side is unknown rules dominance out: nothing is beaten on a guess.
    """
    if Relation.UNKNOWN in relations or Relation.WORSE in relations:
        return False
    return Relation.BETTER in relations


def pareto(
    n: int, stand: Callable[[int, int], Sequence[Relation]], gain: Callable[[int, int], float] = lambda i, j: 0.0
) -> list[int | None]:
    """For each of ``n`` rows: the index of a row that dominates it, or ``None`` where none does (it is in the set).

    Of several that dominate it, one that is itself in the set, and of these the one that gains the most; the first of
    equals. (None of them need be in the set: what ties within noise is not transitive.)

    ``stand(i, j)`` gives how row i stands to row j on every axis; ``gain(i, j)`` how much row i gains over row j.
    """
    over = [[j for j in range(n) if j != i and dominates(stand(j, i))] for i in range(n)]

    def best(i: int) -> int | None:
        return max(over[i], key=lambda j: (not over[j], gain(j, i)), default=None)

    return [best(i) for i in range(n)]
