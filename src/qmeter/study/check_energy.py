"""Whether a study's windows are long enough for what its GPU energy is to show, before a lease is spent on them."""

from __future__ import annotations

import math

from qmeter.analysis.energy import CROSS_CHECK
from qmeter.analysis.window_length import (
    PARTIAL_FROM,
    PARTIAL_TO,
    REPEAT_TOLERANCE,
    cross_check_window_s,
    repeat_spread,
    repeat_window_s,
)
from qmeter.engines.table import Gpus, traits
from qmeter.spec.study import Study
from qmeter.spec.workload import ClosedArrivals, GammaArrivals, PoissonArrivals, WorkloadSpec
from qmeter.study.findings import Findings, HostFacts


def check(study: Study, host: HostFacts, findings: Findings) -> None:
    """Warn, once a kind, of the points whose windows are too short: the 2% cross-check, 3% in J/token of repeats."""
    if _on_gpus(study, host):
        _cross_check(study, findings)
        _repeats(study, findings)


def _on_gpus(study: Study, host: HostFacts) -> bool:
    """Whether energy will come from GPU counters."""
    device = host.device_of(study)
    gpu = device.kind == "gpu" if device else bool(host.gpus)
    return gpu and all(traits(e.name).gpus is not Gpus.NONE and not traits(e.name).attached for e in study.engines)


def _cross_check(study: Study, findings: Findings) -> None:
    needed = {w.name: cross_check_window_s(_loop(w, study)) for w in study.workloads}
    short = [w for w in study.workloads if w.window < needed[w.name]]
    if short:
        findings.warn(
            "short_energy_window",
            f"{_named(short)}: integrated power and the energy counter may differ by more than {CROSS_CHECK:.0%} by "
            f"chance in so short a window ({min(w.window for w in short):g} s; power is refreshed at 10 Hz)",
            f"window: {math.ceil(max(needed[w.name] for w in short))}s",
        )


def _repeats(study: Study, findings: Findings) -> None:
    if study.repeats == 1 or study.same_requests:
        return
    wide: list[tuple[WorkloadSpec, float, float]] = []
    for workload in study.workloads:
        law = workload.arrivals
        if not isinstance(law, PoissonArrivals | GammaArrivals) or _times(study, workload) < 2:
            continue
        cv = 1.0 if isinstance(law, PoissonArrivals) else law.burstiness**-0.5
        spread = repeat_spread(law.rate, workload.window, cv)
        if spread > REPEAT_TOLERANCE:
            wide.append((workload, spread, repeat_window_s(law.rate, cv)))
    if wide:
        findings.warn(
            "repeats_differ",
            f"{_named([w for w, _, _ in wide])}: J/token of two repeats may differ by "
            f"{max(spread for _, spread, _ in wide):.0%} by their arrivals alone; {REPEAT_TOLERANCE:.0%} takes a "
            f"window of {math.ceil(max(needed for _, _, needed in wide))} s",
            "same_requests: true sends the same requests in each repeat",
        )


def _times(study: Study, workload: WorkloadSpec) -> int:
    """How often the point is measured: repeats less those that a rule takes from it."""
    taken = {rule["repeat"] for rule in study.exclude if rule.keys() == {"workload", "repeat"}
             and rule["workload"] == workload.name}  # fmt: skip
    return study.repeats - len(taken)


def _loop(workload: WorkloadSpec, study: Study) -> str:
    """How the load scatters; a closed loop counts as filling the batch where no engine is told its most sequences."""
    if not isinstance(workload.arrivals, ClosedArrivals):
        return "open"
    given = [e.options.get("max_sequences") for e in study.engines]
    most = max((n for n in given if isinstance(n, int)), default=0)
    return "partial" if PARTIAL_FROM < workload.arrivals.concurrency < PARTIAL_TO * most else "closed"


def _named(workloads: list[WorkloadSpec]) -> str:
    names = [w.name for w in workloads]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"workload {shown}" if len(names) == 1 else f"workloads {shown}"
