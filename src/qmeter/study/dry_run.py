"""What a study would do: commands, GPUs, expected memory and time of each deployment and cell. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qmeter import catalog
from qmeter.catalog import Device
from qmeter.catalog.memory import MemoryFit, memory_fit
from qmeter.engines.base import Artifact
from qmeter.engines.table import ENGINES, Gpus, availability, gpus_of, traits
from qmeter.errors import QMeterError
from qmeter.spec.study import Deployment, Study, expand
from qmeter.spec.workload import WorkloadSpec
from qmeter.study.expected_time import AROUND_S, QUALITY_S, cell_s, measured_s, start_s
from qmeter.study.findings import HostFacts
from qmeter.study.placement import Group, Member, plan_groups, visible_env


@dataclass(frozen=True)
class CellPlan:
    """One cell: its id, label and the shortest time it can take, and how much of that measures. Units: s."""

    cell_id: str
    label: str
    seconds: float
    measured_s: float


@dataclass(frozen=True)
class DeploymentPlan:
    """One deployment: how it would be started, on what, whether it should fit, and its cells.

    Attributes:
        command: ``None`` where it cannot be made here; ``problem`` then says why, or what this host lacks to run it.
        env: variables that the engine is given for its GPUs.
        devices: GPUs it takes, by index; their number is right where the host's GPUs are not known, too.
        waits: why this host cannot run it; ``None`` where it can.
        group: deployments of one number are up at the same time.
        start_s, start_from: launch to ready, and where the figure comes from.
    """

    deployment_id: str
    label: str
    command: tuple[str, ...] | None
    problem: str | None
    env: Mapping[str, str]
    devices: tuple[int, ...]
    fit: MemoryFit | None
    waits: str | None
    group: int
    start_s: float
    start_from: str
    around_s: float
    cells: tuple[CellPlan, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Start and cells together. Units: s."""
        return self.start_s + self.around_s + sum(c.seconds for c in self.cells)

    @property
    def measured_s(self) -> float:
        """The part that is inside windows and warm-up. Units: s."""
        return sum(c.measured_s for c in self.cells)


@dataclass(frozen=True)
class Totals:
    """A whole plan: what runs here, how long it takes, and how much of the lease measures.

    ``gpu_share``: of the GPU time of the whole host (idle GPUs count), ``None`` where its GPUs are not known.
    """

    deployments: int
    cells: int
    waiting: int
    seconds: float
    share: float
    gpu_share: float | None


def plan_study(study: Study, host: HostFacts | None = None) -> list[DeploymentPlan]:
    """Every deployment in the order it would run, with its cells; those of a group share its number."""
    host = host or HostFacts.of_this_host()
    plans: list[DeploymentPlan] = []
    for number, group in enumerate(plan_groups(expand(study), host.gpus)):
        first = all(p.waits for p in plans)
        plans += [_plan(study, group, member, number, host, first) for member in group.members]
    return plans


def totals(plans: list[DeploymentPlan], gpus: int | None) -> Totals:
    """The plan added up; a group takes as long as its longest member, and measures as long as that one."""
    groups: dict[int, list[DeploymentPlan]] = {}
    for plan in plans:
        if plan.waits is None:
            groups.setdefault(plan.group, []).append(plan)
    seconds = sum(max(p.seconds for p in members) for members in groups.values())
    measured = sum(max(p.measured_s for p in members) for members in groups.values())
    used = sum(p.measured_s * len(p.devices) for members in groups.values() for p in members)
    return Totals(
        deployments=sum(map(len, groups.values())),
        cells=sum(len(p.cells) for members in groups.values() for p in members),
        waiting=sum(len(p.cells) for p in plans if p.waits is not None),
        seconds=seconds,
        share=measured / seconds if seconds else 0.0,
        gpu_share=used / (gpus * seconds) if gpus and seconds else None,
    )


def _plan(study: Study, group: Group, member: Member, number: int, host: HostFacts, first: bool) -> DeploymentPlan:
    deployment = member.deployment
    devices = member.devices
    if devices is None:
        count = gpus_of(deployment.engine.name, deployment.parallelism.devices)
        devices = tuple(range(deployment.parallelism.devices if count is None else count))
    shown = visible_env(member.devices, host.gpus)
    command, env, problem = _command(deployment, shown)
    device = host.device_of(study)
    if device is None and traits(deployment.engine.name).gpus is Gpus.NONE:
        device = catalog.device("cpu")
    fit = _fit(deployment, [c.workload for c in member.cells], device)
    began_s, source = start_s(deployment, fit.weights_bytes if fit else None, first=first,
                              device=device.name if device else None)  # fmt: skip
    return DeploymentPlan(
        deployment_id=deployment.id,
        label=deployment.label,
        command=command,
        problem=problem,
        env=env,
        devices=devices,
        fit=fit,
        waits=group.waits,
        group=number,
        start_s=began_s,
        start_from=source,
        around_s=AROUND_S + (QUALITY_S if study.quality.fidelity else 0.0),
        cells=tuple(CellPlan(c.id, c.label, cell_s(c.workload), measured_s(c.workload)) for c in member.cells),
    )


def _command(
    deployment: Deployment, shown: Mapping[str, str]
) -> tuple[tuple[str, ...] | None, dict[str, str], str | None]:
    """The command and its GPU variables, with a stand-in for the checkpoint, which is made when the study runs."""
    checkpoint = deployment.model.checkpoints.get(deployment.method, deployment.model.source)
    scheme, _, where = checkpoint.partition(":")
    made_inside = scheme == "synth" and not where.endswith("@disk")
    artifact = Artifact(Path(f"<{checkpoint}>"), "synth" if made_inside else "planned", "", planned=True)
    here = availability(deployment.engine.name)
    lacking = None if here.available or deployment.engine.binary else f"{here.why}; {here.advice}"
    try:
        engine = ENGINES.create(deployment.engine.name)
        launch = engine.launch_command(deployment, artifact, 8000, Path("<study>"))
    except QMeterError as error:
        return None, dict(shown), f"{error.kind}: {error.message}"
    nccl = {name: value for name, value in launch.env.items() if name.startswith("NCCL_")}
    return launch.argv, {**nccl, **shown}, lacking


def _fit(deployment: Deployment, workloads: list[WorkloadSpec], device: Device | None) -> MemoryFit | None:
    """Whether weights and the longest sequence fit the device, where the device is known."""
    if device is None:
        return None
    try:
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
