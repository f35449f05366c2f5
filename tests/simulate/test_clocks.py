"""The power cap: what the clock does to steps and energy, and that it is found in records."""

from dataclasses import replace

import numpy as np
import pytest
from records import measured, study, truth, workload
from sim_loads import load, model

from qmeter.record import Telemetry
from qmeter.simulate import calibrate, fast, run_cell, simulate_steps
from qmeter.simulate.clocks import LEAST_CLOCK, capped_clock, power_cap, saved_share, step_clocks
from qmeter.simulate.engine import step_energy
from qmeter.simulate.fit import Basis, nonnegative, tiled
from qmeter.simulate.mixed import MixedShape, expected, knots_of
from qmeter.simulate.observe import observed_steps
from qmeter.simulate.overlap import waits
from qmeter.simulate.rules import Rules
from qmeter.workload import Vocabulary, build

RULES = Rules(2048, 64, 4000)
BUSY_W, LIMIT_W = 300.0, 500.0


def full_prefills(n=60, **more):
    """A row of full prefill steps of 60 ms, which at full clock draw 300 W + 30 J / 0.06 s = 800 W."""
    steps = model(kv_s=0, pair_s=0, chunk_s=0, kv_j=0, pair_j=0, decode_j=np.zeros(1), busy_w=BUSY_W,
                  draw_host=(0, 0, 0), **more)  # fmt: skip
    steps = replace(steps, mixed_j=30 / 2048 * np.arange(2049.0), mixed_clock_s=steps.mixed_s)
    return fast.simulate(load(np.zeros(n), np.full(n, 2048), np.ones(n, int)), RULES, steps, detail=True), steps


def watts(run, steps):
    return step_energy(run.detail, steps).sum() / run.detail.step_s.sum()


def test_sustained_power_settles_at_the_limit_and_steps_get_longer():
    """GIVEN steps whose time goes with 1 / clock and energy with its square THEN (800 - 300) clock^3 = 500 - 300."""
    free, steps = full_prefills()
    assert watts(free, steps) == pytest.approx(800, rel=0.01) and (free.detail.step_clock == 1).all()
    held, steps = full_prefills(cap_w=LIMIT_W)
    assert held.detail.step_clock[-10:] == pytest.approx((200 / 500) ** (1 / 3), rel=0.01)
    assert held.detail.step_s[-10:] == pytest.approx(0.06 / held.detail.step_clock[-10:], rel=0.01)
    late = step_energy(held.detail, steps)[-20:].sum() / held.detail.step_s[-20:].sum()
    assert late == pytest.approx(LIMIT_W, rel=0.01)


def test_one_prefill_may_exceed_the_limit_for_a_moment():
    one, _ = full_prefills(1, cap_w=LIMIT_W)
    assert one.detail.step_clock[0] == 1.0
    slow, _ = full_prefills(1, cap_w=LIMIT_W, settle_s=0.01)
    assert slow.detail.step_clock[0] < 1.0, "not where the average settles within the step"


def test_a_burst_meets_the_same_clocks_whenever_it_comes():
    """GIVEN a burst at once, and the same after ten idle seconds THEN each step has the same clock: no average
    remembers idle time as work."""
    steps = model(kv_s=0, pair_s=0, chunk_s=0, kv_j=0, pair_j=0, decode_j=np.zeros(1), busy_w=BUSY_W, idle_w=90.0,
                  draw_host=(0, 0, 0), cap_w=LIMIT_W)  # fmt: skip
    steps = replace(steps, mixed_j=30 / 2048 * np.arange(2049.0), mixed_clock_s=steps.mixed_s)
    for run in (fast.simulate, simulate_steps):
        own = [run(load(np.full(6, at), np.full(6, 2048), np.ones(6, int)), RULES, steps)
               for at in (0.0, 10.0)]  # fmt: skip
        waited = [r.first_s - r.arrival_s for r in own]
        np.testing.assert_allclose(waited[0], waited[1], rtol=1e-6)
    clocks = fast.simulate(load(np.full(6, 10.0), np.full(6, 2048), np.ones(6, int)), RULES, steps, detail=True)
    assert clocks.detail.step_clock[0] == 1.0 and clocks.detail.step_clock[-1] < 0.9


def test_without_a_limit_nothing_changes_and_a_limit_out_of_reach_is_none():
    free, _ = full_prefills()
    high, _ = full_prefills(cap_w=900.0)
    np.testing.assert_array_equal(free.first_s, high.first_s)
    assert free.energy_j == high.energy_j


def test_the_clock_never_falls_below_its_least():
    args = (LIMIT_W, LIMIT_W, 0.1, 0.05, 0.001, 0.0, 490.0, 100.0, 50.0)
    assert capped_clock(*args) == pytest.approx(LEAST_CLOCK, abs=1e-6)


def test_decodes_save_energy_until_the_clock_is_back():
    assert saved_share(1.0, 1.0, 0.1) == 0.0
    assert saved_share(0.7, 1e-6, 0.1) == pytest.approx(1 - 0.49, rel=1e-3)
    assert saved_share(0.7, 10.0, 0.1) == pytest.approx(0.51 * 0.01, rel=1e-3)


def test_a_device_that_waits_for_a_launch_draws_less():
    """GIVEN launches of 25 ms and steps of 10 THEN 15 ms of each draw 80 W instead of 300."""
    n = 20
    made = load(np.arange(n) * 1.0, np.full(n, 100), np.ones(n, int))
    steps = model(draw_host=(0.0, 0.025, 0.0), busy_w=BUSY_W)
    slow, less = fast.simulate(made, RULES, steps), fast.simulate(made, RULES, replace(steps, launch_w=80.0))
    device = steps.mixed_device(0, 0.0, 100, 100 * 101 / 2, 1)
    assert slow.energy_j - less.energy_j == pytest.approx(n * (BUSY_W - 80) * (0.025 - device), rel=1e-6)


def test_waits_for_launches_are_seen_in_the_step_before():
    _, tables = measured(workload({"kind": "poisson", "rate": "2/s"}, 6.0), model=truth(noise=0.0))
    steps = observed_steps(tables)
    device = np.where(steps.prefill > 0, 0.008, 0.0065)
    found = waits(steps, device)
    assert (found >= 0).all() and found[steps.prefill == 0].max() < 0.012
    after = np.append(steps.prefill[1:] > 0, False)
    assert found[(steps.prefill == 0) & ~after].max() == 0.0


def with_clocks(tables, hz, limit_w):
    t = np.arange(0.0, 12.0, 0.1)
    names = np.repeat(np.array(["gpu0.sm_clock_hz", "gpu0.power_limit_w"], dtype=object), len(t))
    more = Telemetry(series=names, t_s=np.tile(t, 2), value=np.concatenate([hz(t), np.full(len(t), limit_w)]))
    old = tables.telemetry.columns()
    joined = Telemetry(**{n: np.concatenate([c, more.columns()[n]]) for n, c in old.items()})
    return replace(tables, telemetry=joined)


def test_the_limit_is_found_in_records_and_unknown_where_there_is_none():
    records, tables = study()
    plain = calibrate(records, tables, draws=3)
    assert plain.power_cap_w is None and plain.why_no_cap == "the records hold no power limit"
    assert plain.step_model().cap_w == np.inf
    clocked = {r.cell_id: with_clocks(tables(r), lambda t: np.full(len(t), 1.98e9), 700.0) for r in records}
    known = calibrate(records, lambda r: clocked[r.cell_id], draws=3)
    assert known.power_cap_w == pytest.approx(0.985 * 700) and known.why_no_cap is None
    assert known.step_model().cap_w == known.power_cap_w
    two = [clocked[records[0].cell_id], with_clocks(tables(records[0]), lambda t: np.full(len(t), 1e9), 400.0)]
    assert power_cap(two) == (None, "the cells ran under limits from 400 to 700 W")


def test_clocks_of_steps_are_shares_of_the_full_one_and_ones_where_unknown():
    _, tables = measured(workload({"kind": "poisson", "rate": "2/s"}, 6.0))
    steps = observed_steps(tables)
    assert (step_clocks(tables, steps, None) == 1).all()
    half = with_clocks(tables, lambda t: np.where(t < 4, 2e9, 1.5e9), 700.0)
    found = step_clocks(half, steps, 2e9)
    assert found[steps.end_s < 3.5] == pytest.approx(1.0) and found[steps.start_s > 4.5] == pytest.approx(0.75)


def test_simulated_telemetry_holds_the_energy_of_the_run():
    calibration = calibrate(*study(), draws=3)
    capped = calibration.model_copy(update={"power_cap_w": 260.0})
    schedule = build(workload({"kind": "closed", "concurrency": 24}), 3, Vocabulary(size=1000))
    cell, held = run_cell(calibration, schedule), run_cell(capped, schedule)
    for c, one in ((cell, calibration), (held, capped)):
        spent = step_energy(c.result.detail, one.step_model())
        assert spent.sum() == pytest.approx(c.result.energy_j, rel=1e-9)
    assert held.result.detail.step_clock.min() < 1 == cell.result.detail.step_clock.min()


def test_tokens_are_rounded_up_to_whole_tiles():
    assert tiled(np.array([1, 3, 200, 256, 257, 512, 513]), 256).tolist() == [1, 4, 256, 256, 512, 512, 768]
    assert tiled(np.array([1, 3, 257]), 1).tolist() == [1, 3, 257]
    basis = Basis((1.0, 8.0), (256.0, 512.0, 1024.0), tile=256, mixed_clock=(0.0, 0.5, 1.0))
    _, mixed = basis.tables(np.array([0.01, 0, 0.02, 0.01, 0.01, 0, 0, 0]), 8, 1024)
    assert mixed[300] == mixed[512] == pytest.approx(0.03) and mixed[513] == mixed[768] == pytest.approx(0.035)
    assert basis.clocked(mixed)[512] == pytest.approx(0.015) and basis.clocked(mixed)[1024] == pytest.approx(0.04)
    assert not Basis((1.0,), (1.0,)).clocked(mixed).any(), "unknown: nothing goes with the clock"


def test_the_shape_reads_the_weights_or_multiplies_by_them():
    knots = knots_of(256, 8192)
    assert knots[0] == 16 and knots[-1] == 8192 and 768 in knots
    shape = MixedShape(256, knots, 4e-3, 2e-5, 0.1, 1e-9, 0.1)
    seconds = shape.seconds(np.array([2e-5, 1e-3]), np.zeros(len(knots)))
    assert seconds[0] == pytest.approx(5e-3, rel=1e-3) and seconds[-1] == pytest.approx(1e-3 + 2e-5 * 8192, rel=1e-3)
    share = shape.clocked(np.array([2e-5, 1e-3]))
    assert share[0] < 0.01 and share[-1] > 0.99 and (np.diff(share) > 0).all()


def test_the_catalog_tells_what_a_token_a_pair_and_a_kv_token_take():
    found = expected("llama-3.1-8b", "bf16", "h200", "vllm", 1)
    assert found is not None
    assert found.token_s == pytest.approx(2 * 6.98e9 / (0.75 * 989e12), rel=0.05)
    assert found.kv_s == pytest.approx(131072 / (0.9 * 4.8e12), rel=0.05)
    assert expected("llama-3.1-8b", "bf16", "no-such-device", "vllm", 1) is None


def test_a_column_without_data_has_no_coefficient():
    design = np.column_stack([np.ones(5), np.zeros(5), np.arange(5.0)])
    found = nonnegative(design.T @ design, design.T @ (2 + 3 * np.arange(5.0)))
    assert found == pytest.approx([2.0, 0.0, 3.0])
