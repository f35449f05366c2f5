"""The plan file: what traffic is promised what, what there is to serve it with, and what is to be least."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from qmeter.spec.study import NAME
from qmeter.spec.units import DurationS, parse_rate_hz
from qmeter.spec.workload import SLO, Frozen, Lengths, TraceLength

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _curve(value: Any, info: ValidationInfo) -> tuple[float, ...]:
    """A rate, or one a period, as rates. Units: 1/s."""
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError("the list is empty: give a rate such as '4/s', or one for each period")
    if info.mode == "json":
        return tuple(float(v) for v in items)
    rates = []
    for i, item in enumerate(items):
        try:
            rates.append(parse_rate_hz(item))
        except ValueError as error:
            raise ValueError(f"period {i}: {error}" if len(items) > 1 else str(error)) from None
    if max(rates) == 0:
        raise ValueError("the rate is 0 throughout: leave the class out")
    return tuple(rates)


Curve = Annotated[tuple[float, ...], BeforeValidator(_curve)]


class TraceSpec(Frozen):
    """Traffic of a class from a trace file: its rate in each period, its lengths, its burstiness.

    ``time_scale`` 2.0 plays it twice as fast (twice the rate); ``length`` cuts it.
    """

    path: str
    format: Literal["azure", "mooncake"]
    time_scale: float = Field(default=1.0, gt=0)
    offset: DurationS = 0.0
    length: Annotated[DurationS, Field(gt=0)] | None = None


class ClassSpec(Frozen):
    """One class of traffic and its promise.

    Attributes:
        rate: requests a second, or one rate for each period; or ``share`` of the plan's ``rate``; or a ``trace``.
        prompt_tokens, output_tokens: by a law of the study's kinds; with a trace: its own (``high`` cuts them).
        burstiness: 1 is Poisson, below 1 burstier; with a trace: as its gaps show, where not given.
        slo: limits on TTFT, TPOT, E2E that a share ``percentile`` of the class's requests meets in every period.
        quality: record's quality name → floor, compared with the confidence bound (a ceiling for ``ppl_ratio`` and
            the like, where lower is better).
    """

    name: str = Field(pattern=NAME)
    rate: Curve | None = None
    share: Share | None = None
    trace: TraceSpec | None = None
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    burstiness: float | None = Field(default=None, gt=0, le=10)
    slo: SLO
    quality: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ClassSpec:
        given = [n for n in ("rate", "share", "trace") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of rate, share or trace, found {' and '.join(given) or 'none'}")
        for name in ("prompt_tokens", "output_tokens"):
            law = getattr(self, name)
            if self.trace is None and (law is None or isinstance(law, TraceLength)):
                raise ValueError(f"{name} is missing: without a trace, give a law such as {{kind: fixed, tokens: 128}}")
        return self


class QualityFrom(Frozen):
    """Where the quality of methods is known from: another study's records, by method name, or numbers given here.

    ``given``: method → quality name → ``[low, value, high]``.
    """

    source: str | None = Field(default=None, alias="from")
    given: dict[str, dict[str, tuple[float, float, float]]] = Field(default_factory=dict)


class CarrySpec(Frozen):
    """Deployments that were never measured, by the physics form: the same methods on another device or degree."""

    device: str
    devices: int = Field(default=1, ge=1)


class FleetSpec(Frozen):
    """Deployments to choose from, and the device they run on.

    Attributes:
        source: profile's name, study's folder, or a file of ``qmeter calibrate-model``.
        device: only deployments on this device.
        models, methods, engines: only these; empty: all.
        knobs: variants beside the measured deployments: each a mapping of ``max_sequences`` and ``token_budget``.
        price_usd_h, power_limit_w: of one device. count: devices there are for this entry alone (``devices`` of the
            plan: for all entries together).
        quality: where the source has none.
        carry: move the deployments there by physics; they are marked extrapolated, and need ``extrapolate: true``.
    """

    source: str
    device: str | None = None
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    knobs: tuple[dict[str, int], ...] = ()
    price_usd_h: float | None = Field(default=None, ge=0)
    count: int | None = Field(default=None, ge=0)
    power_limit_w: Positive | None = None
    quality: QualityFrom | None = None
    carry: CarrySpec | None = None


class DeviceSpec(Frozen):
    """One kind of device: price an hour, number there are and power limit, for every fleet entry that runs on it."""

    price_usd_h: float | None = Field(default=None, ge=0)
    count: int | None = Field(default=None, ge=0)
    power_limit_w: Positive | None = None


class Electricity(Frozen):
    """``carbon_g_kwh``: one intensity, or one a period. ``pue``: facility's energy over the devices'."""

    price_usd_kwh: float = Field(default=0.0, ge=0)
    carbon_g_kwh: NotNegative | tuple[NotNegative, ...] = 0.0
    pue: float = Field(default=1.0, ge=1)


class PlanSpec(Frozen):
    """A plan file, as validated from YAML.

    Attributes:
        objective: what is to be least: ``cost`` (USD: devices and electricity), ``energy`` (J), ``carbon`` (g).
        devices: name → price, count and limit, shared by the fleet entries that run on it.
        rate: of all classes that have a ``share``. period: length of the curves' and traces' periods.
        power_budget_w: most that all devices may draw together.
        certainty: share of the calibration's draws in which every promise must hold; ``None``: at the fitted values.
        extrapolate: answer beyond what the calibrations cover too, marked.
        gap: the MILP's relative optimality gap.
    """

    qmeter: Literal[1]
    name: str = Field(pattern=NAME)
    objective: Literal["cost", "energy", "carbon"] = "cost"
    rate: Curve | None = None
    period: Annotated[DurationS, Field(gt=0)] = 3600.0
    classes: tuple[ClassSpec, ...] = Field(min_length=1)
    fleet: tuple[FleetSpec, ...] = Field(min_length=1)
    devices: dict[str, DeviceSpec] = Field(default_factory=dict)
    electricity: Electricity = Electricity()
    power_budget_w: Positive | None = None
    certainty: float | None = Field(default=None, ge=0.5, lt=1)
    extrapolate: bool = False
    gap: float = Field(default=0.01, ge=0, lt=1)
    seed: int = Field(default=1, ge=0)
