"""The low fidelity: every point of the space by the simulator, without noise, in milliseconds each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qmeter import catalog
from qmeter.errors import AnalysisError, QMeterError
from qmeter.record import Record
from qmeter.simulate import Calibration, calibrate, load_calibrations
from qmeter.simulate.calibrate import device_of
from qmeter.simulate.carry import Target, carry, distance, fit_records, load_physics, with_joules_of
from qmeter.simulate.knobs import with_knobs
from qmeter.simulate.load import SimLoad, load_of
from qmeter.simulate.physics import PhysicsFit
from qmeter.simulate.quick import quick
from qmeter.simulate.validate import by_deployment, cached
from qmeter.store import open_results
from qmeter.tune.space import PARALLEL, POWER, Point
from qmeter.tune.spec import Tuning
from qmeter.workload import Vocabulary, build

SEED = 7
"""Of the low fidelity's own arrivals: not those of any measurement."""
VOCABULARY = 32000


class Kind(NamedTuple):
    """What a calibration is of, and what a point needs one of; ``degrees``: tp, pp, dp; device "auto": any."""

    shape: str
    method: str
    degrees: tuple[int, int, int] = (1, 1, 1)
    device: str = "auto"

    def fits(self, other: Kind) -> bool:
        """Whether ``other`` is of this kind."""
        return self[:3] == other[:3] and self.device in ("auto", other.device)


@dataclass(frozen=True)
class Known:
    """Calibrations, and the physics form that carries them to what has none."""

    found: tuple[Calibration, ...]
    physics: PhysicsFit | None
    source: str

    def of(self, kind: Kind, engine: str) -> Calibration | None:
        """The calibration of a kind: of several the first, one of ``engine`` before others."""
        fitting = [c for c in self.found if kind.fits(_of(c))]
        return max(fitting, key=lambda c: c.deployment["engine"] == engine, default=None)


def kind_of(tuning: Tuning, point: Point) -> Kind:
    """What a point needs a calibration of."""
    shape, method = tuning.base.models[0].shape, tuning.space.method_of(point)
    return Kind(shape, method, tuning.degrees(point), tuning.base.device)


def _of(calibration: Calibration) -> Kind:
    d = calibration.deployment
    return _kind(d, str(d["shape"]), str(d["device"]))


def _measured(record: Record) -> Kind:
    d = record.cell["deployment"]
    return _kind(d, str(d["model"]["shape"]), device_of(record))


def _kind(deployment: Mapping[str, Any], shape: str, device: str) -> Kind:
    tp, pp, dp = (int(deployment["parallelism"].get(a, 1)) for a in PARALLEL)
    return Kind(shape, str(deployment["method"]), (tp, pp, dp), device)


def calibrations(source: str, wanted: Iterable[Kind]) -> Known:
    """Those of a calibration file, a study's folder or a profile.

    Args:
        wanted: others are fitted only where one of these has no records and must be carried from them.

    Raises:
        UnknownName, AnalysisError: there is nothing to calibrate from, or it does not say on which device.
    """
    wanted = set(wanted)
    if Path(source).is_file():
        found = load_calibrations(Path(source))
        try:
            physics = load_physics(Path(source))
        except AnalysisError:
            physics = None
    else:
        results = open_results(source)
        groups = by_deployment(results.records())
        groups.sort(key=lambda g: (any(r.neighbours for r in g), -len(g)))  # alone on the host before side by side
        have = [_measured(g[0]) for g in groups]
        whole = all(any(w.fits(h) for h in have) for w in wanted)
        if whole:
            groups = [g for g, h in zip(groups, have, strict=True) if any(w.fits(h) for w in wanted)]
        found, faults, tables = [], [], cached(results.tables)
        for group in groups:
            try:
                found.append(calibrate(group, tables))
            except AnalysisError as error:
                faults.append(error)
        if not found:
            raise faults[0] if faults else AnalysisError(f"{source} holds no record to calibrate from")
        physics = None
        if not whole:
            with contextlib.suppress(QMeterError):
                physics = fit_records(groups, tables)
    devices = sorted({str(c.deployment["device"]) for c in found})
    if len(devices) > 1 and any(w.device == "auto" for w in wanted):
        raise AnalysisError(f"{source} holds records of several devices: {', '.join(devices)}",
                            hint="name one as the study's device")  # fmt: skip
    return Known(tuple(found), physics, source)


def calibration_for(tuning: Tuning, point: Point, known: Known) -> Calibration:
    """The calibration that stands for a point, under its knobs.

    Raises:
        AnalysisError: none does, or no scheduler can run with these knobs.
    """
    return _under_knobs(tuning, point, _standing_for(tuning, point, known))


def _standing_for(tuning: Tuning, point: Point, known: Known) -> Calibration:
    kind = kind_of(tuning, point)
    return known.of(kind, tuning.base.engines[0].name) or _carried(kind, known)


def _under_knobs(tuning: Tuning, point: Point, calibration: Calibration) -> Calibration:
    options = tuning.study(point, 0).engines[0].options
    return with_knobs(calibration, {k: v for k, v in options.items() if k != POWER})[0]


def _carried(kind: Kind, known: Known) -> Calibration:
    """A calibration moved by the physics form from the nearest.

    The form predicts no energy: the neighbour's stands in where only the method differs.
    """
    tp, pp, dp = kind.degrees
    if known.physics is None or pp > 1 or dp > 1:
        where = "" if kind.device == "auto" else f" on {kind.device}"
        raise AnalysisError(f"{known.source} has no calibration of {kind.shape}/{kind.method}, tp {tp}, pp {pp}, "
                            f"dp {dp}{where}", hint="measure it, or leave it out")  # fmt: skip

    def target(near: Calibration) -> Target:
        device = str(near.deployment["device"]) if kind.device == "auto" else kind.device
        return Target(kind.shape, kind.method, device, str(near.deployment["engine"]), tp)

    near = min(known.found, key=lambda c: distance(c, target(c)))
    moved = carry(known.physics, near, target(near))
    alike = kind._replace(method=str(near.deployment["method"])).fits(_of(near))
    return with_joules_of(moved, near) if alike else moved


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
            gpus = tuning.gpus(point)
            found |= {t.key: found[t.whole] / gpus for t in terms if t.per_gpu and t.whole in found}
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
