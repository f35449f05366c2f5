"""Classes that nothing in the fleet can serve: which field excludes what, and the way out."""

from __future__ import annotations

from collections.abc import Sequence

from qmeter.capacity import Capacity, lower_is_better
from qmeter.errors import SpecError
from qmeter.plan.demand import Demand
from qmeter.plan.spec import PlanSpec
from qmeter.plan.supply import Choice
from qmeter.plan.table import Exclusion, Measurer, Table, quantity_text

Faults = list[tuple[str, str]]


def refuse_unserved(spec: PlanSpec, table: Table, measure: Measurer) -> None:
    """Raise where a class can be served by no offer at any number of replicas.

    Raises:
        SpecError: the faults name the class's field that excludes every offer.
    """
    faults: Faults = []
    for c in table.unserved():
        own = [e for e in table.exclusions if e.group == c]
        floors = [e for e in own if e.kind == "quality"]
        if len({e.choice for e in floors}) == len(table.choices):
            faults += _quality(c, table.demand, table.choices)
        else:
            faults += _latency(c, table, own, measure)
            if floors:
                names = ", ".join(sorted({table.choices[e.choice].offer.method for e in floors}))
                faults.append((f"classes[{c}].quality", f"leaves out {names}: lower the floor to let them serve"))
    if faults:
        count = len(table.unserved())
        raise SpecError(f"{spec.name}: nothing in the fleet can serve {count} of the classes; nothing was planned",
                        faults=faults, hint="change the fields named, or add deployments to the fleet")  # fmt: skip


def _quality(c: int, demand: Demand, choices: Sequence[Choice]) -> Faults:
    """No offer keeps the floors: unknown everywhere, out of reach, or contradictory."""
    floors, faults = demand.floors[c], []
    for name, floor in floors.items():
        known = [k for k in choices if k.offer.bound(name) is not None]
        path = f"classes[{c}].quality.{name}"
        if not known:
            have = sorted({n for k in choices for n, q in k.offer.quality.items() if q.known})
            sources = sorted({k.offer.source for k in choices})
            there = f" (there is: {', '.join(have)})" if have else ""
            text = (f"no deployment of {', '.join(sources)} has it measured{there}; name records that have it with "
                    "fleet[].quality: {from: DIR}, measure it (quality in the study, or qmeter quality URL), or leave "
                    "the floor out")  # fmt: skip
            faults.append((path, text))
        elif not [k for k in known if k.offer.keeps({name: floor})]:
            best = min(known, key=lambda k: (k.offer.bound(name) or 0.0) * (1 if lower_is_better(name) else -1))
            way = "at least" if lower_is_better(name) else "at most"
            text = (f"no deployment keeps {floor:g} on its confidence bound; the best is {best.offer.method} with "
                    f"{quantity_text(best.offer.quality[name])}: ask {way} {best.offer.bound(name):.4g}, or measure "
                    "with more items to narrow the interval")  # fmt: skip
            faults.append((path, text))
    if not faults:
        keepers = [f"{name} {floor:g} is kept by {', '.join(_keepers(choices, name, floor))}"
                   for name, floor in floors.items()]  # fmt: skip
        faults.append((f"classes[{c}].quality", f"the floors contradict each other: {'; '.join(keepers)}; none keeps "
                                                "all: lower one"))  # fmt: skip
    return faults


def _keepers(choices: Sequence[Choice], name: str, floor: float) -> list[str]:
    return sorted({k.offer.method for k in choices if k.offer.keeps({name: floor})})


def _latency(c: int, table: Table, own: Sequence[Exclusion], measure: Measurer) -> Faults:
    """The limit that is out of reach, with the least that would do; else why the calibration has no answer."""
    one = table.demand.classes[c]
    best: dict[str, tuple[float, str]] = {}
    for choice in table.choices:
        found = measure.capacity(choice, one, one.slo)
        if isinstance(found, Capacity) and found.lonely_s is not None:
            limit = found.binds.partition(": ")[2].split()[0].lower()
            if limit not in best or found.lonely_s < best[limit][0]:
                best[limit] = (found.lonely_s, choice.offer.method)
    faults: Faults = []
    for limit, (least, method) in best.items():
        asked = float(getattr(one.slo, limit))
        text = (f"{asked:.4g} s is below the zero-load {limit.upper()} of every deployment; the lowest is "
                f"{least:.4g} s ({method}), which {one.slo.percentile:.4g} of lone requests keep: ask for more than "
                "that, or add a faster deployment")  # fmt: skip
        faults.append((f"classes[{c}].slo.{limit}", text))
    texts = {e.text for e in own if e.kind in ("support", "power", "energy")}
    where = f"classes[{c}]"
    for text in sorted(texts)[:3]:
        faults.append((where, f"{text} ('extrapolate: true' answers anyway, marked)" if "cover" in text else text))
    return faults
