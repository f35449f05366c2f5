"""GIVEN records of a deployment whose truth is known THEN the fit finds it, and predicts loads it never saw."""

import json

import numpy as np
import pytest
from records import EFFECTIVE, HELD, LOADS, data_parallel, measured, study, truth, workload

from qmeter.errors import AnalysisError
from qmeter.record import CellStatus
from qmeter.simulate import Calibration, calibrate, find, load_calibrations, predict, run_cell, save, sources
from qmeter.simulate.calibrate import deployment_of
from qmeter.simulate.calibration import label_of_deployment
from qmeter.simulate.carry import fit_records
from qmeter.simulate.fit import hinges, knots_for, nonnegative
from qmeter.simulate.observe import observed_steps
from qmeter.simulate.quick import quick
from qmeter.simulate.validate import compare, leave_one_out, scores
from qmeter.spec.workload import FixedLength
from qmeter.workload import Vocabulary, build


@pytest.fixture(scope="module")
def records():
    return study()


@pytest.fixture(scope="module")
def calibration(records):
    return calibrate(*records)


def test_observed_steps_carry_the_true_work(records):
    tables = records[1](records[0][2])
    steps = observed_steps(tables)
    true = truth(noise=0.0)
    pure = (steps.prefill == 0) & ~steps.after_idle
    modelled = np.array([true.decode(int(n), k) for n, k in zip(steps.decodes[pure], steps.kv[pure], strict=True)])
    assert np.median(steps.seconds[pure] / modelled) == pytest.approx(1.0, abs=0.02)
    assert steps.kv[pure].max() > 5000


@pytest.mark.parametrize("keep", [True, False], ids=["iteration log", "token times alone"])
def test_the_fit_finds_the_truth(keep):
    found = calibrate(*study(keep_steps=keep)).step_model(noise=False)
    true = truth(noise=0.0)
    for n, kv in ((1, 300), (8, 3000), (24, 9000), (40, 14000)):
        assert found.decode(n, kv) == pytest.approx(true.decode(n, kv), rel=0.05)
    if keep:
        for tokens, chunks in ((300, 1), (1000, 2), (1800, 4)):
            work = (10, 3000, tokens, tokens**2 / chunks / 2, chunks)
            assert found.mixed(*work) == pytest.approx(true.mixed(*work), rel=0.12)


def test_delays_are_found(calibration):
    assert calibration.output_s == pytest.approx(0.0005, rel=0.05)
    assert calibration.input_s == pytest.approx(0.002, rel=0.1)


def test_energy_is_found(calibration):
    true, found = truth(noise=0.0), calibration.step_model(noise=False)
    for n, kv in ((8, 3000), (24, 9000)):
        seconds = true.decode(n, kv)
        assert found.decode_energy(n, kv, seconds) == pytest.approx(true.decode_energy(n, kv, seconds), rel=0.1)
    assert found.idle_w == pytest.approx(80.0, rel=0.1)


def test_held_out_loads_are_predicted(calibration):
    rows = []
    for k, spec in enumerate(HELD):
        record, _ = measured(spec, seed=200 + k)
        rows += compare(calibration, [record], held_out=True, draws=16)
    found = {s.metric: s for s in scores(rows)}
    assert found["tpot_mean_s"].mean_error < 0.05
    assert found["ttft_p50_s"].mean_error < 0.08
    assert found["throughput_tok_s"].mean_error < 0.03
    assert np.mean([r.inside for r in rows]) >= 0.6


def test_leave_one_out_never_uses_the_cell_itself(records):
    rows = leave_one_out(records[0][1:3], records[1], draws=4)
    assert {r.workload for r in rows} == {s.name for s in LOADS[1:3]} and all(r.held_out for r in rows)


def test_a_calibration_survives_its_file(calibration, tmp_path):
    path = save([calibration], tmp_path / "c.json")
    (again,) = load_calibrations(path)
    assert again == calibration and again.id == calibration.id
    assert find([again], method="bf16") == [again]
    with pytest.raises(AnalysisError, match="no calibration"):
        find([again], method="fp8")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"qmeter_calibrations": 99, "calibrations": []}',
                                  '{"qmeter_calibrations": 1, "calibrations": [{}]}'])  # fmt: skip
def test_a_wrong_file_is_refused(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(AnalysisError):
        load_calibrations(tmp_path / "c.json")


def test_a_simulated_cell_has_the_shape_of_a_measured_one(calibration):
    spec = workload({"kind": "closed", "concurrency": 8}, 4.0)
    schedule = build(spec, 3, Vocabulary(size=32000))
    cell = run_cell(calibration, schedule, seed=3)
    again = run_cell(calibration, schedule, seed=3)
    r = cell.tables.requests
    assert (r.sent_s >= 0).all() and (r.first_token_s > r.sent_s).all()
    assert (cell.tables.tokens.t_s == again.tables.tokens.t_s).all()
    in_flight = [((r.sent_s <= t) & (r.end_s > t)).sum() for t in np.linspace(0.5, 4.0, 20)]
    assert max(in_flight) <= 8
    assert cell.calibration == calibration.id and cell.effective == EFFECTIVE
    assert {s.name for s in cell.series} >= {"engine.running", "gpu0.energy_j", "gpu0.power_w"}


def test_predictions_carry_intervals_and_energy(calibration):
    found = predict(calibration, workload({"kind": "poisson", "rate": "4/s"}, 20.0), draws=6)
    q = found.metrics["tpot_mean_s"]
    assert q.low < q.value < q.high and q.unit == "s"
    assert found.energy["j_per_output_token"].value > 0


def test_a_window_that_outlasts_its_requests_has_energy(calibration):
    """GIVEN a load whose last request ends seconds before its window THEN telemetry goes on, at idle power."""
    spec = workload({"kind": "poisson", "rate": "0.3/s"}, 20.0)
    schedule = build(spec, 5, Vocabulary(size=32000))
    cell = run_cell(calibration, schedule, seed=5)
    last_s = float(np.nanmax(cell.tables.requests.end_s))
    assert last_s < 21.0, "the load is one that the test means"
    t_s, power_w = cell.tables.telemetry.of("gpu0.power_w")
    assert t_s[-1] >= 22.0 and power_w[t_s > last_s + 0.5] == pytest.approx(calibration.step_model().idle_w, rel=0.01)
    energy = predict(calibration, spec, seed=5, draws=4).energy
    assert energy["j_per_output_token"].value > 0 and energy["energy_j"].value > 0


def test_a_question_outside_the_support_is_refused_with_the_reason(calibration):
    far = workload({"kind": "poisson", "rate": "2/s"}, 4.0, prompt_tokens={"kind": "fixed", "tokens": 3000})
    with pytest.raises(AnalysisError, match="does not cover this question: request length"):
        predict(calibration, far, draws=0)
    assert predict(calibration, far, draws=0, allow_extrapolation=True).notes


def test_without_a_counter_energy_is_unknown(records):
    from dataclasses import replace

    bare = {r.cell_id: replace(t, telemetry=type(t.telemetry).empty()) for r in records[0] for t in [records[1](r)]}
    found = calibrate(records[0], lambda r: bare[r.cell_id], draws=3)
    energy = predict(found, workload({"kind": "poisson", "rate": "4/s"}, 10.0), draws=0).energy
    assert found.energy is None and energy["energy_j"].value is None and energy["energy_j"].why


def test_unusable_records_are_refused(records):
    bad = [r.model_copy(update={"status": CellStatus.INVALID}) for r in records[0]]
    with pytest.raises(AnalysisError, match="no valid measured record"):
        calibrate(bad, records[1])
    blind = [r.model_copy(update={"effective": EFFECTIVE.model_copy(update={"kv_blocks": None})}) for r in records[0]]
    with pytest.raises(AnalysisError, match="never derived"):
        calibrate(blind, records[1])
    other = records[0][1].model_copy(update={"deployment_id": "other"})
    with pytest.raises(AnalysisError, match="several deployments"):
        calibrate([records[0][0], other], records[1])


@pytest.mark.parametrize("told", [True, False], ids=["by the deployment", "by the iteration log alone"])
def test_data_parallel_replicas_are_refused_since_their_steps_overlap(told):
    pairs = [data_parallel(spec, seed=100 + k, told=told) for k, spec in enumerate(LOADS[:2])]
    kept = {r.cell_id: t for r, t in pairs}
    with pytest.raises(AnalysisError, match="2 data-parallel replicas step beside each other") as caught:
        calibrate([r for r, _ in pairs], lambda r: kept[r.cell_id], draws=3)
    assert "without dp" in caught.value.hint


def test_a_source_with_replicas_and_without_gives_those_without(records, monkeypatch):
    dp, tables = data_parallel(LOADS[1])

    class Results:
        def records(self):
            return [dp, *records[0]]

        def tables(self, record):
            return tables if record is dp else records[1](record)

    monkeypatch.setattr(sources, "open_results", lambda _: Results())
    (found,) = sources.calibrations_of("both", method="bf16")
    assert found.deployment["parallelism"]["dp"] == 1
    assert fit_records([[dp], records[0]], Results().tables) == fit_records([records[0]], Results().tables)
    monkeypatch.setattr(Results, "records", lambda self: [dp])
    with pytest.raises(AnalysisError, match="data-parallel"):
        sources.calibrations_of("dp alone", method="bf16")


def test_hinges_with_nonnegative_coefficients_never_fall():
    knots = knots_for(np.array([1, 1, 2, 4, 8, 16, 32, 64.0]), np.ones(8), 6)
    x = np.arange(1, 100.0)
    y = hinges(x, knots) @ np.random.default_rng(1).uniform(0, 1, len(knots))
    assert (np.diff(y) >= -1e-12).all()


def test_nonnegative_least_squares_matches_a_known_answer():
    a = np.random.default_rng(0).uniform(0, 1, (50, 4))
    true = np.array([1.0, 0.0, 2.0, 0.5])
    np.testing.assert_allclose(nonnegative(a.T @ a, a.T @ (a @ true)), true, atol=1e-6)


def test_a_calibration_is_plain_data(calibration):
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration
    assert "draws" in json.loads(calibration.model_dump_json())


def test_the_quick_numbers_are_the_whole_cells():
    """GIVEN a load with a ramp before its window THEN energy and power are the window's, as in a whole cell."""
    fit = calibrate(*study(), draws=2)
    for spec in (LOADS[1], LOADS[2]):
        schedule = build(spec, 5, Vocabulary(size=32000))
        told = predict(fit, spec, seed=5, draws=0, schedule=schedule)
        found = quick(fit, spec, schedule, seed=5, noise=True)
        for name in ("j_per_output_token", "power_mean_w"):
            assert found[name] == pytest.approx(told.energy[name].value, rel=0.04), name
        assert found["tpot_mean_s"] == pytest.approx(told.metrics["tpot_mean_s"].value, rel=0.02)


def test_quick_counts_the_only_token_of_a_request():
    """GIVEN requests of one output token THEN they are throughput, and have their joules."""
    fit = calibrate(*study(), draws=2)
    spec = LOADS[1].model_copy(update={"output_tokens": FixedLength(tokens=1)})
    found = quick(fit, spec, build(spec, 5, Vocabulary(size=32000)))
    assert found["throughput_tok_s"] == pytest.approx(found["request_rate_hz"], rel=0.05)
    assert found["j_per_output_token"] == pytest.approx(found["power_mean_w"] / found["throughput_tok_s"], rel=1e-6)


def test_a_label_tells_parallelism_and_placement_apart(records):
    """GIVEN one method on two GPUs, on one, and on one beside others THEN no two are called alike."""
    own, _ = records
    labels = []
    for tp, placement in ((2, "alone"), (1, "alone"), (1, "side_by_side")):
        deployment = {**own[0].cell["deployment"], "placement": placement, "parallelism": {"tp": tp, "pp": 1, "dp": 1}}
        record = own[0].model_copy(update={"cell": {**own[0].cell, "deployment": deployment}})
        labels.append(label_of_deployment(deployment_of(record)))
    assert labels == ["m/bf16/vllm/tp2", "m/bf16/vllm", "m/bf16/vllm/side by side"]


def test_lengths_that_were_never_measured_are_noted(calibration):
    """GIVEN records of prompts of 50 to 600 tokens THEN prompts of 20 are answered with a note, and 300 without."""
    assert calibration.support.prompt_tokens[0] >= 50 and calibration.support.prompt_tokens[1] <= 600
    load = workload({"kind": "poisson", "rate": "2/s"}, 4.0, output_tokens={"kind": "fixed", "tokens": 60})
    for tokens, told in ((20, True), (300, False)):
        spec = load.model_copy(update={"prompt_tokens": FixedLength(tokens=tokens)})
        notes = predict(calibration, spec, draws=0).notes
        assert any("prompt length in tokens: 20 asked" in n for n in notes) is told, notes
