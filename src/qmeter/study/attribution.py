"""Whose telemetry it is: a deployment's record holds the readings of the devices it ran on, and of no others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

import numpy as np

from qmeter.engines.base import Launch
from qmeter.engines.table import gpus_of
from qmeter.record import Quantity, Reason, SeriesInfo, Telemetry
from qmeter.spec.study import Deployment
from qmeter.telemetry.base import Sampler
from qmeter.telemetry.replay import REPLAY

ELSEWHERE = "the server runs on another machine: this host's counters are not its own"
_GPU = re.compile(r"^gpu(\d+)\.")
_HOST = ("host.", "cpu.")


def own_readings(
    deployment: Deployment,
    launch: Launch | None,
    telemetry: Telemetry,
    series: Sequence[SeriesInfo],
    devices: Sequence[int] | None = None,
) -> tuple[Telemetry, tuple[SeriesInfo, ...]]:
    """The readings of the devices that the deployment runs on.

    GPUs that it does not use are left out (their idle energy is not its own); of a server on another machine nothing
    of this host is kept, and each series has that as its gap. What a recording plays back stays as it is, but for the
    GPUs that qMeter gave to others.

    Args:
        devices: the GPUs that qMeter placed it on; ``None``: not placed, it takes the first ones.
    """
    elsewhere = launch is not None and launch.argv is None and not _is_here(launch.base_url)
    most = gpus_of(deployment.engine.name, deployment.parallelism.devices)
    mine = set(devices) if devices is not None else None if most is None else set(range(most))
    kept = []
    for info in series:
        found = _GPU.match(info.name)
        if info.source == REPLAY and devices is None:
            kept.append(info)
            continue
        if found is not None and mine is not None and int(found[1]) not in mine:
            continue
        foreign = elsewhere and (found is not None or info.name.startswith(_HOST))
        kept.append(info.model_copy(update={"gap": ELSEWHERE, "rate_hz": None}) if foreign else info)
    kept += _silent(devices or (), kept)
    names = {info.name for info in kept if info.gap != ELSEWHERE}
    own = np.array([name in names for name in telemetry.series], dtype=bool)
    return Telemetry(telemetry.series[own], telemetry.t_s[own], telemetry.value[own]), tuple(kept)


def _silent(devices: Sequence[int], kept: Sequence[SeriesInfo]) -> list[SeriesInfo]:
    """A gap for each GPU of the deployment whose energy no sampler offers where others' is: a sum would lack it."""
    powered = [info.name for info in kept if info.name.endswith((".energy_j", ".power_w"))]
    seen = {int(m[1]) for name in powered if (m := _GPU.match(name))}
    why = "no sampler gave a reading of this GPU"
    lacking = [d for d in devices if seen and d not in seen]
    return [SeriesInfo(name=f"gpu{d}.energy_j", unit="J", source="none", cumulative=True, gap=why) for d in lacking]


HELD = 0.5
"""Share of its even part of the weights that each GPU must be seen to hold (pipeline stages are uneven)."""


def misplaced(devices: Sequence[int] | None, weight_bytes: int | None, telemetry: Telemetry) -> Reason | None:
    """Why a deployment does not run on the GPUs it was given: one of them holds no share of its weights.

    Energy would then be an idle GPU's. ``None`` where it runs there, or nothing tells.
    """
    if not devices or not weight_bytes:
        return None
    least = HELD * weight_bytes / len(devices)
    used = {d: telemetry.of(f"gpu{d}.memory_used_bytes")[1] for d in devices}
    empty = [d for d, values in used.items() if len(values) and float(values.max()) < least]
    if not empty:
        return None
    seen = ", ".join(f"gpu{d} {float(used[d].max()) / 2**30:.1f} GiB" for d in empty)
    return Reason(
        kind="wrong_gpu",
        stage="load",
        message=f"a GPU that the deployment was given holds too little for its weights: {seen}, at least "
        f"{least / 2**30:.1f} GiB expected",
        hint="check what CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER say on this host: GPUs are counted as NVML does",
    )


def with_power(samplers: Sequence[Sampler]) -> list[Sampler]:
    """The samplers that tell power or energy."""
    return [s for s in samplers if any(i.unit in ("W", "J") and not i.gap for i in s.series())]


def mean_power(telemetry: Telemetry, series: Sequence[SeriesInfo]) -> Quantity:
    """Mean power over the telemetry: the GPUs together where there are any, else the CPU package. Units: W.

    The same scope as ``energy_j`` has, so that the one can be taken from the other.
    """
    means = [
        (float(np.mean(values)), len(values))
        for info in series
        if _GPU.match(info.name) and info.name.endswith(".power_w") and len(values := telemetry.of(info.name)[1])
    ]
    if means:
        return Quantity.of(sum(mean for mean, _ in means), "W", n=sum(n for _, n in means))
    t_s, energy_j = telemetry.of("cpu.energy_j")
    if len(t_s) > 1 and t_s[-1] > t_s[0]:
        return Quantity.of(float((energy_j[-1] - energy_j[0]) / (t_s[-1] - t_s[0])), "W", n=len(t_s))
    return Quantity.unknown("W", "this host has no power reading of the devices that the deployment uses")


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
