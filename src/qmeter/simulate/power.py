"""Energy of steps from a record's counter: joules a span of time, explained by what ran in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.record import CellTables
from qmeter.simulate.clocks import ENERGY_CLOCK
from qmeter.simulate.fit import nonnegative, tiled
from qmeter.simulate.observe import Observed

F64 = NDArray[np.float64]

SPAN_S = 0.5
"""Length of the spans that energy is explained over: several refresh periods of the counter."""
MIN_SPANS = 12

COLUMNS = ("idle_w", "busy_w", "decode_j", "prefill_j", "kv_j", "pair_j")
"""Power of a device that has nothing to do or waits for a launch, and of one that runs; energy of work at full clock.
Pairs are not told from tokens: theirs is 0."""
PADDING = 0.25
"""Energy of an empty row of a prefill's matrix tiles, beside that of a token: held out by load, energy on four profiles
is off by 2.3, 2.2 and 2.4% with 0, 0.25 and 0.5."""


@dataclass(frozen=True)
class Work:
    """What the energy of a cell's steps depends on beside their batch.

    Attributes:
        clocks: of each step, as a share of the full one: work counts by their :data:`ENERGY_CLOCK`-th power.
        waiting: seconds of each step in which the device waited for a launch.
        tile: rows of the matrix tiles that a step with prefill is rounded up to.
    """

    clocks: F64
    waiting: F64
    tile: int = 1


@dataclass(frozen=True)
class PowerFit:
    """Energy coefficients in the order of :data:`COLUMNS`, bootstrap draws, and the relative error of a span."""

    coefficients: F64
    draws: F64
    error: float
    series: str


def energy_series(tables: CellTables) -> tuple[str, ...]:
    """Names of the cumulative energy counters in a record: all GPUs', else the CPU package's."""
    names = sorted({str(n) for n in tables.telemetry.series})
    gpus = tuple(n for n in names if n.startswith("gpu") and n.endswith(".energy_j"))
    return gpus or tuple(n for n in names if n == "cpu.energy_j")


def spans(tables: CellTables, steps: Observed, work: Work) -> tuple[F64, F64] | None:
    """``(design, joules)`` of a cell's spans; ``None`` where it has no energy counter that moves."""
    names = energy_series(tables)
    if not names or not len(steps):
        return None
    begin, end = -np.inf, np.inf
    readings = []
    for name in names:
        t, value = tables.telemetry.of(name)
        if len(t) < 4 or np.ptp(value) <= 0 or np.any(np.diff(value) < 0):
            return None
        moved = np.concatenate(([True], np.diff(value) > 0))
        readings.append((t[moved], value[moved]))
        begin, end = max(begin, t[moved][0]), min(end, t[moved][-1])
    end = min(end, float(steps.end_s[-1]))
    begin = max(begin, float(steps.start_s[0]) - SPAN_S)
    edges = np.arange(begin, end, SPAN_S)
    if len(edges) < 3:
        return None
    joules = sum((np.diff(np.interp(edges, t, v)) for t, v in readings), np.zeros(len(edges) - 1))
    return np.column_stack(_features(edges, steps, work)), joules


def _features(edges: F64, steps: Observed, work: Work) -> list[F64]:
    running = _spread(edges, steps, np.maximum(steps.seconds - work.waiting, 0.0))
    less = work.clocks**ENERGY_CLOCK
    tokens = (steps.decodes + steps.prefill).astype(np.float64)
    rows = steps.prefill + PADDING * (steps.prefill > 0) * (tiled(tokens, work.tile) - tokens)
    parts = (less * steps.decodes, less * rows, less * steps.kv, 0.0 * steps.pairs)
    return [np.diff(edges) - running, running, *(_spread(edges, steps, p) for p in parts)]


def _spread(edges: F64, steps: Observed, amount: F64) -> F64:
    """``amount`` of each step shared over the spans in proportion to its time in them."""
    t = np.column_stack([steps.start_s, steps.end_s]).ravel()
    total = np.concatenate(([0.0], np.cumsum(amount)))
    value = np.column_stack([total[:-1], total[1:]]).ravel()
    order = np.maximum.accumulate(t)
    return np.asarray(np.diff(np.interp(edges, order, value)), dtype=np.float64)


def fit_power(parts: list[tuple[F64, F64]], series: str, *, draws: int, seed: int) -> PowerFit | None:
    """Fit energy over all cells' spans; ``None`` with too few spans."""
    if not parts or sum(len(j) for _, j in parts) < MIN_SPANS:
        return None
    design = np.concatenate([d for d, _ in parts])
    joules = np.concatenate([j for _, j in parts])
    keep = joules > 0
    design, joules = design[keep], joules[keep]
    scaled = design / joules[:, None]
    coefficients = nonnegative(scaled.T @ scaled, scaled.sum(axis=0))
    modelled = np.maximum(design @ coefficients, 1e-9)
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(draws):
        pick = scaled[rng.integers(0, len(scaled), len(scaled))]
        out.append(nonnegative(pick.T @ pick, pick.sum(axis=0)))
    error = float(np.sqrt(np.mean((joules / modelled - 1.0) ** 2)))
    return PowerFit(coefficients, np.array(out).reshape(draws, len(COLUMNS)), error, series)
