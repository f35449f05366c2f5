"""How long a study should take, from the starts that were measured, and how much of that it measures."""

from __future__ import annotations

from functools import cache
from statistics import median

from qmeter.engines.table import Gpus, traits
from qmeter.errors import QMeterError
from qmeter.spec.study import Deployment
from qmeter.spec.workload import WorkloadSpec
from qmeter.store import list_profiles
from qmeter.store.profile import Profile

AROUND_S = 6.0
"""Idle baseline, warm-up requests and teardown of a deployment, as seen in ``h200-8b-grid``. Units: s."""
QUALITY_S = 15.0
"""Fidelity, where it is scored. Units: s; an estimate."""
TAIL_S = {"open": 2.0, "closed": 10.0}
"""From the window's end until the last request is done and the record written, as seen there. Units: s."""
SEVERAL_GPUS_S, GIB_S = 15.0, 0.5
"""More for a start on several GPUs, and for each GiB of weights a GPU: estimates, not measured. Units: s."""


def cell_s(workload: WorkloadSpec) -> float:
    """Warm-up, window and what follows until the next cell can begin. Units: s."""
    closed = workload.arrivals.kind == "closed"
    return workload.warmup + workload.window + min(workload.drain, TAIL_S["closed" if closed else "open"])


def measured_s(workload: WorkloadSpec) -> float:
    """The part of it that measures: warm-up and window. Units: s."""
    return workload.warmup + workload.window


def start_s(deployment: Deployment, weights_bytes: float | None, *, first: bool) -> tuple[float, str]:
    """Launch to ready, and where the figure comes from. Units: s.

    Args:
        weights_bytes: on each GPU, where the shape is known.
        first: whether it is the first start of a lease (nothing is compiled, nothing cached).
    """
    row = traits(deployment.engine.name)
    found = _measured().get(_key(deployment))
    if found is not None:
        longest = max(found, row.cold_start_s) if first else found
        return longest, "first start of a lease" if longest > found else "measured in a profile"
    base = row.cold_start_s if first else row.start_s
    if row.gpus is not Gpus.AS_MANY_AS_ASKED:
        return base, "estimate"
    several = SEVERAL_GPUS_S if deployment.parallelism.devices > 1 else 0.0
    return base + several + GIB_S * (weights_bytes or 0.0) / 2**30, "estimate"


Key = tuple[str, str, str, tuple[int, int, int]]


def _key(deployment: Deployment) -> Key:
    p = deployment.parallelism
    return deployment.engine.name, deployment.model.shape, deployment.method, (p.tp, p.pp, p.dp)


@cache
def _measured() -> dict[Key, float]:
    """Median launch by deployment over the profiles of this host, each study's first start left out."""
    found: dict[Key, list[float]] = {}
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
                found.setdefault(key, []).append(record.timings["launch"])
    return {key: median(times) for key, times in found.items()}
