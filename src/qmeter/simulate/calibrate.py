"""Fit a deployment's calibration from its measured records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter import __version__, catalog
from qmeter.errors import AnalysisError
from qmeter.record import CellStatus, CellTables, EffectiveConfig, Record, RecordKind
from qmeter.simulate.calibration import Calibration, Support, plain
from qmeter.simulate.fit import Basis, Fit, fit_steps, knots_for, padded_sizes
from qmeter.simulate.observe import Observed, observed_steps
from qmeter.simulate.power import PowerFit, energy_series, fit_power, spans
from qmeter.simulate.rules import Rules, capture_sizes, rules_of

F64 = NDArray[np.float64]

DRAWS = 64
QUANTILES = 401
LEAST_SIGMA = 0.005
"""Whole runs differ by at least this much, whatever few cells say."""
Tables = Callable[[Record], CellTables]


@dataclass(frozen=True)
class _Cell:
    record: Record
    tables: CellTables
    steps: Observed


def calibrate(records: Sequence[Record], tables: Tables, *, draws: int = DRAWS, seed: int = 0) -> Calibration:
    """Fit one deployment from the records of its cells.

    Args:
        records: measured records of one deployment; those that are not OK are left out.
        tables: gives a record's tables.

    Raises:
        AnalysisError: no usable record, records of several deployments, or no measured KV-block count.
    """
    used = [r for r in records if r.status is CellStatus.OK and r.kind is RecordKind.MEASURED]
    if not used:
        raise AnalysisError("no valid measured record to calibrate from", hint="run the study first: qmeter run")
    if len({r.deployment_id for r in used}) > 1:
        raise AnalysisError("the records are of several deployments", hint="calibrate each on its own")
    cells = [_Cell(r, t, observed_steps(t)) for r, t in ((r, tables(r)) for r in used)]
    effective = next((r.effective for r in used if r.effective is not None), EffectiveConfig())
    deployment = used[0].cell["deployment"]
    rules = rules_of(deployment["engine"]["name"], effective, deployment["engine"].get("options"))
    basis = _basis(cells, rules, _graph_sizes(deployment, rules))
    steps = joined([c.steps for c in cells])
    fit = fit_steps(basis.design(steps), steps.seconds, draws=draws, seed=seed)
    power = _power(cells, draws, seed)
    decode, mixed = _noise(steps, fit)
    return Calibration(
        deployment=_named(used[0]),
        effective=effective.model_dump(mode="json"),
        rules=plain(rules),
        basis=plain(basis),
        coefficients=tuple(fit.coefficients),
        draws=tuple(tuple(d) for d in fit.draws),
        noise_decode=decode,
        noise_mixed=mixed,
        energy=tuple(power.coefficients) if power else None,
        energy_draws=tuple(tuple(d) for d in power.draws) if power else (),
        energy_series=power.series if power else None,
        why_no_energy=None if power else "the records hold no energy counter with enough readings",
        input_s=_input_delay(cells),
        output_s=_output_delay(cells),
        spacing_s=_spacing(cells),
        cell_sigma=_cell_sigma(cells, basis, fit),
        energy_sigma=_energy_sigma(cells, power),
        support=_support(cells, steps, power is not None),
        cells=tuple(r.cell_id for r in used),
        qmeter_version=__version__,
    )


def device_of(record: Record) -> str:
    """The catalog's name of the record's device: what the study named, or what the host's GPU matches; else "cpu"."""
    named = str(record.cell["deployment"]["device"])
    if named != "auto":
        return named
    seen = [str(g.get("name", "")) for g in record.provenance.host.get("gpus") or [] if isinstance(g, dict)]
    matching = [d.name for d in catalog.devices() for name in seen[:1] if d.matches(name)]
    return matching[0] if matching else "cpu"


def _named(record: Record) -> dict[str, Any]:
    d = record.cell["deployment"]
    return {
        "id": record.deployment_id, "study": record.study, "model": d["model"]["name"], "shape": d["model"]["shape"],
        "method": d["method"], "engine": d["engine"]["name"], "device": device_of(record), "parallelism": d["parallelism"],
    }  # fmt: skip


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


def _noise(steps: Observed, fit: Fit) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Quantiles of measured / modelled, for decode and for mixed steps, each with its own time-weighted mean at 1."""
    pure = steps.prefill == 0
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    out: list[tuple[float, ...]] = []
    for mask in (pure, ~pure):
        ratios = fit.ratios[mask]
        if len(ratios) < 10:
            out.append((1.0,))
            continue
        pool = np.quantile(ratios, at)
        out.append(tuple(float(v) for v in np.round(pool * (ratios.mean() / pool.mean()), 5)))
    return out[0], out[1]


def _input_delay(cells: list[_Cell]) -> float:
    """Median time from the send to the start of the step, over requests that came to an idle engine. Units: s."""
    delays = []
    for cell in cells:
        sent = np.sort(cell.tables.requests.sent_s[np.isfinite(cell.tables.requests.first_token_s)])
        starts, ends = cell.steps.start_s[cell.steps.after_idle], cell.steps.end_s
        before = np.searchsorted(sent, starts) - 1
        known = before >= 0
        delay = starts[known] - sent[before[known]]
        last_end = np.searchsorted(ends, starts[known], side="right") - 1
        idle_since = np.where(last_end >= 0, ends[np.maximum(last_end, 0)], -np.inf)
        delays.append(delay[sent[before[known]] > idle_since])
    all_delays = np.concatenate(delays) if delays else np.zeros(0)
    return float(np.median(all_delays)) if len(all_delays) >= 5 else 0.0


def _spacing(cells: list[_Cell]) -> float:
    """Least time between requests at the scheduler, from bursts: those sent together but begun in different steps.

    Within a burst (sends closer than the steps that took them), the prompts begun from the burst's second step on came
    through the front end while the steps before ran: seconds a prompt, the median over bursts. Units: s.
    """
    found = []
    for cell in cells:
        sent = np.sort(cell.tables.requests.sent_s[np.isfinite(cell.tables.requests.first_token_s)])
        steps = cell.steps.where(cell.steps.prefill > 0)
        room = steps.prefill < 0.9 * max(int(steps.prefill.max(initial=0)), 1)
        for k in range(len(steps) - 1):
            after = steps.start_s[k + 1] - steps.start_s[k]
            near = int(((sent > steps.start_s[k] - 0.02) & (sent <= steps.start_s[k])).sum())
            late = near - int(steps.chunks[k])
            began = int(steps.chunks[k + 1])
            if late >= 3 and room[k] and room[k + 1] and 2 <= began < late and steps.seconds[k] > 0.9 * after:
                found.append(after / began)
    return float(np.median(found)) if len(found) >= 3 else 0.0


def _output_delay(cells: list[_Cell]) -> float:
    """Median time from a step's end to the client's stamp of a first token. Units: s."""
    delays = []
    for cell in cells:
        first = cell.tables.requests.first_token_s
        first = first[np.isfinite(first)]
        ends = cell.steps.end_s[cell.steps.prefill > 0]
        at = np.searchsorted(ends, first, side="right") - 1
        delays.append((first - ends[np.maximum(at, 0)])[at >= 0])
    joined = np.concatenate(delays) if delays else np.zeros(0)
    return float(np.median(joined)) if len(joined) else 0.0


def _cell_sigma(cells: list[_Cell], basis: Basis, fit: Fit) -> float:
    """How far whole cells are from the model: spread of log(measured / modelled) total step time over cells."""
    logs = []
    for cell in cells:
        modelled = float((basis.design(cell.steps) @ fit.coefficients).sum())
        logs.append(np.log(float(cell.steps.seconds.sum()) / modelled))
    if len(logs) < 2:
        return 4 * LEAST_SIGMA
    inflated = float(np.std(logs)) * np.sqrt(len(logs) / (len(logs) - 1))
    return max(LEAST_SIGMA, float(inflated))


def _power(cells: list[_Cell], draws: int, seed: int) -> PowerFit | None:
    parts, series = [], ""
    for cell in cells:
        found = spans(cell.tables, cell.steps)
        if found is not None:
            parts.append(found)
            series = "+".join(energy_series(cell.tables))
    return fit_power(parts, series, draws=draws, seed=seed)


def _energy_sigma(cells: list[_Cell], power: PowerFit | None) -> float:
    if power is None:
        return 0.0
    logs = []
    for cell in cells:
        found = spans(cell.tables, cell.steps)
        if found is not None:
            logs.append(np.log(float(found[1].sum()) / float((found[0] @ power.coefficients).sum())))
    if len(logs) < 2:
        return 4 * LEAST_SIGMA
    return max(LEAST_SIGMA, float(np.std(logs)) * float(np.sqrt(len(logs) / (len(logs) - 1))))


def _support(cells: list[_Cell], steps: Observed, energy: bool) -> Support:
    longest = 0
    for cell in cells:
        r = cell.tables.requests
        seen = np.isfinite(r.first_token_s)
        longest = max(longest, int((r.prompt_tokens_asked + r.output_tokens_asked)[seen].max(initial=0)))
    return Support(
        sequences=int((steps.decodes + steps.chunks).max()),
        step_tokens=int((steps.decodes + steps.prefill).max()),
        kv_tokens=float(steps.kv.max()),
        longest_request_tokens=longest,
        energy=energy,
    )
