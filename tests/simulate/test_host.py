"""GIVEN deployments calibrated on one host, WHEN one of them is measured on another, THEN all are predicted there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from records import LOADS, measured, study, truth, workload

from qmeter.errors import AnalysisError
from qmeter.simulate import calibrate, predict
from qmeter.simulate.host import host_pace, on_host
from qmeter.simulate.knobs import with_knobs
from qmeter.simulate.quick import quick
from qmeter.spec.study import expand
from qmeter.store import open_results
from qmeter.store.profile import Profile
from qmeter.workload import Vocabulary, build

SEARCH = Path(__file__).parents[2] / "benchmarks" / "tune" / "measured" / "h200_8b" / "evaluations"

SLOWER = 2.0


def elsewhere(spec, seed):
    """The same deployment on a host that launches more slowly."""
    there = truth(seed=seed)
    return measured(spec, model=replace(there, host_mixed_s=there.host_mixed_s * SLOWER), seed=seed)


@pytest.fixture(scope="module")
def here():
    return calibrate(*study(LOADS[:3]), draws=4)


@pytest.fixture(scope="module")
def pace(here):
    record, tables = elsewhere(LOADS[1], 31)
    return host_pace([here], [record], lambda _: tables, "there")


def test_one_cell_tells_the_pace(here, pace):
    assert pace.factor == pytest.approx(SLOWER, rel=0.12) and len(pace.cells) == 1 and pace.sigma == 0.0
    same, tables = measured(LOADS[1], seed=32)
    assert host_pace([here], [same], lambda _: tables, "here").factor == pytest.approx(1.0, rel=0.05)


def test_predictions_then_differ_as_the_hosts_do(here, pace):
    """GIVEN a load measured on both hosts THEN the predictions differ by what the measurements do."""
    spec = workload({"kind": "poisson", "rate": "6/s"}, 20.0)
    there, own = elsewhere(spec, 33)[0], measured(spec, seed=33)[0]
    before, after = (predict(c, spec, draws=0, seed=33) for c in (here, on_host(here, pace)))
    for name, least, off in (("tpot_mean_s", 0.02, 0.02), ("ttft_p50_s", 0.3, 0.05)):
        told = there.metrics[name].value / own.metrics[name].value
        assert told > 1 + least
        assert after.metrics[name].value / before.metrics[name].value == pytest.approx(told, rel=off), name


def test_what_was_moved_says_so_and_keeps_the_device(here, pace):
    moved = on_host(here, pace)
    assert "on the host of there" in moved.host_of and "(1 cell)" in moved.host_of and moved.extrapolated is None
    assert moved.coefficients == here.coefficients and moved.host[0] == here.host[0]
    assert moved.host[2] == pytest.approx(here.host[2] * pace.factor)


def test_several_cells_give_a_spread(here):
    own = [elsewhere(LOADS[1], s) for s in (34, 35)]
    kept = {id(r): t for r, t in own}
    found = host_pace([here], [r for r, _ in own], lambda r: kept[id(r)], "there")
    assert len(found.cells) == 2 and found.sigma > 0
    assert on_host(here, found).host_sigma >= found.sigma


def test_records_that_do_not_show_the_pace_are_refused_with_the_reason(here):
    record, tables = elsewhere(LOADS[1], 36)
    named = record.model_copy(update={"cell": json.loads(json.dumps(record.cell).replace('"bf16"', '"fp8"'))})
    with pytest.raises(AnalysisError, match=r"no llama-3.1-8b in fp8 on vllm and h200") as fault:
        host_pace([here], [named], lambda _: tables, "there")
    assert "measure one of the calibrated deployments there" in fault.value.hint
    with pytest.raises(AnalysisError, match="no valid measured cell"):
        host_pace([here], [], lambda _: tables, "there")
    hidden = here.model_copy(update={"coefficients": tuple(3.0 * c for c in here.coefficients)})
    with pytest.raises(AnalysisError, match="the device's work hides them"):
        host_pace([hidden], [record], lambda _: tables, "there")
    none = here.model_copy(update={"host": (0.0,) * 5})
    with pytest.raises(AnalysisError, match="enough launches"):
        host_pace([none], [record], lambda _: tables, "there")
    with pytest.raises(AnalysisError, match="host and device are not apart"):
        on_host(none, host_pace([here], [record], lambda _: tables, "there"))


def test_a_live_search_on_another_lease_of_the_gpu_is_predicted_at_its_hosts_pace():
    """GIVEN W4A8 of the shipped profile, and two cells of a search that nothing was fitted to THEN the first tells the
    host's pace, a quarter to a third faster, and TPOT of the second is then within a tenth, which it was not before."""
    results = open_results("h200-8b-grid")
    own = [r for r in results.records() if r.cell["deployment"]["method"] == "w4a8-fp8"]
    made = calibrate(own, results.tables, draws=0)
    first, later = (Profile(SEARCH / name) for name in ("0001", "0012"))
    pace = host_pace([made], first.records(), first.tables, "the search")
    assert 0.6 < pace.factor < 0.8
    (record,) = later.records()
    cell = next(c for c in expand(later.study) if c.id == record.cell_id)
    schedule = build(cell.workload, cell.seed, Vocabulary(size=128256))
    told = record.metrics["tpot_mean_s"].value
    options = dict(cell.deployment.engine.options)
    before, after = (quick(with_knobs(c, options)[0], cell.workload, schedule) for c in (made, on_host(made, pace)))
    assert abs(after["tpot_mean_s"] / told - 1) < 0.1 < abs(before["tpot_mean_s"] / told - 1)
