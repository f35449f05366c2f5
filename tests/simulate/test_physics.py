"""The physics form: known answers, what it must obey, and that its fit finds the efficiencies that made the data."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qmeter.catalog import device, model
from qmeter.errors import AnalysisError
from qmeter.simulate.carry import Target, as_basis, distance
from qmeter.simulate.observe import Observed
from qmeter.simulate.physics import Efficiencies, Placement, fit_physics, kv_blocks, seconds, step_model, terms
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


@pytest.fixture(scope="module")
def carried():
    from records import study

    from qmeter.simulate.calibrate import calibrate
    from qmeter.simulate.carry import carry
    from qmeter.simulate.physics import PhysicsFit

    near = calibrate(*study(), draws=4)
    return near, carry(PhysicsFit(E, 0.05, 3), near, Target("qwen2.5-14b", "fp8", "h100-sxm"))


def test_a_carried_calibration_predicts(carried):
    from records import workload

    from qmeter.simulate import predict

    found = predict(carried[1], workload({"kind": "poisson", "rate": "4/s"}, 20.0), draws=6)
    q = found.metrics["tpot_mean_s"]
    assert 0.001 < q.low < q.value < q.high < 0.04
    assert found.energy["energy_j"].value is None


REFERENCE = os.environ.get("QMETER_SILICON_TABLE", "")


@pytest.mark.skipif(not Path(REFERENCE).is_file(), reason="QMETER_SILICON_TABLE names no table of measured runs")
def test_measured_h100_runs_are_predicted_better_than_by_a_kernel_database():
    """aiconfigurator on its own table: TPOT 20.1%. Every eighth dense row here, with the library's efficiencies."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "simulate"))
    import physics_reference as bench

    found = bench.summary(bench.errors(bench.rows(Path(REFERENCE))[::8], E))["all"]
    assert found["tpot MAPE"] < 0.201


def test_placement_of_the_catalog():
    place = Target("llama-3.1-8b", "fp8", "h200").placement()
    assert place.compute == "fp8" and place.weight_bytes < 0.65 * EIGHT.weight_bytes
    assert isinstance(place, Placement) and place.shape == model("llama-3.1-8b")
