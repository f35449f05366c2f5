"""Fit host and device apart where asynchronous scheduling overlaps them, from when results were seen.

One-step-ahead: with the measured times r of the results, step k was decided at d(k) = r(k-2) and

    launched(k) = d(k) + H(k)      g(k) = max(max(g(k-1), d(k)) + D(k), launched(k) + tail)
    r(k) is predicted as max(launched(k+1), g(k))

so a slow launch of a step with prefill shows in the result of the step before it, and the device's time in its own.
Then g(k) is set right by what was seen. It is at most r(k); and where a result that waited for the device came later
than expected by more than a launch, something held the step up, and it is r(k). Else one stall would leave the device
ahead of itself for many full steps, each of which would look longer than it was. (Smaller delays are the launch's.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import MissingExtra
from qmeter.simulate.fit import Basis, tiled
from qmeter.simulate.jit import jit
from qmeter.simulate.mixed import BASE_S, BASE_SIGMA, WIDE_SIGMA, MixedShape, bend_sigmas
from qmeter.simulate.observe import Observed

F64 = NDArray[np.float64]
B8 = NDArray[np.bool_]

HOST = ("host_s", "host_seq_s", "host_mixed_s", "host_mixed_seq_s", "tail_s")
START = (3e-3, 1e-5, 2e-2, 3e-5, 1e-3)
TRUST = (0.3, 15.0, 0.3, 10.0, 0.3)
"""How firmly each host time is held to its start: its part a sequence is confounded with drift between cells."""
CHUNK_S = 1e-4
"""Seconds of a prefill chunk to start from."""
KV_MIXED, KV_SIGMA = 1.5, 0.3
"""How much longer a KV token takes in a step with prefill than in a decode step, to start from, and its spread."""
STEADY_PARTS, LAUNCH_WEIGHT = 12, 20.0
"""Groups of decode steps by their batch, and the weight of a launch that would take longer than such steps do."""
PRIOR_WEIGHT = 3.0
"""Weight of the shape's own spreads beside the steps' errors."""
NEAR = 3
"""Steps around a step with prefill in which host and device are out of step."""


@jit
def replay(seen: F64, start: F64, fresh: B8, host: F64, device: F64, tail: float, out: F64) -> None:
    """Predicted time of each step's result after the one before it (or after its start), into ``out``; NaN: unknown."""
    n = len(seen)
    g, launched_next = 0.0, 0.0
    for k in range(n):
        if fresh[k]:
            decided = start[k]
            launched = decided + host[k]
            g = decided
        else:
            decided = launched_next if fresh[k - 1] else seen[k - 2]
            launched = decided + host[k]
        g = max(max(g, decided) + device[k], launched + tail)
        predicted, slack = g, 0.0
        if k + 1 < n and not fresh[k + 1]:
            after = launched if fresh[k] else seen[k - 1]
            launched_next, slack = launched, host[k + 1]
            predicted = max(after + slack, g)
        before = start[k] if fresh[k] else seen[k - 1]
        out[k] = predicted - before
        stalled = predicted == g and seen[k] > g + slack
        g = seen[k] if stalled else min(g, seen[k])


@dataclass(frozen=True)
class Overlap:
    """Host times in the order of :data:`HOST`, mixed-step coefficients, their draws, and predicted / measured times.

    ``kv_mixed``: how much longer a KV token takes beside a prefill; ``clocked``: at each knot, the share of a mixed
    step's time that the clock divides; ``cost``: what the fit leaves.
    """

    host: F64
    mixed: F64
    host_draws: F64
    mixed_draws: F64
    predicted: F64
    kv_mixed: float
    clocked: F64
    cost: float


def steady(steps: Observed) -> B8:
    """Decode steps with no prefill and no pause near: each lasts what the slower of host and device takes."""
    odd = (steps.prefill > 0) | steps.after_idle
    near = odd.copy()
    for shift in range(1, NEAR + 1):
        near[shift:] |= odd[:-shift]
    near[:-1] |= odd[1:]
    near[:-2] |= odd[2:]
    near[-1:] = True
    return ~near


@dataclass(frozen=True)
class _Problem:
    """What explains when results were seen: logs of the host's times, of the mixed steps' numbers, and their bends.

    Attributes:
        decode: device seconds of decode steps; kv_s: seconds a KV token there.
        longer: by how much the clock of each step makes longer what it divides.
        measured: seconds of each step; ``use``: those that are explained, since host and device are out of step there.
        calm: sizes of decode batches, and the seconds of their steps in a run.
    """

    steps: Observed
    shape: MixedShape
    decode: F64
    kv_s: float
    longer: F64
    measured: F64
    use: B8
    calm: tuple[F64, F64]

    @property
    def start(self) -> F64:
        """Where the search begins; its pull holds each log there."""
        numbers = np.log([*START, self.shape.token_s, BASE_S])
        return np.concatenate([numbers, [0.0, 0.0, np.log(KV_MIXED)], np.zeros(len(self.shape.knots))])

    @property
    def pull(self) -> F64:
        """How firmly."""
        s = self.shape
        sigmas = np.concatenate([[s.token_sigma, BASE_SIGMA, s.pair_sigma, WIDE_SIGMA, KV_SIGMA], bend_sigmas(s.knots)])
        return np.concatenate([TRUST, PRIOR_WEIGHT / sigmas])

    def predict(self, x: F64) -> F64:
        """Seconds of each step, one step ahead."""
        steps, shape, pure = self.steps, self.shape, self.steps.prefill == 0
        host, numbers = np.exp(x[:5]), np.exp(x[5:7])
        sequences = (steps.decodes + steps.chunks).astype(np.float64)
        tokens = tiled(steps.decodes + steps.prefill, shape.tile)
        curve = np.interp(tokens, shape.knots, shape.seconds(numbers, x[10:]))
        curve *= 1.0 + self.longer * np.interp(tokens, shape.knots, shape.clocked(numbers))
        rest = shape.pair_s * np.exp(x[7]) * steps.pairs * (1.0 + self.longer)
        rest += CHUNK_S * np.exp(x[8]) * steps.chunks + self.kv_s * np.exp(x[9]) * steps.kv
        launch = np.where(pure, host[0] + host[1] * sequences, host[2] + host[3] * sequences)
        out = np.empty(len(steps))
        replay(steps.end_s, steps.start_s, steps.after_idle, launch, np.where(pure, self.decode, curve + rest),
               float(min(host[4], host[0])), out)  # fmt: skip
        return out

    def told(self, x: F64) -> tuple[F64, F64]:
        """Host times, none of them longer than decode steps in a run, and coefficients of mixed steps."""
        host = np.exp(x[:5])
        sizes, seconds = self.calm
        if len(sizes):
            host[1] = min(host[1], float((seconds / np.maximum(sizes, 1.0)).min()))
            host[0] = min(host[0], max(float((seconds - host[1] * sizes).min()), 0.0))
        host[4] = min(host[4], host[0])
        ends = [self.shape.pair_s * np.exp(x[7]), CHUNK_S * np.exp(x[8])]
        return host, np.concatenate([self.shape.ramps(np.exp(x[5:7]), x[10:]), ends])


def fit_overlap(
    basis: Basis, steps: Observed, decode: F64, kv_s: float, shape: MixedShape, clocks: F64, *, draws: int, seed: int
) -> Overlap:
    """Fit the host's times and the mixed steps' device times, the decode steps' coefficients given.

    Args:
        decode: coefficients of the basis' decode columns.
        kv_s: seconds a KV token.
        shape: of a mixed step's time over its tokens.
        clocks: of each step, as shares of the full one: what is fitted are the times at full clock.

    Raises:
        MissingExtra: scipy is not installed.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise MissingExtra("simulate", "fitting a step model") from error
    before = np.diff(steps.end_s, prepend=steps.end_s[0] - steps.seconds[0])
    measured = np.where(steps.after_idle, steps.seconds, before)
    fixed = basis.design(steps)[:, : len(decode)] @ decode + kv_s * steps.kv
    sizes, seconds = calm = _steady_times(steps)
    use = ~steady(steps) & (measured > 1e-5)
    p = _Problem(steps, shape, fixed, kv_s, 1.0 / clocks - 1.0, measured, use, calm)
    weight, x0, pull = np.sqrt(np.minimum(measured[p.use] / 0.01, 2.0)), p.start, p.pull

    def residuals(x: F64) -> F64:
        slow = np.log(np.maximum((np.exp(x[0]) + np.exp(x[1]) * sizes) / seconds, 1.0))
        errors = weight * np.log(np.maximum(p.predict(x)[p.use], 1e-6) / measured[p.use])
        return np.concatenate([errors, LAUNCH_WEIGHT * slow, pull * (x - x0)])

    solved = least_squares(residuals, x0, loss="soft_l1", f_scale=0.2, max_nfev=60, ftol=1e-4, xtol=1e-4)
    rng = np.random.default_rng(seed)
    spread = _covariance(solved.jac, solved.fun)
    none = np.zeros((0, len(x0)))
    around = rng.multivariate_normal(solved.x, spread, size=draws, method="eigh") if draws else none
    host, mixed = p.told(solved.x)
    drawn = [p.told(x) for x in around]
    return Overlap(
        host, mixed,
        np.array([h for h, _ in drawn]).reshape(-1, len(host)), np.array([m for _, m in drawn]).reshape(-1, len(mixed)),
        p.predict(solved.x) / measured, float(np.exp(solved.x[9])), shape.clocked(np.exp(solved.x[5:7])),
        float(solved.cost),
    )  # fmt: skip


def _steady_times(steps: Observed) -> tuple[F64, F64]:
    """Sizes of decode batches, and the seconds of their steps in a run: no launch can take longer than these."""
    calm = steady(steps)
    size, took = steps.decodes[calm], steps.seconds[calm]
    order = np.argsort(size, kind="stable")
    parts = [p for p in np.array_split(order, STEADY_PARTS) if len(p)]
    return np.array([float(np.median(size[p])) for p in parts]), np.array([float(np.median(took[p])) for p in parts])


def device_seconds(basis: Basis, coefficients: F64, kv_mixed: float, steps: Observed, clocks: F64) -> F64:
    """The device's seconds of each step at its clock, by a fit's coefficients. Shape (steps,)."""
    m, mixed = len(basis.mixed_knots), steps.prefill > 0
    design = basis.design(steps)
    own = design[:, -3 - m : -3] @ coefficients[-3 - m : -3]
    shares = np.interp(tiled(steps.decodes + steps.prefill, basis.tile), basis.mixed_knots, basis.mixed_clock)
    longer = (own * shares + coefficients[-2] * steps.pairs) * (1.0 / clocks - 1.0)
    kv = coefficients[-3] * (kv_mixed - 1.0) * steps.kv
    return np.asarray(design @ coefficients + mixed * (longer + kv), dtype=np.float64)


def waits(steps: Observed, device: F64) -> F64:
    """Seconds of each step in which the device waited for the launch of one with prefill. Shape (steps,).

    A launch shows in the step before the one launched, unless nothing ran: what the two took beyond the device's time.
    """
    mixed, out = steps.prefill > 0, np.zeros(len(steps))
    fresh = mixed & steps.after_idle
    out[fresh] = np.maximum(steps.seconds - device, 0.0)[fresh]
    after = np.flatnonzero(mixed[1:] & ~mixed[:-1] & ~steps.after_idle[1:])
    both = (steps.seconds - device)[after] + (steps.seconds - device)[after + 1]
    out[after] = np.clip(both, 0.0, np.maximum(steps.seconds - device, 0.0)[after])
    return out


def _covariance(jacobian: F64, residuals: F64) -> F64:
    """Covariance of the fitted logs; neighbouring steps are alike, so it is widened as for one step in eight.

    What the data does not tell keeps a spread of a fifth.
    """
    variance = 8.0 * float(np.median(np.abs(residuals))) ** 2 * 2.2
    matrix = jacobian.T @ jacobian / max(variance, 1e-9)
    covariance = np.linalg.inv(matrix + 25.0 * np.eye(len(matrix)))
    return np.asarray((covariance + covariance.T) / 2, dtype=np.float64)
