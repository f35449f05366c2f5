"""The fast mode against the step-by-step one, and what must hold in any run."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sim_loads import cases, constant, load, model

from qmeter.errors import AnalysisError
from qmeter.simulate import fast, reference
from qmeter.simulate.load import SimLoad
from qmeter.simulate.rules import Rules
from qmeter.simulate.runs import run_seconds, steps_until
from qmeter.simulate.steptime import Pipeline

ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CLOSE = {"rtol": 0, "atol": 1e-9, "equal_nan": True}


@ANY
@given(cases())
def test_fast_equals_step_by_step_to_a_nanosecond(case):
    made, rules, steps = case
    slow = reference.simulate_steps(made, rules, steps)
    for detail in (False, True):
        quick = fast.simulate(made, rules, steps, detail=detail)
        np.testing.assert_allclose(quick.first_s, slow.first_s, **CLOSE)
        np.testing.assert_allclose(quick.end_s, slow.end_s, **CLOSE)
        np.testing.assert_allclose(quick.first_out_s, slow.first_out_s, **CLOSE)
        np.testing.assert_allclose(quick.end_out_s, slow.end_out_s, **CLOSE)
        assert (quick.steps, list(quick.preemptions)) == (slow.steps, list(slow.preemptions))
        assert quick.busy_s == pytest.approx(slow.busy_s, abs=1e-9)
        assert quick.energy_j == pytest.approx(slow.energy_j, rel=1e-9)
    np.testing.assert_allclose(quick.detail.token_s, slow.detail.token_s, **CLOSE)
    np.testing.assert_allclose(quick.detail.step_out_s, slow.detail.step_out_s, **CLOSE)
    for column in ("step_decodes", "step_prefill", "step_used", "step_running", "step_waiting", "step_kv"):
        np.testing.assert_array_equal(getattr(quick.detail, column), getattr(slow.detail, column), err_msg=column)


@ANY
@given(cases())
def test_conservation(case):
    made, rules, steps = case
    run = fast.simulate(made, rules, steps, detail=True)
    d = run.detail
    served = np.isfinite(run.end_s)
    assert served.all()  # every request ends, once
    np.testing.assert_array_equal(np.diff(d.token_start), made.output)  # tokens out = tokens asked
    assert d.step_used.min() >= 0 and d.step_used.max() <= rules.usable_blocks
    assert (d.step_decodes + d.step_prefill).max() <= rules.token_budget
    assert d.step_running.max() <= rules.max_sequences
    if not run.preemptions.any():
        assert d.step_prefill.sum() == made.prompt.sum()  # tokens in = tokens computed
        assert d.step_decodes.sum() == (made.output - 1).sum()
    ends = d.step_start_s + d.step_s
    assert (np.diff(d.step_start_s) > 0).all() and (d.step_start_s[1:] >= ends[:-1] - 1e-12).all()
    assert all(np.all(np.diff(d.token_s[a:b]) > 0) for a, b in zip(d.token_start, d.token_start[1:], strict=False))


@ANY
@given(cases())
def test_first_tokens_come_in_order_of_arrival(case):
    made, rules, steps = case
    run = fast.simulate(made, rules, steps)
    if not run.preemptions.any():
        assert (np.diff(run.first_s) >= 0).all()


@ANY
@given(cases())
def test_work_conservation(case):
    """GIVEN a front end that takes no time THEN the engine is idle only while nobody is in the system."""
    made, rules, steps = case
    steps = replace(steps, output_seq_s=0.0, input_each_s=0.0)
    run = fast.simulate(made, rules, steps, detail=True)
    ends = run.detail.step_start_s + run.detail.step_s
    for stop, start in zip(ends, run.detail.step_start_s[1:], strict=False):
        if start > stop + 1e-12:
            inside = (run.arrival_s < start - 1e-9) & (run.end_s > stop + 1e-9)
            assert not inside.any()


def test_prefix_cache_equals_the_block_wise_pool_where_no_block_is_copied():
    rng = np.random.default_rng(5)
    for seed in range(25):
        made, rules = shared_prompts(np.random.default_rng(seed), room=100)
        slow, quick = reference.simulate_steps(made, rules, model()), fast.simulate(made, rules, model())
        np.testing.assert_allclose(quick.end_s, slow.end_s, **CLOSE)
        np.testing.assert_array_equal(quick.hit_tokens, slow.hit_tokens)
    assert quick.hit_tokens.sum() > 0
    made, rules = shared_prompts(rng, room=3)  # evictions
    slow, quick = reference.simulate_steps(made, rules, model()), fast.simulate(made, rules, model())
    np.testing.assert_allclose(quick.end_s, slow.end_s, rtol=0.02)


def shared_prompts(rng, room):
    n, block, inside = 40, 4, 2
    prompts, outputs = rng.integers(1, 200, n), rng.integers(1, 80, n)
    units, start, own, family = [], [0], 10_000, {}
    for i in range(n):
        count = int(prompts[i]) // (block * inside)
        common, kind = int(rng.integers(0, count + 1)), int(rng.integers(3))
        for j in range(count):
            own += 1
            units.append(family.setdefault((kind, j), len(family)) if j < common else own)
        start.append(len(units))
    rules = Rules(256, 16, int(room * 75), block, prefix_cache=True)
    arrivals = np.sort(rng.uniform(0, 1, n))
    return SimLoad(arrivals, prompts, outputs, block * inside, np.array(units), np.array(start)), rules


def test_agrees_with_m_d_1():
    """GIVEN Poisson arrivals and one request at a time of fixed length THEN the wait is rho s / (2 (1 - rho))."""
    rng = np.random.default_rng(1)
    service, rho, n = 0.01, 0.7, 200_000
    rules = Rules(64, 1, 100, async_scheduling=False)
    made = load(np.cumsum(rng.exponential(service / rho, n)), np.full(n, 8), np.full(n, 1))
    run = fast.simulate(made, rules, constant(service))
    wait = (run.first_s - run.arrival_s).mean() - service
    assert wait == pytest.approx(rho * service / (2 * (1 - rho)), rel=0.03)


def test_littles_law():
    """GIVEN a loaded replica THEN mean sequences in system = arrival rate x mean time in system."""
    rng = np.random.default_rng(2)
    n = 4000
    made = load(np.cumsum(rng.exponential(0.05, n)), rng.integers(1, 300, n), rng.integers(1, 60, n))
    run = fast.simulate(made, Rules(2048, 64, 4000), model(), detail=True)
    edges = np.sort(np.concatenate([run.arrival_s, run.end_s]))
    inside = np.searchsorted(np.sort(run.arrival_s), edges, side="right") - np.searchsorted(
        np.sort(run.end_s), edges, side="right"
    )
    span = run.end_s.max() - run.arrival_s[0]
    mean_inside = (inside[:-1] * np.diff(edges)).sum() / span
    assert mean_inside == pytest.approx(n / span * (run.end_s - run.arrival_s).mean(), rel=1e-6)


@given(st.floats(0, 0.02), st.floats(1e-4, 0.02), st.floats(0, 1e-3), st.integers(1, 2000), st.floats(0, 1.1))
def test_closed_form_equals_the_sum_and_its_inverse(floor, first, slope, steps, share):
    each = np.maximum(floor, first + slope * np.arange(steps))
    assert run_seconds(floor, first, slope, steps) == pytest.approx(each.sum(), rel=1e-10)
    target = share * each.sum()
    found = steps_until(floor, first, slope, target, steps)
    total = np.concatenate(([0.0], np.cumsum(each)))
    assert found == steps or total[found] >= target * (1 - 1e-9)
    assert found == 0 or total[found - 1] <= target * (1 + 1e-9)


def test_pipeline_where_the_device_is_slower_each_step_lasts_the_devices_time():
    p = Pipeline(asynchronous=True, tail_s=0.001)
    seen = [p.launch(0.002, 0.010) for _ in range(50)]
    assert seen[0] is None
    np.testing.assert_allclose(np.diff(seen[2:]), 0.010, atol=1e-12)


def test_pipeline_where_the_host_is_slower_each_step_lasts_the_hosts_time():
    p = Pipeline(asynchronous=True, tail_s=0.001)
    seen = [p.launch(0.020, 0.010) for _ in range(50)]
    np.testing.assert_allclose(np.diff(seen[2:]), 0.020, atol=1e-12)


def test_pipeline_a_slow_launch_delays_the_results_of_the_step_before_it():
    """As measured on vLLM 0.25 with an H200: decode 5.3 ms, then 25.1, 3.5 and 4.3 ms around one 512-token prompt."""
    p = Pipeline(asynchronous=True, tail_s=0.0025)
    seen = [p.launch(0.0035, 0.0053) for _ in range(10)]
    seen += [p.launch(0.0251, 0.015)] + [p.launch(0.0035, 0.0053) for _ in range(5)]
    gaps = np.diff([s for s in seen if s is not None])
    np.testing.assert_allclose(gaps[8:13], [0.0251, 0.0035, 0.0043, 0.0053, 0.0053], atol=2e-4)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (load([0, 0], [5, 2000], [1, 1]), "can never run"),
        (load([1, 0], [5, 5], [1, 1]), "ascend"),
        (load([0], [0], [1]), "at least one prompt"),
    ],
)
def test_impossible_loads_are_refused(made, says):
    with pytest.raises(AnalysisError, match=says):
        fast.simulate(made, Rules(64, 4, 50), model())


def test_an_empty_load_is_no_work():
    run = fast.simulate(load([], [], []), Rules(64, 4, 50), model(), detail=True)
    assert (run.steps, run.busy_s, len(run.detail.token_s)) == (0, 0.0, 0)


def test_the_kernel_runs_without_numba(monkeypatch):
    """GIVEN the compiled functions' plain Python bodies THEN a run gives the same."""
    import importlib

    from qmeter.simulate import jit, kernel, prefix

    made = load(np.linspace(0, 1, 20), np.full(20, 50), np.full(20, 10))
    compiled = fast.simulate(made, Rules(64, 4, 50), model())
    monkeypatch.setattr(jit, "COMPILED", False)
    try:
        for module in (prefix, kernel, fast):
            importlib.reload(module)
        plain = fast.simulate(made, Rules(64, 4, 50), model())
    finally:
        monkeypatch.undo()
        for module in (prefix, kernel, fast):
            importlib.reload(module)
    np.testing.assert_allclose(plain.end_s, compiled.end_s, **CLOSE)
