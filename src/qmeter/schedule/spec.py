"""The scheduling spec: a day of traffic, a fleet, where the records are, and what was promised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qmeter.spec.document import Fault
from qmeter.spec.read import beside, read_file
from qmeter.spec.study import NAME
from qmeter.spec.units import DurationS
from qmeter.spec.workload import SLO, FixedLength, Frozen, Lengths, PositiveRate

Name = Annotated[str, Field(pattern=NAME)]
DAY_S = 86_400.0
HOURS = 24

DIURNAL = (0.55, 0.45, 0.40, 0.37, 0.37, 0.42, 0.55, 0.78, 1.10, 1.38, 1.52, 1.55,
           1.50, 1.55, 1.62, 1.60, 1.50, 1.35, 1.20, 1.10, 1.02, 0.92, 0.80, 0.66)  # fmt: skip
"""The default day: load at each full hour over the day's mean, linear between. An office day: peak / trough 4.4, peak /
mean 1.6. An assumption for the reader to replace, not a measurement."""


class Source(Frozen):
    """Records that the offers come from; ``power_cap``: watts a GPU that all of them were measured under."""

    source: str
    power_cap: float | None = Field(default=None, gt=0)


class DeviceFleet(Frozen):
    """Devices of one type.

    Attributes:
        count: there are that many.
        off_power: watts of one with nothing loaded; ``None``: what the records measured before each launch.
        load_time, load_power: of a start (watts a device); ``None``: the records' launch time, and idle power.
    """

    count: int = Field(ge=1, le=4096)
    off_power: float | None = Field(default=None, ge=0)
    load_time: DurationS | None = None
    load_power: float | None = Field(default=None, ge=0)


class TrafficClass(Frozen):
    """One class of requests over the day.

    Attributes:
        rate: mean over the day. shape: load at each full hour, in any unit (scaled to the mean rate).
        trace: Azure CSV or Mooncake JSONL that gives lengths and the texture of arrivals; else Poisson arrivals with
            ``prompt_tokens`` and ``output_tokens``.
        slo: promise to a share ``slo.percentile`` of requests.
        quality: metric → floor on its mean over the class's requests (a ceiling where lower is better).
    """

    name: Name
    rate: PositiveRate
    shape: tuple[Annotated[float, Field(ge=0)], ...] = DIURNAL
    trace: str | None = None
    format: Literal["azure", "mooncake"] = "azure"
    prompt_tokens: Lengths = FixedLength(tokens=512)
    output_tokens: Lengths = FixedLength(tokens=128)
    slo: SLO
    quality: dict[str, float] = Field(default_factory=dict)


class GivenQuality(Frozen):
    """A method's quality as given in the spec; floors are compared with the interval's worse end."""

    value: float
    low: float | None = None
    high: float | None = None


class QualitySources(Frozen):
    """Where quality is known from, besides the records themselves.

    Attributes:
        methods: method → metric → number with interval.
        records: another study whose records hold it (quality depends on model and method, not on the device).
    """

    methods: dict[str, dict[str, GivenQuality]] = Field(default_factory=dict)
    records: str | None = None


class Forecast(Frozen):
    """What the scheduler knows of the load to come.

    Attributes:
        error: standard deviation of the forecast's relative error (log scale), the same at every lead time.
        persistence: correlation of the errors of neighbouring slots in one forecast.
        margin: standard deviations of the error that the plan written beforehand keeps capacity above the forecast.
        look_margin: the same for the rolling schedule, of the error that its estimates of the next minutes have: it
            sees the load, and its own error is measured on a day before.
        horizon: how far ahead it plans; ``None``: to the end of the day.
    """

    error: float = Field(default=0.1, ge=0, le=2)
    persistence: float = Field(default=0.8, ge=0, lt=1)
    margin: float = Field(default=0.5, ge=0, le=5)
    look_margin: float = Field(default=1.5, ge=0, le=5)
    horizon: DurationS | None = None


class Reactive(Frozen):
    """The autoscaler to compare with: replicas = load / (capacity × target), as a horizontal pod autoscaler does.

    Attributes:
        interval: between its looks at the load of the interval before.
        target: share of a replica's capacity that it aims at.
        cool_down: how long the load must be lower before it scales down.
    """

    interval: DurationS = 60.0
    target: float = Field(default=0.8, gt=0, le=1)
    cool_down: DurationS = 300.0


class ScheduleSpec(Frozen):
    """A scheduling question.

    Attributes:
        records: a profile, study folder or calibration file, or several with the power cap each was measured under.
        model, engine, methods: only these of the records' deployments; empty: all.
        slot: length of a time slot, a whole number of them a day. headroom: share of a replica's capacity that is
            planned to be used at the highest five minutes of a slot.
        switch_energy: joules of a start besides those of loading (wear, or a penalty against restlessness).
        days: simulated days, each drawn anew; two or more give intervals.
        extrapolate: answer beyond what the calibrations cover too, marked.
    """

    qmeter_scheduling: Literal[1]
    name: Name
    description: str = ""
    records: str | tuple[Source, ...]
    model: str | None = None
    engine: str | None = None
    methods: tuple[str, ...] = ()
    classes: tuple[TrafficClass, ...] = Field(min_length=1, max_length=16)
    fleet: dict[str, DeviceFleet] = Field(min_length=1)
    quality: QualitySources = QualitySources()
    forecast: Forecast = Forecast()
    reactive: Reactive = Reactive()
    slot: DurationS = 1800.0
    headroom: float = Field(default=0.95, gt=0, le=1)
    switch_energy: float = Field(default=0.0, ge=0)
    days: int = Field(default=1, ge=1, le=100)
    extrapolate: bool = False
    seed: int = Field(default=1, ge=0)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The records as a list."""
        return (Source(source=self.records),) if isinstance(self.records, str) else self.records

    @property
    def slots(self) -> int:
        """Slots a day."""
        return round(DAY_S / self.slot)


def load_spec(path: Path) -> ScheduleSpec:
    """Read and validate a scheduling spec; paths of traces and records count from its folder, or the working one.

    Raises:
        SpecError: with every fault: its path, the value found, what is valid, the line.
    """
    spec = read_file(path, ScheduleSpec, _broken_rules)
    folder = path.parent
    classes = tuple(c.model_copy(update={"trace": _found(c.trace, folder)}) for c in spec.classes)
    sources = tuple(s.model_copy(update={"source": _found(s.source, folder)}) for s in spec.sources)
    quality = spec.quality.model_copy(update={"records": _found(spec.quality.records, folder)})
    return spec.model_copy(update={"classes": classes, "records": sources, "quality": quality})


def _found(text: str | None, folder: Path) -> str | None:
    return None if text is None else beside(text, folder)


def _broken_rules(spec: ScheduleSpec) -> Iterator[Fault]:
    names = [c.name for c in spec.classes]
    for i, c in enumerate(spec.classes):
        if c.name in names[:i]:
            yield Fault(("classes", i, "name"), f"{c.name!r} stands twice")
        if len(c.shape) != HOURS:
            yield Fault(("classes", i, "shape"), f"needs {HOURS} numbers, one a full hour, found {len(c.shape)}")
        elif sum(c.shape) <= 0:
            yield Fault(("classes", i, "shape"), "is zero all day: some hour must have load")
        if any(kind.kind == "trace" for kind in (c.prompt_tokens, c.output_tokens)):
            yield Fault(("classes", i, "prompt_tokens"), "lengths of a trace come with 'trace: FILE' alone")
    if spec.slot < 60 or abs(DAY_S / spec.slot - spec.slots) > 1e-9:
        yield Fault(("slot",), "a day must be a whole number of slots of at least 1min, as in '30min'")
    for method, metrics in spec.quality.methods.items():
        for name, q in metrics.items():
            if not (q.low is None or q.low <= q.value) or not (q.high is None or q.value <= q.high):
                yield Fault(("quality", "methods", method, name), "low ≤ value ≤ high must hold")
