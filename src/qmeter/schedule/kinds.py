"""What may run: each deployment (and power cap) with its capacity a class, power curve, start, and quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qmeter.capacity import (
    Capacity,
    ClassLoad,
    Mix,
    Offer,
    Pool,
    Precision,
    Supply,
    lower_is_better,
    offers,
    quality_by_method,
    sample,
    sustain,
)
from qmeter.errors import AnalysisError, SpecError
from qmeter.record import Quantity
from qmeter.registry import nearest
from qmeter.schedule.day import lengths_of, too_long
from qmeter.schedule.spec import ScheduleSpec
from qmeter.store import open_results

F64 = NDArray[np.float64]

BANDS = (0.0, 0.06, 0.3, 1.0)
"""Edges of the bands of utilisation in which power is taken as linear: it rises steeply at first, since a step costs
nearly as much with one sequence as with many."""

CURVE_REQUESTS = 3000
MOST_DRAW = 3.0


@dataclass(frozen=True)
class Kind:
    """One deployment that may be started, a replica of it at a time.

    Attributes:
        name: method, and power cap where there is one: unique.
        capacity_hz: requests a second of each class that one replica sustains at the SLO, shape (classes,).
        power_w: mean power of a replica at each edge of :data:`BANDS`, idle time included, under the mix of classes.
        draw: for each class, how much its utilisation counts where power is looked up: 1 draws like the mix, less where
            long prompts fill a replica that decodes little. Empty: 1 for each.
        load_s, load_j: of a start.
        quality: metric → the interval's worse end.
        power_cap_w: a GPU.
    """

    name: str
    offer: Offer = field(repr=False)
    capacity_hz: tuple[float, ...]
    power_w: tuple[float, ...]
    load_s: float
    load_j: float
    quality: Mapping[str, float]
    power_cap_w: float | None = None
    draw: tuple[float, ...] = ()

    @property
    def work(self) -> F64:
        """Utilisation that one request a second of each class is, as power is looked up, shape (classes,)."""
        weight = self.draw or (1.0,) * len(self.capacity_hz)
        return np.array([w / r if r > 0 else 0.0 for w, r in zip(weight, self.capacity_hz, strict=True)])

    @property
    def top(self) -> float:
        """The last band's end: the most that a full replica's work can count. At least 1."""
        return max((1.0, *self.draw))

    def watts(self, work: F64) -> F64:
        """Mean power of a replica at so much work; the last band goes on beyond its end. Units: W."""
        slope = (self.power_w[-1] - self.power_w[-2]) / (BANDS[-1] - BANDS[-2])
        return np.asarray(np.interp(work, BANDS, self.power_w) + slope * np.maximum(work - BANDS[-1], 0.0))

    def cut(self, factor: float, classes: NDArray[np.bool_]) -> Kind:
        """This kind with less capacity for some classes; what a request of them draws stays."""
        if not classes.any():
            return self
        by = np.where(classes, factor, 1.0)
        capacity, draw = by * self.capacity_hz, by * (self.draw or (1.0,) * len(self.capacity_hz))
        return replace(self, capacity_hz=tuple(map(float, capacity)), draw=tuple(map(float, draw)))

    @property
    def device(self) -> str:
        """Its device type."""
        return self.offer.device

    @property
    def devices(self) -> int:
        """Devices one replica takes."""
        return self.offer.devices


@dataclass(frozen=True)
class Choice:
    """The kinds to choose from, what off devices draw, and what the reader must know of either.

    Attributes:
        longest_tokens: longest prompt and output together that all of them accept.
        beaten: kinds that are left out, since another one is better in all that counts.
    """

    kinds: tuple[Kind, ...]
    off_w: Mapping[str, float]
    notes: tuple[str, ...]
    longest_tokens: int
    beaten: tuple[Kind, ...] = ()


def choose(spec: ScheduleSpec, say: Callable[[str], None] = lambda _: None, precision: Precision | None = None
           ) -> Choice:  # fmt: skip
    """The kinds that the spec's records offer and its floors and promises allow.

    Raises:
        SpecError: with the field and the way out, where nothing is left.
    """
    found, notes = _offers(spec, say)
    found = _with_quality(spec, found, notes)
    off = {name: _off_power(spec, name, found, notes) for name in spec.fleet}
    longest = min(o.calibration.scheduler().longest_tokens for o, _ in found)
    for c in spec.classes:
        if share := too_long(c, longest):
            notes.append(f"{c.name}: {share:.1%} of its trace's requests exceed {longest} tokens, the engine's limit, "
                         "and are left out")  # fmt: skip
    loads = tuple(ClassLoad(c.name, lengths_of(c, longest), c.slo) for c in spec.classes)
    mix = Mix(loads, tuple(c.rate for c in spec.classes))
    kinds, why = [], {}
    for offer, cap in found:
        name = f"{offer.method}@{cap:.0f}W" if cap else offer.method
        name = name if len(spec.fleet) == 1 else f"{name}-{offer.device}"
        say(f"capacity of {name}")
        alone = [_sustained(spec, offer, Mix((one,)), precision, curve=False) for one in loads]
        rates = [a.rate_hz.value or 0.0 for a in alone]
        notes += [f"{name}: its capacity for {one.name} is bounded by what was measured ({a.bounded})"
                  for one, a in zip(loads, alone, strict=True) if a.bounded]  # fmt: skip
        if not any(rates):
            why[name] = [a.binds for a in alone]
            continue
        serving = [i for i, r in enumerate(rates) if r > 0]
        both = mix if len(serving) == len(loads) else Mix((loads[serving[0]],))
        together = _sustained(spec, offer, both, precision, curve=False)
        notes += [f"beyond the calibration: {n}" for n in together.notes if f"beyond the calibration: {n}" not in notes]
        full_hz = together.rate_hz.value or 0.0
        power = _power(spec, offer, both, full_hz)
        kind = _kind(spec, name, offer, cap, rates, full_hz, power, notes)
        kinds.append(replace(kind, draw=tuple(map(partial(_draw, spec, kind), loads, kind.capacity_hz))))
    for i in range(len(spec.classes)):
        if not any(k.capacity_hz[i] > 0 for k in kinds):
            said = "; ".join(dict.fromkeys(w[i] for w in why.values())) or "no deployment keeps it"
            raise _fault(("classes", i, "slo"), f"no deployment can keep it: {said}",
                         "loosen the limit beyond the zero-load latency, or add faster deployments")  # fmt: skip
    better = list(zip(kinds, beaten_by(kinds, spec), strict=True))
    kept, beaten = (tuple(k for k, by in better if (by is None) is best) for best in (True, False))
    return Choice(kept, off, tuple(notes), longest, beaten)


def _sustained(spec: ScheduleSpec, offer: Offer, mix: Mix, precision: Precision | None, *, curve: bool) -> Capacity:
    try:
        return sustain(
            offer, mix, seed=spec.seed, precision=precision, curve=curve, allow_extrapolation=spec.extrapolate
        )
    except AnalysisError as error:
        at = [i for i, c in enumerate(spec.classes) if c.name == mix.classes[0].name]
        hint = f"{error.hint} ('extrapolate: true' answers anyway, marked)"
        raise _fault(("classes", at[0]), error.message, hint) from error


def _offers(spec: ScheduleSpec, say: Callable[[str], None]) -> tuple[list[tuple[Offer, float | None]], list[str]]:
    supply = {name: Supply(count=d.count) for name, d in spec.fleet.items()}
    found: list[tuple[Offer, float | None]] = []
    for source in spec.sources:
        made = offers(source.source, supply, on_fit=lambda name: say(f"fitting {name}"))
        found += [(offer, source.power_cap) for offer in made]
    have = sorted({o.device for o, _ in found})
    for name in spec.fleet:
        if name not in have:
            raise _fault(("fleet", name), f"the records have no deployment on it; they have {', '.join(have)}",
                         "name a device of the records, or add records made on this one")  # fmt: skip
    for what, wanted in (("model", spec.model), ("engine", spec.engine)):
        names = sorted({str(getattr(o, what)) for o, _ in found})
        if wanted is not None and wanted not in names:
            raise _fault((what,), f"the records have no {what} {wanted!r}; they have {', '.join(names)}", "choose one")
    methods = sorted({o.method for o, _ in found})
    for i, method in enumerate(spec.methods):
        if method not in methods:
            close = nearest(method, methods) or methods
            raise _fault(("methods", i), f"the records have no {method!r}; near: {', '.join(close)}", "choose one")
    kept = [(o, cap) for o, cap in found if o.device in spec.fleet and spec.model in (None, o.model)
            and spec.engine in (None, o.engine) and (not spec.methods or o.method in spec.methods)]  # fmt: skip
    models = sorted({o.model for o, _ in kept})
    if len(models) > 1:
        raise _fault(("model",), f"the records hold several models: {', '.join(models)}", "name one with 'model:'")
    kept = [(o, cap) for o, cap in kept if o.devices <= spec.fleet[o.device].count]
    if not kept:
        raise _fault(("fleet",), "no deployment of the records fits the fleet", "raise the count")
    return kept, []


def _with_quality(spec: ScheduleSpec, found: list[tuple[Offer, float | None]], notes: list[str]
                  ) -> list[tuple[Offer, float | None]]:  # fmt: skip
    """The offers with all quality known of them; those that lack a quality that a floor needs are left out."""
    other = quality_by_method(spec.quality.records) if spec.quality.records else {}
    out: list[tuple[Offer, float | None]] = []
    for offer, cap in found:
        given = {
            name: Quantity.of(q.value, "1", low=q.low, high=q.high)
            for name, q in spec.quality.methods.get(offer.method, {}).items()
        }
        out.append((replace(offer, quality={**offer.quality, **other.get(offer.method, {}), **given}), cap))
    for i, c in enumerate(spec.classes):
        for name, floor in c.quality.items():
            known = [(o, b) for o, _ in out if (b := o.bound(name)) is not None]
            path = ("classes", i, "quality", name)
            if not known:
                raise _fault(path, f"no deployment of the records has a measured {name}, so no floor on it can be kept",
                             "give it under quality.methods, name a study that measured it under quality.records, or "
                             "take the floor out")  # fmt: skip
            lower = lower_is_better(name)
            best, bound = min(known, key=lambda p: p[1] if lower else -p[1])
            if bound > floor if lower else bound < floor:
                word = "ceiling" if lower else "floor"
                raise _fault(path, f"the {word} {floor:g} cannot be kept: the best, {best.method}, has {bound:g} at "
                             "its interval's worse end", f"set a {word} that {best.method} reaches")  # fmt: skip
    needed = {name for c in spec.classes for name in c.quality}
    lacking = {o.method: [n for n in needed if o.bound(n) is None] for o, _ in out}
    for method, names in lacking.items():
        if names:
            notes.append(f"{method} is left out: its {', '.join(sorted(names))} is unknown")
    return [(o, cap) for o, cap in out if not lacking[o.method]]


def _off_power(spec: ScheduleSpec, name: str, found: list[tuple[Offer, float | None]], notes: list[str]) -> float:
    given = spec.fleet[name].off_power
    if given is not None:
        return given
    seen = []
    for source in spec.sources:
        try:
            records = open_results(source.source).records()
        except Exception:
            continue
        values = [r.energy["idle_power_w"].value for r in records if "idle_power_w" in r.energy]
        seen += [v for v in values if v is not None]
    if not seen:
        raise _fault(("fleet", name, "off_power"), "the records do not say what a device draws with nothing loaded",
                     "give it in watts, as in 'off_power: 75' (0 where devices are powered off)")  # fmt: skip
    value = float(np.min(seen))
    notes.append(
        f"an empty {name} draws {value:.0f} W, the lowest idle power that the records measured before a launch"
    )
    return value


def _power(spec: ScheduleSpec, offer: Offer, mix: Mix, full_hz: float) -> tuple[float, ...]:
    """Mean power of a replica at each edge of the bands."""
    idle = offer.idle_w.value
    if idle is None or full_hz <= 0:
        return ()
    requests, pool = sample(mix, CURVE_REQUESTS, spec.seed), Pool.of(offer, seed=spec.seed)
    return (idle, *(pool.serve(requests, full_hz * f).power_w for f in BANDS[1:]))


def _draw(spec: ScheduleSpec, kind: Kind, one: ClassLoad, full_hz: float) -> float:
    """By how much the class's utilisation must be multiplied for the mix's power curve to give its power: the median
    over the bands' edges."""
    if full_hz <= 0 or len(spec.classes) == 1:
        return 1.0
    own = _power(spec, kind.offer, Mix((one,)), full_hz)
    work = np.linspace(0.0, MOST_DRAW, 1501)
    same = np.interp(own[1:], np.maximum.accumulate(kind.watts(work)), work)
    return float(np.median(same / np.array(BANDS[1:])))


def _kind(spec: ScheduleSpec, name: str, offer: Offer, cap: float | None, rates: list[float], together: float,
          power: tuple[float, ...], notes: list[str]) -> Kind:  # fmt: skip
    if offer.idle_w.value is None:
        raise _fault(("records",), f"{name} has no energy: {offer.idle_w.why}",
                     "schedule from records with an energy counter")  # fmt: skip
    fleet = spec.fleet[offer.device]
    shares = np.array([c.rate for c in spec.classes]) / sum(c.rate for c in spec.classes)
    if all(r > 0 for r in rates) and together > 0:
        apart = 1.0 / float(np.sum(shares / np.array(rates)))
        rates = [r * min(1.0, together / apart) for r in rates]  # classes in one batch slow each other
    load_s = fleet.load_time if fleet.load_time is not None else offer.load_s.value
    if load_s is None:
        raise _fault(("fleet", offer.device, "load_time"), f"{name}: {offer.load_s.why}", "give it, as in '60s'")
    idle = float(offer.idle_w.value)
    load_w = fleet.load_power * offer.devices if fleet.load_power is not None else idle
    if fleet.load_power is None:
        note = "power during a start is not measured: idle power is taken (give fleet.….load_power)"
        if note not in notes:
            notes.append(note)
    quality = {n: b for n in offer.quality if (b := offer.bound(n)) is not None}
    return Kind(name, offer, tuple(rates), power, float(load_s), float(load_s * load_w), quality, cap)


def beaten_by(kinds: Sequence[Kind], spec: ScheduleSpec) -> list[Kind | None]:
    """For each kind, one that beats it in everything: capacity, power at equal work, start and every quality asked for.

    ``None``: none does. Of two that are alike, the second is beaten.
    """
    needed = sorted({name for c in spec.classes for name in c.quality})

    def beats(a: Kind, b: Kind) -> bool:
        if a.device != b.device or a.devices > b.devices:
            return False
        better = all(x >= y for x, y in zip(a.capacity_hz, b.capacity_hz, strict=True))
        cheaper = all(
            float(a.watts(np.array(f * y * wa))) <= float(b.watts(np.array(f * y * wb)))
            for y, wa, wb in zip(b.capacity_hz, a.work, b.work, strict=True) if y > 0 for f in BANDS
        )  # fmt: skip
        finer = all(
            a.quality[n] <= b.quality[n] if lower_is_better(n) else a.quality[n] >= b.quality[n] for n in needed
        )
        return better and cheaper and finer and a.load_s <= 2 * b.load_s + 60

    def over(i: int, j: int) -> bool:
        return beats(kinds[i], kinds[j]) and (i < j or not beats(kinds[j], kinds[i]))

    return [next((kinds[i] for i in range(len(kinds)) if i != j and over(i, j)), None) for j in range(len(kinds))]


def _fault(path: tuple[str | int, ...], message: str, hint: str) -> SpecError:
    from qmeter.spec.document import show

    return SpecError("the schedule cannot be made as asked", faults=[(show(path), message)], hint=hint)
