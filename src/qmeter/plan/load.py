"""A plan file becomes a :class:`~qmeter.plan.spec.PlanSpec`, or a list of everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qmeter.plan.spec import PlanSpec
from qmeter.spec.document import Fault, YamlPath
from qmeter.spec.read import beside, read_file, read_text

CLASSES_AT_MOST = 60


def load_plan(path: Path) -> PlanSpec:
    """Read and validate a plan file; relative paths (traces, sources) count from its folder where they exist there.

    Raises:
        SpecError: every fault of the file: its YAML path, the value found, what is valid, the line.
    """
    return _with_paths(read_file(path, PlanSpec, _broken_rules), path.parent)


def load_plan_text(text: str, name: str = "plan") -> PlanSpec:
    """As :func:`load_plan`, from text."""
    return read_text(text, name, PlanSpec, _broken_rules)


def _broken_rules(spec: PlanSpec) -> Iterator[Fault]:
    yield from _names(spec)
    yield from _shares(spec)
    yield from _lengths(spec)
    for i, one in enumerate(spec.classes):
        for limit in ("ttft", "tpot", "e2e"):
            if getattr(one.slo, limit) == 0:
                yield Fault(("classes", i, "slo", limit), "a limit of 0 can never be kept: give a time such as '300ms'")
    for i, fleet in enumerate(spec.fleet):
        if spec.objective == "cost" and fleet.price_usd_h is None and not spec.devices:
            text = "missing: the objective is cost; give the price of one device an hour, or choose objective: energy"
            yield Fault(("fleet", i, "price_usd_h"), text)
        if fleet.carry is not None and not spec.extrapolate:
            text = ("carries deployments to what was never measured: allow that with 'extrapolate: true' (results are "
                    "marked), or measure there and name that study as source")  # fmt: skip
            yield Fault(("fleet", i, "carry"), text)
        given = fleet.quality
        if given is not None and given.source is None and not given.given:
            text = "names neither 'from' (a study's folder or profile) nor 'given' values"
            yield Fault(("fleet", i, "quality"), text)
    if all(f.count == 0 for f in spec.fleet) or (spec.devices and all(d.count == 0 for d in spec.devices.values())):
        where = ("fleet",) if all(f.count == 0 for f in spec.fleet) else ("devices",)
        yield Fault(where, "the fleet is empty: every count is 0; leave count out where devices can be had")
    if spec.objective == "carbon" and not _any(spec.electricity.carbon_g_kwh):
        text = "missing: the objective is carbon; give grams a kWh, or one value for each period"
        yield Fault(("electricity", "carbon_g_kwh"), text)


def _names(spec: PlanSpec) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for i, one in enumerate(spec.classes):
        if one.name in first:
            yield Fault(("classes", i, "name"), f"{one.name!r} stands twice: classes[{first[one.name]}] is the same")
        first.setdefault(one.name, i)
    if len(spec.classes) > CLASSES_AT_MOST:
        yield Fault(("classes",), f"{len(spec.classes)} classes; at most {CLASSES_AT_MOST}: merge some alike")


def _shares(spec: PlanSpec) -> Iterator[Fault]:
    sharing = [i for i, c in enumerate(spec.classes) if c.share is not None]
    total = sum(spec.classes[i].share or 0.0 for i in sharing)
    if sharing and spec.rate is None:
        text = "is a share of the plan's rate, which is missing: add 'rate: 50/s'"
        yield Fault(("classes", sharing[0], "share"), text)
    if spec.rate is not None and not sharing:
        yield Fault(("rate",), "no class has a share of it: give the classes shares, or leave it out")
    if sharing and abs(total - 1) > 1e-6:
        yield Fault(("classes", sharing[-1], "share"), f"the shares sum to {total:g}; they must sum to 1")


def _lengths(spec: PlanSpec) -> Iterator[Fault]:
    """Curves of different lengths have no common periods."""
    curves: list[tuple[YamlPath, int]] = [(("classes", i, "rate"), len(c.rate)) for i, c in enumerate(spec.classes)
                                          if c.rate is not None and len(c.rate) > 1]  # fmt: skip
    if spec.rate is not None and len(spec.rate) > 1:
        curves.insert(0, (("rate",), len(spec.rate)))
    intensity = spec.electricity.carbon_g_kwh
    if isinstance(intensity, tuple) and len(intensity) > 1:
        curves.append((("electricity", "carbon_g_kwh"), len(intensity)))
    for path, length in curves[1:]:
        if length != curves[0][1]:
            text = f"has {length} values where others have {curves[0][1]}: every curve needs one value a period"
            yield Fault(path, text)


def _any(values: float | tuple[float, ...]) -> bool:
    return any(values) if isinstance(values, tuple) else bool(values)


def _with_paths(spec: PlanSpec, folder: Path) -> PlanSpec:
    """The plan with paths that exist beside the file made absolute."""
    classes = []
    for c in spec.classes:
        trace = c.trace and c.trace.model_copy(update={"path": beside(c.trace.path, folder)})
        classes.append(c.model_copy(update={"trace": trace}))
    fleet = []
    for f in spec.fleet:
        quality = f.quality
        if quality is not None and quality.source is not None:
            quality = quality.model_copy(update={"source": beside(quality.source, folder)})
        fleet.append(f.model_copy(update={"source": beside(f.source, folder), "quality": quality}))
    return spec.model_copy(update={"classes": tuple(classes), "fleet": tuple(fleet)})
