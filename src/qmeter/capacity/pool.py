"""Serve a sample with one offer: latencies as the client sees them, and power. One replica, or several behind a router.

Single replicas run on the compiled kernel, several on :func:`qmeter.simulate.fleet.run_fleet`. Either way the front
end counts as the simulator has it: input_s (and spacing), its queue of requests and outputs, output_s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity.offer import Offer
from qmeter.capacity.traffic import Sample
from qmeter.errors import AnalysisError
from qmeter.simulate.engine import at_scheduler
from qmeter.simulate.fast import simulate
from qmeter.simulate.fleet import Fleet, FleetResult, ReplicaKind, run_fleet
from qmeter.simulate.load import SimLoad, SimResult
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel
from qmeter.spec.workload import SLO

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

LIMITS = ("TTFT", "TPOT", "E2E")
NOISES = 8
"""Streams of step noise that a pool's replicas share: with one, all would have their slow spells together."""


@dataclass(frozen=True)
class Served:
    """One simulated run, a row a request, as its client saw it.

    Attributes:
        sent_s: when it was sent. Units: s.
        ttft_s, e2e_s: from the send to the first and to the last token. Units: s.
        tpot_s: mean time an output token after the first; NaN where there is only one.
        group: class of each request.
        power_w: mean power of one replica over the run, idle time included; NaN where the calibration has no energy.
        busy_share: share of the time in which a step ran.
        rate_hz: requests a second that a replica was sent.
    """

    sent_s: F64
    ttft_s: F64
    tpot_s: F64
    e2e_s: F64
    group: I64
    power_w: float
    busy_share: float
    rate_hz: float

    def misses(self, slo: SLO) -> dict[str, Flags]:
        """Limit → whether each request broke it; a TPOT that is not defined is kept."""
        values = zip(LIMITS, (slo.ttft, slo.tpot, slo.e2e), (self.ttft_s, self.tpot_s, self.e2e_s), strict=True)
        return {name: got > limit for name, limit, got in values if limit is not None}

    def met(self, slo: SLO) -> Flags:
        """Whether each request met every limit."""
        broke = np.zeros(len(self.group), dtype=np.bool_)
        for one in self.misses(slo).values():
            broke |= one
        return ~broke


@dataclass(frozen=True)
class Pool:
    """Replicas of one offer, ready to simulate: the fitted parameters, or one bootstrap draw of them."""

    rules: Rules
    models: tuple[StepModel, ...]
    replicas: int
    has_energy: bool
    router: str = "least-loaded"

    @classmethod
    def of(
        cls, offer: Offer, replicas: int = 1, *, draw: int | None = None, seed: int = 0, noises: Pool | None = None
    ) -> Pool:
        """``replicas`` of an offer.

        Args:
            draw: bootstrap draw; ``None``: the fit.
            seed: of step noise and draw.
            noises: a pool of the same offer and size whose streams of noise the other replicas take over (quicker).
        """
        c = offer.calibration
        first = c.step_model(draw, seed)
        others = noises.models[1:] if noises else [
            c.step_model(None, seed + 7919 * k) for k in range(1, min(replicas, NOISES))]  # fmt: skip
        streams = [replace(first, noise_decode=m.noise_decode, noise_mixed=m.noise_mixed) for m in others]
        return cls(c.scheduler(), (first, *streams), replicas, c.energy is not None)

    @property
    def model(self) -> StepModel:
        """Step time and energy of the first replica; the others differ in their noise alone."""
        return self.models[0]

    def serve(self, requests: Sample, rate_hz: float) -> Served:
        """Serve a sample sent at ``rate_hz`` requests a second a replica.

        Raises:
            AnalysisError: a request can never fit the replica.
        """
        return self.serve_times(requests.sent_unit / (rate_hz * self.replicas), requests)

    def serve_times(self, sent_s: F64, requests: Sample) -> Served:
        """Serve a sample's requests sent at the times given. Units: s."""
        load = SimLoad(sent_s, requests.prompt, requests.output)
        first, end, step_j, busy_s, span_s = self._one(load) if self.replicas == 1 else self._many(load)
        time_s = span_s * self.replicas
        joules = step_j + self.model.idle_w * max(time_s - busy_s, 0.0)
        n = requests.output
        with np.errstate(invalid="ignore", divide="ignore"):
            tpot = np.where(n > 1, (end - first) / (n - 1), np.nan)
        power = joules / time_s if self.has_energy else float("nan")
        rate = len(n) / max(float(sent_s[-1]), 1e-9) / self.replicas
        return Served(sent_s, first - sent_s, tpot, end - sent_s, requests.group, power, busy_s / time_s, rate)

    def _one(self, load: SimLoad, replica: int = 0) -> tuple[F64, F64, float, float, float]:
        model = self.models[replica % len(self.models)]
        r = simulate(at_scheduler(load, model), self.rules, model)
        first, end = self._stamped(r)
        return first, end, r.energy_j, r.busy_s, r.end_of_work_s

    def _many(self, load: SimLoad) -> tuple[F64, F64, float, float, float]:
        kinds = tuple(ReplicaKind("replica", self.rules, m) for m in self.models)
        fleet = Fleet(kinds, tuple(r % len(kinds) for r in range(self.replicas)), router=self.router)
        moved = SimLoad(load.arrival_s + self.model.input_s, load.prompt, load.output)
        r = run_fleet(fleet, moved)
        if self.model.spacing_s:
            return self._spaced(load, r.home)
        first, end = self._stamped(r)
        return first, end, float(r.step_energy_j.sum()), float(r.busy_s.sum()), r.end_of_work_s

    def _spaced(self, load: SimLoad, home: I64) -> tuple[F64, F64, float, float, float]:
        """Each replica on its own with the requests routed to it, let through its front end one at a time."""
        first, end = np.empty(len(load)), np.empty(len(load))
        joules, busy, span = 0.0, 0.0, 0.0
        for replica in range(self.replicas):
            own = np.flatnonzero(home == replica)
            if len(own):
                f, e, j, b, s = self._one(SimLoad(load.arrival_s[own], load.prompt[own], load.output[own]), replica)
                first[own], end[own] = f, e
                joules, busy, span = joules + j, busy + b, max(span, s)
        return first, end, joules, busy, span

    def _stamped(self, r: SimResult | FleetResult) -> tuple[F64, F64]:
        """Client's stamps of first and last tokens."""
        if not np.all(np.isfinite(r.end_out_s)):
            raise AnalysisError("a request was never served", hint="report this as a fault")
        return r.first_out_s + self.model.output_s, r.end_out_s + self.model.output_s
