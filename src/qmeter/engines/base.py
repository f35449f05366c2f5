"""The engine seam: three methods. How to start it, what it really runs, where its metrics are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment


@dataclass(frozen=True)
class Artifact:
    """A model on disk, in the form one method on one engine needs.

    Attributes:
        path: file (GGUF) or folder (safetensors).
        format: "gguf", "safetensors", "remote" (endpoint: nothing on disk).
        sha256: content hash of what is loaded ("" for remote).
        weight_bytes: bytes of weight tensors in the file, ``None`` if unknown.
        notes: what a reader must know ("the reference was itself quantized once (Q4_1)").
        tokenizer: tokenizer folder or file where it is not inside ``path``.
        planned: it stands for one that is only made when the study runs: a dry run asks what the command would be, also
            where the engine is not installed.
    """

    path: Path
    format: str
    sha256: str
    weight_bytes: int | None = None
    notes: tuple[str, ...] = ()
    tokenizer: Path | None = None
    planned: bool = False


@dataclass(frozen=True)
class Launch:
    """How to start (or attach to) one server.

    Attributes:
        argv: the command, or ``None`` to attach to ``base_url``.
        base_url: ``http://127.0.0.1:<port>``, without a trailing slash or ``/v1``.
        served_model: the name requests must carry.
        env: variables to set besides the parent's.
        headers: HTTP headers for every request (an API key lives only here: never logged or recorded).
        log_path: where stdout and stderr of the process go.
        standby: a program that can be started ahead and become this launch (:mod:`qmeter.engines.standby`).
    """

    argv: tuple[str, ...] | None
    base_url: str
    served_model: str
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    standby: tuple[str, ...] | None = None


class Over(StrEnum):
    """How a metric's label sets (data-parallel ranks, say) become one value: counts add up, shares do not."""

    SUM = "sum"
    MEAN = "mean"


@dataclass(frozen=True)
class MetricSource:
    """One canonical series from the engine's Prometheus page: ``metric``, combined ``over`` its labels, × ``scale``.

    ``cumulative`` for counters. Absent from the page: the series gets a gap with the reason.
    """

    series: str
    metric: str
    unit: str
    scale: float = 1.0
    cumulative: bool = False
    over: Over = Over.SUM


@dataclass(frozen=True)
class MetricsMap:
    """Where the engine's live state is: path of the Prometheus page, canonical series, and the iteration log.

    Canonical series: ``engine.running``, ``engine.waiting``, ``engine.batched_tokens``, ``engine.kv_use`` (0..1),
    ``engine.preemptions``, ``engine.prefix_hits``, ``engine.prefix_queries``, ``engine.prompt_tokens``,
    ``engine.generated_tokens`` (the last five cumulative).
    ``steps`` reads the iteration log: given (launch, origin_monotonic_s) it returns a ``record.Steps`` table.
    """

    path: str | None
    sources: tuple[MetricSource, ...]
    steps: Callable[[Launch, float], object] | None = None
    gap: str | None = None
    """Why there are no engine metrics at all, where ``path`` is None."""


class Engine(Protocol):
    """An adapter to one serving engine. New engine: one file with these three methods and one row in the table."""

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """The command that serves ``artifact`` with the deployment's method and knobs on loopback ``port``.

        Raises:
            EngineUnavailable: the program or package is missing.
            MethodUnsupported: the engine has no way to run the method.
        """
        ...

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """What the running engine says it runs; ``None`` while it is not ready yet (called again until it is).

        Raises:
            OutOfMemory, MethodUnsupported, EngineCrashed: where the log or the server says so.
        """
        ...

    def metrics_map(self) -> MetricsMap:
        """Where the engine's live counters are."""
        ...
