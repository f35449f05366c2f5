"""Offers from measured records: a profile, a study folder or a calibration file; fits are kept by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qmeter.capacity.offer import Offer, Supply, offer_of
from qmeter.errors import AnalysisError
from qmeter.record import CellStatus, Quantity, Record
from qmeter.simulate.calibrate import calibrate, device_of
from qmeter.simulate.calibration import Calibration, load_calibrations, save
from qmeter.simulate.carry import fit_records, load_physics, physics_data
from qmeter.simulate.identity import simulator_hash
from qmeter.simulate.physics import PhysicsFit
from qmeter.simulate.validate import by_deployment, cached
from qmeter.store import open_results
from qmeter.store.folder import StudyStore
from qmeter.store.profile import Profile

AXES = ("device", "model", "method", "engine")
KEPT = ("*.json", "*.jsonl", "*.parquet", "cells/*/*.parquet")
Progress = Callable[[str], None]


def offers(
    source: str | Path,
    supply: Mapping[str, Supply] | None = None,
    *,
    only: Mapping[str, Collection[str]] | None = None,
    cache: Path | None = None,
    on_fit: Progress | None = None,
) -> list[Offer]:
    """Every deployment of a source as an offer.

    Args:
        source: a profile's name, a study's or profile's folder, or a file that ``qmeter calibrate-model`` wrote (which
            has no start times and no quality).
        supply: device name → price, count and power limit of one device; a device without a row has none of them.
        only: axis of :data:`AXES` → names; deployments with another name are neither fitted nor offered.
        cache: folder for fitted calibrations, by content of records and fitting code; default: the user's cache.
        on_fit: told the name of each deployment before it is fitted (seconds each; nothing is fitted twice).

    Raises:
        UnknownName: no such profile or folder.
        AnalysisError: no deployment of it can be calibrated, or the file is no calibration file.
    """
    prices = supply or {}
    path = Path(source)
    if path.is_file():
        return [offer_of(c, prices.get(str(c.deployment["device"])), source=str(source))
                for c in load_calibrations(path) if _wanted(c.deployment, only)]  # fmt: skip
    results = open_results(str(source))
    records = [r for r in results.records() if _wanted(named(r), only)]
    by_id = {group[0].deployment_id: group for group in by_deployment(records)}
    found = []
    for c in fitted(results, records, cache=cache, on_fit=on_fit):
        group = by_id[str(c.deployment["id"])]
        weights = next((r.effective.weight_bytes for r in group if r.effective), None)
        found.append(offer_of(c, prices.get(str(c.deployment["device"])), load_s=_launch(group),
                              quality=qualities(group), weight_bytes=weights, source=str(source)))  # fmt: skip
    return found


def deployments(source: str | Path) -> list[dict[str, str]]:
    """Device, model, method and engine of every deployment of a source; nothing is fitted.

    Raises:
        UnknownName, AnalysisError: as :func:`offers`.
    """
    if Path(source).is_file():
        return [{a: str(c.deployment[a]) for a in AXES} for c in load_calibrations(Path(source))]
    return [named(group[0]) for group in by_deployment(open_results(str(source)).records())]


def named(record: Record) -> dict[str, str]:
    """Device, model, method and engine of a record's deployment."""
    d = record.cell["deployment"]
    return {"device": device_of(record), "model": d["model"]["name"], "method": d["method"],
            "engine": d["engine"]["name"]}  # fmt: skip


def _wanted(names: Mapping[str, Any], only: Mapping[str, Collection[str]] | None) -> bool:
    return all(str(names[axis]) in wanted for axis, wanted in (only or {}).items())


def fitted(
    results: StudyStore | Profile,
    records: Sequence[Record],
    *,
    cache: Path | None = None,
    on_fit: Progress | None = None,
) -> list[Calibration]:
    """The calibrations of all deployments that have what it takes, from the cache where this content was fitted before.

    Raises:
        AnalysisError: none can be calibrated; the message is of the first.
    """
    folder, name = cache or default_cache(), content_hash(results.folder)
    made: list[Calibration] = []
    faults = []
    for group in by_deployment(records):
        kept = folder / f"{name}-{group[0].deployment_id}.json"
        if kept.is_file():
            made += load_calibrations(kept)
            continue
        if on_fit:
            on_fit("/".join((group[0].cell["deployment"]["model"]["name"], group[0].cell["deployment"]["method"])))
        try:
            made.append(calibrate(group, cached(results.tables)))
            _keep(made[-1:], kept)
        except AnalysisError as error:
            faults.append(error)
    if not made:
        raise faults[0] if faults else AnalysisError(f"{results.folder} has no valid measured record",
                                                     hint="run the study first: qmeter run")  # fmt: skip
    return made


def fitted_physics(results: StudyStore | Profile, *, cache: Path | None = None) -> PhysicsFit:
    """The physics form over all deployments of the results, from the cache where this content was fitted before.

    Raises:
        AnalysisError: no deployment ran on a device whose ceilings the catalog has.
    """
    kept = (cache or default_cache()) / f"{content_hash(results.folder)}.physics.json"
    if not kept.is_file():
        fit = fit_records(by_deployment(results.records()), cached(results.tables))
        _keep([], kept, physics_data(fit))
        return fit
    return load_physics(kept)


def default_cache() -> Path:
    """Where fitted calibrations are kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "qmeter" / "calibrations"


def content_hash(folder: Path) -> str:
    """Hash of a results folder's files, and of the code and catalog that fit them."""
    digest = hashlib.sha256(simulator_hash().encode())
    for path in sorted({p for pattern in KEPT for p in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _keep(made: list[Calibration], kept: Path, physics: dict[str, object] | None = None) -> None:
    """Write under another name and rename; a cache that cannot be written is no fault."""
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        save(made, temporary, physics)
        os.replace(temporary, kept)
    except OSError:
        temporary.unlink(missing_ok=True)


def _launch(group: Sequence[Record]) -> Quantity:
    """Time of a start, over the starts that the records tell of; cells that share a start carry its time alike."""
    seen = sorted({r.timings["launch"] for r in group if r.timings.get("launch", 0.0) > 0})
    if not seen:
        return Quantity.unknown("s", "the records do not say how long a start took")
    return Quantity.of(float(np.median(seen)), "s", low=seen[0], high=seen[-1], n=len(seen))


def qualities(group: Sequence[Record]) -> dict[str, Quantity]:
    """Each quality that a deployment's records know: the one with the most items where several cells have it."""
    found: dict[str, Quantity] = {}
    for record in group:
        if record.status is not CellStatus.OK:
            continue
        for name, q in record.quality.items():
            old = found.get(name)
            if old is None or not old.known or (q.known and (q.n or 0) > (old.n or 0)):
                found[name] = q
    return found


def quality_by_method(source: str | Path, model: str | None = None) -> dict[str, dict[str, Quantity]]:
    """Method → qualities, from another study's records: quality depends on model and method, not on the device.

    Args:
        model: only of this model (its name or its shape); where the study has one other model alone, that one's are
            taken, and each quantity says so.

    Raises:
        UnknownName: no such profile or folder.
        AnalysisError: its records hold no quality, or several models and none of them this one.
    """
    groups = by_deployment(open_results(str(source)).records())
    models = {m["name"]: m["shape"] for m in (g[0].cell["deployment"]["model"] for g in groups)}
    own = {n for n, shape in models.items() if model in (None, n, shape)}
    if not own and len(models) > 1:
        raise AnalysisError(f"{source} measured {', '.join(models)}, not {model}",
                            hint="name a study of this very model")  # fmt: skip
    wanted = own or set(models)
    found = {str(g[0].cell["deployment"]["method"]): qualities(g) for g in groups
             if g[0].cell["deployment"]["model"]["name"] in wanted}  # fmt: skip
    if not any(q.known for m in found.values() for q in m.values()):
        raise AnalysisError(f"{source} holds no measured quality", hint="measure it: quality.fidelity in the study, "
                            "or qmeter quality URL")  # fmt: skip
    if own or model is None:
        return found
    why = f"measured on {next(iter(wanted))}, not on {model}"
    return {m: {n: q.model_copy(update={"why": why}) if q.known else q for n, q in of.items()}
            for m, of in found.items()}  # fmt: skip
