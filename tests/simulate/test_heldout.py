"""Errors on loads held out: what they are made of, and that no interval is narrower than they say."""

import numpy as np
import pytest
from records import study, workload

from qmeter.analysis.cell import analyse
from qmeter.analysis.stats import t_quantile
from qmeter.record import Quantity
from qmeter.simulate import calibrate, load_calibrations, predict, save
from qmeter.simulate.engine import run_cell
from qmeter.simulate.heldout import (
    calibrate_checked,
    half_width,
    held_out_errors,
    keeps_up,
    log_errors,
    of_kind,
    width,
    width_for,
    with_peers,
)
from qmeter.simulate.predict import interval, limit_w
from qmeter.simulate.validate import compare, leave_one_out
from qmeter.spec.workload import SLO
from qmeter.workload import Vocabulary, build

LOADS = (workload({"kind": "poisson", "rate": "2/s"}), workload({"kind": "poisson", "rate": "6/s"}),
         workload({"kind": "closed", "concurrency": 24}))  # fmt: skip


@pytest.fixture(scope="module")
def records():
    return study(LOADS)


@pytest.fixture(scope="module")
def checked(records):
    return calibrate_checked(*records, draws=8)


def test_every_load_gives_one_error_and_none_for_counts(checked):
    assert {len(e) for m, e in checked.held_out.items() if m in ("tpot_mean_s", "ttft_p50_s")} == {len(LOADS)}
    assert "requests" not in checked.held_out and "failed_share" not in checked.held_out
    assert max(checked.held_out["tpot_mean_s"][:2]) < 0.1, "the model is the truth's own: what is left out is predicted"


def test_a_load_of_nearly_three_times_the_most_in_flight_is_predicted_too(checked):
    """GIVEN three such studies, each with noise of its own THEN 24 in flight, left out, come out within a tenth."""
    errors = [checked.held_out["tpot_mean_s"][-1]]
    errors += [held_out_errors(*study(LOADS, first_seed=s))["tpot_mean_s"][-1] for s in (200, 300)]
    assert np.mean(errors) < 0.1


def test_repeats_of_a_load_are_one_error(records):
    """GIVEN a load measured twice THEN both runs are left out together, and count as one load."""
    own, tables = records
    again = [own[0].model_copy(update={"cell_id": "again"}), *own]
    kept = {"again": tables(own[0])}
    found = held_out_errors(again, lambda r: kept.get(r.cell_id) or tables(r))
    assert len(found["tpot_mean_s"]) == len(LOADS)


def test_one_load_has_nothing_to_be_held_out_from(records):
    assert held_out_errors(records[0][:1], records[1]) == {}


def test_log_errors_leave_out_shares_zeros_and_the_unknown():
    def q(value, unit="s"):
        return Quantity.of(value, unit)

    measured = {"a": q(2.0), "b": q(0.0), "c": q(0.5, "1"), "d": Quantity.unknown("s", "not measured"), "e": q(1.0)}
    predicted = {"a": q(1.0), "b": q(1.0), "c": q(0.5, "1"), "d": q(1.0)}
    assert log_errors(measured, predicted) == {"a": pytest.approx(np.log(2))}


def test_half_a_width_is_students():
    """GIVEN errors of 10% on three loads THEN a 90% interval reaches t(0.95; 3) times as far; one says nothing."""
    assert half_width((0.1, -0.1, 0.1), 0.9) == pytest.approx(2.353 * 0.1, rel=1e-3)
    assert half_width((0.1,), 0.9) == half_width((), 0.9) == 0.0


def test_such_intervals_hold_as_often_as_they_say():
    """GIVEN errors of all loads drawn alike THEN the next one lies inside 90% of the time, however few were seen."""
    rng = np.random.default_rng(3)
    for loads in (2, 3, 5):
        drawn = rng.normal(0, 0.2, (4000, loads + 1))
        inside = [abs(d[-1]) <= half_width(tuple(d[:-1]), 0.9) for d in drawn]
        assert np.mean(inside) == pytest.approx(0.9, abs=0.015)
    assert t_quantile(0.95, 3) == pytest.approx(2.353, rel=1e-3)


def test_an_interval_is_never_narrower_than_the_errors(records, checked):
    sample = list(np.linspace(0.99, 1.01, 24))
    bare, told = interval(Quantity.of(1.0, "s"), sample, 0.9), interval(Quantity.of(1.0, "s"), sample, 0.9, 0.3)
    assert (told.low, told.high) == (pytest.approx(np.exp(-0.3), rel=1e-2), pytest.approx(np.exp(0.3), rel=1e-2))
    assert bare.low > 0.95 and told.value == bare.value
    wide = checked.model_copy(update={"held_out": checked.held_out | {"tpot_mean_s": (0.5, 0.5, 0.5)}})
    spec = workload({"kind": "poisson", "rate": "4/s"})
    found = predict(wide, spec, draws=4, allow_extrapolation=True).metrics["tpot_mean_s"]
    assert found.high / found.value == pytest.approx(np.exp(0.5 * t_quantile(0.95, 3)), rel=1e-6)


@pytest.mark.parametrize(("ttft", "narrow"), [("5s", True), ("median", False)])
def test_goodput_is_as_uncertain_as_the_promise_is_near(checked, ttft, narrow):
    """GIVEN a deployment whose saturated load once came out far off in goodput, latencies known within some 20% THEN
    a load that keeps its promise by far keeps it for sure, one near it does not; neither is more than what is asked."""
    off = {"goodput_hz": (3.0, 3.0, 3.0), "ttft_p90_s": (0.1, 0.1, 0.1), "tpot_p90_s": (0.1, 0.1, 0.1)}
    known = checked.model_copy(update={"held_out": checked.held_out | off})
    spec = workload({"kind": "poisson", "rate": "4/s"})
    if ttft == "median":
        ttft = f"{predict(checked, spec, draws=3, allow_extrapolation=True).metrics['ttft_p50_s'].value * 1e3:.3f}ms"
    spec = spec.model_copy(update={"slo": SLO.model_validate({"ttft": ttft})})
    found = predict(known, spec, draws=4, allow_extrapolation=True).metrics
    goodput, share = found["goodput_hz"], found["slo_attainment"]
    asked = goodput.value / share.value
    assert share.low <= share.value <= share.high <= 1.0 and goodput.high <= asked * (1 + 1e-9)
    assert goodput.low / asked == pytest.approx(share.low) and goodput.high / asked == pytest.approx(share.high)
    assert (share.low > 0.99) if narrow else (share.high - share.low > 0.3)


def test_a_closed_loops_goodput_is_off_by_its_rates_error_too(checked):
    off = {"request_rate_hz": (0.2, 0.2, 0.2)}
    known = checked.model_copy(update={"held_out": off})
    spec = workload({"kind": "closed", "concurrency": 12})
    spec = spec.model_copy(update={"slo": SLO.model_validate({"ttft": "60s"})})
    found = predict(known, spec, draws=4, allow_extrapolation=True).metrics["goodput_hz"]
    reach = np.exp(0.2 * t_quantile(0.95, 3))
    assert found.high / found.value >= reach * 0.95 and found.value / found.low >= reach * 0.95
    # with no error known, the draws' own spread stays, on both sides
    bare = predict(checked.model_copy(update={"held_out": {}}), spec, draws=8, allow_extrapolation=True).metrics
    assert bare["goodput_hz"].low < bare["goodput_hz"].value < bare["goodput_hz"].high


def test_errors_are_kept_in_the_file_and_older_files_have_none(tmp_path, records, checked):
    path = save([checked, calibrate(*records, draws=4)], tmp_path / "c.json")
    kept = load_calibrations(path)
    assert kept[0].held_out == checked.held_out and kept[1].held_out == {}
    path.write_text(path.read_text().replace('"qmeter_calibrations":3', '"qmeter_calibrations":1'))
    assert len(load_calibrations(path)) == 2


def test_a_load_predicted_for_a_check_is_not_in_the_errors_either(records):
    """GIVEN two loads, so that one is left to fit from THEN a check's interval rests on the draws alone."""
    rows = leave_one_out(records[0][:2], records[1], draws=4)
    assert {r.workload for r in rows} == {s.name for s in LOADS[:2]} and all(r.low < r.high for r in rows)


def test_lengths_are_told_without_making_requests():
    """GIVEN a closed loop of thousands, and a schedule of plain requests THEN the load's lengths are the requests'."""
    from dataclasses import replace

    from qmeter.simulate import load_of
    from qmeter.simulate.rules import VLLM_V1
    from qmeter.workload import Vocabulary, build

    packed = build(LOADS[2], 1, Vocabulary(size=32000))
    plain = replace(packed, requests=tuple(packed.requests))
    for one in (load_of(packed, VLLM_V1), load_of(plain, VLLM_V1)):
        assert one.prompt.tolist() == [r.prompt_tokens for r in packed.requests]
        assert one.output.tolist() == [r.output_tokens for r in packed.requests]


def test_two_loads_give_no_error_of_their_own_since_a_fit_on_one_cannot_tell_what_grows_with_the_load(records):
    assert held_out_errors(records[0][:2], records[1]) == {}


def test_a_fit_takes_the_others_errors_pooled_beside_its_own(checked):
    fit = checked.model_copy(update={"held_out": {}})
    alone = fit.model_copy(update={"held_out": {"tpot_mean_s": (0.1, 0.2)}})
    one = fit.model_copy(update={"held_out": {"tpot_mean_s": (0.5, 0.5), "ttft_p50_s": (0.3, -0.3)}})
    two = fit.model_copy(update={"held_out": {"ttft_p50_s": (0.4,)}})
    first, second, third = with_peers([alone, one, two])
    assert first.held_out == {"tpot_mean_s": (0.1, 0.2)}
    assert first.peers_held_out == {"tpot_mean_s": (0.5, 0.5), "ttft_p50_s": (0.3, -0.3, 0.4)}
    assert second.held_out == one.held_out and second.peers_held_out["ttft_p50_s"] == (0.4,)
    assert third.held_out == two.held_out and third.peers_held_out["tpot_mean_s"] == (0.1, 0.2, 0.5, 0.5)
    assert width((), first.peers_held_out["ttft_p50_s"], 0.9).half == half_width((0.3, -0.3, 0.4), 0.9)
    assert width((0.1, 0.2), (0.5, 0.5), 0.9).half == half_width((0.1, 0.2), 0.9), "its own, where it has any"


def test_with_enough_errors_the_next_one_exceeds_the_width_as_often_as_it_says():
    """GIVEN errors that no normal would draw, one in eight four times as large THEN at least nine in ten are held."""
    rng = np.random.default_rng(5)
    for n in (9, 15, 40):
        drawn = rng.normal(0, 0.1, (4000, n + 1)) * np.where(rng.random((4000, n + 1)) < 1 / 8, 4.0, 1.0)
        inside = [abs(d[-1]) <= width(d[:2], d[2:-1], 0.9).half for d in drawn]
        assert np.mean(inside) == pytest.approx(np.ceil((n + 1) * 0.9) / (n + 1), abs=0.015)
    assert not width((), (0.1,) * 8, 0.9).alone and width((), (0.1,) * 9, 0.9).alone


def test_such_a_width_is_the_interval_whatever_the_draws():
    sample = list(np.linspace(0.5, 1.5, 24))
    told = interval(Quantity.of(1.0, "s"), sample, 0.9, 0.05, only=True)
    assert told.low == pytest.approx(np.exp(-0.05), rel=1e-3) and told.high == pytest.approx(np.exp(0.05), rel=1e-3)


def test_what_arrivals_fix_is_as_wide_as_its_errors_in_open_loads(checked):
    """GIVEN open loads right within 1% and closed loops within 10% THEN the interval of each is its own, and where a
    kind has too few errors both stand in."""
    fit = checked.model_copy(update={"held_out": {
        "throughput_tok_s": (0.01,) * 10 + (0.1,) * 10, "tpot_mean_s": (0.05,) * 20,
        of_kind("throughput_tok_s", True): (0.01,) * 10, of_kind("throughput_tok_s", False): (0.1,) * 10,
    }})  # fmt: skip
    widths = [width_for(fit, "throughput_tok_s", kept, 0.9) for kept in (True, False)]
    assert [w.half for w in widths] == [0.01, 0.1]
    assert [w.alone for w in widths] == [False, True], (
        "near what it can do the draws know more than light loads' errors"
    )
    assert width_for(fit, "tpot_mean_s", True, 0.9).half == 0.05
    few = fit.model_copy(update={"held_out": fit.held_out | {of_kind("throughput_tok_s", True): (0.01,) * 3}})
    assert width_for(few, "throughput_tok_s", True, 0.9).half == 0.1
    many = few.model_copy(update={"peers_held_out": {of_kind("throughput_tok_s", True): (0.02,) * 6}})
    some = width_for(many, "throughput_tok_s", True, 0.9)
    assert some.half == 0.02
    five = few.model_copy(update={"peers_held_out": {of_kind("throughput_tok_s", True): (0.02,) * 2}})
    some = width_for(five, "throughput_tok_s", True, 0.9)
    assert some.half == half_width((0.01, 0.01, 0.01, 0.02, 0.02), 0.9) and not some.alone


def test_errors_of_rates_are_kept_by_kind_of_load(checked):
    """GIVEN two open loads that are kept up with and a closed loop THEN the errors come apart so, one alone too."""
    assert len(checked.held_out["throughput_tok_s"]) == 3
    assert checked.held_out[of_kind("throughput_tok_s", True)] == checked.held_out["throughput_tok_s"][:2]
    assert checked.held_out[of_kind("throughput_tok_s", False)] == checked.held_out["throughput_tok_s"][2:]


def test_an_open_load_that_outruns_the_deployment_is_fixed_by_the_engine(checked):
    """GIVEN the capacity of requests THEN below it arrivals fix the rate, a sixth above they do not."""

    def kept(spec):
        schedule = build(spec, 3, Vocabulary(size=32000))
        cell = run_cell(checked, schedule, seed=3, allow_extrapolation=True)
        found = analyse(cell.tables, spec, cell.series, seed=3)
        return keeps_up(spec, cell.tables, found.window), found.metrics["request_rate_hz"].value

    fast = workload({"kind": "poisson", "rate": "400/s"}, 6.0)
    outrun, capacity = kept(fast)
    assert not outrun and capacity < 300
    for share, expected in ((0.2, True), (0.7, True), (1.15, False), (1.5, False)):
        spec = workload({"kind": "poisson", "rate": f"{share * capacity:.1f}/s"}, 20.0)
        assert kept(spec)[0] is expected, (share, capacity)
    assert kept(LOADS[0])[0], "a few in flight at the end of a short window are chance"
    assert not kept(LOADS[2])[0], "a closed loop's arrivals follow the engine"


def test_an_interval_of_what_is_positive_ends_above_nothing():
    """GIVEN a time to first token that a few draws have ten times as long THEN its interval is skewed as they are; a
    share's is not, and stays at 0 or above."""
    sample = [0.12, 0.13, 0.13, 0.14, 0.13, 0.9, 1.4, 0.15]
    told = interval(Quantity.of(0.13, "s"), sample, 0.9)
    assert 0.02 < told.low < 0.12 and told.high >= 0.9
    assert interval(Quantity.of(0.13, "1"), sample, 0.9).low == 0.0
    assert interval(Quantity.of(0.1, "s"), [0.0, 0.1, 0.1, 0.3], 0.9).low == 0.0


def test_power_is_never_said_to_exceed_the_limit(checked):
    """GIVEN records of a device held at 690 W THEN no interval of its mean power goes beyond its limit of 700 W."""
    sample = [640.0, 690.0, 690.0, 700.0]
    assert interval(Quantity.of(660.0, "W"), sample, 0.9, 0.14, most=700.0).high == 700.0
    assert interval(Quantity.of(660.0, "W"), sample, 0.9, 0.14, only=True).high > 750
    held = checked.model_copy(update={"power_cap_w": checked.energy[0] * 0.985, "held_out": {}})
    told = predict(held, workload({"kind": "poisson", "rate": "4/s"}, 5.0), draws=3).energy["power_mean_w"]
    assert limit_w(held) == pytest.approx(checked.energy[0])
    assert told.high == pytest.approx(max(told.value, limit_w(held)))
    assert limit_w(checked.model_copy(update={"power_cap_w": None})) == np.inf


@pytest.mark.parametrize("draws", [0, 2])
def test_fewer_than_three_draws_make_no_interval(checked, draws):
    """GIVEN 0 or 2 draws THEN every known quantity says why it has no interval; the run's own spread is not one."""
    spec = workload({"kind": "poisson", "rate": "4/s"}, 5.0).model_copy(update={"slo": SLO(ttft="500ms")})
    told = predict(checked, spec, draws=draws)
    known = [q for q in (*told.metrics.values(), *told.energy.values()) if q.known]
    assert len(known) > 10
    assert all(q.low is None and q.high is None and f"{draws} draws" in q.why for q in known)


def test_loads_whose_prompts_come_from_tasks_are_fitted_but_not_predicted(records):
    """GIVEN a load whose prompts come from tasks THEN it gives no error and no comparison, and stops nothing."""
    own, tables = records
    load = {**own[0].cell["workload"], "prompts": {"kind": "tasks", "tasks": ["facts"]}}
    first = own[0].model_copy(update={"cell": {**own[0].cell, "workload": load}})
    fit = calibrate_checked([first, *own[1:]], tables, draws=3)
    assert len(fit.cells) == len(own) and len(fit.held_out["tpot_mean_s"]) == len(own) - 1
    assert not compare(fit, [first], held_out=True, draws=0)
