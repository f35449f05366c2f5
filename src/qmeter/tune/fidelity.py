"""The low fidelity: every point of the space by the simulator, without noise, in milliseconds each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qmeter import catalog
from qmeter.errors import AnalysisError, QMeterError
from qmeter.simulate import Calibration, calibrate, load_calibrations
from qmeter.simulate.carry import Target, carry, fit_records, load_physics
from qmeter.simulate.knobs import with_knobs
from qmeter.simulate.load import SimLoad, load_of
from qmeter.simulate.physics import PhysicsFit
from qmeter.simulate.quick import quick
from qmeter.simulate.validate import by_deployment
from qmeter.store import open_results
from qmeter.tune.space import PARALLEL, POWER, Point
from qmeter.tune.spec import Tuning
from qmeter.workload import Vocabulary, build

SEED = 7
"""Of the low fidelity's own arrivals: not those of any measurement."""
VOCABULARY = 32000


@dataclass(frozen=True)
class Known:
    """Calibrations by method, and the physics form that carries them to methods without one."""

    by_method: Mapping[str, Calibration]
    physics: PhysicsFit | None
    source: str


def calibrations(source: str, methods: Iterable[str]) -> Known:
    """Those of a calibration file, a study's folder or a profile.

    Args:
        methods: those wanted; others are fitted only where one of these has no records and must be carried from them.

    Raises:
        UnknownName, AnalysisError: there is nothing to calibrate from.
    """
    if Path(source).is_file():
        found = load_calibrations(Path(source))
        try:
            physics = load_physics(Path(source))
        except AnalysisError:
            physics = None
    else:
        results = open_results(source)
        groups, wanted = by_deployment(results.records()), set(methods)
        have = {str(g[0].cell["deployment"]["method"]) for g in groups}
        if wanted <= have:
            groups = [g for g in groups if str(g[0].cell["deployment"]["method"]) in wanted]
        found, faults = [], []
        for group in groups:
            try:
                found.append(calibrate(group, results.tables))
            except AnalysisError as error:
                faults.append(error)
        if not found:
            raise faults[0] if faults else AnalysisError(f"{source} holds no record to calibrate from")
        physics = None
        if not wanted <= have:
            with contextlib.suppress(QMeterError):
                physics = fit_records(groups, results.tables, hold_out=False)
    return Known({str(c.deployment["method"]): c for c in found}, physics, source)


def calibration_for(tuning: Tuning, point: Point, known: Known) -> Calibration:
    """The calibration that stands for a point, under its knobs.

    Raises:
        AnalysisError: none does, or no scheduler can run with these knobs.
    """
    return _under_knobs(tuning, point, _standing_for(tuning, point, known))


def _standing_for(tuning: Tuning, point: Point, known: Known) -> Calibration:
    method = tuning.space.method_of(point)
    degrees = {a: int(point.get(a) or getattr(tuning.base.parallelism[0], a)) for a in PARALLEL}
    own = known.by_method.get(method)
    if own is None or any(int(own.deployment["parallelism"].get(a, 1)) != d for a, d in degrees.items()):
        return _carried(tuning, method, degrees, known)
    return own


def _under_knobs(tuning: Tuning, point: Point, calibration: Calibration) -> Calibration:
    options = tuning.study(point, 0).engines[0].options
    return with_knobs(calibration, {k: v for k, v in options.items() if k != POWER})[0]


def _carried(tuning: Tuning, method: str, degrees: Mapping[str, int], known: Known) -> Calibration:
    """A calibration moved by the physics form; energy stays the neighbour's, since the form predicts none."""
    near = next(iter(known.by_method.values()))
    if known.physics is None or degrees["pp"] > 1 or degrees["dp"] > 1:
        raise AnalysisError(f"{known.source} has no calibration of {method}", hint="measure it, or leave it out")
    d = near.deployment
    target = Target(tuning.base.models[0].shape, method, str(d["device"]), str(d["engine"]), degrees["tp"])
    moved = carry(known.physics, near, target)
    energy = {"energy": near.energy, "energy_series": near.energy_series, "energy_draws": near.energy_draws}
    return moved.model_copy(update=energy if degrees["tp"] == 1 else {})


def screen(
    tuning: Tuning, known: Known, on_point: Callable[[int, int], None] | None = None,
    points: Iterable[Point] | None = None,
) -> dict[Point, dict[str, float]]:  # fmt: skip
    """Every term that the simulator can tell, of every point it can run. Term's key → value.

    A point that the simulator refuses is left out; one of a method without a calibration keeps what the catalog knows.
    """
    terms = dict.fromkeys((*tuning.objectives, *tuning.limits))
    workloads = {w.name: w.model_copy(update={"slo": w.slo or tuning.base.slo}) for w in tuning.base.workloads}
    needed = [w for name, w in workloads.items() if any(t.workload == name for t in terms)]
    loads: dict[tuple[str, bool, int], SimLoad] = {}
    schedules = {w.name: build(w, SEED, Vocabulary(size=VOCABULARY)) for w in needed}
    out: dict[Point, dict[str, float]] = {}
    every = list(points) if points is not None else list(tuning.space.points)
    for k, point in enumerate(every):
        found = _static(tuning, point)
        try:
            base = _standing_for(tuning, point, known)
        except AnalysisError:
            out[point] = {t.key: found[t.key] for t in terms if t.key in found}
            continue
        try:
            calibration = _under_knobs(tuning, point, base)
            for w in needed:
                rules = calibration.scheduler()
                key = (w.name, rules.prefix_cache, rules.block_tokens)
                if key not in loads:
                    loads[key] = load_of(schedules[w.name], rules)
                values = quick(calibration, w, schedules[w.name], load=loads[key])
                found |= {f"{name}@{w.name}": v for name, v in values.items()}
        except AnalysisError:
            continue
        out[point] = {t.key: found[t.key] for t in terms if t.key in found}
        if on_point:
            on_point(k + 1, len(every))
    return out


def _static(tuning: Tuning, point: Point) -> dict[str, float]:
    """What the catalog alone knows."""
    shape, engine = catalog.model(tuning.base.models[0].shape), tuning.base.engines[0].name
    size = float(catalog.method(tuning.space.method_of(point)).expected_weight_bytes(shape, engine))
    return {f"weight_bytes@{w.name}": size for w in tuning.base.workloads}
