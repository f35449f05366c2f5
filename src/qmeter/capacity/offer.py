"""An offer: one deployment that a decision may choose, with everything a decision needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qmeter.analysis.metrics import Better, metric
from qmeter.errors import AnalysisError
from qmeter.record import Quantity
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.predict import interval
from qmeter.spec.study import Parallelism

Knob = str | int | float | bool
SCHEDULER_KNOBS = ("max_sequences", "token_budget")
"""Knobs that the simulator can turn away from what was measured."""


@dataclass(frozen=True)
class Supply:
    """What one device costs and how many there are; ``None``: not given.

    Attributes:
        price_usd_h: of one device, an hour.
        count: devices there are.
        power_limit_w: most that one device may draw on average while it serves.
    """

    price_usd_h: float | None = None
    count: int | None = None
    power_limit_w: float | None = None


@dataclass(frozen=True)
class Offer:
    """One way to serve: a deployment on a device, as calibrated. Counts and prices are of one replica.

    Attributes:
        name: unique among the offers: model/method/engine@device, then parallelism and knobs where not plain.
        device, model, method, engine: the catalog's and the study's names.
        parallelism: tensor, pipeline and data parallel degree; ``devices`` is their product.
        knobs: engine options that differ from the measured deployment's.
        calibration: predicts it (its ``extrapolated`` says how, where it was never measured).
        price_usd_h: all devices of a replica together; ``None``: not given.
        power_limit_w: the same; the capacity is cut where the mean power would exceed it.
        count: replicas that the devices there are can make at most; ``None``: no limit.
        load_s: from the decision to start until it serves (the records' launch). Units: s.
        load_energy_j: of one start. Not measured: load_s at idle power, up to load_s at serving power. Units: J.
        idle_w: power with the model resident and nothing to serve. Units: W.
        quality: record's name (``ppl_ratio``, ``task.<name>.accuracy``) → quantity; see :meth:`bound`.
        weight_bytes: as loaded, all devices of a replica.
        source: profile, study folder or file that it comes from.
    """

    name: str
    device: str
    model: str
    method: str
    engine: str
    parallelism: Parallelism
    calibration: Calibration = field(repr=False)
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    price_usd_h: float | None = None
    power_limit_w: float | None = None
    count: int | None = None
    load_s: Quantity = field(default_factory=lambda: Quantity.unknown("s", "no record of a start"))
    load_energy_j: Quantity = field(default_factory=lambda: Quantity.unknown("J", "no record of a start"))
    idle_w: Quantity = field(default_factory=lambda: Quantity.unknown("W", "no energy counter"))
    quality: Mapping[str, Quantity] = field(default_factory=dict)
    weight_bytes: Quantity = field(default_factory=lambda: Quantity.unknown("B", "not reported"))
    source: str = ""

    @property
    def devices(self) -> int:
        """Devices that one replica takes."""
        return self.parallelism.devices

    def bound(self, name: str) -> float | None:
        """The confidence bound of a quality that a floor is compared with: the interval's worse end.

        The lower end where higher is better (accuracies), the upper where lower is better (``ppl_ratio``); the value
        itself where no interval was made; ``None`` where it is not known.
        """
        q = self.quality.get(name)
        if q is None or q.value is None:
            return None
        end = q.high if lower_is_better(name) else q.low
        return q.value if end is None else end

    def keeps(self, floors: Mapping[str, float]) -> bool:
        """Whether every floor is met by the confidence bound; a quality that is not known does not meet it."""
        return not self.misses(floors)

    def misses(self, floors: Mapping[str, float]) -> tuple[str, ...]:
        """Names of the floors that are not met, or not known to be met."""
        missed = []
        for name, floor in floors.items():
            bound = self.bound(name)
            if bound is None or (bound > floor if lower_is_better(name) else bound < floor):
                missed.append(name)
        return tuple(missed)


def lower_is_better(name: str) -> bool:
    """Whether a quality's floor is a ceiling (``ppl_ratio``, ``logprob_gap``, …)."""
    return metric(name).better is Better.LOWER


def offer_of(
    calibration: Calibration,
    supply: Supply | None = None,
    *,
    load_s: Quantity | None = None,
    quality: Mapping[str, Quantity] | None = None,
    weight_bytes: float | None = None,
    source: str = "",
) -> Offer:
    """The offer of one calibration, priced by ``supply``."""
    supply = supply or Supply()
    d = calibration.deployment
    p = Parallelism(**d["parallelism"])
    degrees = "".join(f"/{k}{v}" for k, v in (("tp", p.tp), ("pp", p.pp), ("dp", p.dp)) if v > 1)
    idle = _idle(calibration)
    load = load_s or Quantity.unknown("s", "no record of a start")
    weights = weight_bytes or calibration.effective.get("weight_bytes")
    return Offer(
        name=f"{d['model']}/{d['method']}/{d['engine']}@{d['device']}{degrees}",
        device=str(d["device"]), model=str(d["model"]), method=str(d["method"]), engine=str(d["engine"]),
        parallelism=p, calibration=calibration,
        price_usd_h=None if supply.price_usd_h is None else supply.price_usd_h * p.devices,
        power_limit_w=None if supply.power_limit_w is None else supply.power_limit_w * p.devices,
        count=None if supply.count is None else supply.count // p.devices,
        load_s=load, load_energy_j=_load_energy(calibration, load, idle), idle_w=idle, quality=dict(quality or {}),
        weight_bytes=Quantity.of(weights, "B") if weights else Quantity.unknown("B", "the engine did not report them"),
        source=source,
    )  # fmt: skip


def with_knobs(offer: Offer, **knobs: Any) -> Offer:
    """The offer with engine knobs turned: ``max_sequences`` and ``token_budget``, down from what was measured.

    Raises:
        AnalysisError: a knob that the simulator cannot turn, or beyond what was measured.
    """
    rules = dict(offer.calibration.rules)
    for name, value in knobs.items():
        if name not in SCHEDULER_KNOBS:
            raise AnalysisError(
                f"the simulator cannot turn the knob {name!r}",
                hint=f"it turns {' and '.join(SCHEDULER_KNOBS)}; measure a deployment with the other",
            )
        if not 1 <= int(value) <= int(rules[name]):
            raise AnalysisError(
                f"{name} {value} lies outside what was measured (1 to {rules[name]})",
                hint=f"measure a deployment with {name} {value}, or choose at most {rules[name]}",
            )
        rules[name] = int(value)
    if rules["token_budget"] < rules["max_sequences"]:
        raise AnalysisError(f"token_budget {rules['token_budget']} is below max_sequences {rules['max_sequences']}",
                            hint="every running sequence needs one token a step: lower max_sequences too")  # fmt: skip
    turned = {n: v for n, v in knobs.items() if v != offer.calibration.rules[n]}
    if not turned:
        return offer
    name = offer.name + "".join(f"/{n}={v}" for n, v in sorted(turned.items()))
    made = offer.calibration.model_copy(update={"rules": rules})
    return replace(offer, name=name, calibration=made, knobs={**offer.knobs, **turned})


def _idle(c: Calibration) -> Quantity:
    if c.energy is None:
        return Quantity.unknown("W", c.why_no_energy or "the calibration has no energy")
    return interval(Quantity.of(c.energy[0], "W"), [d[0] for d in c.energy_draws], 0.9)


def _load_energy(c: Calibration, load: Quantity, idle: Quantity) -> Quantity:
    if load.value is None or idle.value is None or c.energy is None:
        return Quantity.unknown("J", load.why or idle.why or "the calibration has no energy")
    serving = max(idle.value, float(np.median([d[1] for d in c.energy_draws] or [c.energy[1]])))
    least, most = idle.value * load.value, serving * load.value
    why = "power during a start is not measured: idle power at least, serving power at most"
    return Quantity.of(least, "J", low=least, high=most, why=why)
