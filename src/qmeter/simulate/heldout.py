"""How far a deployment's predictions are off loads that its fit was not given: what no fit can say of itself.

Each load is left out in turn, the rest is fitted, and the load is predicted. Draws know how far the fitted numbers may
be wrong and how whole runs differ; they do not know what the model leaves out. These errors hold all three.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qmeter.analysis.cell import analyse
from qmeter.analysis.stats import t_quantile
from qmeter.analysis.window import growing
from qmeter.errors import AnalysisError
from qmeter.record import CellStatus, CellTables, Quantity, Record, RecordKind, Window
from qmeter.simulate.calibrate import DRAWS, Tables, calibrate
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.engine import run_cell
from qmeter.spec.workload import ClosedArrivals, WorkloadSpec
from qmeter.workload import Vocabulary, build

VOCABULARY = 32000
"""Token ids of simulated prompts: only their number matters."""
SEED = 1
Fitter = Callable[[Sequence[Record], Tables], Calibration]
LEAST_LOADS = 2
"""Errors that make an interval: one alone would give Student's t with its one degree of freedom."""
FIXED = ("request_rate_hz", "throughput_tok_s", "total_tok_s")
"""Rates that the arrivals fix where an open load is kept up with; where it is not, or in a closed loop, the engine."""
LEAST_OF_KIND = 5
"""Errors on loads of one kind from which on they, not those of all loads, make the interval."""
LEAST_FITTED = 2
"""Loads that a fit must rest on for its error to count: on one load it cannot tell what grows with the load."""


def without_draws(records: Sequence[Record], tables: Tables) -> Calibration:
    """A fit for its middle alone."""
    return calibrate(records, tables, draws=0)


def remembered() -> Fitter:
    """:func:`without_draws`, each set of records fitted once: a check leaves out every pair of loads twice."""
    kept: dict[frozenset[str], Calibration] = {}

    def fit(records: Sequence[Record], tables: Tables) -> Calibration:
        key = frozenset(r.cell_id for r in records)
        if key not in kept:
            kept[key] = without_draws(records, tables)
        return kept[key]

    return fit


def calibrate_checked(
    records: Sequence[Record], tables: Tables, *, draws: int = DRAWS, seed: int = 0, fit: Fitter = without_draws
) -> Calibration:
    """Fit one deployment, and what its intervals must hold beside the fit's own doubt: errors on loads held out.

    Args and errors are those of :func:`qmeter.simulate.calibrate.calibrate`; ``fit`` makes the fits without a load.
    """
    whole = calibrate(records, tables, draws=draws, seed=seed)
    return whole.model_copy(update={"held_out": held_out_errors(records, tables, fit)})


def held_out_errors(
    records: Sequence[Record], tables: Tables, fit: Fitter = without_draws
) -> dict[str, tuple[float, ...]]:
    """For each metric one error a load: log(measured / predicted by a fit without it); repeats: root mean square.

    The :data:`FIXED` rates have them once more by kind of load (:func:`of_kind`), be it for one load alone: only pools
    are made of these. Shares and counts have none; nor has anything where too few loads are left to fit from, nor a
    load that cannot be made again (:func:`made_by_seed`), though fits rest on it.
    """
    used = [r for r in records if r.status is CellStatus.OK and r.kind is RecordKind.MEASURED]
    names = dict.fromkeys(load_name(r) for r in used)
    found: dict[str, list[float]] = {}
    for name in names if len(names) > LEAST_FITTED else ():
        rest = [r for r in used if load_name(r) != name]
        try:
            others = fit(rest, tables)
            own = [_errors(others, r) for r in used if load_name(r) == name and made_by_seed(r)]
        except AnalysisError:
            continue
        for metric in dict.fromkeys(m for errors in own for m in errors):
            squares = [errors[metric] ** 2 for errors in own if metric in errors]
            found.setdefault(metric, []).append(float(np.sqrt(np.mean(squares))))
    pooled = {of_kind(name, kept) for name in FIXED for kept in (True, False)}
    kinds = {m: errors for m, errors in found.items() if len(errors) >= LEAST_LOADS or m in pooled}
    return {m: tuple(round(e, 5) for e in errors) for m, errors in kinds.items()}


def keeps_up(workload: WorkloadSpec, tables: CellTables, window: Window) -> bool:
    """Whether it is an open load that the deployment kept up with in a (simulated) run: its backlog does not grow."""
    closed = isinstance(workload.arrivals, ClosedArrivals)
    return not closed and growing(tables, window.start_s, window.end_s)[0] is None


def of_kind(metric: str, kept: bool) -> str:
    """The name under which errors of one of the :data:`FIXED` rates are kept for loads of one kind."""
    return f"{metric} {'arrivals' if kept else 'engine'}"


def with_peers(fits: Sequence[Calibration]) -> list[Calibration]:
    """Each fit with the errors of all others beside its own.

    The others' fits leave out the same parts of the machine; that they were measured under the same loads makes the
    pool a little less certain than its number says.
    """
    return [borrow(fit, [other for other in fits if other is not fit]) for fit in fits]


def borrow(fit: Calibration, others: Sequence[Calibration]) -> Calibration:
    """``fit`` with the errors of ``others``, pooled, beside its own."""
    pool: dict[str, tuple[float, ...]] = {}
    for other in others:
        for metric, errors in other.held_out.items():
            pool[metric] = (*pool.get(metric, ()), *errors)
    return fit.model_copy(update={"peers_held_out": pool})


def load_name(record: Record) -> str:
    """The workload point that a record measured."""
    return str(record.cell["workload"]["name"])


def made_by_seed(record: Record) -> bool:
    """Whether the requests that a record measured follow from its workload and seed alone: prompts from tasks do not,
    so that such a load cannot be simulated here."""
    prompts = record.cell["workload"].get("prompts") or {}
    return bool(prompts.get("kind") != "tasks")


def workload_of(record: Record) -> WorkloadSpec:
    """The record's workload."""
    return WorkloadSpec.model_validate_json(json.dumps(record.cell["workload"]))


def _errors(fit: Calibration, record: Record) -> dict[str, float]:
    workload = workload_of(record)
    schedule = build(workload, int(record.cell["seed"]), Vocabulary(size=VOCABULARY))
    cell = run_cell(fit, schedule, seed=SEED, allow_extrapolation=True)
    numbers = analyse(cell.tables, workload, cell.series, seed=SEED)
    errors = log_errors({**record.metrics, **record.energy}, {**numbers.metrics, **numbers.energy})
    kept = keeps_up(workload, cell.tables, numbers.window)
    return errors | {of_kind(name, kept): errors[name] for name in FIXED if name in errors}


def log_errors(measured: Mapping[str, Quantity], predicted: Mapping[str, Quantity]) -> dict[str, float]:
    """log(measured / predicted) of what both know, has a unit and is positive."""
    both = {n: (q, predicted[n]) for n, q in measured.items() if n in predicted and q.unit != "1"}
    return {n: float(np.log(q.value / p.value)) for n, (q, p) in both.items()
            if q.value is not None and p.value is not None and q.value > 0 and p.value > 0}  # fmt: skip


@dataclass(frozen=True)
class Width:
    """Half the width (log scale) of a new load's interval; ``alone``: it needs no draws beside it."""

    half: float
    alone: bool


def width_for(fit: Calibration, metric: str, kept: bool, confidence: float) -> Width:
    """The width of a metric's interval by what is known of ``fit`` and its peers.

    One of the :data:`FIXED` rates' is by the errors on loads of its own kind (``kept``: :func:`keeps_up`), the
    deployment's and its peers' alike, where there are :data:`LEAST_OF_KIND`. A load kept up with may be near what the
    deployment can do, where none of those was: its interval holds the draws' too.
    """
    if metric in FIXED:
        name = of_kind(metric, kept)
        pool = (*fit.held_out.get(name, ()), *fit.peers_held_out.get(name, ()))
        if len(pool) >= LEAST_OF_KIND:
            found = width(pool, (), confidence)
            return replace(found, alone=found.alone and not kept)
    return width(fit.held_out.get(metric, ()), fit.peers_held_out.get(metric, ()), confidence)


def width(own: Sequence[float], peers: Sequence[float], confidence: float) -> Width:
    """How wide an interval must be by errors on loads held out, a deployment's own and its peers'.

    With enough of them it is the error that the next one exceeds with 1 - ``confidence``, whatever their distribution
    (split conformal prediction: Vovk et al., Algorithmic Learning in a Random World, 2005); it holds all that a run may
    differ by. With fewer, Student's t from the deployment's own or else the peers', and the draws say what they add.
    """
    pooled = np.sort(np.abs([*own, *peers]))
    rank = math.ceil((len(pooled) + 1) * confidence - 1e-9)
    if 0 < rank <= len(pooled):
        return Width(float(pooled[rank - 1]), alone=True)
    return Width(half_width(own if len(own) >= LEAST_LOADS else peers, confidence), alone=False)


def half_width(errors: Sequence[float], confidence: float) -> float:
    """Half the width (log scale) of an interval for a new load, from errors of mean zero; 0 where there are too few.

    Student's t with a degree of freedom a load: few loads tell little about how wide they are.
    """
    if len(errors) < LEAST_LOADS:
        return 0.0
    return t_quantile(0.5 + confidence / 2, len(errors)) * float(np.sqrt(np.mean(np.square(errors))))
