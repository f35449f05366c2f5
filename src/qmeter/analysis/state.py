"""Engine and host state over the window from telemetry: running, waiting, KV use, memory, preemptions, clocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qmeter.analysis.energy import Series, reason
from qmeter.analysis.stats import F64
from qmeter.record import Quantity, SeriesInfo, Window

_GAUGES = {
    "running_mean": ("engine.running", "1", "mean"),
    "waiting_mean": ("engine.waiting", "1", "mean"),
    "kv_use_mean": ("engine.kv_use", "1", "mean"),
    "kv_use_max": ("engine.kv_use", "1", "max"),
    "engine_cpu_share_mean": ("engine_process.cpu_share", "1", "mean"),
    "host_cpu_share_mean": ("host.cpu_share", "1", "mean"),
}
_COUNTERS = {"preemptions": ("engine.preemptions", "1")}


def state_metrics(series: Series, info: Sequence[SeriesInfo], window: Window) -> dict[str, Quantity]:
    """Time-weighted means, maxima and counter differences over the window; each gap keeps its reason."""
    out = {}
    for name, (key, unit, how) in _GAUGES.items():
        out[name] = _gauge(series.get(key), unit, how, window, reason(key, info))
    for name, (key, unit) in _COUNTERS.items():
        out[name] = _counted(series.get(key), unit, window, reason(key, info))
    out["prefix_hit_share"] = _hits(series, info, window)
    out["memory_peak_bytes"] = _memory(series, info, window)
    return out


def _gauge(found: tuple[F64, F64] | None, unit: str, how: str, window: Window, why: str) -> Quantity:
    if found is None:
        return Quantity.unknown(unit, why)
    t, v = found
    inside = (t >= window.start_s) & (t < window.end_s)
    if inside.sum() < 2:
        return Quantity.unknown(unit, f"{int(inside.sum())} readings in the window")
    if how == "max":
        return Quantity.of(float(v[inside].max()), unit, n=int(inside.sum()))
    t, v = t[inside], v[inside]
    return Quantity.of(float(np.trapezoid(v, t) / (t[-1] - t[0])), unit, n=len(t))


def _counted(found: tuple[F64, F64] | None, unit: str, window: Window, why: str) -> Quantity:
    if found is None:
        return Quantity.unknown(unit, why)
    t, v = found
    before, after = v[t < window.start_s], v[t < window.end_s]
    first = float(before[-1]) if len(before) else float(v[0])
    if not len(after):
        return Quantity.unknown(unit, "no reading before the window's end")
    step = float(after[-1]) - first
    return Quantity.of(step, unit) if step >= 0 else Quantity.unknown(unit, "the counter was reset in the window")


def _hits(series: Series, info: Sequence[SeriesInfo], window: Window) -> Quantity:
    hits, asked = (
        _counted(series.get(k), "1", window, reason(k, info)) for k in ("engine.prefix_hits", "engine.prefix_queries")
    )
    if hits.value is None or asked.value is None:
        return Quantity.unknown("1", hits.why or asked.why or "unknown")
    if asked.value == 0:
        return Quantity.unknown("1", "no prefix-cache query in the window")
    return Quantity.of(hits.value / asked.value, "1", n=int(asked.value))


def _memory(series: Series, info: Sequence[SeriesInfo], window: Window) -> Quantity:
    gpus = sorted(k for k in series if k.startswith("gpu") and k.endswith(".memory_used_bytes"))
    keys = gpus or [k for k in ("engine_process.rss_bytes",) if k in series]
    if not keys:
        return Quantity.unknown("B", reason("engine_process.rss_bytes", info))
    peaks = [_gauge(series[k], "B", "max", window, "") for k in keys]
    lost = next((p for p in peaks if p.value is None), None)
    if lost:
        return Quantity.unknown("B", lost.why or "unknown")
    what = "sum over GPUs of the memory in use" if gpus else "resident memory of the engine's processes"
    return Quantity.of(sum(p.value or 0.0 for p in peaks), "B", n=peaks[0].n, why=what)
