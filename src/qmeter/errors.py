"""The errors qMeter raises: one tree, each with the cell, the stage and the next step.

QMeterError
├── SpecError              a study or option is wrong; nothing was started
├── UnknownName            a name is in no table (carries the nearest valid names)
├── MissingExtra           an optional dependency is not installed
├── SourceError            a model could not be fetched, read or converted
├── EngineError            the deployment
│   ├── EngineUnavailable    the engine's program or package is not on this host
│   ├── EngineNotReady       it did not become ready in time
│   ├── EngineCrashed        it ended while it was needed
│   ├── OutOfMemory          weights or KV cache do not fit the device
│   ├── MethodUnsupported    engine, device or shape refuses the method
│   └── MethodNotApplied     it runs, but not with the method asked for
├── LoadError              the load client
├── TelemetryError         a sampler broke (a missing counter is not an error: it is a gap with a reason)
├── QualityError           quality could not be measured
├── StoreError             a study folder cannot be read or written
│   └── IncompatibleRecords  records that must not be compared or mixed
├── AnalysisError          the records do not support the question asked
└── ReportError            the report could not be made
"""

from __future__ import annotations

from collections.abc import Sequence


class QMeterError(Exception):
    """Base of every error that qMeter raises on purpose.

    Args:
        message: what happened, in one sentence.
        hint: what to do next.
        cell: id of the cell it happened in, if any.
        stage: the stage it happened in (``launch``, ``verify``, ``load``, …), if any.
    """

    def __init__(self, message: str, *, hint: str | None = None, cell: str | None = None, stage: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.cell = cell
        self.stage = stage

    @property
    def kind(self) -> str:
        """The class name; what a failed record stores as its reason's kind."""
        return type(self).__name__

    def __str__(self) -> str:
        where = ", ".join(p for p in (self.cell and f"cell {self.cell}", self.stage and f"stage {self.stage}") if p)
        text = f"{self.message} ({where})" if where else self.message
        return f"{text}\n  next: {self.hint}" if self.hint else text


class SpecError(QMeterError):
    """A study is wrong: the YAML path, the value found and what would be valid. Exit code 2; nothing was started.

    Args:
        faults: one ``(path, message)`` for each fault found, paths as in ``workloads[0].arrivals.rate``.
    """

    def __init__(self, message: str, *, faults: Sequence[tuple[str, str]] = (), hint: str | None = None):
        super().__init__(message, hint=hint, stage="spec")
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  {path}: {message}" for path, message in self.faults)])


class UnknownName(QMeterError):
    """A name is in no table; ``nearest`` holds the closest valid names, ``known`` all of them."""

    def __init__(self, what: str, name: str, known: Sequence[str], nearest: Sequence[str] = ()):
        did = f"did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else None
        super().__init__(f"no {what} named {name!r}", hint=did or f"known: {', '.join(known)}")
        self.what, self.name, self.known, self.nearest = what, name, tuple(known), tuple(nearest)


class MissingExtra(QMeterError):
    """An optional dependency is not installed; the hint is the ``pip install`` line."""

    def __init__(self, extra: str, needed_for: str):
        super().__init__(f"{needed_for} needs the '{extra}' extra", hint=f"pip install 'qmeter[{extra}]'")
        self.extra = extra


class SourceError(QMeterError):
    """A model could not be fetched, verified, read or converted."""


class EngineError(QMeterError):
    """The deployment failed; subclasses say how."""


class EngineUnavailable(EngineError):
    """The engine's program or package is not on this host."""


class EngineNotReady(EngineError):
    """The engine did not become ready in time."""


class EngineCrashed(EngineError):
    """The engine ended while it was needed."""


class OutOfMemory(EngineError):
    """Weights or KV cache do not fit the device."""


class MethodUnsupported(EngineError):
    """The engine, the device or the model's shape refuses the method."""


class MethodNotApplied(EngineError):
    """The engine runs, but what it says it runs is not the method asked for."""


class LoadError(QMeterError):
    """The load client could not do its work."""


class TelemetryError(QMeterError):
    """A sampler broke. A counter that the host lacks is no error: it is a gap with a reason."""


class QualityError(QMeterError):
    """Quality could not be measured."""


class StoreError(QMeterError):
    """A study folder cannot be read or written."""


class IncompatibleRecords(StoreError):
    """Records that must not be mixed or compared (schema, protocol or study differ)."""


class AnalysisError(QMeterError):
    """The records do not support the question asked."""


class ReportError(QMeterError):
    """The report could not be made."""
