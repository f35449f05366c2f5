"""Carry calibrations to a model, device or parallelism that was never measured, through the physics form."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmeter import __version__, catalog
from qmeter.catalog.memory import memory_fit
from qmeter.errors import AnalysisError
from qmeter.record import EffectiveConfig, Record
from qmeter.simulate.calibrate import Tables, device_of, joined, replicas_of
from qmeter.simulate.calibration import Calibration, Support, plain
from qmeter.simulate.fit import Basis
from qmeter.simulate.observe import MIN_STEPS, Observed, observed_steps
from qmeter.simulate.overlap import steady
from qmeter.simulate.physics import Efficiencies, PhysicsFit, Placement, fit_physics, step_model
from qmeter.simulate.rules import Rules
from qmeter.spec.study import Parallelism

F64 = NDArray[np.float64]

DRAWS = 64
SIGMA_A_STEP = 0.05
"""Log spread added for each doubling of the weights away from what was fitted, and for each new kind of thing."""
UNCHECKED_SIGMA = 0.32
"""Log spread where a fit could not be checked on a deployment left out: the widest that fits of one deployment alone
showed on the others of their profile (root mean square: h200-8b-grid 21%, h100-x2-8b-parallelism 22%, h200-70b 30%,
h200-models 32%; of two alone 17 to 25%)."""
UNCHECKED_WRITTEN = 0.05
"""What earlier calibration files say of the spread where nothing was left out: not measured, so not believed."""
KNOTS = 24
FULL_PREFILL = 1500
"""Prompt tokens in a step from which it takes the device longer than a host takes to launch it."""


@dataclass(frozen=True)
class Target:
    """A deployment by the catalog's names; ``devices``: tensor-parallel degree."""

    model: str
    method: str
    device: str
    engine: str = "vllm"
    devices: int = 1

    def placement(self) -> Placement:
        """Its bytes and number types.

        Raises:
            UnknownName: a name is not in the catalog.
        """
        shape, method = catalog.model(self.model), catalog.method(self.method)
        return Placement(
            shape,
            catalog.device(self.device),
            float(method.expected_weight_bytes(shape, self.engine)),
            method.kv_bytes_per_token(shape, self.engine),
            method.activation_type,
            self.devices,
        )


def fit_records(groups: Sequence[Sequence[Record]], tables: Tables) -> PhysicsFit:
    """Fit the physics form to deployments, each given by its records; their devices must be in the catalog by name.

    Those of several data-parallel replicas are left out.

    Raises:
        AnalysisError: none of the deployments ran on a device that the catalog has ceilings of.
    """
    parts: list[tuple[Placement, Observed]] = []
    for group in groups:
        if replicas_of(group[0]) > 1:
            continue
        d = group[0].cell["deployment"]
        target = Target(d["model"]["shape"], d["method"], device_of(group[0]), d["engine"]["name"],
                        int(d["parallelism"]["tp"]))  # fmt: skip
        place = target.placement()
        if place.device.bandwidth_bytes_s and place.device.rates_op_s:
            parts.append((place, _device_bound(joined([observed_steps(tables(r)) for r in group]))))
    if not parts:
        raise AnalysisError("no deployment ran on a device whose ceilings the catalog has", hint="see: qmeter devices")
    return fit_physics(parts)


def _device_bound(steps: Observed) -> Observed:
    """Steps whose time is the device's: decodes in a run, and prefills too full for any host to be slower."""
    following = np.append(steps.prefill[1:] > 0, False)
    keep = steady(steps) | ((steps.prefill >= FULL_PREFILL) & following)
    return steps.where(keep) if keep.sum() >= MIN_STEPS else steps


def carry(fit: PhysicsFit, near: Calibration, target: Target, *, seed: int = 0) -> Calibration:
    """A calibration of ``target`` from the physics, with scheduler limits, delays and noise of the deployment ``near``.

    Its KV-block count is derived from the catalog's memory estimate, since nothing measured it: TTFT near a full
    cache is then uncertain, and ``extrapolated`` says so. It predicts no energy.

    Raises:
        AnalysisError: the target does not fit its device.
    """
    place = target.placement()
    old = near.scheduler()
    room = memory_fit(place.shape, catalog.method(target.method), place.device, engine=target.engine,
                      parallelism=Parallelism(tp=target.devices), token_budget=old.token_budget)  # fmt: skip
    if not room.fits or room.kv_tokens is None:
        raise AnalysisError(f"{target.model}/{target.method} on {target.devices} x {target.device}: {room.reason}")
    rules = replace(old, kv_blocks=room.kv_tokens // old.block_tokens, max_model_tokens=None)
    basis, coefficients = as_basis(place, fit.efficiencies, rules)
    known = UNCHECKED_SIGMA if fit.sigma is None else fit.sigma
    sigma = math.hypot(known, SIGMA_A_STEP * distance(near, target))
    rng = np.random.default_rng(seed)
    return near.model_copy(
        update={
            "deployment": {"id": "", "study": "", "model": target.model, "shape": target.model, "method": target.method,
                           "engine": target.engine, "device": target.device,
                           "parallelism": {"tp": target.devices, "pp": 1, "dp": 1}},
            "effective": EffectiveConfig(token_budget=rules.token_budget, max_sequences=rules.max_sequences,
                                         kv_block_tokens=rules.block_tokens).model_dump(mode="json"),
            "rules": plain(rules), "basis": plain(basis), "coefficients": tuple(coefficients),
            "draws": tuple(tuple(coefficients * f) for f in np.exp(rng.normal(0, sigma / 2, DRAWS))),
            "energy": None, "energy_draws": (), "energy_series": None,
            "why_no_energy": "the physics form predicts no energy", "cell_sigma": sigma,
            "kv_mixed": 1.0, "launch_idle": False, "power_cap_w": None,
            "why_no_cap": "the physics form has neither clocks nor energy",
            "support": Support(sequences=rules.max_sequences, step_tokens=rules.token_budget,
                               kv_tokens=float(room.kv_tokens), longest_request_tokens=place.shape.max_positions,
                               energy=False),
            "qmeter_version": __version__,
            "held_out": {}, "peers_held_out": {},
            "extrapolated": f"from {near.label} on {near.deployment['device']} by the physics form "
                            f"({fit.over}, spread {sigma:.0%}"
                            f"{', not checked' if fit.sigma is None else ''}); KV blocks derived, not measured",
        }
    )  # fmt: skip


def with_joules_of(moved: Calibration, near: Calibration) -> Calibration:
    """A carried calibration with the neighbour's joules and power cap, for want of its own.

    The cap then saves energy and costs hardly any time, since the form does not know what a clock divides.
    """
    stands_in = ("energy", "energy_series", "energy_draws", "launch_idle", "power_cap_w", "why_no_cap")
    return moved.model_copy(update={name: getattr(near, name) for name in stands_in})


def distance(near: Calibration, target: Target) -> float:
    """How far the target is from a measured deployment: doublings of the weights, and each new kind of thing."""
    old = near.deployment
    sizes = [catalog.model(n).params for n in (old["shape"], target.model)]
    tp = int(old["parallelism"].get("tp", 1))
    new = [target.method != old["method"], target.device != old["device"], target.engine != old["engine"],
           target.devices != tp]  # fmt: skip
    return abs(math.log2(sizes[1] / sizes[0])) + float(sum(new)) + abs(math.log2(target.devices / tp))


def as_basis(place: Placement, e: Efficiencies, rules: Rules) -> tuple[Basis, F64]:
    """The physics as hinge coefficients: exact at the knots, linear between them."""
    model = step_model(place, e, rules)
    decode = _knots(rules.max_sequences)
    mixed = _knots(rules.token_budget)
    basis = Basis(decode, mixed)
    rest = [model.kv_s, model.pair_s, model.chunk_s]
    return basis, np.concatenate([_ramps(model.decode_s, decode), _ramps(model.mixed_s, mixed), rest])


def _knots(most: int) -> tuple[float, ...]:
    return tuple(float(k) for k in np.unique(np.round(np.geomspace(1, max(most, 2), KNOTS))))


def _ramps(table: F64, knots: tuple[float, ...]) -> F64:
    values = table[np.minimum(np.array(knots, dtype=int), len(table) - 1)]
    return np.concatenate([values[:1], np.maximum(np.diff(values), 0.0)])


def physics_data(fit: PhysicsFit) -> dict[str, object]:
    """A physics fit as plain data, for a file."""
    return {"efficiencies": asdict(fit.efficiencies), "sigma": fit.sigma, "deployments": fit.deployments}


def load_physics(path: Path) -> PhysicsFit:
    """The physics fit that a calibration file carries.

    Raises:
        AnalysisError: it carries none.
    """
    data = json.loads(path.read_text()).get("physics")
    if not data:
        raise AnalysisError(
            f"{path} carries no physics fit: its deployments ran on a device that the catalog has no ceilings of",
            hint="calibrate from records of a GPU that 'qmeter devices' lists",
        )
    sigma = data["sigma"]
    known = None if sigma is None or float(sigma) == UNCHECKED_WRITTEN else float(sigma)
    return PhysicsFit(Efficiencies(**data["efficiencies"]), known, int(data["deployments"]))
