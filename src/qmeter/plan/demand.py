"""Traffic of a plan: each class's requests a second in each period, its lengths and its promise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import ClassLoad, Drawn, Empirical, LengthLaw
from qmeter.errors import SpecError
from qmeter.plan.spec import ClassSpec, PlanSpec, TraceSpec
from qmeter.spec.workload import TraceLength
from qmeter.workload.lengths import most_tokens
from qmeter.workload.traces import Trace, read_trace

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Demand:
    """All traffic.

    Attributes:
        classes: what each sends and was promised.
        floors: quality floors of each class.
        rate_hz: (C, T) requests a second.
        period_s: length of each period; the plan's horizon is T of them, over and over.
        carbon_g_kwh: (T,).
    """

    classes: tuple[ClassLoad, ...]
    floors: tuple[dict[str, float], ...]
    rate_hz: F64
    period_s: float
    carbon_g_kwh: F64

    @property
    def horizon_h(self) -> float:
        """Length of the horizon. Units: h."""
        return float(self.rate_hz.shape[1] * self.period_s / 3600)

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [c.name for c in self.classes]


def demand_of(spec: PlanSpec) -> Demand:
    """The plan's traffic; classes with one rate keep it in every period.

    Raises:
        SpecError: a trace cannot be read, or its periods and the curves' do not agree.
    """
    rows, loads = [], []
    for i, one in enumerate(spec.classes):
        if one.trace is not None:
            rate, load = _traced(one, one.trace, spec.period, i)
        else:
            rate, load = _curve(one, spec), ClassLoad(one.name, _laws(one), one.slo, one.burstiness or 1.0)
        rows.append(rate)
        loads.append(load)
    carbon = spec.electricity.carbon_g_kwh
    intensity = np.atleast_1d(np.asarray(carbon, dtype=np.float64))
    periods = max([len(r) for r in rows] + [len(intensity)])
    for i, row in enumerate(rows):
        if len(row) not in (1, periods):
            raise SpecError("classes do not cover the same periods", faults=[
                (f"classes[{i}]", f"covers {len(row)} periods where another covers {periods}: cut the trace with "
                                  "length, or give one value for each period")])  # fmt: skip
    rates = np.array([np.broadcast_to(r, periods) for r in rows], dtype=np.float64)
    return Demand(tuple(loads), tuple(dict(c.quality) for c in spec.classes), rates, spec.period,
                  np.broadcast_to(intensity, periods).copy())  # fmt: skip


def _curve(one: ClassSpec, spec: PlanSpec) -> F64:
    if one.rate is not None:
        return np.asarray(one.rate)
    return np.asarray(spec.rate) * (one.share or 0.0)


def _laws(one: ClassSpec) -> LengthLaw:
    assert one.prompt_tokens is not None and one.output_tokens is not None
    return Drawn(one.prompt_tokens, one.output_tokens)


def _traced(one: ClassSpec, trace: TraceSpec, period_s: float, index: int) -> tuple[F64, ClassLoad]:
    """Rates in each whole period, pairs of lengths, and burstiness from the gaps."""
    length = float("inf") if trace.length is None else trace.length * trace.time_scale
    found = read_trace(Path(trace.path), trace.format, offset_s=trace.offset, length_s=length)
    at = found.time_ns / 1e9 / trace.time_scale
    whole = int(max(found.covered_s / trace.time_scale, at[-1] if len(at) else 0.0) / period_s + 1e-6)
    if whole < 1:
        raise SpecError("a trace is shorter than one period", faults=[
            (f"classes[{index}].trace", f"covers {found.covered_s / trace.time_scale:.0f} s of {period_s:.0f} s: set a "
                                        "shorter period, as in 'period: 10min'")])  # fmt: skip
    keep = at < whole * period_s
    counts = np.bincount((at[keep] / period_s).astype(int), minlength=whole)[:whole]
    law = _pairs(one, found, keep)
    burstiness = one.burstiness or _burstiness(at[keep], counts, period_s)
    return counts / period_s, ClassLoad(one.name, law, one.slo, burstiness)


def _pairs(one: ClassSpec, found: Trace, keep: NDArray[np.bool_]) -> LengthLaw:
    given = [one.prompt_tokens, one.output_tokens]
    if all(law is not None and not isinstance(law, TraceLength) for law in given):
        return _laws(one)
    columns = []
    for law, seen in zip(given, (found.prompt_tokens, found.output_tokens), strict=True):
        most = most_tokens(law) if isinstance(law, TraceLength) else None
        values = seen[keep] if most is None else np.minimum(seen[keep], most)
        columns.append(tuple(int(v) for v in values))
    return Empirical(columns[0], columns[1])


def _burstiness(at: F64, counts: NDArray[np.int64], period_s: float) -> float:
    """Shape of gamma gaps with the gaps' own coefficient of variation, each gap over its period's mean gap.

    Moment estimate: 1 / CV²; kept in 0.05..10 (gaps from a trace with coarse stamps tell no more).
    """
    if len(at) < 50:
        return 1.0
    mean = period_s / np.maximum(counts, 1)
    gaps = np.diff(at) / mean[np.minimum((at[1:] / period_s).astype(int), len(counts) - 1)]
    return float(np.clip(1 / max(float(gaps.var()), 1e-9), 0.05, 10.0))
