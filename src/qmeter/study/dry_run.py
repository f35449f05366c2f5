"""What a study would do: commands, devices, expected memory and time of each deployment and cell. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from qmeter import catalog
from qmeter.catalog.memory import MemoryFit, memory_fit
from qmeter.engines.base import Artifact
from qmeter.engines.table import ENGINES
from qmeter.errors import QMeterError
from qmeter.spec.study import Cell, Deployment, Study, expand
from qmeter.spec.workload import WorkloadSpec

START_S = {"vllm": 90.0, "openvino": 6.0, "llamacpp": 5.0, "endpoint": 0.0, "simulated": 0.0}
"""Time from launch to ready, as seen so far (vLLM: 75 to 110 s on one H200). Units: s; for estimates alone."""
OTHER_START_S = 30.0
AFTER_S = 5.0
"""Warm-up, fidelity, draining and teardown of a cell. Units: s; for estimates alone."""


@dataclass(frozen=True)
class CellPlan:
    """One cell: its id, label and the shortest time it can take. Units: s."""

    cell_id: str
    label: str
    seconds: float


@dataclass(frozen=True)
class DeploymentPlan:
    """One deployment: how it would be started, on what, whether it should fit, and its cells.

    ``command`` is ``None`` where it cannot be made here; ``problem`` then says why.
    """

    deployment_id: str
    label: str
    command: tuple[str, ...] | None
    problem: str | None
    devices: tuple[int, ...]
    fit: MemoryFit | None
    start_s: float
    cells: tuple[CellPlan, ...]

    @property
    def seconds(self) -> float:
        """Start and cells together. Units: s."""
        return self.start_s + sum(c.seconds for c in self.cells)


def plan_study(study: Study) -> list[DeploymentPlan]:
    """Every deployment in the order it would run, with its cells."""
    groups = groupby(expand(study), key=lambda cell: cell.deployment.id)
    return [_plan(list(cells)) for _, cells in groups]


def _plan(cells: list[Cell]) -> DeploymentPlan:
    deployment = cells[0].deployment
    command, problem = _command(deployment)
    return DeploymentPlan(
        deployment_id=deployment.id,
        label=deployment.label,
        command=command,
        problem=problem,
        devices=tuple(range(deployment.parallelism.devices)),
        fit=_fit(deployment, [c.workload for c in cells]),
        start_s=START_S.get(deployment.engine.name, OTHER_START_S),
        cells=tuple(CellPlan(c.id, c.label, c.workload.warmup + c.workload.window + AFTER_S) for c in cells),
    )


def _command(deployment: Deployment) -> tuple[tuple[str, ...] | None, str | None]:
    """The command with a stand-in for the checkpoint, which is only made when the study runs."""
    checkpoint = deployment.model.checkpoints.get(deployment.method, deployment.model.source)
    artifact = Artifact(Path(f"<{checkpoint}>"), "planned", "", None)
    try:
        engine = ENGINES.create(deployment.engine.name)
        launch = engine.launch_command(deployment, artifact, 8000, Path("<study>"))
    except QMeterError as error:
        return None, f"{error.kind}: {error.message}"
    return launch.argv, None


def _fit(deployment: Deployment, workloads: list[WorkloadSpec]) -> MemoryFit | None:
    """Whether weights and the longest sequence fit the device, where the device is known."""
    try:
        device = catalog.device(_device_name(deployment))
        return memory_fit(
            catalog.model(deployment.model.shape),
            catalog.method(deployment.method),
            device,
            engine=deployment.engine.name,
            parallelism=deployment.parallelism,
            sequence_tokens=max(_longest(w) for w in workloads),
            memory_fraction=float(deployment.engine.options.get("gpu_memory_fraction", 0.92)),
        )
    except QMeterError:
        return None


def _device_name(deployment: Deployment) -> str:
    """The study's device; for ``auto`` the first GPU here, else the CPU."""
    if deployment.device != "auto":
        return deployment.device
    from qmeter.study.provenance import host

    gpus = host()["gpus"]
    found = catalog.device_from_nvml(gpus[0]["name"]) if gpus else None
    return found.name if found else "cpu"


def _longest(workload: WorkloadSpec) -> int:
    """Tokens of the longest sequence that the workload's length laws can ask for; a trace's is not looked up."""
    total = 0
    for law in (workload.prompt_tokens, workload.output_tokens):
        match law.kind:
            case "fixed":
                total += law.tokens
            case "trace":
                total += 4096
            case _:
                total += law.high
    return total
