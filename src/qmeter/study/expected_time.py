"""How long a study should take, from the starts that were measured, and how much of that it measures."""

from __future__ import annotations

from functools import cache
from statistics import median

from qmeter import catalog
from qmeter.analysis.keys import device_of
from qmeter.engines.table import Gpus, traits
from qmeter.errors import QMeterError, UnknownName
from qmeter.spec.study import Deployment
from qmeter.spec.workload import WorkloadSpec
from qmeter.store import list_profiles
from qmeter.store.profile import Profile

AROUND_S = 6.0
"""Idle baseline, warm-up requests and teardown of a deployment, as seen in ``h200-8b-grid``. Units: s."""
QUALITY_S = 15.0
"""Fidelity, where it is scored. Units: s; an estimate."""
TAIL_S, TAIL_A_REQUEST_S, LONGEST_TAIL_S = 2.0, 0.06, 10.0
"""From the window's end until the last request is done and the record written, more for each request that a closed loop
keeps in flight; as the H200 profiles' medians say (1.4 s open and at 4 in flight, 7 s at 96, 9 s at 256). Units: s."""
FIRST = "first start of a lease"
SEVERAL_GPUS_S, GIB_S = 15.0, 0.5
"""More for a start on several GPUs, and for each GiB of weights a GPU: estimates, not measured. Units: s."""


def cell_s(workload: WorkloadSpec) -> float:
    """Warm-up, window and what follows until the next cell can begin. Units: s."""
    arrivals = workload.arrivals
    tail = TAIL_S + (TAIL_A_REQUEST_S * arrivals.concurrency if arrivals.kind == "closed" else 0.0)
    return workload.warmup + workload.window + min(workload.drain, tail, LONGEST_TAIL_S)


def measured_s(workload: WorkloadSpec) -> float:
    """The part of it that measures: warm-up and window. Units: s."""
    return workload.warmup + workload.window


def start_s(
    deployment: Deployment, weights_bytes: float | None, *, first: bool, device: str | None = None
) -> tuple[float, str]:
    """Launch to ready, and where the figure comes from. Units: s.

    Args:
        weights_bytes: on each GPU, where the shape is known.
        first: whether it is the first start of a lease (nothing is compiled, nothing cached).
        device: the host's, by the catalog's name; starts measured on it count, else those on others.
    """
    row = traits(deployment.engine.name)
    if seen := _seen(deployment, device):
        return (row.cold_start_s, FIRST) if first and row.cold_start_s > seen[0] else seen
    base = row.cold_start_s if first else row.start_s
    if row.gpus is not Gpus.AS_MANY_AS_ASKED:
        return base, "estimate"
    several = SEVERAL_GPUS_S if deployment.parallelism.devices > 1 else 0.0
    return base + several + GIB_S * (weights_bytes or 0.0) / 2**30, "estimate"


def _seen(deployment: Deployment, device: str | None) -> tuple[float, str] | None:
    """Median of measured starts, and whose they are; ``None``: there are none like it. Units: s."""
    times = _measured().get(_key(deployment), {})
    if alike := times.get((device or "", deployment.placement.value)) or times.get((device or "", "alone")):
        return median(alike), "measured in a profile"
    if times:
        return median(t for several in times.values() for t in several), "measured on another device"
    near = _of_nearest_shape(deployment, device)
    return None if near is None else (near, "measured with another model")


def _of_nearest_shape(deployment: Deployment, device: str | None) -> float | None:
    """Median start of the same method and degrees on this device, of the shape whose number of layers is nearest.

    Tracing and compiling are most of a start and grow with the layers. Units: s.
    """
    engine, shape, method, degrees = _key(deployment)
    layers = _layers(shape)
    near = [
        (abs(other - layers), times[(device, "alone")])
        for key, times in _measured().items()
        if (key[0], key[2], key[3]) == (engine, method, degrees) and device and (device, "alone") in times
        if layers is not None and (other := _layers(key[1])) is not None
    ]
    return median(min(near)[1]) if near else None


def _layers(shape: str | None) -> int | None:
    """Of a catalogued shape; ``None``: a profile from elsewhere may name one that is not."""
    try:
        return catalog.model(shape).layers if shape else None
    except UnknownName:
        return None


Key = tuple[str, str, str, tuple[int, int, int]]


def _key(deployment: Deployment) -> Key:
    p = deployment.parallelism
    return deployment.engine.name, deployment.model.shape, deployment.method, (p.tp, p.pp, p.dp)


@cache
def _measured() -> dict[Key, dict[tuple[str, str], list[float]]]:
    """Launches by deployment, then by device and placement, in this host's profiles; each study's first left out."""
    found: dict[Key, dict[tuple[str, str], list[float]]] = {}
    for info in list_profiles():
        try:
            records = Profile(info.folder).records()
        except QMeterError:
            continue
        began = [r.provenance.started_unix_s for r in records]
        first = records[began.index(min(began))].deployment_id if records else None
        for record in {r.deployment_id: r for r in records if "launch" in r.timings}.values():
            if record.deployment_id != first:
                d = record.cell["deployment"]
                degrees = tuple(int(d["parallelism"][axis]) for axis in ("tp", "pp", "dp"))
                key = (d["engine"]["name"], d["model"]["shape"], d["method"], (degrees[0], degrees[1], degrees[2]))
                where = device_of(record), str(d.get("placement", "alone"))
                found.setdefault(key, {}).setdefault(where, []).append(record.timings["launch"])
    return found
