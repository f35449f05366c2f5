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
from qmeter.simulate.fit import Basis
from qmeter.simulate.jit import jit
from qmeter.simulate.observe import Observed

F64 = NDArray[np.float64]
B8 = NDArray[np.bool_]

HOST = ("host_s", "host_seq_s", "host_mixed_s", "host_mixed_seq_s", "tail_s")
START = (3e-3, 2e-5, 2e-2, 3e-5, 1e-3)
TRUST = (0.3, 1.0, 0.3, 10.0, 0.3)
"""How firmly each host time is held to its start: its part a sequence is confounded with drift between cells."""
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
    """Host times in the order of :data:`HOST`, mixed-step coefficients, their draws, and predicted / measured times."""

    host: F64
    mixed: F64
    host_draws: F64
    mixed_draws: F64
    predicted: F64


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


def fit_overlap(basis: Basis, steps: Observed, decode: F64, kv_s: float, *, draws: int, seed: int) -> Overlap:
    """Fit the host's times and the mixed steps' device times, the decode steps' coefficients given.

    Args:
        decode: coefficients of the basis' decode columns.
        kv_s: seconds a KV token.

    Raises:
        MissingExtra: scipy is not installed.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise MissingExtra("simulate", "fitting a step model") from error
    design = basis.design(steps)
    d, m = len(basis.decode_knots), len(basis.mixed_knots)
    fixed = design[:, :d] @ decode + kv_s * steps.kv
    columns = np.column_stack([design[:, d : d + m], steps.pairs, steps.chunks])
    pure = steps.prefill == 0
    seen, sequences = steps.end_s, (steps.decodes + steps.chunks).astype(np.float64)
    near = ~steady(steps)
    measured = np.where(steps.after_idle, steps.seconds, np.diff(seen, prepend=seen[0] - steps.seconds[0]))
    use = near & (measured > 1e-5)
    out = np.empty(len(steps))
    scale = _scales(columns[~pure])

    def predict(x: F64) -> F64:
        host, mixed = np.exp(x[:5]), np.exp(x[5:]) * scale
        launch = np.where(pure, host[0] + host[1] * sequences, host[2] + host[3] * sequences)
        replay(
            seen, steps.start_s, steps.after_idle, launch, fixed + columns @ mixed, float(min(host[4], host[0])), out
        )
        return out

    pull = np.concatenate([TRUST, np.full(columns.shape[1], 0.3)])
    x0 = np.concatenate([np.log(START), np.log(_first_guess(basis, steps, measured) / scale)])

    def residuals(x: F64) -> F64:
        weight = np.sqrt(np.minimum(measured[use] / 0.01, 2.0))
        return np.concatenate([weight * np.log(np.maximum(predict(x)[use], 1e-6) / measured[use]), pull * (x - x0)])

    solved = least_squares(residuals, x0, loss="soft_l1", f_scale=0.2, max_nfev=60)
    spread = _covariance(solved.jac, solved.fun)
    rng = np.random.default_rng(seed)
    around = rng.multivariate_normal(solved.x, spread, size=draws, method="eigh") if draws else np.zeros((0, len(x0)))
    predicted = predict(solved.x).copy()
    host = np.exp(solved.x[:5])
    host[4] = min(host[4], host[0])
    sampled = np.exp(around[:, :5])
    sampled[:, 4] = np.minimum(sampled[:, 4], sampled[:, 0])
    return Overlap(host, np.exp(solved.x[5:]) * scale, sampled, np.exp(around[:, 5:]) * scale, predicted / measured)


def _first_guess(basis: Basis, steps: Observed, measured: F64) -> F64:
    """Mixed-step coefficients to start from: time in proportion to tokens, at the pace of the fullest steps.

    It must start with the device slower than the host somewhere, else nothing tells the solver about the device.
    """
    tokens = (steps.decodes + steps.prefill).astype(np.float64)
    full = (steps.prefill > 0) & (tokens >= np.quantile(tokens[steps.prefill > 0], 0.9))
    pace = float(np.median(measured[full] / tokens[full]))
    widths = np.diff(np.asarray(basis.mixed_knots), prepend=0.0)
    pairs = float(steps.pairs.max(initial=1.0))
    return np.concatenate([0.9 * pace * widths, [0.05 * pace * float(tokens.max()) / pairs], [1e-4]])


def _scales(columns: F64) -> F64:
    """For each column the coefficient's unit, so that all logs are of one size."""
    top = columns.max(axis=0, initial=0.0)
    return np.asarray(1.0 / np.where(top > 0, top, 1.0), dtype=np.float64)


def _covariance(jacobian: F64, residuals: F64) -> F64:
    """Covariance of the fitted logs; neighbouring steps are alike, so it is widened as for one step in eight.

    What the data does not tell keeps a spread of a fifth.
    """
    variance = 8.0 * float(np.median(np.abs(residuals))) ** 2 * 2.2
    matrix = jacobian.T @ jacobian / max(variance, 1e-9)
    covariance = np.linalg.inv(matrix + 25.0 * np.eye(len(matrix)))
    return np.asarray((covariance + covariance.T) / 2, dtype=np.float64)
