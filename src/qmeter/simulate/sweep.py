"""Sweeps: many predictions at once, in this process, over its cores or over a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qmeter.errors import AnalysisError
from qmeter.record import Quantity, Reason
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.predict import DRAWS, predict
from qmeter.simulate.spread import SPREADS, Spread
from qmeter.spec.workload import WorkloadSpec


@dataclass(frozen=True)
class Question:
    """A workload on a calibrated deployment, as :func:`qmeter.simulate.predict.predict` takes it."""

    calibration: Calibration
    workload: WorkloadSpec
    seed: int = 1
    draws: int = DRAWS
    allow_extrapolation: bool = False


@dataclass(frozen=True)
class Answer:
    """A prediction without its run: metrics and energy with intervals, notes, and the run's warnings."""

    calibration: Calibration
    workload: WorkloadSpec
    metrics: Mapping[str, Quantity]
    energy: Mapping[str, Quantity]
    notes: tuple[str, ...]
    warnings: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A question that lies outside what its calibration supports: why, and what to do."""

    calibration: Calibration
    workload: WorkloadSpec
    message: str
    hint: str | None = None


def answer(question: Question) -> Answer:
    """Predict one.

    Raises:
        AnalysisError: the question lies outside what its calibration supports.
    """
    q = question
    found = predict(q.calibration, q.workload, seed=q.seed, draws=q.draws, allow_extrapolation=q.allow_extrapolation)
    return Answer(q.calibration, q.workload, found.metrics, found.energy, found.notes, found.warnings)


def _answered(question: Question) -> Answer | Refusal:
    try:
        return answer(question)
    except AnalysisError as error:
        return Refusal(question.calibration, question.workload, error.message, error.hint)


def sweep(
    questions: Sequence[Question],
    spread: str | Spread = "cores",
    *,
    on_answer: Callable[[int, int], None] | None = None,
) -> list[Answer | Refusal]:
    """Answers in the questions' order; the same wherever they are computed, since each has its own seed.

    A question outside what its calibration supports is a :class:`Refusal` in its place: it costs no other its answer.

    Args:
        spread: a name of :data:`qmeter.simulate.spread.SPREADS`, or a way of one's own.
        on_answer: called with (done, all) after each.

    Raises:
        UnknownName: no such way to spread.
        MissingExtra: ray is not installed.
    """
    way = SPREADS.create(spread) if isinstance(spread, str) else spread
    found = []
    for one in way.map(_answered, questions):
        found.append(one)
        if on_answer:
            on_answer(len(found), len(questions))
    return found
