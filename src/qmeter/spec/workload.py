"""What load a cell is driven with: arrivals, lengths, prompts and phases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qmeter.spec.units import DurationS, RateHz


class Frozen(BaseModel):
    """Base of every spec type: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


PositiveRate = Annotated[RateHz, Field(gt=0)]
TokenCount = Annotated[int, Field(ge=1, le=10_000_000)]


class ConstantArrivals(Frozen):
    """Equal gaps of 1/rate."""

    kind: Literal["constant"] = "constant"
    rate: PositiveRate


class PoissonArrivals(Frozen):
    """Exponential gaps."""

    kind: Literal["poisson"] = "poisson"
    rate: PositiveRate


class GammaArrivals(Frozen):
    """Gamma gaps of shape ``burstiness`` (vLLM's sense: 1 is Poisson, below 1 burstier; CV = burstiness**-0.5)."""

    kind: Literal["gamma"] = "gamma"
    rate: PositiveRate
    burstiness: float = Field(gt=0)


class ClosedArrivals(Frozen):
    """Closed loop: ``concurrency`` requests always in flight, the next sent when one ends (after ``think``)."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(gt=0)
    think: DurationS = 0.0


class RampArrivals(Frozen):
    """Poisson with a rate that rises (or falls) linearly over warm-up and window."""

    kind: Literal["ramp"] = "ramp"
    start: PositiveRate
    end: PositiveRate


class TraceArrivals(Frozen):
    """Replay of a trace file: ``azure`` CSV (TIMESTAMP, ContextTokens, GeneratedTokens) or ``mooncake`` JSONL.

    ``time_scale`` 2.0 plays it twice as fast; ``offset`` skips the trace's first seconds. ``sha256`` of the file is
    filled in when the study is loaded, so that a trace changed since then is noticed.
    """

    kind: Literal["trace"] = "trace"
    path: str
    format: Literal["azure", "mooncake"]
    time_scale: float = Field(default=1.0, gt=0)
    offset: DurationS = 0.0
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


Arrivals = Annotated[
    ConstantArrivals | PoissonArrivals | GammaArrivals | ClosedArrivals | RampArrivals | TraceArrivals,
    Field(discriminator="kind"),
]


class FixedLength(Frozen):
    """Always ``tokens``."""

    kind: Literal["fixed"] = "fixed"
    tokens: TokenCount


class UniformLength(Frozen):
    """Uniform on ``low``..``high``, both included."""

    kind: Literal["uniform"] = "uniform"
    low: TokenCount
    high: TokenCount

    @model_validator(mode="after")
    def _ordered(self) -> UniformLength:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self


class LognormalLength(Frozen):
    """Log-normal with the given ``median`` and log-scale ``sigma``, clipped to ``low``..``high``."""

    kind: Literal["lognormal"] = "lognormal"
    median: float = Field(gt=0)
    sigma: float = Field(gt=0)
    low: TokenCount = 1
    high: TokenCount

    @model_validator(mode="after")
    def _ordered(self) -> LognormalLength:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self


class TraceLength(Frozen):
    """The length that the trace row carries (only with trace arrivals), cut at ``high`` where that is set."""

    kind: Literal["trace"] = "trace"
    high: TokenCount | None = None


Lengths = Annotated[FixedLength | UniformLength | LognormalLength | TraceLength, Field(discriminator="kind")]


class SyntheticPrompts(Frozen):
    """Prompts of exact token counts; a share ``shared_prefix`` of each is common to all (0: none)."""

    kind: Literal["synthetic"] = "synthetic"
    shared_prefix: float = Field(default=0.0, ge=0, lt=1)


class TaskPrompts(Frozen):
    """Prompts from the named quality tasks' items, in turn; graded after the load.

    ``alone`` items of each task are asked once more after the load, one by one: does batching change answers?
    """

    kind: Literal["tasks"] = "tasks"
    tasks: tuple[str, ...] = Field(min_length=1)
    alone: int = Field(default=0, ge=0)


Prompts = Annotated[SyntheticPrompts | TaskPrompts, Field(discriminator="kind")]


class SLO(Frozen):
    """The latency promise: limits on a request's TTFT and mean TPOT, met by a share ``percentile`` of requests."""

    ttft: DurationS | None = None
    tpot: DurationS | None = None
    e2e: DurationS | None = None
    percentile: float = Field(default=0.9, gt=0, le=1)

    @model_validator(mode="after")
    def _some(self) -> SLO:
        if self.ttft is None and self.tpot is None and self.e2e is None:
            raise ValueError("an SLO needs at least one of ttft, tpot, e2e")
        return self


class WorkloadSpec(Frozen):
    """One workload point.

    Phases on the cell's clock: ``warmup`` (load runs, nothing counts), ``window`` (counts), then ``drain`` at most
    (requests in flight end). ``ignore_eos`` makes output lengths exact; off for tasks.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._@/=+-]+$")
    arrivals: Arrivals
    prompt_tokens: Lengths = FixedLength(tokens=128)
    output_tokens: Lengths = FixedLength(tokens=64)
    prompts: Prompts = SyntheticPrompts()
    warmup: DurationS = 2.0
    window: Annotated[DurationS, Field(gt=0)] = 10.0
    drain: Annotated[DurationS, Field(gt=0)] = 60.0
    slo: SLO | None = None
    ignore_eos: bool = True
    temperature: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _lengths_match(self) -> WorkloadSpec:
        traced = [n for n in ("prompt_tokens", "output_tokens") if getattr(self, n).kind == "trace"]
        if traced and self.arrivals.kind != "trace":
            raise ValueError(f"{traced[0]}.kind 'trace' needs arrivals.kind 'trace', found {self.arrivals.kind!r}")
        return self
