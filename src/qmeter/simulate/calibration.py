"""A calibration: everything that predicts one deployment, as plain data that a JSON file holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from qmeter.errors import AnalysisError
from qmeter.registry import nearest
from qmeter.simulate.fit import Basis, tiled
from qmeter.simulate.power import PADDING
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import LAUNCH_BLOCK, StepModel, resampled
from qmeter.spec.study import Parallelism, Placement, label_of

F64 = NDArray[np.float64]
VERSION = 3


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Support(_Frozen):
    """What the calibrating records covered; questions beyond it are refused, or answered with wider intervals."""

    sequences: int
    step_tokens: int
    kv_tokens: float
    longest_request_tokens: int
    energy: bool
    prompt_tokens: tuple[int, int] | None = None
    """Shortest and longest prompt; ``None``: calibrated before they were kept, or carried."""
    output_tokens: tuple[int, int] | None = None
    """Fewest and most output tokens of a request."""


EVEN = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)
"""Steps of the R3 low-discrepancy sequence, a dimension each for step times, the host and energy."""
LEAST_FREEDOM = 3
"""Degrees of freedom with few cells: with fewer the tails of Student's t would outgrow anything seen."""


class Calibration(_Frozen):
    """One deployment's rules, step model with bootstrap draws, noise, delays and support.

    Attributes:
        deployment: model, method, engine, device, parallelism, as the records name them; placement where not alone.
        basis: knots and padding of the step-time curve.
        coefficients, draws: of the basis; ``draws`` are the bootstrap's.
        kv_mixed: how much longer a KV token takes beside a prefill than in a decode step.
        noise_decode, noise_mixed: measured / modelled times of decode and of mixed steps, in the order they came.
        energy, energy_draws: joule coefficients (:data:`qmeter.simulate.power.COLUMNS`); ``None``: no counter.
        energy_series: the counter they are from; ``why_no_energy`` where there is none.
        launch_idle: a device that waits for a launch draws its idle power (else, as once fitted, a running one's).
        power_cap_w: what the power of all its GPUs settles at under their limit; unknown (``why_no_cap``): simulated
            power is held at nothing, and clocks are as they were where the records were made.
        input_s, output_s: delays between client and scheduler, either way; spacing_s: least time between two requests
            at the scheduler, since the front end takes them one at a time; output_seq_s, input_each_s: the front end's
            time for each token it sends on, and for each request.
        host, host_draws: the host's times (:data:`qmeter.simulate.overlap.HOST`), zero where none overlap.
        cell_sigma: spread (log scale) of whole cells around the model: what differs from run to run.
        host_sigma, energy_sigma: the same for the host's times and for energy.
        held_out: by metric, for each load log(measured / predicted by a fit without it); peers_held_out: the same of
            the file's other deployments. Intervals are made of these (:mod:`qmeter.simulate.heldout`).
        cells: ids of the records used. effective: what the engine reported of itself.
    """

    version: int = VERSION
    deployment: dict[str, Any]
    effective: dict[str, Any]
    rules: dict[str, Any]
    basis: dict[str, Any]
    coefficients: tuple[float, ...]
    draws: tuple[tuple[float, ...], ...]
    kv_mixed: float = 1.0
    noise_decode: tuple[float, ...]
    noise_mixed: tuple[float, ...]
    energy: tuple[float, ...] | None = None
    energy_draws: tuple[tuple[float, ...], ...] = ()
    energy_series: str | None = None
    why_no_energy: str | None = None
    launch_idle: bool = False
    power_cap_w: float | None = None
    why_no_cap: str | None = None
    input_s: float
    output_s: float
    output_seq_s: float = 0.0
    spacing_s: float = 0.0
    input_each_s: float = 0.0
    host: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    host_draws: tuple[tuple[float, ...], ...] = ()
    cell_sigma: float
    host_sigma: float = 0.0
    energy_sigma: float = 0.0
    held_out: dict[str, tuple[float, ...]] = {}
    peers_held_out: dict[str, tuple[float, ...]] = {}
    support: Support
    cells: tuple[str, ...]
    qmeter_version: str
    extrapolated: str | None = None
    """How it was moved to what was never measured (another device, model or length), or ``None``."""
    host_of: str | None = None
    """Whose host's pace its launches and front end have, where it is not the one it was measured on."""

    @property
    def id(self) -> str:
        """Hash of the whole calibration; simulated records name it."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """As a study calls it: model/method/engine, parallelism where it is not 1, placement where it is not alone."""
        return label_of_deployment(self.deployment)

    @property
    def moved(self) -> str | None:
        """In words, how it is not what was measured; ``None``: it is."""
        return "; ".join(t for t in (self.extrapolated, self.host_of) if t) or None

    def scheduler(self) -> Rules:
        """The rules of its replica."""
        return Rules(**self.rules)

    def step_model(self, draw: int | None = None, seed: int = 0, *, noise: bool = True) -> StepModel:
        """The step model: the fitted one, or bootstrap draw ``draw``, with a whole-cell deviation of its own.

        A run in which the host is slow launches and answers slowly: one factor for its launches of steps with prefill
        and the front end. (Graphs launch decode steps, within the device's time.)
        """
        rng = np.random.default_rng((seed, 0 if draw is None else draw + 1))
        pick = self.coefficients if draw is None else self.draws[draw % len(self.draws)]
        shift = 1.0 if draw is None else self._next_run(draw, 0, self.cell_sigma)
        host = self.host if draw is None or not self.host_draws else self.host_draws[draw % len(self.host_draws)]
        slow = 1.0 if draw is None else float(np.exp(_normal(draw, 1) * self.host_sigma))
        launches = np.asarray(host) * np.array([1.0, 1.0, slow, slow, 1.0])
        return self._model(np.asarray(pick) * shift, launches, slow, self._energy(draw), rng, noise)

    def _next_run(self, draw: int, which: int, sigma: float) -> float:
        """A run's factor: a few cells showed its spread and middle, so Student's t, wider by the middle's own error."""
        n, z = len(self.cells), _normal(draw, which)
        if n < 2 or self.extrapolated:
            return float(np.exp(z * sigma))
        return float(np.exp(students(z, max(LEAST_FREEDOM, n - 1)) * sigma * np.sqrt(1 + 1 / n)))

    def _energy(self, draw: int | None) -> F64:
        if self.energy is None:
            return np.zeros(6)
        if draw is None or not self.energy_draws:
            return np.asarray(self.energy)
        shift = self._next_run(draw, 2, self.energy_sigma)
        return np.asarray(self.energy_draws[draw % len(self.energy_draws)], dtype=np.float64) * shift

    def _model(self, c: F64, h: F64, slow: float, e: F64, rng: np.random.Generator, noise: bool) -> StepModel:
        rules, basis = self.scheduler(), basis_of(self.basis)
        decode, mixed = basis.tables(c, rules.max_sequences, rules.token_budget)
        seed = int(rng.integers(2**31))
        sequences, tokens = np.arange(rules.max_sequences + 1), np.arange(rules.token_budget + 1)
        padding = tiled(tokens, basis.tile) - np.maximum(tokens, 1)
        one = np.ones(1)
        return StepModel(
            decode, mixed, kv_s=float(c[-3]), kv_mixed=self.kv_mixed, pair_s=float(c[-2]), chunk_s=float(c[-1]),
            mixed_clock_s=basis.clocked(mixed), cap_w=float("inf") if self.power_cap_w is None else self.power_cap_w,
            decode_j=e[2] * sequences, mixed_j=e[3] * tokens,
            padding_j=PADDING * e[3] * padding, launch_w=float(e[0]) if self.launch_idle else None,
            kv_j=float(e[4]), pair_j=float(e[5]),
            busy_w=float(e[1]), idle_w=float(e[0]), input_s=self.input_s, output_s=self.output_s,
            output_seq_s=self.output_seq_s * slow, input_each_s=self.input_each_s * slow, spacing_s=self.spacing_s,
            host_s=float(h[0]), host_seq_s=float(h[1]), host_mixed_s=float(h[2]), host_mixed_seq_s=float(h[3]),
            tail_s=float(h[4]),
            noise_decode=resampled(_pool(self.noise_decode), seed) if noise else one,
            noise_mixed=resampled(_pool(self.noise_mixed), seed + 1, block=LAUNCH_BLOCK) if noise else one,
        )  # fmt: skip


def _pool(quantiles: tuple[float, ...]) -> F64:
    return np.asarray(quantiles if quantiles else (1.0,), dtype=np.float64)


def basis_of(data: dict[str, Any]) -> Basis:
    """A basis from plain data."""
    return Basis(tuple(data["decode_knots"]), tuple(data["mixed_knots"]), tuple(int(p) for p in data["pad"]),
                 int(data.get("tile", 1)), tuple(data.get("mixed_clock", ())))  # fmt: skip


def plain(thing: Basis | Rules) -> dict[str, Any]:
    """A basis or rules as plain data."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(thing).items()}


def label_of_deployment(deployment: dict[str, Any]) -> str:
    """What people call a deployment given by the fields of :attr:`Calibration.deployment`."""
    d = deployment
    placement = Placement(d.get("placement", Placement.ALONE))
    return label_of(d["model"], d["method"], d["engine"], Parallelism(**d["parallelism"]), placement)


def save(calibrations: list[Calibration], path: Path, physics: dict[str, object] | None = None) -> Path:
    """Write calibrations to one JSON file, with the physics fit that they share, if any."""
    data = [c.model_dump(mode="json") for c in calibrations]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"qmeter_calibrations": VERSION, "calibrations": data, "physics": physics}, separators=(",", ":"))
        + "\n"
    )
    return path


def load_calibrations(path: Path) -> list[Calibration]:
    """Read a file that :func:`save` wrote.

    Raises:
        AnalysisError: it is missing, no such file, or from a newer qMeter.
    """
    try:
        data = json.loads(path.read_text())
        if data["qmeter_calibrations"] > VERSION:
            raise AnalysisError(f"{path} was written by a newer qMeter", hint="upgrade qMeter")
        return [Calibration.model_validate(c) for c in data["calibrations"]]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise AnalysisError(f"{path} is not a calibration file: {first}",
                            hint="write one with: qmeter calibrate-model DIR --out FILE") from error  # fmt: skip


def find(calibrations: list[Calibration], **wanted: str | None) -> list[Calibration]:
    """Those that match every given deployment field (model, method, engine, device).

    Raises:
        AnalysisError: none does; the hint names the nearest.
    """
    asked = {k: v for k, v in wanted.items() if v is not None}
    found = [c for c in calibrations if all(str(c.deployment.get(k)) == v for k, v in asked.items())]
    if found:
        return found
    labels = [c.label for c in calibrations]
    close = nearest("/".join(asked.values()), labels) or labels[:8]
    raise AnalysisError(f"no calibration for {', '.join(f'{k} {v}' for k, v in asked.items())}",
                        hint=f"there are: {', '.join(close)}")  # fmt: skip


def _normal(draw: int, which: int) -> float:
    """Standard normal deviate of a draw in dimension ``which``: evenly spread over few draws (the R3 sequence)."""
    return NormalDist().inv_cdf((0.5 + (draw + 1) * EVEN[which]) % 1.0)


def students(z: float, freedom: int) -> float:
    """Student's t quantile at the normal's ``z``; Cornish-Fisher to second order (3% off at 3 degrees and 95%)."""
    first = (z**3 + z) / 4
    return z + first / freedom + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
