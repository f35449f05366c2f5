"""The physics form: known answers, what it must obey, and that its fit finds the efficiencies that made the data."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qmeter.catalog import device, model
from qmeter.errors import AnalysisError
from qmeter.simulate.calibration import save
from qmeter.simulate.carry import UNCHECKED_SIGMA, Target, as_basis, carry, distance, load_physics, physics_data
from qmeter.simulate.observe import Observed
from qmeter.simulate.physics import (
    Efficiencies,
    PhysicsFit,
    Placement,
    fit_physics,
    kv_blocks,
    seconds,
    step_model,
    terms,
)
from qmeter.simulate.rules import Rules

E = Efficiencies()
EIGHT = Target("llama-3.1-8b", "bf16", "h200").placement()


def steps(rng, n=400):
    decodes, chunks = rng.integers(0, 200, n), rng.integers(0, 3, n)
    prefill = chunks * rng.integers(50, 2000, n)
    kv, pairs = decodes * rng.uniform(100, 2000, n), prefill * 500.0
    zero = np.zeros(n)
    return Observed(zero, zero, zero.astype(bool), np.maximum(decodes, 1), prefill, chunks, kv, pairs)


def test_weights_are_read_once_a_step():
    """8B in BF16 on an H200 at 80% of 4.8 TB/s: (16.06 GB - input embedding 1.05 GB) / 3.84 TB/s = 3.9 ms."""
    assert terms(EIGHT, E)["weights"] == pytest.approx(3.9e-3, rel=0.01)


def test_a_token_of_kv_is_two_vectors_a_layer():
    per_token = 2 * 32 * 8 * 128 * 2
    assert EIGHT.kv_bytes_token == per_token
    assert terms(EIGHT, E)["kv"] == pytest.approx(per_token / (4.8e12 * E.kv))


def test_more_work_never_takes_less_time():
    table = step_model(EIGHT, E, Rules(8192, 256, 10_000))
    assert (np.diff(table.decode_s) >= 0).all() and (np.diff(table.mixed_s) >= 0).all()
    assert table.kv_s > 0 and table.pair_s > 0


def test_quantized_weights_help_small_batches_and_devices_split_the_work():
    quarter = replace(EIGHT, weight_bytes=EIGHT.weight_bytes / 4)
    rules = Rules(8192, 256, 10_000)
    assert step_model(quarter, E, rules).decode(1, 0) < 0.6 * step_model(EIGHT, E, rules).decode(1, 0)
    two = step_model(replace(EIGHT, devices=2), E, rules)
    assert two.mixed(0, 0, 4096, 0, 1) < 0.7 * step_model(EIGHT, E, rules).mixed(0, 0, 4096, 0, 1)


def test_the_fit_finds_the_efficiencies():
    rng = np.random.default_rng(0)
    true = Efficiencies(mem=0.7, op=0.5, kv=0.45, attn=0.3, host_s=2e-3, layer_s=1e-5, seq_s=8e-6)
    parts = []
    for name, method in (("llama-3.1-8b", "bf16"), ("llama-3.1-8b", "fp8"), ("qwen2.5-14b", "bf16")):
        place, seen = Target(name, method, "h200").placement(), steps(rng)
        noisy = seconds(place, true, seen) * rng.lognormal(0, 0.03, len(seen))
        parts.append((place, replace(seen, seconds=noisy)))
    found = fit_physics(parts)
    assert found.efficiencies.mem == pytest.approx(0.7, rel=0.1)
    assert found.efficiencies.op == pytest.approx(0.5, rel=0.1)
    assert found.efficiencies.kv == pytest.approx(0.45, rel=0.15)
    assert found.sigma < 0.05
    other = Target("llama-3.1-70b", "fp8", "h100-sxm", devices=1).placement()
    seen = steps(rng)
    errors = seconds(other, found.efficiencies, seen) / seconds(other, true, seen) - 1
    assert np.abs(errors).mean() < 0.05


def test_the_basis_is_the_physics():
    rules = Rules(8192, 256, 10_000)
    basis, coefficients = as_basis(EIGHT, E, rules)
    decode, mixed = basis.tables(coefficients, 256, 8192)
    table = step_model(EIGHT, E, rules)
    np.testing.assert_allclose(decode[1:], table.decode_s[1:], rtol=0.01)
    np.testing.assert_allclose(mixed[1:], table.mixed_s[1:], rtol=0.03)


def test_what_does_not_fit_is_refused():
    with pytest.raises(AnalysisError, match="does not fit"):
        kv_blocks(Target("llama-3.1-70b", "bf16", "rtx-4090").placement())
    with pytest.raises(AnalysisError, match="no bandwidth"):
        terms(replace(EIGHT, device=device("cpu")), E)
    with pytest.raises(AnalysisError, match="no steps"):
        fit_physics([])


def test_uncertainty_grows_with_the_distance(carried):
    near, far = carried
    assert distance(near, Target("llama-3.1-8b", "bf16", "h200")) == 0
    assert far.cell_sigma > near.cell_sigma and "KV blocks derived" in far.extrapolated
    assert (far.kv_mixed, far.power_cap_w, far.launch_idle, far.held_out) == (1.0, None, False, {}), (
        "the neighbour's own"
    )


@pytest.fixture(scope="module")
def carried():
    from records import study

    from qmeter.simulate.calibrate import calibrate

    near = calibrate(*study(), draws=4)
    return near, carry(PhysicsFit(E, 0.05, 3), near, Target("qwen2.5-14b", "fp8", "h100-sxm"))


def test_how_far_a_deployment_left_out_is_off_is_measured_or_unknown():
    """GIVEN nine deployments whose truths differ by 10%, two of them, or one.

    WHEN the form is fitted THEN what is said of one left out is about that, and nothing where none can be left out.
    """
    rng = np.random.default_rng(3)
    parts = []
    for k, method in enumerate(("bf16", "fp8", "awq-w4a16") * 3):
        place, seen = Target("llama-3.1-8b", method, "h200").placement(), steps(rng)
        parts.append((place, replace(seen, seconds=seconds(place, E, seen) * np.exp(0.1 * (-1) ** k))))
    nine = fit_physics(parts)
    assert 0.06 < nine.sigma < 0.2 and nine.off == f"a deployment left out is off by {nine.sigma:.1%}"
    assert fit_physics(parts[:3]).sigma not in (None, 0.05)
    for few in (1, 2):
        found = fit_physics(parts[:few])
        assert found.sigma is None and found.off.startswith("not checked")


def test_what_was_not_checked_is_carried_with_wide_intervals(carried, tmp_path):
    """GIVEN a fit that was not checked, and the file of an earlier version that says 5% instead THEN neither is
    believed to be 5% off."""
    near, checked = carried
    target = Target("qwen2.5-14b", "fp8", "h100-sxm")
    unknown = carry(PhysicsFit(E, None, 2), near, target)
    assert unknown.cell_sigma >= UNCHECKED_SIGMA > checked.cell_sigma and "not checked" in unknown.extrapolated
    assert "not checked" not in checked.extrapolated
    for sigma, kept in ((None, None), (0.05, None), (0.099, 0.099)):
        path = save([near], tmp_path / "c.json", physics_data(PhysicsFit(E, sigma, 9)))
        assert load_physics(path).sigma == kept


def test_a_carried_calibration_predicts(carried):
    from records import workload

    from qmeter.simulate import predict

    found = predict(carried[1], workload({"kind": "poisson", "rate": "4/s"}, 20.0), draws=6)
    q = found.metrics["tpot_mean_s"]
    assert 0.001 < q.low < q.value < q.high < 0.04
    assert found.energy["energy_j"].value is None


REFERENCE = Path(
    os.environ.get("QMETER_SILICON_TABLE") or Path(__file__).parents[3] / "shared" / "reference" / "silicon_h100.csv"
)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "simulate"))
    import physics_reference

    return physics_reference


def run(**more):
    return {"backend": "vllm", "model_path": "Qwen/Qwen3-32B", "precision": "", "isl": "1024", "osl": "128",
            "batch_size": "8", "tp_size": "2", "silicon_data_source": "source_file=/somewhere.csv"} | more  # fmt: skip


def test_each_source_of_public_runs_is_driven_as_it_was(bench):
    """GIVEN rows of four origins THEN budget, seats, chunks and lengths are those of their harness."""
    own = bench.harness(run()).rules(run())
    assert (own.token_budget, own.max_sequences, own.chunked_prefill, own.mixed) == (128 + 1024 + 1500, 128, True, True)
    many = run(backend="trtllm", batch_size="224", isl="4000")
    assert bench.harness(many).rules(many).token_budget == 224 + 4000 + 1500
    assert not bench.harness(many).rules(many).chunked_prefill
    prompts_first = bench.harness(run(backend="sglang")).rules(run())
    assert not prompts_first.mixed and prompts_first.token_budget == 8192
    dump = run(silicon_data_source="source_file=2026-04-06.csv; model=Llama")
    how = bench.harness(dump)
    assert (how.rules(dump).max_sequences, how.rules(dump).token_budget) == (8, 8192)
    drawn = bench.lengths(1000, 4000, how.shortest, np.random.default_rng(1))
    assert drawn.min() >= 800 and drawn.max() == 1000 and drawn.mean() == pytest.approx(900, rel=0.01)


def test_an_fp8_cache_is_half_as_large_only_beside_fp8_weights(bench):
    fp8 = [bench.placement(run(precision="fp8"), bits).kv_bytes_token for bits in (16, 8)]
    assert fp8[0] == 2 * fp8[1]
    assert bench.placement(run(), 8).kv_bytes_token == fp8[0]


def test_a_run_that_begins_all_at_once_waits_for_its_own_beginning(bench):
    """GIVEN equal lengths THEN the mean over all rounds is above the later rounds', by what the first one waited."""
    how, row = bench.harness(run()), run(batch_size="32")
    whole = bench.predicted(row, how, E)
    later = bench.predicted(row, replace(how, skipped=1), E)
    beginning = bench.predicted(row, replace(how, rounds=1), E)
    assert beginning[0] > whole[0] > later[0]
    assert whole[0] == pytest.approx(0.1 * beginning[0] + 0.9 * later[0], rel=0.02)


def test_a_calibrated_front_end_is_passed_both_ways(bench, carried):
    """GIVEN one request at a time THEN TTFT grows by the delays in and out and by the front end's own two times."""
    near = carried[0].model_copy(
        update={"input_s": 0.01, "output_s": 0.02, "input_each_s": 0.003, "output_seq_s": 1e-3}
    )
    how, row = bench.harness(run()), run(batch_size="1")
    bare, behind = bench.predicted(row, how, E), bench.predicted(row, how, E, near)
    assert behind[0] - bare[0] == pytest.approx(0.034, abs=1e-4)
    assert behind[1] == pytest.approx(bare[1], rel=1e-3)


@pytest.mark.skipif(not REFERENCE.is_file(), reason=f"there is no table of measured runs at {REFERENCE}")
def test_measured_h100_runs_are_predicted_better_than_by_a_kernel_database(bench):
    """aiconfigurator on its own table: TTFT 52.6%, TPOT 20.1%. Every eighth dense row, with the library's numbers."""
    found = bench.summary(bench.errors(bench.rows(REFERENCE)[::8], E))["all"]
    assert found["rows"] > 70
    assert found["tpot MAPE"] < 0.201 and found["ttft MAPE"] < 0.526


def test_placement_of_the_catalog():
    place = Target("llama-3.1-8b", "fp8", "h200").placement()
    assert place.compute == "fp8" and place.weight_bytes < 0.65 * EIGHT.weight_bytes
    assert isinstance(place, Placement) and place.shape == model("llama-3.1-8b")
