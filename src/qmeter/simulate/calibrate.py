"""Fit a deployment's calibration from its measured records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter import __version__, catalog
from qmeter.errors import AnalysisError
from qmeter.record import CellStatus, CellTables, EffectiveConfig, Record, RecordKind
from qmeter.simulate.calibration import Calibration, Support, plain
from qmeter.simulate.clocks import full_clock_hz, power_cap, step_clocks
from qmeter.simulate.fit import Basis, fit_steps, knots_for, padded_sizes
from qmeter.simulate.front import Seen, input_cost, input_delay, output_delay
from qmeter.simulate.mixed import (
    OP_SIGMA,
    PAIR_SIGMA,
    TILES,
    UNTILED,
    WIDE_SIGMA,
    Expected,
    MixedShape,
    expected,
    knots_of,
)
from qmeter.simulate.observe import MIN_STEPS, ONE_REPLICA, OVERLAPPING, Observed, observed_steps
from qmeter.simulate.overlap import device_seconds, fit_overlap, steady, waits
from qmeter.simulate.power import PowerFit, Work, energy_series, fit_power, spans
from qmeter.simulate.rules import Rules, capture_sizes, rules_of
from qmeter.simulate.steptime import NOISE_BLOCK
from qmeter.spec.study import Placement

F64 = NDArray[np.float64]

DRAWS = 64
NOISE_KEPT = 6144
LEAST_SIGMA = 0.015
"""Whole runs differ by at least this much, whatever few cells say."""
HOST_SIGMA, HOST_CELLS = 0.12, 4
"""How far the host's launches differ between whole runs (log scale), as nine deployments on one host did; and how many
cells that counts for."""
FEW = 10
"""Steps of a kind that a cell must have to say something about it."""
Tables = Callable[[Record], CellTables]


@dataclass(frozen=True)
class _Cell:
    """``clocks``: of each step, as a share of the highest clock that any of the cells saw."""

    record: Record
    tables: CellTables
    steps: Observed
    clocks: F64


def calibrate(records: Sequence[Record], tables: Tables, *, draws: int = DRAWS, seed: int = 0) -> Calibration:
    """Fit one deployment from the records of its cells.

    Args:
        records: measured records of one deployment; those that are not OK are left out.
        tables: gives a record's tables.

    Raises:
        AnalysisError: no usable record, records of several deployments, of data-parallel replicas, or no measured
            KV-block count.
    """
    used = [r for r in records if r.status is CellStatus.OK and r.kind is RecordKind.MEASURED]
    if not used:
        raise AnalysisError("no valid measured record to calibrate from", hint="run the study first: qmeter run")
    if len({r.deployment_id for r in used}) > 1:
        raise AnalysisError("the records are of several deployments", hint="calibrate each on its own")
    if (replicas := replicas_of(used[0])) > 1:
        raise AnalysisError(OVERLAPPING.format(replicas), hint=ONE_REPLICA)
    cells = _with_steps(used, tables)
    effective = next((r.effective for r in used if r.effective is not None), EffectiveConfig())
    deployment = used[0].cell["deployment"]
    engine = deployment["engine"]
    rules = rules_of(engine["name"], effective, engine.get("options"))
    basis = _basis(cells, rules, _graph_sizes(deployment, rules))
    steps = joined([c.steps for c in cells])
    cap_w, why_no_cap = power_cap([c.tables for c in cells])
    fit = _fit(cells, basis, steps, rules, draws, seed)
    work = _works(cells, steps, fit)
    power = _power(cells, work, draws, seed)
    seen = [Seen(c.record.cell["workload"], c.tables, c.steps) for c in cells]
    decode, mixed = _noise(cells, steps, fit.ratios, rules.async_scheduling)
    input_s = input_delay(seen, engine["name"])
    input_each_s = min(input_s, input_cost(seen, engine["name"], input_s))
    output_s, output_seq_s = output_delay(seen, input_s - input_each_s, input_each_s, engine["name"])
    return Calibration(
        deployment=deployment_of(used[0]),
        effective=effective.model_dump(mode="json"),
        rules=plain(rules),
        basis=plain(fit.basis),
        coefficients=tuple(fit.coefficients),
        draws=tuple(tuple(d) for d in fit.draws),
        kv_mixed=fit.kv_mixed,
        noise_decode=decode,
        noise_mixed=mixed,
        energy=tuple(power.coefficients) if power else None,
        energy_draws=tuple(tuple(d) for d in power.draws) if power else (),
        energy_series=power.series if power else None,
        why_no_energy=None if power else "the records hold no energy counter with enough readings",
        launch_idle=power is not None,
        power_cap_w=cap_w if power else None,
        why_no_cap=why_no_cap if power else "no energy is known to hold at it",
        input_s=input_s - input_each_s,
        output_s=output_s,
        output_seq_s=output_seq_s,
        host=tuple(fit.host),
        host_draws=tuple(tuple(h) for h in fit.host_draws),
        input_each_s=input_each_s,
        cell_sigma=_cell_sigma(cells, steps, fit.ratios, steady(steps) if np.any(fit.host) else None),
        host_sigma=_host_sigma(cells, steps, fit.ratios) if np.any(fit.host) else 0.0,
        energy_sigma=_energy_sigma(cells, work, power),
        support=_support(cells, steps, power is not None),
        cells=tuple(c.record.cell_id for c in cells),
        qmeter_version=__version__,
    )


def replicas_of(record: Record) -> int:
    """Data-parallel replicas of the record's deployment: engines of their own behind one server."""
    return int(record.cell["deployment"]["parallelism"].get("dp", 1))


def device_of(record: Record) -> str:
    """The catalog's name of the record's device: what the study named, or what the host's GPU matches; else "cpu"."""
    named = str(record.cell["deployment"]["device"])
    if named != "auto":
        return named
    seen = [str(g.get("name", "")) for g in record.provenance.host.get("gpus") or [] if isinstance(g, dict)]
    matching = [d.name for d in catalog.devices() for name in seen[:1] if d.matches(name)]
    return matching[0] if matching else "cpu"


def deployment_of(record: Record) -> dict[str, Any]:
    """The record's deployment by the fields that calibrations are found by."""
    d = record.cell["deployment"]
    placed = {"placement": d["placement"]} if d.get("placement", Placement.ALONE) != Placement.ALONE else {}
    return {
        "id": record.deployment_id, "study": record.study, "model": d["model"]["name"], "shape": d["model"]["shape"],
        "method": d["method"], "engine": d["engine"]["name"], "device": device_of(record),
        "parallelism": d["parallelism"],
    } | placed  # fmt: skip


def _graph_sizes(deployment: dict[str, Any], rules: Rules) -> tuple[int, ...]:
    """CUDA-graph sizes that decode batches are padded to; none for engines that do not capture."""
    if deployment["engine"]["name"] != "vllm":
        return ()
    options = deployment["engine"].get("options", {})
    if str(options.get("enforce_eager", "false")).lower() == "true":
        return ()
    given = str(options.get("cuda_graph_sizes", "")).replace("[", "").replace("]", "")
    sizes = sorted(int(s) for s in given.split(",") if s.strip().isdigit())
    return tuple(sizes) or capture_sizes(rules.max_sequences, rules.token_budget)


def _basis(cells: list[_Cell], rules: Rules, pad: tuple[int, ...]) -> Basis:
    steps = joined([c.steps for c in cells])
    pure = steps.prefill == 0
    size = padded_sizes(steps.decodes[pure], pad)
    tokens = (steps.decodes + steps.prefill)[~pure].astype(np.float64)
    decode_knots = knots_for(size, np.ones(len(size)), 10) if len(size) else (1.0,)
    mixed_knots = knots_for(tokens, np.ones(len(tokens)), 8) if len(tokens) else (1.0,)
    return Basis(decode_knots, mixed_knots, pad)


def joined(parts: Sequence[Observed]) -> Observed:
    """Steps of several cells as one table."""
    names = Observed.__dataclass_fields__
    return Observed(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def _with_steps(used: Sequence[Record], tables: Tables) -> list[_Cell]:
    """The cells whose steps can be seen; the last fault is raised where there are none."""
    cells, fault = [], None
    full_hz = full_clock_hz([tables(r) for r in used])
    for record in used:
        own = tables(record)
        try:
            steps = observed_steps(own)
            cells.append(_Cell(record, own, steps, step_clocks(own, steps, full_hz)))
        except AnalysisError as error:
            fault = error
    if not cells and fault is not None:
        raise fault
    return cells


@dataclass(frozen=True)
class _StepFit:
    """The basis, its coefficients and host times with draws, and measured / modelled step times."""

    basis: Basis
    coefficients: F64
    draws: F64
    host: F64
    host_draws: F64
    ratios: F64
    kv_mixed: float = 1.0


def _fit(cells: list[_Cell], basis: Basis, steps: Observed, rules: Rules, draws: int, seed: int) -> _StepFit:
    """Synchronous engines: one fit over all steps. Asynchronous: decodes in a run first, then host and mixed steps.

    The host's launches of steps with prefill differ from run to run, so each cell counts the same in their level.
    """
    calm = steady(steps)
    if not rules.async_scheduling or calm.sum() < MIN_STEPS or (steps.prefill > 0).sum() < MIN_STEPS:
        fit = fit_steps(basis.design(steps), steps.seconds, draws=draws, seed=seed)
        none = np.zeros(5)
        return _StepFit(basis, fit.coefficients, fit.draws, none, np.zeros((0, 5)), fit.ratios)
    d = len(basis.decode_knots)
    run = steps.where(calm)
    columns = [*range(d), d + len(basis.mixed_knots)]
    told = _expected(cells[0].record)
    anchor = None if told is None else (d, told.kv_s)
    alone = fit_steps(basis.design(run)[:, columns], run.seconds, draws=draws, seed=seed, anchor=anchor)
    decode, kv_s = alone.coefficients[:d], float(alone.coefficients[d])
    clocks = np.concatenate([c.clocks for c in cells])
    shapes = [_shape(told, steps, rules, tile, float(decode[0])) for tile in TILES]
    fits = [fit_overlap(basis, steps, decode, kv_s, s, clocks, draws=draws, seed=seed) for s in shapes]
    shape, both = min(zip(shapes, fits, strict=True), key=lambda p: p[1].cost * (UNTILED if p[0].tile == 1 else 1.0))
    basis = replace(basis, mixed_knots=tuple(shape.knots), tile=shape.tile, mixed_clock=tuple(both.clocked))
    m = len(shape.knots)
    ratios = 1.0 / both.predicted
    ratios[calm] = alone.ratios
    launch = before_mixed(steps)
    levels = _cell_logs(cells, steps, ratios, launch)
    level = float(np.exp(np.mean(levels))) if len(levels) else 1.0
    host, host_draws = both.host.copy(), both.host_draws.copy()
    host[2:4] *= level
    host_draws[:, 2:4] *= level
    ratios[launch] /= level
    middle = alone.coefficients
    coefficients = np.concatenate([middle[:d], both.mixed[:m], middle[d:], both.mixed[m:]])
    parts = [alone.draws[:, :d], both.mixed_draws[:, :m], alone.draws[:, d:], both.mixed_draws[:, m:]]
    return _StepFit(basis, coefficients, np.concatenate(parts, axis=1), host, host_draws, ratios, both.kv_mixed)


def _expected(record: Record) -> Expected | None:
    d = record.cell["deployment"]
    return expected(d["model"]["shape"], d["method"], device_of(record), d["engine"]["name"],
                    int(d["parallelism"].get("tp", 1)))  # fmt: skip


def _shape(told: Expected | None, steps: Observed, rules: Rules, tile: int, weights_s: float) -> MixedShape:
    """The shape to start from: a token's time by the catalog, else at the pace of the fullest steps."""
    knots = knots_of(tile, rules.token_budget)
    if told is not None:
        return MixedShape(tile, knots, weights_s, told.token_s, OP_SIGMA, told.pair_s, PAIR_SIGMA)
    tokens = (steps.decodes + steps.prefill).astype(np.float64)
    full = (steps.prefill > 0) & (tokens >= np.quantile(tokens[steps.prefill > 0], 0.9))
    pace = float(np.median(steps.seconds[full] / tokens[full]))
    pair_s = 0.05 * pace * float(tokens.max()) / float(steps.pairs.max(initial=1.0))
    return MixedShape(tile, knots, weights_s, pace, WIDE_SIGMA, pair_s, WIDE_SIGMA)


def before_mixed(steps: Observed) -> NDArray[np.bool_]:
    """Decode steps in a run whose results wait for the launch of a step with prefill: they show that launch's time."""
    pure, n = steps.prefill == 0, len(steps)
    after = np.zeros(n, dtype=bool)
    after[:-1] = (steps.prefill[1:] > 0) & ~steps.after_idle[1:]
    found: NDArray[np.bool_] = pure & after & np.insert(pure[:-1], 0, False) & ~steps.after_idle
    return found


def _noise(
    cells: list[_Cell], steps: Observed, ratios: F64, overlapped: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measured / modelled in the order of the steps, for decode and for mixed steps, each cell's with its mean at 1.

    Where host and device overlap, a mixed step's noise is seen in the result of the step before it (its launch). What
    whole cells differ by is not noise of steps: it is in the sigmas.
    """
    mixed = steps.prefill > 0
    pure = steady(steps) if overlapped else ~mixed
    if overlapped:
        mixed = before_mixed(steps)
    return _series(cells, ratios, pure), _series(cells, ratios, mixed)


def _series(cells: list[_Cell], ratios: F64, mask: NDArray[np.bool_]) -> tuple[float, ...]:
    """Ratios in the order of the steps, each cell's divided by their mean; at most NOISE_KEPT."""
    parts, at = [], 0
    for cell in cells:
        own, kept = ratios[at : at + len(cell.steps)], mask[at : at + len(cell.steps)]
        at += len(cell.steps)
        found = own[kept & np.isfinite(own)]
        if len(found) >= FEW:
            parts.append(found / found.mean())
    if sum(len(p) for p in parts) < MIN_STEPS:
        return (1.0,)
    series = np.concatenate(parts)
    if len(series) > NOISE_KEPT:
        starts = np.linspace(0, len(series) - NOISE_BLOCK, NOISE_KEPT // NOISE_BLOCK).astype(int)
        series = np.concatenate([series[p : p + NOISE_BLOCK] for p in starts])
    return tuple(float(v) for v in np.round(series / series.mean(), 4))


def _cell_logs(cells: list[_Cell], steps: Observed, ratios: F64, which: NDArray[np.bool_] | None) -> list[float]:
    """For each cell with enough of these steps: log(measured / modelled) of their time together."""
    logs, at = [], 0
    for cell in cells:
        own = slice(at, at + len(cell.steps))
        at += len(cell.steps)
        good = np.isfinite(ratios[own]) & (ratios[own] > 0)
        good &= True if which is None else which[own]
        if good.sum() >= FEW:
            seconds = steps.seconds[own][good]
            logs.append(float(np.log(float(seconds.sum()) / float((seconds / ratios[own][good]).sum()))))
    return logs


def _cell_sigma(cells: list[_Cell], steps: Observed, ratios: F64, which: NDArray[np.bool_] | None) -> float:
    """How far whole cells are from the model: spread over cells of log(measured / modelled) time of their steps.

    ``which``: only these steps (``None``: all).
    """
    logs = _cell_logs(cells, steps, ratios, which)
    if len(logs) < 2:
        return 4 * LEAST_SIGMA
    inflated = float(np.std(logs)) * float(np.sqrt(len(logs) / (len(logs) - 1)))
    return max(LEAST_SIGMA, inflated)


def _host_sigma(cells: list[_Cell], steps: Observed, ratios: F64) -> float:
    """Spread of whole cells' launches, drawn towards HOST_SIGMA as if HOST_CELLS more cells had shown it.

    A handful of cells says little about a spread; and the level they gave is itself uncertain by spread / sqrt(cells).
    """
    logs = _cell_logs(cells, steps, ratios, before_mixed(steps))
    squares = float(np.sum(np.square(np.array(logs) - np.mean(logs)))) if logs else 0.0
    variance = (HOST_CELLS * HOST_SIGMA**2 + squares) / (HOST_CELLS + max(len(logs) - 1, 0))
    return float(np.sqrt(variance * (1 + 1 / max(len(logs), 1))))


def _works(cells: list[_Cell], steps: Observed, fit: _StepFit) -> list[Work]:
    """What each cell's energy depends on; waits for launches only where host and device overlap."""
    clocks = np.concatenate([c.clocks for c in cells])
    waiting = np.zeros(len(steps))
    if np.any(fit.host):
        waiting = waits(steps, device_seconds(fit.basis, fit.coefficients, fit.kv_mixed, steps, clocks))
    at = np.cumsum([0, *(len(c.steps) for c in cells)])
    return [Work(c.clocks, waiting[a:b], fit.basis.tile) for c, a, b in zip(cells, at, at[1:], strict=False)]


def _power(cells: list[_Cell], works: list[Work], draws: int, seed: int) -> PowerFit | None:
    parts, series = [], ""
    for cell, work in zip(cells, works, strict=True):
        found = spans(cell.tables, cell.steps, work)
        if found is not None:
            parts.append(found)
            series = "+".join(energy_series(cell.tables))
    return fit_power(parts, series, draws=draws, seed=seed)


def _energy_sigma(cells: list[_Cell], works: list[Work], power: PowerFit | None) -> float:
    if power is None:
        return 0.0
    logs = []
    for cell, work in zip(cells, works, strict=True):
        found = spans(cell.tables, cell.steps, work)
        if found is not None:
            logs.append(np.log(float(found[1].sum()) / float((found[0] @ power.coefficients).sum())))
    if len(logs) < 2:
        return 4 * LEAST_SIGMA
    return max(LEAST_SIGMA, float(np.std(logs)) * float(np.sqrt(len(logs) / (len(logs) - 1))))


def _support(cells: list[_Cell], steps: Observed, energy: bool) -> Support:
    served = [c.tables.requests for c in cells]
    prompt, output = (np.concatenate([getattr(r, n)[np.isfinite(r.first_token_s)] for r in served])
                      for n in ("prompt_tokens_asked", "output_tokens_asked"))  # fmt: skip
    return Support(
        sequences=int((steps.decodes + steps.chunks).max()),
        step_tokens=int((steps.decodes + steps.prefill).max()),
        kv_tokens=float(steps.kv.max()),
        longest_request_tokens=int((prompt + output).max(initial=0)),
        energy=energy,
        prompt_tokens=(int(prompt.min()), int(prompt.max())) if len(prompt) else None,
        output_tokens=(int(output.min()), int(output.max())) if len(output) else None,
    )
