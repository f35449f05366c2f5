"""Gaussian-process regression over a few hundred points, with numpy and scipy alone.

Kernel: signal variance x Matérn 5/2 over scaled numbers (one length a dimension, fitted) x exp(-distance) over the
categories. Hyper-parameters are the posterior's mode under log-normal priors (L-BFGS, analytic gradients).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
SQRT5 = float(np.sqrt(5.0))
JITTER = 1e-8


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep the linear algebra to one thread: for matrices this small, threads only wait for each other."""
    try:
        import threadpoolctl
    except ImportError:
        yield
        return
    with threadpoolctl.threadpool_limits(1):
        yield


@dataclass(frozen=True)
class Inputs:
    """Features of points: ``numbers`` in about 0..1, shape (n, d); ``kinds`` as codes, shape (n, c)."""

    numbers: F64
    kinds: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Inputs:
        """Some rows."""
        return Inputs(self.numbers[rows], self.kinds[rows])


@dataclass(frozen=True)
class Prior:
    """Where hyper-parameters are expected: medians, and how sure (log scale)."""

    length: float = 0.7
    length_sigma: float = 0.9
    kind: float = 0.7
    kind_sigma: float = 0.9
    signal: float = 0.3
    signal_sigma: float = 1.0
    noise: float = 0.03
    noise_sigma: float = 1.0


class Process:
    """A fitted process for one output.

    Args:
        inputs, values: what was seen; ``values`` less their prior mean, shape (n,).
        prior: of the hyper-parameters.
        start: a fit to begin from (and, with ``refit`` off, to keep).
    """

    def __init__(self, inputs: Inputs, values: F64, prior: Prior, start: Process | None = None, *, refit: bool = True):
        self.inputs, self.prior = inputs, prior
        d, c = inputs.numbers.shape[1], inputs.kinds.shape[1]
        self._middle = np.log(
            np.concatenate([np.full(d, prior.length), np.full(c, prior.kind), [prior.signal, prior.noise]])
        )
        self._width = np.concatenate(
            [np.full(d, prior.length_sigma), np.full(c, prior.kind_sigma), [prior.signal_sigma, prior.noise_sigma]]
        )
        self._d, self._c = d, c
        self._squares = (inputs.numbers[:, None, :] - inputs.numbers[None, :, :]) ** 2
        self._other = (inputs.kinds[:, None, :] != inputs.kinds[None, :, :]).astype(float)
        self.theta: F64 = self._middle.copy() if start is None else start.theta
        self.level = float(np.mean(values)) if len(values) else 0.0
        self._y = values - self.level
        if refit and len(values) >= 3:
            self.theta = self._fit(self.theta)
        self._solve()

    def _kernel(self, theta: F64, squares: F64, other: F64) -> tuple[F64, F64, F64]:
        d, c = self._d, self._c
        inverse = np.exp(-2 * theta[:d])
        r = np.sqrt(np.maximum(squares @ inverse, 0.0))
        kinds = np.exp(-(other @ np.exp(-theta[d : d + c]))) if c else np.ones_like(r)
        decay = np.exp(-SQRT5 * r)
        matern = (1 + SQRT5 * r + 5 * r * r / 3) * decay
        return np.exp(2 * theta[-2]) * matern * kinds, r, np.exp(2 * theta[-2]) * kinds * decay

    def _objective(self, theta: F64) -> tuple[float, F64]:
        n, d, c = len(self._y), self._d, self._c
        k, r, base = self._kernel(theta, self._squares, self._other)
        noise = np.exp(2 * theta[-1])
        whole = k + (noise + JITTER) * np.eye(n)
        try:
            factor = np.linalg.cholesky(whole)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = np.linalg.inv(whole)
        alpha = inverse @ self._y
        pulled = (theta - self._middle) / self._width
        loss = 0.5 * float(self._y @ alpha) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(pulled @ pulled)
        inner = inverse - np.outer(alpha, alpha)
        gradient = np.empty_like(theta)
        slope = base * (5 / 3) * (1 + SQRT5 * r)
        for j in range(d):
            gradient[j] = 0.5 * float((inner * slope * self._squares[:, :, j]).sum()) * np.exp(-2 * theta[j])
        for j in range(c):
            gradient[d + j] = 0.5 * float((inner * k * self._other[:, :, j]).sum()) * np.exp(-theta[d + j])
        gradient[-2] = float((inner * k).sum())
        gradient[-1] = float(np.trace(inner)) * noise
        return loss, gradient + pulled / self._width

    def _fit(self, start: F64) -> F64:
        from scipy.optimize import minimize

        bounds = [(m - 4 * w, m + 4 * w) for m, w in zip(self._middle, self._width, strict=True)]
        options = {"maxiter": 40}
        found = minimize(self._objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return np.asarray(found.x, dtype=np.float64)

    def _solve(self) -> None:
        n = len(self._y)
        k, _, _ = self._kernel(self.theta, self._squares, self._other)
        self._factor = np.linalg.cholesky(k + (self.noise**2 + JITTER) * np.eye(n)) if n else np.zeros((0, 0))
        self._alpha = np.linalg.solve(self._factor.T, np.linalg.solve(self._factor, self._y)) if n else np.zeros(0)

    @property
    def surprise(self) -> float:
        """Negative log posterior of data and hyper-parameters (constants left out): lower explains the data better."""
        return self._objective(self.theta)[0]

    @property
    def noise(self) -> float:
        """Fitted standard deviation of one observation."""
        return float(np.exp(self.theta[-1]))

    def predict(self, at: Inputs) -> tuple[F64, F64]:
        """Mean and standard deviation (of the function, not of a new observation) at ``at``. Shapes (n,)."""
        signal = float(np.exp(self.theta[-2]))
        if not len(self._y):
            return np.full(len(at.numbers), self.level), np.full(len(at.numbers), signal)
        squares = (at.numbers[:, None, :] - self.inputs.numbers[None, :, :]) ** 2
        other = (at.kinds[:, None, :] != self.inputs.kinds[None, :, :]).astype(float)
        cross, _, _ = self._kernel(self.theta, squares, other)
        mean = self.level + cross @ self._alpha
        half = np.linalg.solve(self._factor, cross.T)
        variance = np.maximum(signal**2 - (half * half).sum(axis=0), (1e-4 * signal) ** 2)
        return mean, np.sqrt(variance)
