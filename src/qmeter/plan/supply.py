"""The fleet to choose from: offers with prices, knobs and quality, and the kinds of device that limit them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qmeter import catalog
from qmeter.capacity import Offer, deployments, fitted_physics, offer_of, offers, quality_by_method, with_knobs
from qmeter.errors import AnalysisError, QMeterError, SpecError, UnknownName
from qmeter.plan.spec import FleetSpec, PlanSpec
from qmeter.record import Quantity
from qmeter.registry import nearest
from qmeter.simulate.carry import Target, carry
from qmeter.store import open_results

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """One offer of the fleet.

    Attributes:
        offer: with price, count, limit and quality.
        fleet: index of the fleet entry it comes from: its devices are that entry's.
        notes: how it was moved, where it was never measured.
    """

    offer: Offer
    fleet: int
    notes: tuple[str, ...] = ()


def choices_of(spec: PlanSpec, *, cache: Path | None = None, on_step: Progress | None = None) -> list[Choice]:
    """Every offer of every fleet entry.

    Raises:
        SpecError: an entry names nothing that there is; the fault is at the field that excludes it.
    """
    found: list[Choice] = []
    for i in range(len(spec.fleet)):
        try:
            found += _entry(spec, i, cache, on_step)
        except SpecError:
            raise
        except (UnknownName, AnalysisError) as error:
            text = error.message + (f" ({error.hint})" if error.hint else "")
            raise SpecError(f"fleet[{i}] cannot be used", faults=[(f"fleet[{i}].source", text)],
                            hint="see: qmeter profiles, qmeter show DIR") from error  # fmt: skip
    names: dict[str, int] = {}
    for k, choice in enumerate(found):
        if choice.offer.name in names:
            name = f"{choice.offer.name} (fleet {choice.fleet})"
            found[k] = replace(choice, offer=replace(choice.offer, name=name))
        names[choice.offer.name] = k
    return found


def _entry(spec: PlanSpec, index: int, cache: Path | None, on_step: Progress | None) -> list[Choice]:
    fleet = spec.fleet[index]
    only = _chosen(fleet, index)
    plain = offers(fleet.source, only=only, cache=cache, on_fit=on_step)
    placed = _carried(fleet, index, plain, cache) if fleet.carry else plain
    priced = _with_quality(fleet, index, [_priced(spec, index, o) for o in placed])
    out = []
    for offer in priced:
        notes = (offer.calibration.moved,) if offer.calibration.moved else ()
        out.append(Choice(offer, index, notes))
        for k, knobs in enumerate(fleet.knobs):
            try:
                turned = with_knobs(offer, **knobs)
            except AnalysisError as error:
                raise SpecError("a knob cannot be turned", faults=[
                    (f"fleet[{index}].knobs[{k}]", f"{error.message}; {error.hint}")]) from error  # fmt: skip
            if turned is not offer:
                out.append(Choice(turned, index, notes))
    return out


def _priced(spec: PlanSpec, index: int, offer: Offer) -> Offer:
    """The offer with price, count and limit of the entry, or else of its device."""
    fleet, listed = spec.fleet[index], spec.devices.get(offer.device)
    if listed is not None and fleet.count is not None:
        raise SpecError("a device is counted twice", faults=[
            (f"fleet[{index}].count", f"devices.{offer.device} counts this device for all entries: leave one out")
        ])  # fmt: skip
    both = [fleet, *([listed] if listed else [])]
    price, count, limit = (next((v for one in both if (v := getattr(one, name)) is not None), None)
                           for name in ("price_usd_h", "count", "power_limit_w"))  # fmt: skip
    if spec.objective == "cost" and price is None:
        text = f"missing: the objective is cost; give it here or in devices.{offer.device}"
        raise SpecError("a device has no price", faults=[(f"fleet[{index}].price_usd_h", text)])
    n = offer.devices
    return replace(
        offer,
        price_usd_h=None if price is None else price * n,
        power_limit_w=None if limit is None else limit * n,
        count=None if count is None else count // n,
    )


def _chosen(fleet: FleetSpec, index: int) -> dict[str, tuple[str, ...]]:
    """Axis → names asked for; each name must match something, and all of them together too."""
    there = deployments(fleet.source)
    device = fleet.device if fleet.carry is None else None
    axes = {"device": (device,) if device else (), "model": fleet.models, "method": fleet.methods,
            "engine": fleet.engines}  # fmt: skip
    for axis, wanted in axes.items():
        known = sorted({d[axis] for d in there})
        for name in wanted:
            if name not in known:
                close = nearest(name, known)
                did = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
                field = axis if axis == "device" else f"{axis}s"
                text = f"{fleet.source} has no {axis} {name!r}; {did}it has: {', '.join(known)}"
                if axis == "device":
                    text += "; to plan for a device that was never measured, use 'carry' with 'extrapolate: true'"
                raise SpecError("the fleet names what is not there", faults=[(f"fleet[{index}].{field}", text)])
    only = {axis: wanted for axis, wanted in axes.items() if wanted}
    if not any(all(d[axis] in wanted for axis, wanted in only.items()) for d in there):
        raise SpecError("the fleet is empty", faults=[
            (f"fleet[{index}]", f"no deployment of {fleet.source} has all that is asked for: widen models, methods or "
                                "engines")])  # fmt: skip
    return only


def _carried(fleet: FleetSpec, index: int, near: list[Offer], cache: Path | None) -> list[Offer]:
    """The offers moved by the physics form, fitted on all records of the source."""
    assert fleet.carry is not None
    if Path(fleet.source).is_file():
        raise SpecError("carrying needs records", faults=[
            (f"fleet[{index}].source", "a calibration file has no records: name the study or profile it was made from")
        ])  # fmt: skip
    try:
        device = catalog.device(fleet.carry.device).name
    except UnknownName as error:
        raise SpecError("no such device", faults=[
            (f"fleet[{index}].carry.device", f"{error.message}; {error.hint}")]) from error  # fmt: skip
    results = open_results(fleet.source)
    fit = fitted_physics(results, cache=cache)
    out, faults = [], []
    for offer in near:
        d = offer.calibration.deployment
        target = Target(d["shape"], d["method"], device, d["engine"], fleet.carry.devices)
        try:
            moved = carry(fit, offer.calibration, target)
        except QMeterError as error:
            faults.append(error.message)
            continue
        out.append(offer_of(moved, quality=offer.quality, source=fleet.source))
    if not out:
        raise SpecError("nothing can be carried there", faults=[(f"fleet[{index}].carry", faults[0])])
    return out


def _with_quality(fleet: FleetSpec, index: int, found: list[Offer]) -> list[Offer]:
    """The offers with the quality that the entry names beside what their own records have."""
    if fleet.quality is None:
        return found
    known: dict[tuple[str, str], dict[str, Quantity]] = {}
    if fleet.quality.source is not None:
        for model in {o.model for o in found}:
            try:
                seen = quality_by_method(fleet.quality.source, model)
            except QMeterError as error:
                raise SpecError("no quality is known from there", faults=[
                    (f"fleet[{index}].quality.from", error.message)], hint=error.hint) from error  # fmt: skip
            known |= {(model, method): dict(q) for method, q in seen.items()}
    methods = sorted({o.method for o in found})
    for method, values in fleet.quality.given.items():
        path = f"fleet[{index}].quality.given.{method}"
        if method not in methods:
            raise SpecError("quality of a method that is not in the fleet",
                            faults=[(path, f"the entry has: {', '.join(methods)}")])  # fmt: skip
        for name, (low, value, high) in values.items():
            if not low <= value <= high:
                text = f"expected [low, value, high] in order, found [{low:g}, {value:g}, {high:g}]"
                raise SpecError("a quality's interval does not hold its value", faults=[(f"{path}.{name}", text)])
            given = Quantity.of(value, "1", low=low, high=high, why="given in the plan")
            for model in {o.model for o in found}:
                known.setdefault((model, method), {})[name] = given
    return [replace(o, quality={**o.quality, **known.get((o.model, o.method), {})}) for o in found]
