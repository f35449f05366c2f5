"""The hardware level: counters at each load, and what prefill and decode cost each method, against measured ceilings.

Reads every valid cell's telemetry and iteration log. A table whose series no cell has stays empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qmeter.analysis.energy import Series, grouped
from qmeter.analysis.phases import PhaseSplit, slices, split_phases
from qmeter.analysis.points import Deployment, Point
from qmeter.analysis.stats import F64, t_interval
from qmeter.analysis.summary import StudySummary
from qmeter.catalog import model
from qmeter.errors import QMeterError
from qmeter.record import CellStatus, CellTables, Quantity, Record, Window
from qmeter.report.evidence import Table, Text, text
from qmeter.report.numbers import share, shown
from qmeter.store.profile import Results

ROOFLINE = "roofline.json"
"""What ``qmeter roofline --out`` wrote, where it lies beside a study's or a profile's files."""
BATCHES = 10
"""Parts of a window whose means give a counter's interval."""
COUNTERS = (
    ("gpm.sm_util", "SM busy"),
    ("gpm.sm_occupancy", "Occupancy"),
    ("gpm.tensor_util", "Tensor busy"),
    ("gpm.dram_util", "DRAM busy"),
    ("sm_clock_hz", "SM clock"),
    ("throttle_reasons", "Throttled"),
    ("temperature_c", "Temperature"),
)
LINKS = "nvlink_bytes_s"
IDLE_BIT = 1
"""NVML's reason "the GPU is idle", which is no throttling."""

Loaded = Mapping[str, tuple[Record, CellTables]]
"""Cell id → its record and tables."""


def load_cells(results: Results, records: Sequence[Record]) -> Loaded:
    """Record and tables of every valid cell."""
    return {r.cell_id: (r, results.tables(r)) for r in records if r.status is CellStatus.OK}


def hardware_tables(summary: StudySummary, loaded: Loaded, folder: Path) -> dict[str, Table]:
    """``hardware`` (a row a load point), ``phases`` and ``roofline`` (a row a deployment), as the page names them."""
    return {"hardware": counters(summary, loaded), **phases(summary, loaded, ceilings(folder))}


def ceilings(folder: Path) -> dict[str, float]:
    """The measured ceilings by name, in B/s or operations/s; empty where there are none."""
    path = folder / ROOFLINE
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))["ceilings"]
    return {c["name"]: float(c["value"]) for c in found if c["value"]}


def counters(summary: StudySummary, loaded: Loaded) -> Table:
    """Counters over each load point's window, mean over its GPUs and repeats with an interval from parts of it."""
    rows = []
    linked = any(LINKS in p.metrics for d in summary.deployments for p in d.points)
    for d in summary.deployments:
        for p in d.points:
            cells = [_counter(p, loaded, name) for name, _ in COUNTERS]
            sent = p.metrics.get(LINKS, Quantity.unknown("B/s", "one GPU: nothing to send to"))
            if any(q.known for q in (*cells, sent)):
                row = (d.key.model, d.key.label, p.workload, *(_counter_text(q) for q in cells))
                rows.append((*row, text(shown(sent), sent)) if linked else row)
    labels = [*(label for _, label in COUNTERS), *(["NVLink sent"] if linked else [])]
    return Table(("Model", "Method", "Workload", *labels), tuple(rows), numbers=True)


def _counter(point: Point, loaded: Loaded, name: str) -> Quantity:
    parts: list[F64] = []
    unit = {"sm_clock_hz": "Hz", "temperature_c": "°C"}.get(name, "1")
    for record, tables in (loaded[c] for c in point.cells):
        if record.window is None:
            continue
        values = window_means(grouped(tables.telemetry), name, record.window)
        if values is None:
            return Quantity.unknown(unit, f"gpu*.{name} has no reading in the window of {record.cell_id}")
        parts.append(values)
    if not parts:
        return Quantity.unknown(unit, "no window")
    made = t_interval(np.concatenate(parts))
    high = min(1.0, made.high) if unit == "1" else made.high
    return Quantity.of(made.value, unit, low=max(0.0, made.low), high=high, n=len(parts))


def window_means(series: Series, name: str, window: Window) -> F64 | None:
    """Means of a GPU counter over :data:`BATCHES` parts of the window, over all GPUs; ``None`` if one has no reading.

    Throttle reasons count as 1 where the GPU held its clocks back for whatever reason but idleness.
    """
    keys = [k for k in series if re.fullmatch(rf"gpu\d+\.{re.escape(name)}", k)]
    edges = np.linspace(window.start_s, window.end_s, BATCHES + 1)
    out: list[float] = []
    for key in keys:
        t, v = series[key]
        if name == "throttle_reasons":
            v = ((v.astype(np.int64) & ~IDLE_BIT) != 0).astype(np.float64)
        part = np.digitize(t, edges) - 1
        out.extend(float(v[part == k].mean()) if (part == k).any() else np.nan for k in range(BATCHES))
    made = np.array(out)
    return None if not len(made) or np.isnan(made).any() else made


def _counter_text(q: Quantity) -> Text:
    if q.unit == "Hz" and q.known:
        bounds = [None if b is None else b / 1e6 for b in (q.low, q.high)]
        q = Quantity.of((q.value or 0.0) / 1e6, "MHz", low=bounds[0], high=bounds[1], n=q.n)
    return text(share(q) if q.unit == "1" else shown(q), q)


ENERGY_HEAD = ("Prefill, energy/token", "Decode, energy/step", "Decode, energy/token", "Base power", "Misfit")
TIME_HEAD = (
    "Prefill, time/token", "Prefill rate", "Of ceiling", "Decode, time/step", "Weights read", "Of ceiling", "Misfit",
)  # fmt: skip


def phases(summary: StudySummary, loaded: Loaded, measured: Mapping[str, float]) -> dict[str, Table]:
    """``phases``: energy of prefill and decode by deployment; ``roofline``: their time, against measured ceilings."""
    energy, time = [], []
    for d in summary.deployments:
        found = phase_split(d, loaded)
        if found is None:
            continue
        lead = (d.key.model, d.key.label)
        if found.j_per_step.known:
            energy.append((*lead, *_energy_cells(found)))
        if found.s_per_step.known:
            time.append((*lead, *_time_cells(d, found, _linear_params(d, loaded), measured)))
    return {
        "phases": Table(("Model", "Method", *ENERGY_HEAD), tuple(energy), numbers=True),
        "roofline": Table(("Model", "Method", *TIME_HEAD), tuple(time), numbers=True),
    }


def phase_split(deployment: Deployment, loaded: Loaded) -> PhaseSplit | None:
    """The split over all valid cells of a deployment; ``None`` where one has no iteration log."""
    mine = [loaded[c] for p in deployment.points for c in p.cells]
    made = [slices(t, r.window, r.series) for r, t in mine if r.window is not None]
    known = [s for s in made if s is not None]
    return split_phases(known) if known and len(known) == len(made) else None


def _linear_params(deployment: Deployment, loaded: Loaded) -> int | None:
    record = loaded[deployment.points[0].cells[0]][0]
    shape = record.cell.get("deployment", {}).get("model", {}).get("shape")
    try:
        return model(shape).linear_params if shape else None
    except QMeterError:
        return None


def _energy_cells(s: PhaseSplit) -> list[Text]:
    step = shown(s.j_per_step.model_copy(update={"unit": "J"}))
    return [
        text(shown(s.j_per_prefill_token), s.j_per_prefill_token),
        text(step, s.j_per_step),
        text(shown(s.j_per_decode_token), s.j_per_decode_token),
        text(shown(s.base_power_w), s.base_power_w),
        text(share(s.energy_residual), s.energy_residual),
    ]


def _time_cells(d: Deployment, s: PhaseSplit, params: int | None, measured: Mapping[str, float]) -> list[Text]:
    weights = float(d.effective.weight_bytes) if d.effective and d.effective.weight_bytes else None
    activations = d.effective.activation_type if d.effective else None
    rate = inverse(None if params is None else 2.0 * params, s.s_per_prefill_token, "FLOP/s", "the shape is unknown")
    read = inverse(weights, s.s_per_step, "B/s", "the weights' size is unknown")
    ceilings = {name: value * d.key.gpus for name, value in measured.items()}
    token, step = (shown(q.model_copy(update={"unit": "s"})) for q in (s.s_per_prefill_token, s.s_per_step))
    return [
        text(token, s.s_per_prefill_token),
        _tera(rate),
        _of(rate, ceilings.get(activations or ""), f"no measured ceiling for {activations}"),
        text(step, s.s_per_step),
        _tera(read),
        _of(read, ceilings.get("read"), "no measured read bandwidth"),
        text(share(s.time_residual), s.time_residual),
    ]


def inverse(amount: float | None, each: Quantity, unit: str, why: str) -> Quantity:
    """``amount`` over a time, bounds swapped; unknown where either is, or where the time was found to be nothing."""
    if amount is None or each.value is None:
        return Quantity.unknown(unit, why if amount is None else each.why or "unknown")
    if each.value <= 0:
        return Quantity.unknown(unit, "no time was attributed to it")
    low = amount / each.high if each.high else None
    high = amount / each.low if each.low else None
    return Quantity.of(amount / each.value, unit, low=low, high=high, n=each.n)


def _tera(q: Quantity) -> Text:
    return text(shown(_scaled(q, 1e-12, f"T{q.unit}")), q)


def _of(q: Quantity, ceiling: float | None, why: str) -> Text:
    if q.known and ceiling is None:
        q = Quantity.unknown("1", why)
    return text(share(q if ceiling is None else _scaled(q, 1 / ceiling, "1")), q)


def _scaled(q: Quantity, factor: float, unit: str) -> Quantity:
    if q.value is None:
        return q
    low, high = (None if b is None else b * factor for b in (q.low, q.high))
    return Quantity.of(q.value * factor, unit, low=low, high=high, n=q.n)
