"""Whether this host's load client can hold what a study asks for, by the limits that ``qmeter calibrate`` measured."""

from __future__ import annotations

from qmeter import catalog
from qmeter.errors import QMeterError
from qmeter.load import Limits, load_limits, warn_if_beyond
from qmeter.spec.study import Study, expand
from qmeter.spec.workload import FixedLength, SyntheticPrompts, WorkloadSpec
from qmeter.study.findings import Findings
from qmeter.study.simulated import is_predicted
from qmeter.workload import Vocabulary, build


def check(study: Study, findings: Findings, limits: Limits | None = None) -> None:
    """Warn of every workload point beyond the client's limits; nothing where they were never measured here."""
    limits = limits or load_limits()
    if limits is None:
        return
    vocabulary = Vocabulary.of(catalog.model(study.models[0].shape))
    seen = set()
    for cell in expand(study):
        if cell.workload.name in seen or is_predicted(cell):
            continue
        seen.add(cell.workload.name)
        try:
            schedule = build(_without_prompts(cell.workload), cell.seed, vocabulary)
        except QMeterError:
            continue  # what cannot be built is a fault of its own
        if (reason := warn_if_beyond(schedule, study.client.processes, limits)) is not None:
            findings.warn(reason.kind, f"workload {cell.workload.name}: {reason.message}", reason.hint)


def _without_prompts(workload: WorkloadSpec) -> WorkloadSpec:
    """The same arrivals and output lengths, prompts of one token: their text is no load to the client."""
    return workload.model_copy(update={"prompts": SyntheticPrompts(), "prompt_tokens": FixedLength(tokens=1)})
