"""Whether a workload's requests can end at all before its drain does, by what reading the weights alone takes."""

from __future__ import annotations

import math

import numpy as np

from qmeter import catalog
from qmeter.analysis.latency import MEAN_CENSORED_SHARE
from qmeter.engines.table import traits
from qmeter.spec.study import Deployment, Study, expand
from qmeter.spec.workload import WorkloadSpec
from qmeter.study.findings import Findings, HostFacts, known
from qmeter.workload.lengths import draw_tokens, most_tokens

EVEN = ("closed", "poisson", "gamma", "constant")
"""Arrivals that are even over the window, so that the share of requests cut at its end follows from their length."""
DRAWN = 4000
EMBEDDING_BYTES = 2
"""Of one weight of an embedding that is not quantized, of which a step reads a few rows only."""


def check(study: Study, host: HostFacts, findings: Findings) -> None:
    """Warn of workloads that must lose the TPOT of more requests than a mean may lack, whatever the engine does.

    A request needs a step for each output token after its first, and a step at least the time in which its devices read
    the weights. Where that is longer than the drain, requests sent late in the window are cut. The true share is
    larger: a step does more than read weights.
    """
    steps: dict[str, tuple[float, Deployment]] = {}
    for cell in expand(study):
        step_s = least_step_s(cell.deployment, study, host)
        name = cell.workload.name
        if step_s is not None and (name not in steps or step_s > steps[name][0]):
            steps[name] = step_s, cell.deployment
    for workload in study.workloads:
        if workload.name not in steps:
            continue
        step_s, deployment = steps[workload.name]
        share = least_cut_share(workload, step_s)
        most = most_tokens(workload.output_tokens)
        if share is None or most is None or share <= MEAN_CENSORED_SHARE:
            continue
        findings.warn(
            "short_drain",
            f"workload {workload.name}: {share:.0%} of its requests or more cannot end within the drain of "
            f"{workload.drain:g} s ({deployment.label} takes {step_s * 1e3:.1f} ms a token to read its weights, and "
            "more under load): mean TPOT and E2E of the cell stay unknown, beyond 10% their p90 too",
            f"lengthen the drain ({math.ceil(most * step_s)} s at the very least, several times that under load), or "
            "shorten output_tokens",
        )


def least_step_s(deployment: Deployment, study: Study, host: HostFacts) -> float | None:
    """The least time of a decode step: weights over the memory bandwidth of the devices that read at once. Units: s.

    ``None`` where it is not known: the device is not in the catalog, the engine runs elsewhere, or it speculates
    (several tokens a step).
    """
    device = host.device_of(study)
    shape, method = known(catalog.model, deployment.model.shape), known(catalog.method, deployment.method)
    if device is None or not device.bandwidth_bytes_s or shape is None or method is None:
        return None
    if deployment.engine.name not in method.engines or traits(deployment.engine.name).attached:
        return None
    if any("speculative" in arg for arg in deployment.engine.args):
        return None
    stored = method.expected_weight_bytes(shape, deployment.engine.name)
    read = max(0.0, stored - EMBEDDING_BYTES * shape.embedding_params)
    return read / (deployment.parallelism.tp * device.bandwidth_bytes_s)


def least_cut_share(workload: WorkloadSpec, step_s: float) -> float | None:
    """The least share of the window's requests that the end of the drain cuts, if a step takes ``step_s``.

    A request due at u of a window W is cut if u + (tokens - 1) · step > W + drain. ``u`` is even over the window but
    for a closed loop whose requests are all alike, which may run in step: there only requests that cannot end at all
    count.
    ``None`` where lengths or arrivals are not known beforehand.
    """
    law = workload.output_tokens
    if workload.arrivals.kind not in EVEN or law.kind == "trace" or not workload.ignore_eos:
        return None
    tokens = draw_tokens(law, DRAWN, np.random.default_rng(0))
    late_s = (tokens - 1) * step_s - workload.drain
    if workload.arrivals.kind == "closed" and law.kind == "fixed":
        return float(np.mean(late_s > workload.window))
    return float(np.clip(late_s / workload.window, 0.0, 1.0).mean())
