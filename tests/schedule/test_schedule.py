"""GIVEN a fleet whose truth is known, WHEN a day is scheduled, THEN the saving is real, the promises hold, and what is
written runs; and a spec that cannot be kept is refused by its field, with the way out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from made import TEXT, install, spec_of

from qmeter.capacity import ClassLoad, Mix, Pool, Precision, offer_of
from qmeter.capacity.traffic import Sample
from qmeter.cli import main as cli
from qmeter.errors import SpecError
from qmeter.router.file import load_schedule
from qmeter.schedule import solve as solve_module
from qmeter.schedule.day import forecast, lengths_of, make_day, rate_at
from qmeter.schedule.evaluate import evaluate, routed
from qmeter.schedule.kinds import Choice, Kind, beaten_by
from qmeter.schedule.policies import Course
from qmeter.schedule.solve import Answer, solve
from qmeter.schedule.write import answer_data, write_schedule
from qmeter.testing.deployments import made_calibration

pytestmark = pytest.mark.timeout(900)  # the first use of the simulator compiles it
QUICK = Precision(requests=1500, tolerance=0.03)
TRACES = Path(__file__).parents[3] / "shared" / "traces"


@pytest.fixture(scope="module")
def answer() -> Any:
    patch = pytest.MonkeyPatch()
    install(patch)
    yield solve(spec_of(), precision=QUICK)
    patch.undo()


def test_the_schedule_closes_most_of_the_oracles_saving(answer: Answer) -> None:
    closed, saving = answer.closed("schedule"), answer.saving("clairvoyant")
    assert saving.value and saving.value > 0.15 and closed.value and closed.value >= 0.8
    assert answer.violations("schedule").value - answer.violations("clairvoyant").value <= 0.01
    assert all(o.lost == 0 for outcomes in answer.outcomes.values() for o in outcomes)


def test_the_floor_holds_as_served(answer: Answer) -> None:
    for outcomes in answer.outcomes.values():
        assert outcomes[0].quality["chat", "score"] >= 0.685 - 5e-4
    assert answer.outcomes["clairvoyant"][0].quality["chat", "score"] < 0.687, "no finer than promised: it costs"


def test_energy_adds_up(answer: Answer) -> None:
    spec = answer.spec
    for outcomes in answer.outcomes.values():
        o = outcomes[0]
        least = spec.fleet["h200"].count * 40.0 * 86_400
        most = spec.fleet["h200"].count * 380.0 * 86_400
        assert least < o.energy_j < most and o.energy_j > o.load_j + o.idle_j + o.off_j
        planned = o.course.solution
        if planned is not None and o.course.name == "clairvoyant":
            assert o.energy_j == pytest.approx(planned.energy_j, rel=0.1), "the plan's energy is the simulation's"


def test_latencies_as_served_are_those_of_a_client_behind_the_front_end() -> None:
    """GIVEN one replica all day THEN TTFT and TPOT are the ones that a pool of one replica gives for these requests."""
    spec, offer = spec_of(), offer_of(made_calibration(output_seq_s=4e-4, input_each_s=7e-4))
    kind = Kind("bf16", offer, (20.0,), (80.0, 150.0, 250.0, 380.0), 60.0, 9e3, {"score": 0.7})
    day = make_day(spec, 3)
    course = Course("one", "one replica", np.zeros(1), np.ones((1, 1), dtype=np.int64), np.ones((1, 1, 1)))
    found = evaluate(spec, Choice((kind,), {"h200": 40.0}, (), 4096), day, course)
    requests = Sample(Mix((ClassLoad("chat", lengths_of(spec.classes[0]), spec.classes[0].slo),)), day.at_s, day.prompt,
                      day.output, day.group)  # fmt: skip
    pool = Pool.of(offer, seed=0).serve_times(day.at_s, requests)
    assert found.ttft_p99_s == pytest.approx(np.quantile(pool.ttft_s, 0.99), rel=1e-9)
    assert found.tpot_p99_s == pytest.approx(np.quantile(pool.tpot_s, 0.99), rel=1e-9)


def test_only_what_breaks_at_a_former_days_peak_is_cut(answer: Answer, monkeypatch: Any) -> None:
    """GIVEN chat that breaks on one kind until that counts with 80% of its capacity THEN that kind alone is cut, and a
    request draws what it drew."""
    spec, choice = answer.spec, answer.choice
    cut = len(choice.kinds) - 1

    def found(spec: Any, now: Choice, day: Any, course: Any) -> Any:
        breaks = now.kinds[cut].capacity_hz[0] > 0.8 * choice.kinds[cut].capacity_hz[0]
        by_kind = np.zeros((1, len(now.kinds)))
        by_kind[0, 0], by_kind[0, cut] = np.nan, 0.5 * breaks
        return SimpleNamespace(by_class=(0.2 * breaks,), by_kind=by_kind)

    monkeypatch.setattr(solve_module, "evaluate", found)
    made, _ = solve_module._tried(spec, choice, make_day(spec, 9), lambda _: None)
    assert made.kinds[:cut] == choice.kinds[:cut]
    kept = made.kinds[cut].capacity_hz[0] / choice.kinds[cut].capacity_hz[0]
    assert kept == pytest.approx(solve_module.CUT**2)
    np.testing.assert_allclose(made.kinds[cut].work, choice.kinds[cut].work)
    assert made.notes[-1].startswith(f"{made.kinds[cut].name}: chat counts with 76% of the capacity found before")
    assert not made.beaten


def test_a_kind_left_out_for_one_that_did_not_hold_comes_back(monkeypatch: Any) -> None:
    """GIVEN a kind that another beats on paper WHEN that one is cut THEN the first is chosen from too, and one that is
    still beaten is not, with the reason."""
    spec, offer = spec_of(), offer_of(made_calibration())
    fast, near, poor = (
        Kind(name, offer, (hz,), (80.0, 150.0, 250.0, 380.0), 60.0, 9e3, {"score": 0.7})
        for name, hz in (("fast", 20.0), ("near", 19.0), ("poor", 5.0))
    )
    assert [b and b.name for b in beaten_by([fast, near, poor], spec)] == [None, "fast", "fast"]

    def found(spec: Any, now: Choice, day: Any, course: Any) -> Any:
        breaks = now.kinds[0].capacity_hz[0] > 18.0
        return SimpleNamespace(by_class=(0.2 * breaks,), by_kind=np.array([[0.5 * breaks] * len(now.kinds)]))

    monkeypatch.setattr(solve_module, "evaluate", found)
    choice = Choice((fast,), {"h200": 40.0}, (), 4096, (near, poor))
    made, _ = solve_module._tried(spec, choice, make_day(spec, 9), lambda _: None)
    assert [k.name for k in made.kinds] == ["fast", "near"] and [k.name for k in made.beaten] == ["poor"]
    assert any(n.startswith("poor is not scheduled") for n in made.notes)


def test_requests_follow_the_shares(answer: Answer) -> None:
    course, day = answer.outcomes["schedule"][0].course, answer.days[0]
    kind = routed(course, day, len(answer.choice.kinds))
    slot = (day.at_s / answer.spec.slot).astype(int)
    for t in (3, 12, 20):
        own = kind[slot == t]
        row = np.searchsorted(course.at_s, t * answer.spec.slot, side="right") - 1
        for k, share in enumerate(course.shares[row, 0]):
            assert (own == k).mean() == pytest.approx(share, abs=0.01)


def test_the_file_written_is_one_that_can_be_served(answer: Answer, tmp_path: Path) -> None:
    made = load_schedule(write_schedule(answer, tmp_path / "schedule.yaml"))
    assert made.repeat and made.length == 86_400 and made.slot_at(3600 * 12.5) > made.slot_at(0)
    peak, night = made.slots[made.slot_at(14.5 * 3600)], made.slots[made.slot_at(3.5 * 3600)]
    assert sum(peak.up.values()) > sum(night.up.values())
    assert json.loads(json.dumps(answer_data(answer)))["policies"]["schedule"]["oracle_saving_closed"]["value"] > 0.5


def test_the_page_stands_alone_and_says_why(answer: Answer, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    from qmeter.report import schedule as schedule_page
    from qmeter.report.schedule import write_schedule_report

    hostile = answer.spec.model_copy(update={"description": "<script>alert(1)</script>"})
    page = write_schedule_report(Answer(**{**vars(answer), "spec": hostile}), tmp_path).read_text()
    assert "<script>alert" not in page and not re.search(r"(src|href)=.https?:", page)
    assert "of what perfect" in page and "static peak" in page and "an assumption" in page
    for name in ("load", "replicas", "power"):
        assert f'data-chart="{name}"' in page and (tmp_path / "charts" / f"{name}.svg").stat().st_size > 2000
    spec = schedule_page._bars([{"x": 0.0, "x2": 1.0, "y": 2.0, "series": n} for n in "ab"], [], "Replicas")
    assert [(r["bottom"], r["top"]) for r in spec["data"]["values"]] == [(0.0, 2.0), (2.0, 4.0)], "stacked, as it says"
    assert (tmp_path / "schedule.yaml").exists() and (tmp_path / "tables" / "policies.csv").exists()


def test_a_days_rates_follow_the_shape() -> None:
    spec = spec_of()
    day = make_day(spec, 3)
    assert len(day) == pytest.approx(3 * 86_400, rel=0.02)
    middle = (np.arange(24) + 0.5) * 3600.0
    assert day.mean_hz[0] == pytest.approx(rate_at(spec.classes[0], middle), rel=0.06)
    assert (day.peak_hz >= day.mean_hz).all() and (np.diff(day.at_s) >= 0).all()


@pytest.mark.skipif(not TRACES.exists(), reason="no ../shared/traces beside the checkout")
def test_a_traced_day_keeps_lengths_and_the_rate_asked_for() -> None:
    data = yaml.safe_load(TEXT)
    data["classes"][0] |= {"trace": str(TRACES / "azure_2023_conv.csv"), "rate": "3/s"}
    day = make_day(spec_of(yaml.safe_dump(data)), 1, 4096)
    assert len(day) / 86_400 == pytest.approx(3.0, rel=0.05) and (day.prompt + day.output).max() <= 4096
    law = lengths_of(spec_of(yaml.safe_dump(data)).classes[0], 4096)
    assert np.mean(day.output) == pytest.approx(np.mean(law.output), rel=0.05)


def test_a_forecast_has_the_error_given() -> None:
    spec = spec_of(forecast={"error": 0.2, "persistence": 0.8})
    rng = np.random.default_rng(1)
    drawn = np.log([forecast(spec, np.ones((1, 24)), 4, rng)[0] for _ in range(3000)])
    assert (drawn[:, :4] == 0).all() and drawn[:, 4:].std(axis=0) == pytest.approx(0.2, rel=0.08)
    assert np.corrcoef(drawn[:, 6], drawn[:, 7])[0, 1] == pytest.approx(0.8, abs=0.05)


def changed(**changes: Any) -> str:
    data = yaml.safe_load(TEXT)
    for path, value in changes.items():
        at: Any = data
        *head, last = [int(p) if p.isdigit() else p for p in path.split("__")]
        for step in head:
            at = at[step]
        if value is None:
            del at[last]
        else:
            at[last] = value
    return yaml.safe_dump(data)


BAD = {
    "negative rate": (changed(classes__0__rate="-1/s"), "classes[0].rate", "must not be negative"),
    "empty fleet": (changed(fleet={}), "fleet", ""),
    "no devices": (changed(fleet__h200__count=0), "fleet.h200.count", "at least 1"),
    "unknown device": (changed(fleet={"h100": {"count": 4}}), "fleet.h100", "they have h200"),
    "slo below zero load": (changed(classes__0__slo={"tpot": "1ms"}), "classes[0].slo", "zero-load"),
    "quality lacking": (changed(quality={}), "classes[0].quality.score", "quality.methods"),
    "floor too high": (changed(classes__0__quality={"score": 0.9}), "classes[0].quality.score", "best, bf16"),
    "unknown method": (changed(methods=["fp9"]), "methods[0]", "fp8"),
    "torn interval": (changed(quality__methods__fp8={"score": {"value": 0.6, "low": 0.7}}),
                      "quality.methods.fp8.score", "low"),
    "too small": (changed(fleet__h200__count=1, classes__0__rate="30/s"), "fleet.h200.count", "needs about"),
    "bad slot": (changed(slot="7h"), "slot", "whole number"),
    "silent day": (changed(classes__0__shape=[0] * 24), "classes[0].shape", "some hour"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_spec_that_cannot_be_kept_names_the_field_and_the_way_out(name: str, tmp_path: Path, capsys: Any,
                                                                    monkeypatch: Any) -> None:  # fmt: skip
    install(monkeypatch)
    text, field, way = BAD[name]
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    assert cli._run(["schedule", str(path), "--out", str(tmp_path / "out"), "--no-report"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert field in said and way in said and "next" in said, said
    assert not (tmp_path / "out").exists()


def test_floors_that_no_mix_keeps_together_are_named(monkeypatch: Any) -> None:
    install(monkeypatch)
    data = yaml.safe_load(TEXT)
    data["quality"]["methods"]["bf16"]["speed"] = {"value": 0.1}
    data["quality"]["methods"]["fp8"]["speed"] = {"value": 0.5}
    data["quality"]["methods"]["awq-w4a16"]["speed"] = {"value": 0.9}
    data["classes"][0]["quality"] = {"score": 0.693, "speed": 0.89}
    with pytest.raises(SpecError) as caught:
        solve(spec_of(yaml.safe_dump(data)), precision=QUICK)
    assert "contradict" in str(caught.value)
