"""GIVEN a day told with an error, WHEN the rolling schedule looks, THEN it goes by what it saw, and by that alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made import install, kind, spec_of

from qmeter.capacity import Precision
from qmeter.schedule.day import Day, make_day
from qmeter.schedule.kinds import Choice, choose
from qmeter.schedule.milp import Problem, optimise
from qmeter.schedule.rolling import backtest, nowcast, rolling
from qmeter.schedule.spec import ScheduleSpec

pytestmark = pytest.mark.timeout(900)


def choice_of() -> Choice:
    return Choice(
        (
            kind("bf16", (5.0,), (80, 230, 270, 300), quality={"score": 0.70}),
            kind("awq-w4a16", (9.0,), (80, 180, 215, 240), quality={"score": 0.68}),
        ),
        {"h200": 40.0},
        (),
        4096,
    )


def made(**changes: Any) -> tuple[ScheduleSpec, Day]:
    spec = spec_of(**changes)
    return spec, make_day(spec, 3)


def test_a_level_that_was_told_wrongly_is_seen_through() -> None:
    """The forecast is 30% too high all day, its slope is right: the estimate is off by the arrivals' own noise."""
    spec, day = made()
    told, looks = day.mean_hz * 1.3, day.fine_hz.shape[1] // spec.slots
    guesses = np.array([nowcast(spec, day, told, t, j, 0.0)[0] for t in range(1, 23) for j in range(looks)])
    true = day.fine_hz[0, looks : 23 * looks]
    assert np.abs(np.median(guesses / true) - 1) < 0.03 and np.std(np.log(guesses / true)) < 0.08
    assert nowcast(spec, day, told, 0, 0, 0.0)[0] == told[0, 0], "before anything was seen there is the forecast alone"


def test_it_knows_nothing_that_is_still_to_come() -> None:
    spec, day = made()
    later = day.fine_hz.copy()
    later[:, 12 * 5 + 3 :] *= 7
    same = replace(day, fine_hz=later)
    assert nowcast(spec, same, day.mean_hz, 5, 3, 60.0) == nowcast(spec, day, day.mean_hz, 5, 3, 60.0)


def test_its_error_is_measured_and_far_below_the_forecasts() -> None:
    spec, day = made(forecast={"error": 0.3, "persistence": 0.95})
    known = backtest(spec, choice_of(), day, 1)
    assert 0.02 < known.error[0] < 0.12 and known.ahead_s == 50.0
    worse = backtest(spec.model_copy(update={"forecast": spec.forecast.model_copy(update={"persistence": 0.0})}),
                     choice_of(), day, 1)  # fmt: skip
    assert worse.error[0] > known.error[0], "a forecast of untrustworthy slope makes the estimate worse"


def test_counts_follow_the_load_and_the_floor_holds_in_the_end() -> None:
    spec, day = made(forecast={"error": 0.15})
    choice = choice_of()
    course = rolling(spec, choice, day, 1, make_day(spec, 1003))
    capacity = np.array([k.capacity_hz[0] for k in choice.kinds])
    looks = np.arange(day.fine_hz.shape[1]) * 300.0 + 150.0
    row = np.searchsorted(course.at_s, looks, side="right") - 1
    work = course.shares[row, 0] * day.fine_hz.T / capacity
    over = (work > course.n[row] * 1.0 + 1e-9).any(axis=1)
    assert over.mean() < 0.05 and (np.diff(course.at_s) > 0).all()
    quality = (course.shares[row, 0] * day.fine_hz.T * [0.70, 0.68]).sum() / day.fine_hz.sum()
    assert quality >= 0.685 - 2e-4
    assert quality < 0.692, "no finer than promised, as far as whole replicas allow"


def test_classes_that_draw_differently_are_kept_apart() -> None:
    """GIVEN a class that hardly draws WHEN two replicas are needed THEN each class has its own: power is concave."""
    spec = spec_of()
    heavy = spec.classes[0].model_copy(update={"quality": {}})
    spec = spec.model_copy(update={"classes": (heavy, heavy.model_copy(update={"name": "light"}))})
    kinds = tuple(replace(kind(name, (6.0, 6.0), (80, 230, 270, 300)), draw=(1.4, 0.2)) for name in ("bf16", "fp8"))
    mean = np.array([[5.0], [5.0]])
    solution = optimise(Problem(spec, kinds, {"h200": 40.0}, mean, mean), gap=1e-6)
    assert solution.n[0].tolist() == [1, 1] and set(np.round(solution.shares[0, 0], 2)) == {0.0, 1.0}
    work = np.array([1.4, 0.2]) @ solution.shares[0] * 5 / 6
    watts = kinds[0].watts(work)
    assert solution.energy_j / 3600 == pytest.approx(watts.sum() + 6 * 40.0, rel=1e-4)
    assert watts.max() > 300 and work.max() > 1, "the last band goes on"


def test_the_draw_of_a_class_is_its_own_power(monkeypatch: Any) -> None:
    """Long prompts with short answers fill a replica's latency before its batch: less power at equal utilisation."""
    install(monkeypatch)
    spec = spec_of()
    code = spec.classes[0].model_copy(update={
        "name": "code", "prompt_tokens": spec.classes[0].output_tokens, "quality": {},
        "slo": spec.classes[0].slo.model_copy(update={"ttft": 4.0}),
    })  # fmt: skip
    spec = spec.model_copy(update={"classes": (*spec.classes, code)})
    choice = choose(spec, precision=Precision(requests=1500, tolerance=0.03))
    for k in choice.kinds:
        assert len(k.draw) == 2 and all(0.02 < d < 3 for d in k.draw) and k.top >= 1
        shares = np.array([c.rate for c in spec.classes])
        at_mix = float(shares @ k.work) / float((shares / np.array(k.capacity_hz)).sum())
        assert at_mix == pytest.approx(1.0, abs=0.35), "together they draw what the mix draws"
