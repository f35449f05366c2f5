"""What a prefill token, a decode step and a decode token cost, in energy and in engine time, from slices of the runs.

Where every request has the same lengths, prefill and decode tokens rise together from load to load, so whole cells
cannot tell the phases apart (:mod:`qmeter.analysis.energy_split` refuses). Inside a cell they do part: arrivals come
in bursts, and a closed loop prefills and decodes in waves. So each window is cut into slices of a second, and

    energy of a slice = a · prefill tokens + b · decode tokens + c · steps + P · time
    busy time         = a' · prefill tokens + b' · decode tokens + c' · steps

is fitted over the slices of all cells of one deployment, coefficients not negative, weighted by 1/energy (1/busy
time). A step reads the weights once whatever its batch, which is why it has a coefficient of its own.

Bias: the model is linear and one clock is assumed; under a power cap clocks fall and energy an operation with them, so
over loads far apart the coefficients are averages. An asynchronous scheduler starts a step before the one before it has
ended, so single steps' times are shifted; slices of a second average that out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.energy import device_energy, devices, grouped
from qmeter.analysis.energy_split import nnls
from qmeter.analysis.stats import F64, spread
from qmeter.record import CellTables, Quantity, SeriesInfo, Steps, Window

SLICE_S = 1.0
"""Length of a slice: ten refresh periods of NVML's energy counter."""
BLOCK = 2
"""Slices in a row that the bootstrap draws together: neighbours share requests."""
MIN_SLICES = 24
MIN_BUSY = 0.05
"""Slices whose engine was busy for less than this share say nothing about its time."""
RESAMPLES = 200


@dataclass(frozen=True)
class Slices:
    """The slices of one window, a column each; ``energy_j`` is ``None`` where no device counted energy."""

    energy_j: F64 | None
    busy_s: F64
    prefill_tokens: F64
    decode_tokens: F64
    steps: F64
    duration_s: F64


@dataclass(frozen=True)
class PhaseSplit:
    """The coefficients with bootstrap intervals; residuals are relative, root mean square over slices."""

    j_per_prefill_token: Quantity
    j_per_decode_token: Quantity
    j_per_step: Quantity
    base_power_w: Quantity
    energy_residual: Quantity
    s_per_prefill_token: Quantity
    s_per_decode_token: Quantity
    s_per_step: Quantity
    time_residual: Quantity


def slices(
    tables: CellTables, window: Window, series: Sequence[SeriesInfo] = (), slice_s: float = SLICE_S
) -> Slices | None:
    """One window in slices, each step's tokens spread evenly over its duration; ``None`` without an iteration log.

    Data-parallel replicas step beside each other: their shares add up, busy time too.
    """
    s = tables.steps
    known = np.flatnonzero((s.duration_s > 0) & (s.prefill_tokens >= 0) & (s.decode_tokens >= 0))
    edges = np.linspace(window.start_s, window.end_s, max(1, round(window.length_s / slice_s)) + 1)
    if not len(known):
        return None
    ranks = np.asarray(s.replica)[known]
    replicas = [_shares(s, known[ranks == r], edges) for r in np.unique(ranks)]
    busy, prefill, decode, steps = (np.sum(column, axis=0) for column in zip(*replicas, strict=True))
    return Slices(
        energy_j=_energy(tables, window, series, edges),
        busy_s=busy,
        prefill_tokens=prefill,
        decode_tokens=decode,
        steps=steps,
        duration_s=np.diff(edges),
    )


def _shares(s: Steps, rows: NDArray[np.int64], edges: F64) -> tuple[F64, F64, F64, F64]:
    """Busy time, prefill tokens, decode tokens and steps of one replica in each slice: its steps never overlap."""
    rows = rows[np.argsort(s.start_s[rows], kind="stable")]
    start, end = s.start_s[rows], s.start_s[rows] + s.duration_s[rows]
    knots = np.maximum.accumulate(np.stack([start, end], axis=1).ravel())

    def share(amount: F64) -> F64:
        total = np.cumsum(amount)
        levels = np.stack([total - amount, total], axis=1).ravel()
        return np.asarray(np.diff(np.interp(edges, knots, levels)), dtype=np.float64)

    prefill, decode = (c[rows].astype(np.float64) for c in (s.prefill_tokens, s.decode_tokens))
    return share(end - start), share(prefill), share(decode), share(np.ones(len(rows)))


def _energy(tables: CellTables, window: Window, series: Sequence[SeriesInfo], edges: F64) -> F64 | None:
    readings = grouped(tables.telemetry)
    curves = [device_energy(name, readings, series, window).curve for name in devices(readings, series)]
    if not curves or any(c is None for c in curves):
        return None
    return np.asarray(sum(np.diff(c.at(edges)) for c in curves if c is not None), dtype=np.float64)


def split_phases(cells: Sequence[Slices], *, confidence: float = 0.95, seed: int = 0) -> PhaseSplit:
    """Fit both models over the cells of one deployment. Units: J, s, W; unknown with the reason where there is none."""
    n = sum(len(c.duration_s) for c in cells)
    few = None if n >= MIN_SLICES else f"needs at least {MIN_SLICES} slices of {SLICE_S:g} s; there are {n}"
    counted = bool(cells) and all(c.energy_j is not None for c in cells)
    why_energy = few or (None if counted else "no energy counter in every cell of this deployment")
    rng = np.random.default_rng(seed)
    energy, energy_residual = _fit(
        [] if why_energy else [_rows(c, c.energy_j, with_time=True) for c in cells],
        ("J/token", "J/token", "J/step", "W"), why_energy, confidence, rng,
    )  # fmt: skip
    time, time_residual = _fit(
        [] if few else [_rows(c, c.busy_s, with_time=False) for c in cells],
        ("s/token", "s/token", "s/step"), few, confidence, rng,
    )  # fmt: skip
    return PhaseSplit(
        energy[0], energy[1], energy[2], energy[3], energy_residual, time[0], time[1], time[2], time_residual
    )


def _rows(c: Slices, target: F64 | None, *, with_time: bool) -> F64:
    """Columns over the target, a row a slice: what the coefficients multiply to give 1."""
    assert target is not None
    columns = [c.prefill_tokens, c.decode_tokens, c.steps, *([c.duration_s] if with_time else [])]
    usable = target > (0.0 if with_time else MIN_BUSY * c.duration_s)
    return np.asarray(np.stack(columns, axis=1)[usable] / target[usable, None], dtype=np.float64)


def _fit(
    cells: Sequence[F64], units: Sequence[str], why: str | None, confidence: float, rng: np.random.Generator
) -> tuple[list[Quantity], Quantity]:
    """The coefficients in ``units`` and the relative residual, or ``why`` they are unknown."""
    blocks = [cell[k : k + BLOCK] for cell in cells for k in range(0, len(cell), BLOCK)]
    if why is None and sum(len(b) for b in blocks) < MIN_SLICES:
        why = f"fewer than {MIN_SLICES} slices had the engine at work"
    if why is not None:
        return [Quantity.unknown(u, why) for u in units], Quantity.unknown("1", why)
    rows = np.concatenate(blocks)
    fit = nnls(rows, np.ones(len(rows)))
    rest = 1.0 - rows @ fit
    draws = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([blocks[k] for k in rng.integers(0, len(blocks), len(blocks))])
        draws.append(nnls(drawn, np.ones(len(drawn))))
    made = []
    for value, unit, column in zip(fit, units, np.array(draws).T, strict=True):
        if value <= 0.0:  # at its bound in an engine that never rests: no measurement of nothing
            made.append(Quantity.unknown(unit, "these loads do not tell it from the other terms, which hold its share"))
            continue
        low, high = spread(column, confidence)
        made.append(Quantity.of(float(value), unit, low=min(low, value), high=max(high, value), n=len(rows)))
    free = max(1, len(rows) - int((fit > 0).sum()))
    return made, Quantity.of(float(np.sqrt((rest @ rest) / free)), "1", n=len(rows))
