"""Predict a workload's metrics with intervals: simulate it once for each bootstrap draw of the calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qmeter.analysis.cell import CellAnalysis, analyse, due_hz
from qmeter.analysis.latency import latencies
from qmeter.analysis.rates import within
from qmeter.record import Quantity, Reason, Window
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.clocks import KEPT
from qmeter.simulate.engine import SimulatedCell, run_cell
from qmeter.simulate.heldout import VOCABULARY, Width, keeps_up, width_for
from qmeter.spec.workload import SLO, ClosedArrivals, WorkloadSpec
from qmeter.workload import Vocabulary, build
from qmeter.workload.schedule import Schedule

CONFIDENCE = 0.9
DRAWS = 24
LEAST_DRAWS = 3
"""Draws from which on there is an interval: fewer say nothing of a spread."""
PROMISED = ("slo_attainment", "goodput_hz")


@dataclass(frozen=True)
class Prediction:
    """A workload on a deployment: metrics and energy with intervals, the run behind the point estimates, and notes.

    ``window`` is the fitted run's, over which the metrics count; ``warnings`` are its analysis' own.
    """

    calibration: Calibration
    workload: WorkloadSpec
    metrics: Mapping[str, Quantity]
    energy: Mapping[str, Quantity]
    cell: SimulatedCell
    notes: tuple[str, ...]
    window: Window | None = None
    warnings: tuple[Reason, ...] = ()


def predict(
    calibration: Calibration,
    workload: WorkloadSpec,
    *,
    seed: int = 1,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    allow_extrapolation: bool = False,
    schedule: Schedule | None = None,
    on_draw: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Simulate the workload and give each metric the interval that the draws span.

    The draws carry the fit's uncertainty, the spread between whole runs, and the noise of single steps. Errors on loads
    that fits were not given hold these and what the model leaves out: where there are enough, they are the interval;
    else no interval is narrower than they say. With fewer than :data:`LEAST_DRAWS` draws nothing has an interval, and
    each quantity says so: the spread within the one run says nothing of how far off the prediction may be.

    Args:
        schedule: the requests, if not the ones that ``seed`` makes.
        on_draw: called with (done, all) after each simulation.

    Raises:
        AnalysisError: the question lies outside what the calibration supports.
    """
    schedule = schedule or build(workload, seed, Vocabulary(size=VOCABULARY))
    centre = run_cell(calibration, schedule, seed=seed, allow_extrapolation=allow_extrapolation)
    found = analyse(centre.tables, workload, centre.series, seed=seed)
    samples: dict[str, list[float]] = {}
    for draw in range(draws):
        one = run_cell(calibration, schedule, seed=seed + 1000 + draw, draw=draw, allow_extrapolation=True)
        numbers = analyse(one.tables, workload, one.series, seed=seed)
        for name, quantity in {**numbers.metrics, **numbers.energy}.items():
            if quantity.value is not None:
                samples.setdefault(name, []).append(quantity.value)
        if on_draw:
            on_draw(draw + 1, draws)

    kept = keeps_up(workload, centre.tables, found.window)

    def apart(name: str) -> Width:
        return width_for(calibration, name, kept, confidence)

    def told(name: str, quantity: Quantity) -> Quantity:
        wide = apart(name)
        only = wide.alone and calibration.moved is None
        most = limit_w(calibration) if name == "power_mean_w" else np.inf
        return interval(quantity, samples.get(name, []), confidence, wide.half, only=only, most=most)

    metrics = {n: told(n, q) for n, q in found.metrics.items() if n not in PROMISED}
    metrics |= _promised(centre, workload, found, samples, apart, confidence)
    energy = {n: told(n, q) for n, q in found.energy.items()}
    return Prediction(calibration, workload, metrics, energy, centre, centre.notes, found.window, found.warnings)


def _promised(
    cell: SimulatedCell, workload: WorkloadSpec, found: CellAnalysis, samples: Mapping[str, list[float]],
    apart: Callable[[str], Width], confidence: float,
) -> dict[str, Quantity]:  # fmt: skip
    """Attainment and goodput, whose errors do not scale: near the promise a small error in latency moves many requests
    over it, far from it none.

    Their interval is what they come to were every latency off by its own error on loads held out (that of p90s), beside
    what the draws say, and never more than all requests of an open load. A closed loop's rate of requests is predicted
    too: its goodput is off by that rate's error as well.
    """
    share, goodput = (interval(found.metrics[n], samples.get(n, []), confidence) for n in PROMISED)
    if workload.slo is not None and share.value is not None:
        requests, due = latencies(cell.tables, found.window), due_hz(cell.tables, workload)
        closed = isinstance(workload.arrivals, ClosedArrivals)
        off = float(np.exp(apart("request_rate_hz").half)) if closed else 1.0
        ends = [float(within(requests, _if_off(workload.slo, sign, apart)).mean()) for sign in (-1.0, 1.0)]
        share = _spanned(share, ends, 1.0)
        goodput = _spanned(goodput, [ends[0] * due / off, ends[1] * due * off], np.inf if closed else due)
    return dict(zip(PROMISED, (share, goodput), strict=True))


def _if_off(slo: SLO, sign: float, apart: Callable[[str], Width]) -> SLO:
    """The promise whose keeping says what becomes of ``slo`` were every latency longer (``sign`` -1) or shorter (1) by
    its error on loads held out."""
    limits = {"ttft": slo.ttft, "tpot": slo.tpot, "e2e": slo.e2e}
    known = {n: v * float(np.exp(sign * apart(f"{n}_p90_s").half)) for n, v in limits.items() if v is not None}
    return slo.model_copy(update=known)


def _spanned(quantity: Quantity, ends: Sequence[float], most: float) -> Quantity:
    """The quantity with an interval that holds the ends too, and nothing beyond ``most``."""
    value = quantity.value
    if value is None or quantity.low is None:
        return quantity
    known = [v for v in (quantity.low, quantity.high, value, *ends) if v is not None]
    return Quantity.of(value, quantity.unit, low=min(known), high=max(min(max(known), most), value), n=quantity.n)


def interval(
    quantity: Quantity, sample: list[float], confidence: float, apart: float = 0.0, *, only: bool = False,
    most: float = np.inf,
) -> Quantity:  # fmt: skip
    """The draws' median with their interval, as a normal's or their quantiles, whichever is wider.

    A normal's width corrects for few draws, which seldom reach their own tails; what is positive and no share is
    skewed, so its normal is of its logarithm. ``apart``: half the least width, on a log scale; ``only``: it is the
    width, whatever the draws; ``most``: what cannot be exceeded. With fewer than :data:`LEAST_DRAWS` in the sample: the
    value, without an interval and with the reason.
    """
    if quantity.value is None:
        return quantity
    if len(sample) < LEAST_DRAWS:
        why = f"no interval: known in {len(sample)} draws, and an interval takes {LEAST_DRAWS}"
        why = f"{quantity.why}; {why}" if quantity.why else why
        return Quantity.of(quantity.value, quantity.unit, n=quantity.n, why=why)
    values = np.asarray(sample)
    tail = (1 - confidence) / 2
    low, high = (float(v) for v in np.quantile(values, [tail, 1 - tail]))
    centre = float(np.median(values))
    skewed = quantity.unit != "1" and float(values.min()) > 0
    spread = float((np.log(values) if skewed else values).std(ddof=1)) * normal_quantile(1 - tail)
    spread *= 1 + 1 / (2 * len(values))
    if skewed:
        low, high = min(low, centre * float(np.exp(-spread))), max(high, centre * float(np.exp(spread)))
    else:
        low, high = min(low, centre - spread), max(high, centre + spread)
    if float(values.min()) >= 0:
        low = max(low, 0.0)
    if centre > 0 and apart > 0 and only:
        low, high = centre * float(np.exp(-apart)), centre * float(np.exp(apart))
    elif centre > 0 and apart > 0:
        low, high = min(low, centre * float(np.exp(-apart))), max(high, centre * float(np.exp(apart)))
    return Quantity.of(centre, quantity.unit, low=low, high=max(min(high, most), centre), n=quantity.n)


def limit_w(calibration: Calibration) -> float:
    """Power limit of all its GPUs together; infinite where it is not known. Units: W."""
    return np.inf if calibration.power_cap_w is None else calibration.power_cap_w / KEPT


def normal_quantile(p: float) -> float:
    """The standard normal's quantile."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
