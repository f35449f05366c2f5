"""Tune files: what is searched, over what, and how; validated once, every fault named by its path."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from qmeter import catalog
from qmeter.analysis.compare import counts_per_gpu
from qmeter.analysis.metrics import METRICS, Better
from qmeter.errors import SpecError
from qmeter.spec.document import Document, Fault, YamlPath, read_document
from qmeter.spec.explain import unknown
from qmeter.spec.load import draft_text
from qmeter.spec.read import faulty, text_of, validated
from qmeter.spec.study import NAME, EngineRef, Parallelism, Study
from qmeter.spec.units import parse_bytes, parse_duration_s
from qmeter.spec.workload import Frozen
from qmeter.tune.problem import Term
from qmeter.tune.samplers.base import SAMPLERS
from qmeter.tune.space import KV, METHOD, OWN_KV, PARALLEL, POWER, Point, Space, Value

ENGINE_AXES = ("max_sequences", "token_budget", "max_model_tokens", "kv_cache_gib", "gpu_memory_fraction",
               "prefix_cache", "chunked_prefill", "async_scheduling", "threads", "kv_blocks", "kv_block_tokens",
               "eager")  # fmt: skip
"""Engine knobs that an axis may name; ``options.NAME`` passes any other to the engine as given."""
AXES = (METHOD, KV, *PARALLEL, POWER, *ENGINE_AXES)
MOST_POINTS = 20_000
PERFORMANCE = ("weight_bytes", "memory_peak_bytes")


class Objective(Frozen):
    """A quantity to optimize; ``limit`` (in its unit) rules out what is worse.

    ``workload`` may be left out where the study has one.
    """

    metric: str
    workload: str | None = None
    goal: Literal["lower", "higher"] | None = None
    limit: str | float | None = None


class Constraint(Frozen):
    """A quantity to keep: ``at_most`` or ``at_least``, with a unit where the quantity has one ("500ms", "20GiB")."""

    metric: str
    workload: str | None = None
    at_most: str | float | None = None
    at_least: str | float | None = None


class Search(Frozen):
    """How to search.

    Attributes:
        sampler: a row of the table of samplers.
        evaluations: measurements in all, repeats and failures included.
        repeats: most measurements of one point; repeat_share: most of the budget that repeats may take.
        seed: of every random choice.
    """

    sampler: str = "informed"
    evaluations: int = Field(default=40, ge=1, le=100_000)
    repeats: int = Field(default=3, ge=1, le=20)
    repeat_share: float = Field(default=0.25, ge=0, le=0.9)
    seed: int = Field(default=1, ge=0)


class LowFidelity(Frozen):
    """Where the simulator's calibrations come from: a calibration file, a study's folder, or a profile by name."""

    source: str


class Measure(Frozen):
    """What an evaluation is: the live engine, or a simulation (marked so) of calibrations from ``source``."""

    kind: Literal["engine", "simulator"] = "engine"
    source: str | None = None


class TuneSpec(Frozen):
    """A whole tune file."""

    qmeter: Literal[1]
    tune: str = Field(pattern=NAME)
    description: str = ""
    study: str | dict[str, Any]
    space: dict[str, tuple[Value, ...]] = Field(min_length=1)
    objectives: tuple[str | Objective, ...] = Field(min_length=1, max_length=5)
    constraints: tuple[Constraint, ...] = ()
    search: Search = Search()
    low_fidelity: LowFidelity | None = None
    measure: Measure = Measure()


@dataclass(frozen=True)
class Tuning:
    """A tune file made ready: the resolved study that every proposal is a variant of, the space, and the terms."""

    spec: TuneSpec
    base: Study
    space: Space
    objectives: tuple[Term, ...]
    limits: tuple[Term, ...]

    @property
    def needs_quality(self) -> bool:
        """Whether a term is a quality: each evaluation then scores its method against the reference."""
        return any(is_quality(t.name) for t in (*self.objectives, *self.limits))

    def degrees(self, point: Point) -> tuple[int, int, int]:
        """Its tp, pp and dp."""
        tp, pp, dp = (int(point.get(a) or getattr(self.base.parallelism[0], a)) for a in PARALLEL)
        return tp, pp, dp

    def gpus(self, point: Point) -> int:
        """Devices that it takes."""
        return math.prod(self.degrees(point))

    def study(self, point: Point, repeat: int) -> Study:
        """The study that measures one repeat of a point, and nothing else: what the runner is given."""
        options = dict(self.base.engines[0].options) | {
            name.removeprefix("options."): v for name, v in point.values if name not in (METHOD, KV, *PARALLEL, POWER)
        }
        if (cap := point.get(POWER)) is not None:
            options[POWER] = cap
        method = self.space.method_of(point)
        reference = self.base.quality.reference or self.base.methods[0]
        others = (reference,) if self.needs_quality and reference != method else ()
        exclude: list[dict[str, str]] = [{"method": m} for m in others]
        exclude += [{"repeat": str(r)} for r in range(repeat)]
        return self.base.model_copy(
            update={
                "name": f"{self.spec.tune}-{point.id}-{repeat}",
                "description": f"{self.spec.tune}: {point.label}, repeat {repeat}",
                "engines": (self.base.engines[0].model_copy(update={"options": options}),),
                "methods": (method, *others),
                "parallelism": (Parallelism(**dict(zip(PARALLEL, self.degrees(point), strict=True))),),
                "repeats": repeat + 1,
                "exclude": tuple(exclude),
                "quality": self.base.quality.model_copy(
                    update={"fidelity": self.needs_quality, "reference": reference if self.needs_quality else None}
                ),
            }
        )

    def all_methods(self) -> Study:
        """The base study with every method of the space: what is checked before anything starts."""
        found = tuple(dict.fromkeys(self.space.method_of(p) for p in self.space.points))
        degrees = dict.fromkeys(self.degrees(p) for p in self.space.points)
        made = tuple(Parallelism(tp=t, pp=p, dp=d) for t, p, d in degrees)
        return self.base.model_copy(update={"methods": found, "parallelism": made, "exclude": ()})


def is_quality(name: str) -> bool:
    """Whether a quantity says how good the answers are."""
    return name.startswith("task.") or name in (
        "ppl_ratio", "logprob_gap", "kl_sampled", "kl_topk", "top1_agreement", "greedy_agreement",
        "first_divergence_tokens", "changed_share", "decode_logprob_gap",
    )  # fmt: skip


def load_tune(path: Path) -> Tuning:
    """Read and validate a tune file.

    Raises:
        SpecError: with every fault: path, value, what is valid, line.
    """
    return load_tune_text(text_of(path), path.name, path.parent)


def load_tune_text(text: str, name: str, folder: Path) -> Tuning:
    """As :func:`load_tune`, from text; relative paths count from ``folder``."""
    document = read_document(text, name)
    _refuse(document, document.faults)
    spec, faults = validated(document.data, TuneSpec)
    _refuse(document, [f for f in faults if f.path[:1] != ("study",) or len(f.path) == 1])  # within: see _base
    assert spec is not None
    base = _base(spec, document, folder)
    faults = [*_axis_faults(spec, base), *_source_faults(spec), *_search_faults(spec)]
    terms, wrong = _terms(spec, base)
    _refuse(document, [*faults, *wrong])
    space = Space(spec.space, catalog.model(base.models[0].shape), base.engines[0].name)
    _refuse(document, _space_faults(space))
    objectives, limits = terms
    made = Tuning(spec, base, space, objectives, limits)
    gpus = {made.gpus(p) for p in space.points}
    return replace(made, objectives=tuple(_compared(o, gpus) for o in objectives))


def _compared(objective: Term, gpus: set[int]) -> Term:
    """An objective as the front compares it; its limit stays the whole deployment's, among the limits."""
    each = counts_per_gpu(objective.name, gpus)
    return replace(objective, per_gpu=True, limit=None) if each else objective


def _refuse(document: Document, faults: list[Fault]) -> None:
    if faults:
        raise faulty(document, faults)


def _base(spec: TuneSpec, document: Document, folder: Path) -> Study:
    """The study that proposals are variants of; its own methods are only the reference, if it names one."""
    if isinstance(spec.study, str):
        file = folder / spec.study
        try:
            data = read_document(text_of(file), file.name).data
        except SpecError as error:
            raise SpecError(f"{document.name}: 1 fault; nothing was started",
                            faults=[("study", error.message)], hint=error.hint) from error  # fmt: skip
        place = file.parent
    else:
        data, place = spec.study, folder
    if not isinstance(data, dict):
        raise faulty(document, [Fault(("study",), "expected a study")])
    listed = [m for m in spec.space.get(METHOD, ()) if isinstance(m, str)]
    reference = (data.get("quality") or {}).get("reference") if isinstance(data.get("quality"), dict) else None
    data = {"qmeter": 1, "name": spec.tune, "methods": [reference] if reference else listed or ["bf16"], **data}
    if METHOD in spec.space:
        data["methods"] = [reference] if reference else listed
    draft = draft_text(yaml.safe_dump(json.loads(json.dumps(data))), "study", place)
    try:
        study = draft.valid()
    except SpecError as error:
        faults = [(f"study.{p}", m.partition(" (line")[0]) for p, m in error.faults]
        raise SpecError(f"{document.name}: its study is wrong; nothing was started", faults=faults,
                        hint=error.hint) from error  # fmt: skip
    many = [n for n in ("models", "engines", "parallelism") if len(getattr(study, n)) > 1]
    if many or (METHOD not in spec.space and len(study.methods) > 1):
        what = many[0] if many else "methods"
        raise faulty(document, [Fault(("study", what), "a tuning has one: make the others an axis of space")])
    return study


def _axis_faults(spec: TuneSpec, base: Study) -> list[Fault]:
    faults = []
    methods = [m.name for m in catalog.methods()]
    for name, values in spec.space.items():
        path: YamlPath = ("space", name)
        if name not in AXES and not name.startswith("options."):
            faults.append(Fault(path, f"{unknown('knob', name, list(AXES))}; options.NAME passes others as given"))
        elif not values:
            faults.append(Fault(path, "the list is empty: give the values to search over"))
        elif len(set(map(repr, values))) < len(values):
            faults.append(Fault(path, "a value stands twice"))
        elif name == METHOD:
            faults += [Fault((*path, i), unknown("method", str(v), methods)) for i, v in enumerate(values)
                       if v not in methods]  # fmt: skip
        elif name == KV:
            types = [OWN_KV, *sorted({m.kv_type for m in catalog.methods()})]
            faults += [Fault((*path, i), unknown("KV type", str(v), types)) for i, v in enumerate(values)
                       if v not in types]  # fmt: skip
        elif name in PARALLEL or name in ("max_sequences", "token_budget", "max_model_tokens", "threads"):
            faults += [Fault((*path, i), f"expected a whole number of at least 1, found {v!r}")
                       for i, v in enumerate(values) if not _count(v)]  # fmt: skip
        elif name in ("prefix_cache", "chunked_prefill", "async_scheduling", "eager"):
            faults += [Fault((*path, i), f"expected true or false, found {v!r}") for i, v in enumerate(values)
                       if not isinstance(v, bool)]  # fmt: skip
        elif name == POWER:
            faults += [Fault((*path, i), f"expected watts above 0, found {v!r}") for i, v in enumerate(values)
                       if isinstance(v, bool | str) or v <= 0]  # fmt: skip
    if not faults and METHOD not in spec.space:
        faults.append(Fault(("space",), f"no {METHOD!r} axis: list one method or more"))
    size = 1
    for values in spec.space.values():
        size *= max(len(values), 1)
    if size > MOST_POINTS:
        faults.append(Fault(("space",), f"{size} combinations; at most {MOST_POINTS}: thin the lists"))
    return faults


def _space_faults(space: Space) -> list[Fault]:
    if space.points:
        return []
    why = "; ".join(f"{reason} ({n})" for reason, n in space.excluded.items())
    return [Fault(("space",), f"no combination is possible: {why}")]


def _source_faults(spec: TuneSpec) -> list[Fault]:
    if spec.measure.kind == "simulator" and spec.measure.source is None:
        return [Fault(("measure", "source"), "a simulator needs calibrations: a profile, a study's folder or a file")]
    if spec.measure.kind == "engine" and spec.measure.source is not None:
        return [Fault(("measure", "source"), "the live engine needs none: leave it out, or write kind: simulator")]
    return []


def _search_faults(spec: TuneSpec) -> list[Fault]:
    names = SAMPLERS.names()
    if spec.search.sampler not in names:
        return [Fault(("search", "sampler"), unknown("sampler", spec.search.sampler, names))]
    return []


def _terms(spec: TuneSpec, base: Study) -> tuple[tuple[tuple[Term, ...], tuple[Term, ...]], list[Fault]]:
    faults: list[Fault] = []
    objectives, limits = [], []
    for i, written in enumerate(spec.objectives):
        o = Objective(metric=written) if isinstance(written, str) else written
        path: YamlPath = ("objectives", i)
        workload = _workload(o.workload, base, path, faults)
        row = METRICS.get(o.metric)
        if row is None and not o.metric.startswith("task."):
            faults.append(Fault(path, unknown("metric", o.metric, list(METRICS))))
            continue
        better = Better(o.goal) if o.goal else row.better if row else Better.HIGHER
        if better is Better.NEITHER:
            faults.append(Fault(path, f"{o.metric} has no better side: say goal: lower or goal: higher"))
            continue
        limit = _number(o.limit, o.metric, (*path, "limit"), faults)
        objectives.append(Term(o.metric, workload, better, limit))
    for i, c in enumerate(spec.constraints):
        path = ("constraints", i)
        workload = _workload(c.workload, base, path, faults)
        if c.metric not in METRICS and not c.metric.startswith("task."):
            faults.append(Fault((*path, "metric"), unknown("metric", c.metric, list(METRICS))))
            continue
        if c.at_most is None and c.at_least is None:
            faults.append(Fault(path, "give at_most or at_least"))
        top = _number(c.at_most, c.metric, (*path, "at_most"), faults)
        least = _number(c.at_least, c.metric, (*path, "at_least"), faults)
        if top is not None and least is not None and least > top:
            faults.append(Fault(path, f"at_least {c.at_least} is above at_most {c.at_most}: nothing can keep both"))
        limits += [Term(c.metric, workload, b, v) for b, v in ((Better.LOWER, top), (Better.HIGHER, least))
                   if v is not None]  # fmt: skip
    if len({o.key for o in objectives}) < len(objectives):
        faults.append(Fault(("objectives",), "an objective stands twice"))
    limits = [o for o in objectives if o.limit is not None] + limits
    faults += _contradictions(limits)
    return (tuple(objectives), tuple(limits)), faults


def _contradictions(limits: list[Term]) -> list[Fault]:
    """Pairs of limits on one quantity that nothing can keep."""
    out = []
    for a in limits:
        for b in limits:
            top, least = a.limit, b.limit
            both = a.key == b.key and a.better is Better.LOWER and b.better is Better.HIGHER
            if both and top is not None and least is not None and least > top:
                out.append(Fault(("constraints",), f"{a.key}: at least {least:g} and at most {top:g} contradict"))
    return out


def _workload(named: str | None, base: Study, path: YamlPath, faults: list[Fault]) -> str:
    names = [w.name for w in base.workloads]
    if named is None and len(names) == 1:
        return names[0]
    if named is None:
        faults.append(Fault((*path, "workload"), f"the study has several: say which of {', '.join(names)}"))
    elif named not in names:
        faults.append(Fault((*path, "workload"), unknown("workload", named, names)))
    return named or names[0]


def _number(written: str | float | None, name: str, path: YamlPath, faults: list[Fault]) -> float | None:
    if written is None:
        return None
    unit = METRICS[name].unit if name in METRICS else "1"
    parse = {"s": parse_duration_s, "B": parse_bytes}.get(unit)
    try:
        return parse(written) if parse else float(written)
    except (TypeError, ValueError) as error:
        faults.append(Fault(path, str(error) if parse else f"expected a number in {unit}, found {written!r}"))
        return None


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


__all__ = ["EngineRef", "Objective", "TuneSpec", "Tuning", "is_quality", "load_tune", "load_tune_text"]
