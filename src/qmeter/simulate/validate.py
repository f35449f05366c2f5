"""Predictions beside measurements: errors of means and tails, and how often the intervals hold the measured value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qmeter.record import CellStatus, CellTables, Record, RecordKind
from qmeter.simulate.calibrate import Tables
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.heldout import borrow, calibrate_checked, load_name, made_by_seed, remembered, workload_of
from qmeter.simulate.predict import DRAWS, predict

METRICS = (
    "tpot_mean_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "e2e_p50_s",
    "throughput_tok_s",
    "goodput_hz",
    "j_per_output_token",
    "power_mean_w",
)
"""What is compared."""


@dataclass(frozen=True)
class Comparison:
    """One metric of one cell: measured, predicted with its interval, both in ``unit``.

    ``edge``: the load held out was the lightest or the heaviest, so that the fit had to reach beyond what it saw.
    """

    deployment: str
    workload: str
    metric: str
    unit: str
    measured: float
    predicted: float
    low: float
    high: float
    held_out: bool
    edge: bool = False

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured; ``None`` where 0 was measured."""
        return self.predicted / self.measured - 1.0 if self.measured else None

    @property
    def inside(self) -> bool:
        """Whether the interval holds the measured value."""
        return self.low <= self.measured <= self.high


def compare(
    calibration: Calibration, records: Iterable[Record], *, held_out: bool, draws: int = DRAWS,
    metrics: Sequence[str] = METRICS,
) -> list[Comparison]:  # fmt: skip
    """Predict each record's cell from its own seed, and set the two side by side.

    Unknown metrics are left out, and so is anything measured as 0 but goodput, which counts where intervals do; and so
    are cells whose requests cannot be made again (:func:`qmeter.simulate.heldout.made_by_seed`).
    """
    rows = []
    for record in filter(made_by_seed, records):
        workload = workload_of(record)
        found = predict(calibration, workload, seed=int(record.cell["seed"]), draws=draws, allow_extrapolation=True)
        for name in metrics:
            measured = record.metrics.get(name) or record.energy.get(name)
            predicted = found.metrics.get(name) or found.energy.get(name)
            if measured is None or predicted is None or measured.value is None or predicted.value is None:
                continue
            if not measured.value and name != "goodput_hz":
                continue
            low = predicted.value if predicted.low is None else predicted.low
            high = predicted.value if predicted.high is None else predicted.high
            rows.append(
                Comparison(calibration.label, workload.name, name, measured.unit, measured.value, predicted.value, low,
                           high, held_out)
            )  # fmt: skip
    return rows


def usable(records: Iterable[Record]) -> list[Record]:
    """Measured records that are valid."""
    return [r for r in records if r.status is CellStatus.OK and r.kind is RecordKind.MEASURED]


def by_deployment(records: Iterable[Record]) -> list[list[Record]]:
    """Usable records, deployment by deployment."""
    groups: dict[str, list[Record]] = {}
    for record in usable(records):
        groups.setdefault(record.deployment_id, []).append(record)
    return list(groups.values())


def leave_one_out(
    records: Sequence[Record], tables: Tables, *, draws: int = DRAWS, peers: Sequence[Calibration] = ()
) -> list[Comparison]:
    """Each workload point of one deployment predicted from a calibration that never saw it (its repeats neither).

    ``peers``: fits of other deployments, whose errors are pooled with its own.
    """
    rows = []
    names = list(dict.fromkeys(load_name(r) for r in records))
    edges, fit = _edges(records), remembered()
    for name in names:
        rest = [r for r in records if load_name(r) != name]
        if rest:
            own = [r for r in records if load_name(r) == name]
            fitted = borrow(calibrate_checked(rest, tables, fit=fit), peers)
            found = compare(fitted, own, held_out=True, draws=draws)
            rows += [replace(row, edge=name in edges) for row in found]
    return rows


def _edges(records: Sequence[Record]) -> set[str]:
    """The workloads with the least and the most output tokens a second."""
    known = [(r.metrics["throughput_tok_s"].value, r.cell["workload"]["name"]) for r in records
             if "throughput_tok_s" in r.metrics]  # fmt: skip
    ordered = sorted((v, name) for v, name in known if v is not None)
    return {ordered[0][1], ordered[-1][1]} if ordered else set()


@dataclass(frozen=True)
class Score:
    """One metric over cells: mean and median absolute relative error, and the share of intervals that held.

    Attributes:
        mean_error, median_error, worst: over the cells where something was measured (``None``: 0 in each).
        inner_error: mean over held-out loads between others (``None``: there are none).
        floor: mean error that any model keeps, since runs of one workload differ by more: half of what repeats are
            apart once each is divided by its own prediction (``None``: no repeats).
    """

    metric: str
    cells: int
    mean_error: float | None
    median_error: float | None
    worst: float | None
    coverage: float
    inner_error: float | None = None
    floor: float | None = None


def scores(rows: Sequence[Comparison]) -> list[Score]:
    """One line a metric."""
    out = []
    for metric in dict.fromkeys(r.metric for r in rows):
        own = [r for r in rows if r.metric == metric]
        errors = [abs(r.error) for r in own if r.error is not None]
        inner = [abs(r.error) for r in own if r.error is not None and r.held_out and not r.edge]
        mean, middle, worst = (float(of(errors)) if errors else None for of in (np.mean, np.median, np.max))
        out.append(
            Score(metric, len(own), mean, middle, worst, float(np.mean([r.inside for r in own])),
                  float(np.mean(inner)) if inner else None, _floor(own))
        )  # fmt: skip
    return out


def percent(value: float | None, sign: str = "") -> str:
    """An error as text; ``sign``: "+" to show the plus too."""
    return "unknown" if value is None else f"{value:{sign}.1%}"


def _floor(rows: Sequence[Comparison]) -> float | None:
    points: dict[tuple[str, str], list[float]] = {}
    for r in rows:
        if r.measured > 0 and r.predicted > 0:
            points.setdefault((r.deployment, r.workload), []).append(float(np.log(r.predicted / r.measured)))
    halves = [np.mean(np.abs(np.array(logs) - np.mean(logs))) for logs in points.values() if len(logs) > 1]
    return float(np.mean(np.expm1(halves))) if halves else None


def cached(tables: Callable[[Record], CellTables]) -> Tables:
    """The same tables, each read once."""
    kept: dict[str, CellTables] = {}

    def read(record: Record) -> CellTables:
        if record.cell_id not in kept:
            kept[record.cell_id] = tables(record)
        return kept[record.cell_id]

    return read
