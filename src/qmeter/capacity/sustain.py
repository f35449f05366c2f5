"""The highest rate at which a replica keeps a tail promise: bisection over simulations of the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity.offer import Offer
from qmeter.capacity.pool import Flags, Pool, Served
from qmeter.capacity.traffic import ClassLoad, Mix, Sample, sample
from qmeter.record import Quantity
from qmeter.simulate.engine import at_scheduler
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import SimLoad, SimResult
from qmeter.simulate.support import beyond, check

F64 = NDArray[np.float64]

BATCHES = 20
T_95 = 1.729
"""One-sided 95% quantile of Student's t with BATCHES - 1 degrees of freedom."""
FRACTIONS = (0.25, 0.5, 0.75, 1.0)
LONELY = 200.0
"""At the saturated rate over this, requests hardly ever meet: the zero-load latency."""


@dataclass(frozen=True)
class Precision:
    """How hard to look.

    Attributes:
        requests: in each simulation (more where a class is rare, or for a pool: a quarter of them a replica).
        warmup_share: of them that do not count: the queue starts empty.
        tolerance: relative width at which the bisection stops.
        sure: ``True``: the lower 95% bound of the share must reach the percentile (batch means), so that fresh
            requests keep it too; ``False``: the share itself.
    """

    requests: int = 6000
    warmup_share: float = 0.1
    tolerance: float = 0.01
    sure: bool = True


@dataclass(frozen=True)
class Kept:
    """How one class fared in a run: share of requests that met its SLO, that share's lower 95% bound, and what broke.

    Attributes:
        broke: limit ("TTFT", "TPOT", "E2E") → share of requests that broke it.
    """

    name: str
    asked: float
    share: float
    low: float
    broke: Mapping[str, float]

    @property
    def worst(self) -> str:
        """The limit broken most."""
        return max(self.broke, key=lambda k: self.broke[k])


@dataclass(frozen=True)
class LoadPoint:
    """One replica at one rate.

    Attributes:
        rate_hz: requests a second a replica.
        fraction: of the sustained rate.
        power_w: mean, idle time included; NaN where energy is unknown. Units: W.
        j_per_request: NaN where energy is unknown or the rate is 0. Units: J.
        busy_share: share of the time in which a step ran (near 1 at any load that keeps a decode going: it is not
            how full the replica is; ``fraction`` is).
        kept: how each class fared.
    """

    rate_hz: float
    fraction: float
    power_w: float
    j_per_request: float
    busy_share: float
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class Capacity:
    """What one replica of an offer sustains of a mix.

    Attributes:
        rate_hz: requests a second a replica, all classes together; 0 with a reason where the SLO cannot be kept even
            without load. ``low``, ``high``: 90% interval over the calibration's draws, where draws were asked for.
        curve: idle, then fractions of the rate: power, attainment, utilisation.
        binds: what stops it from going higher, in words ("chat: TPOT").
        bounded: where the records end before any promise breaks: what they cover ("up to 96 sequences in a step"); a
            replica may sustain more than was measured. Empty: a promise binds.
        replicas: size of the pool it was found with.
        draws_hz: the rate that each calibration draw sustains.
        notes: questions near the edge of the calibration.
        lonely_s: where even a lone request breaks a limit: what that limit would have to be. Units: s.
    """

    offer: str
    mix: Mix = field(repr=False)
    rate_hz: Quantity
    curve: tuple[LoadPoint, ...]
    binds: str
    replicas: int = 1
    draws_hz: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    lonely_s: float | None = None
    bounded: str = ""

    def power_w(self, rate_hz: float) -> float:
        """Mean power of a replica at a rate, interpolated (held beyond the curve's end). Units: W."""
        return float(np.interp(rate_hz, [p.rate_hz for p in self.curve], [p.power_w for p in self.curve]))


def sustain(
    offer: Offer,
    mix: Mix,
    *,
    replicas: int = 1,
    seed: int = 1,
    draws: int = 0,
    near: float | None = None,
    precision: Precision | None = None,
    curve: bool = True,
    allow_extrapolation: bool = False,
) -> Capacity:
    """The highest rate a replica at which every class of the mix keeps its SLO, with its power curve.

    The same requests are sent faster and slower (common random numbers), so the answer is a function of the seed.
    The rate is cut where the mean power would exceed the offer's limit, and to the highest that the calibration covers
    where its records end before a promise breaks (``Capacity.bounded``). About 10 simulations of 5 to 25 ms on the
    compiled kernel, and as many for each draw.

    Args:
        mix: the classes, each with its lengths and its own SLO, and their shares; ``Mix((one_class,))`` for one.
        replicas: pool size: behind a least-loaded router several replicas sustain more each than one alone.
        draws: calibration draws behind ``rate_hz``'s interval; 0: none.
        near: where the rate is expected, to look there first. Units: 1/s.
        curve: simulate the power curve too.
        allow_extrapolation: answer beyond the calibration's support, with notes.

    Raises:
        AnalysisError: a request that can never run, or one that the calibration does not cover even alone.
    """
    how = precision or Precision()
    requests = sample(mix, max(how.requests, how.requests * replicas // 4), seed)
    pool = Pool.of(offer, replicas, seed=seed)
    _lengths_covered(offer, pool, requests, allow_extrapolation)
    search = _Search(offer, requests, how)
    rate, binds = search.highest(pool, near)
    if rate == 0.0:
        idle = _idle_point(offer)
        least = search.lonely(pool, binds)
        words = f"{binds}{least[0]}"
        return Capacity(offer.name, mix, Quantity.of(0.0, "1/s", why=words), (idle,), words, replicas,
                        lonely_s=least[1])  # fmt: skip
    sustained = rate
    rate, bounded, notes = _covered(offer, pool, requests, rate, how.tolerance, allow_extrapolation)
    binds = f"what was measured ({bounded})" if bounded else binds
    found = [
        search.highest(Pool.of(offer, replicas, draw=d, seed=seed, noises=pool), near=sustained)[0]
        for d in range(draws)
    ]
    found = [min(hz, rate) for hz in found] if bounded else found
    points = [_idle_point(offer)] + [search.point(pool, rate, f) for f in (FRACTIONS if curve else (1.0,))]
    return Capacity(offer.name, mix, _interval(rate, found), tuple(points), binds, replicas, tuple(found), notes,
                    bounded=bounded)  # fmt: skip


def kept(served: Served, classes: Sequence[ClassLoad], warmup_share: float = 0.1) -> tuple[Kept, ...]:
    """How each class fared; the first ``warmup_share`` of the run's requests do not count."""
    begin = int(len(served.group) * warmup_share)
    late = np.arange(len(served.group)) >= begin
    out = []
    for i, one in enumerate(classes):
        own = late & (served.group == i)
        met = served.met(one.slo)[own]
        broke = {k: float(v[own].mean()) if len(met) else 0.0 for k, v in served.misses(one.slo).items()}
        share = float(met.mean()) if len(met) else 1.0
        out.append(Kept(one.name, one.slo.percentile, share, lower_bound(met), broke))
    return tuple(out)


def lower_bound(met: Flags) -> float:
    """One-sided 95% bound of a share whose misses come in clusters: batch means over 20 batches, Student's t."""
    if len(met) < 2 * BATCHES:
        return float(met.mean()) if len(met) else 1.0
    size = len(met) // BATCHES
    means = met[len(met) - size * BATCHES :].reshape(BATCHES, size).mean(axis=1)
    return float(met.mean() - T_95 * means.std(ddof=1) / np.sqrt(BATCHES))


@dataclass(frozen=True)
class _Search:
    offer: Offer
    requests: Sample
    how: Precision

    def point(self, pool: Pool, rate: float, fraction: float) -> LoadPoint:
        served = pool.serve(self.requests, rate * fraction)
        fared = kept(served, self.requests.mix.classes, self.how.warmup_share)
        joules = served.power_w / served.rate_hz
        return LoadPoint(rate * fraction, fraction, served.power_w, joules, served.busy_share, fared)

    def broken(self, pool: Pool, rate: float) -> str:
        """What is broken at a rate, in words; empty: nothing."""
        served = pool.serve(self.requests, rate)
        limit = self.offer.power_limit_w
        if limit is not None and served.power_w > limit:
            return f"power limit of {limit:.0f} W"
        fared = kept(served, self.requests.mix.classes, self.how.warmup_share)
        short = [(k.asked - (k.low if self.how.sure else k.share), k) for k in fared]
        gap, worst = max(short, key=lambda pair: pair[0])
        return f"{worst.name}: {worst.worst}" if gap > 0 else ""

    def highest(self, pool: Pool, near: float | None = None) -> tuple[float, str]:
        """``(rate, what binds)``; ``near``: where it is expected. 0: broken even without load, and how."""
        top = self._saturated(pool)
        low, high, binds = 0.0, top, ""
        if near is not None:
            for rate in (near * 0.97, near * 1.03, near * 0.85, near * 1.15):
                if not low < rate < high:
                    continue
                why = self.broken(pool, rate)
                low, high, binds = (low, rate, why) if why else (rate, high, binds)
        if low == 0.0:
            low = top / LONELY
            why = self.broken(pool, low)
            if why:
                return 0.0, why
        while high - low > self.how.tolerance * high:
            middle = (low + high) / 2
            why = self.broken(pool, middle)
            low, high, binds = (low, middle, why) if why else (middle, high, binds)
        return low, binds or "saturation"

    def _saturated(self, pool: Pool) -> float:
        """Requests a second a replica when all are sent at once: no higher rate can last."""
        served = pool.serve_times(np.zeros(len(self.requests)), self.requests)
        return len(self.requests) / float(served.e2e_s.max()) / pool.replicas

    def lonely(self, pool: Pool, why: str) -> tuple[str, float | None]:
        """What there is to say of a limit that even lone requests break, and what it would have to be."""
        if why.startswith("power"):
            return " is exceeded at any load", None
        served = pool.serve(self.requests, self._saturated(pool) / LONELY)
        name, _, limit = why.partition(": ")
        at, one = next((i, c) for i, c in enumerate(self.requests.mix.classes) if c.name == name)
        values = {"TTFT": served.ttft_s, "TPOT": served.tpot_s, "E2E": served.e2e_s}[limit][served.group == at]
        asked = {"TTFT": one.slo.ttft, "TPOT": one.slo.tpot, "E2E": one.slo.e2e}[limit]
        there = float(np.nanquantile(values, one.slo.percentile))
        share = f"{one.slo.percentile:.4g} of requests"
        return f" limit of {asked or 0:.4g} s is below the zero-load {limit} of {there:.4g} s (for {share})", there


def _lengths_covered(offer: Offer, pool: Pool, requests: Sample, allow: bool) -> None:
    """Refuse requests of lengths that were never measured before anything is said of their latency."""
    whole = SimLoad(requests.sent_unit, requests.prompt, requests.output)
    whole.check(pool.rules)
    one = simulate(SimLoad(np.zeros(1), np.ones(1, dtype=np.int64), np.ones(1, dtype=np.int64)), pool.rules, pool.model)
    check(offer.calibration, whole, one, allow=allow)


def _covered(
    offer: Offer, pool: Pool, requests: Sample, rate: float, tolerance: float, allow: bool
) -> tuple[float, str, tuple[str, ...]]:
    """The highest rate up to ``rate`` that the calibration covers, the end of what it covers where that is less, and
    notes on one replica's support there. With ``allow``: ``rate`` as it is.

    Raises:
        AnalysisError: not even near zero load is covered, and it is not allowed.
    """
    steps = _steps(pool, requests, rate)
    why = None if allow else beyond(offer.calibration, *steps)
    if why is None:
        return rate, "", check(offer.calibration, *steps, allow=allow)
    low, high = rate / LONELY, rate
    least = _steps(pool, requests, low)
    if beyond(offer.calibration, *least) is not None:
        return rate, "", check(offer.calibration, *steps, allow=False)  # which refuses
    while high - low > tolerance * high:
        middle = (low + high) / 2
        steps = _steps(pool, requests, middle)
        less = beyond(offer.calibration, *steps)
        if less is None:
            low, least = middle, steps
        else:
            high, why = middle, less
    return low, why, check(offer.calibration, *least, allow=False)


def _steps(pool: Pool, requests: Sample, rate: float) -> tuple[SimLoad, SimResult]:
    """One replica at a rate, with each of its steps."""
    load = at_scheduler(SimLoad(requests.sent_unit / rate, requests.prompt, requests.output), pool.model)
    return load, simulate(load, pool.rules, pool.model, detail=True)


def _idle_point(offer: Offer) -> LoadPoint:
    watts = offer.idle_w.value
    return LoadPoint(0.0, 0.0, float("nan") if watts is None else watts, float("nan"), 0.0)


def _interval(rate: float, found: list[float]) -> Quantity:
    if len(found) < 3:
        return Quantity.of(rate, "1/s")
    low, high = (float(v) for v in np.quantile(found, [0.05, 0.95]))
    return Quantity.of(rate, "1/s", low=min(low, rate), high=max(high, rate), n=len(found))


__all__ = ["Capacity", "Kept", "LoadPoint", "Precision", "kept", "lower_bound", "sustain"]
