"""The front end between client and scheduler: one queue, and its times found in records."""

import json

import numpy as np
import pytest
from records import RULES, measured, truth, workload
from sim_loads import constant, load, model

from qmeter.simulate import fast, load_of, run_cell
from qmeter.simulate.front import Seen, input_cost, output_delay, queue
from qmeter.simulate.observe import observed_steps
from qmeter.simulate.quick import quick
from qmeter.simulate.rules import Rules
from qmeter.simulate.steptime import StepModel
from qmeter.spec.workload import WorkloadSpec
from qmeter.testing.deployments import made_calibration
from qmeter.workload import Vocabulary, build

SYNC = Rules(64, 8, 1000, async_scheduling=False)


def test_the_queue_is_its_recursion():
    rng = np.random.default_rng(3)
    ends, sequences, out, known = np.cumsum(rng.exponential(0.01, 300)), rng.integers(1, 200, 300), 0.0, []
    for at, n in zip(ends, sequences, strict=True):
        out = max(out, at) + 1e-4 * n
        known.append(out)
    np.testing.assert_allclose(queue(ends, sequences.astype(float), 1e-4), known, rtol=0, atol=1e-12)
    taken, out, known = np.sort(rng.uniform(0, ends[-1], 200)), 0.0, []
    for at, cost in sorted([*((t, 7e-4) for t in taken), *zip(ends, 1e-4 * sequences, strict=True)]):
        out = max(out, at) + cost
        known += [out] if at in ends else []
    np.testing.assert_allclose(queue(ends, sequences.astype(float), 1e-4, taken, 7e-4), known, rtol=0, atol=1e-12)


def test_the_simulator_sends_tokens_on_by_the_queue_that_is_fitted():
    rng = np.random.default_rng(4)
    made = load(np.cumsum(rng.exponential(0.02, 60)), rng.integers(1, 90, 60), rng.integers(2, 60, 60))
    run = fast.simulate(made, Rules(256, 16, 4000), model(noise=1, output_seq_s=1e-3), detail=True)
    d = run.detail
    ends = d.step_start_s + d.step_s
    known = queue(ends, (d.step_decodes + d.step_prefill > 0) * d.step_running.astype(float), 1e-3)
    np.testing.assert_allclose(d.step_out_s, known, rtol=0, atol=1e-9)
    at = np.searchsorted(ends, np.array([run.first_s, run.end_s]) - 1e-9)
    np.testing.assert_allclose([run.first_out_s, run.end_out_s], d.step_out_s[at], rtol=0, atol=1e-9)
    assert (run.end_out_s - run.end_s).max() > 10e-3


def test_a_searchs_quick_numbers_count_the_front_end_as_a_simulated_cell_does():
    made = made_calibration(output_seq_s=2e-3, input_each_s=7e-4)
    spec = workload({"kind": "poisson", "rate": "5/s"}, 30.0)
    schedule = build(spec, 4, Vocabulary(size=1000))
    found = quick(made, spec, schedule, seed=2, noise=True)
    r = run_cell(made, schedule, seed=2).tables.requests
    due = (r.sent_s >= 2.0) & (r.sent_s < 32.0)
    assert found["ttft_mean_s"] == pytest.approx((r.first_token_s - r.sent_s)[due].mean(), rel=1e-9)
    tpot = (r.last_token_s - r.first_token_s) / (r.output_tokens - 1)
    assert found["tpot_mean_s"] == pytest.approx(tpot[due].mean(), rel=1e-9)


def slow_front(each_s, **more):
    return StepModel(np.full(2, 0.01), np.full(2, 0.01), output_seq_s=each_s, **more)


def test_a_closed_loop_waits_for_a_front_end_that_falls_behind():
    """GIVEN 4 in flight, 10 ms a step and 5 ms a token THEN a round of 10 steps takes 10 x 4 x 5 ms, not 100 ms."""
    made = load(np.zeros(40), np.full(40, 4), np.full(40, 10), concurrency=4)
    quick, slow = fast.simulate(made, SYNC, slow_front(0.0)), fast.simulate(made, SYNC, slow_front(0.005))
    np.testing.assert_allclose(quick.arrival_s[4::4], 0.1 * np.arange(1, 10))
    np.testing.assert_allclose(np.diff(slow.arrival_s[4::4]), 0.2 + 0.01, atol=0.011)


def test_a_request_waits_until_the_outputs_before_it_are_out():
    """GIVEN 8 sequences whose outputs take 160 ms a step of 10 ms THEN a request that comes at 50 ms is late."""
    arrivals = np.concatenate([np.zeros(7), [0.05]])
    made = load(arrivals, np.full(8, 4), np.full(8, 20))
    assert fast.simulate(made, SYNC, slow_front(0.0)).first_s[-1] == pytest.approx(0.06)
    first = fast.simulate(made, SYNC, slow_front(0.02)).first_s[-1]
    assert first > 0.01 * 20  # the engine ended all the others meanwhile
    assert first == pytest.approx(0.01 + 5 * 7 * 0.02 + 0.01, abs=0.02 * 7)


def test_requests_that_come_together_get_through_together():
    steps = slow_front(0.0, input_each_s=0.003)
    run = fast.simulate(load([0.0, 0.1, 0.1, 0.1], [4] * 4, [1] * 4), SYNC, steps)
    assert run.first_s[0] == pytest.approx(0.013)
    np.testing.assert_allclose(run.first_s[1:], 0.1 + 3 * 0.003 + 0.01)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_that_came_before_a_steps_outputs_goes_before_them(asynchronous):
    """GIVEN 2 ms at the front end WHEN a request comes 7 ms before outputs THEN it is in the step decided with them.

    Processed after those outputs, as it once was, it would miss that decision and wait one step more.
    """
    rules = Rules(64, 8, 1000, async_scheduling=asynchronous)
    slow = slow_front(1e-4, input_each_s=0.002)
    run = fast.simulate(load([0.0, 0.1], [4, 4], [30, 1]), rules, slow, detail=True)
    assert run.detail is not None
    ends = run.detail.step_start_s + run.detail.step_s
    decided = float(ends[ends >= 0.1][0])  # when the outputs of the running step are seen
    arrival = decided - 0.007
    late = fast.simulate(load([0.0, arrival], [4, 4], [30, 1]), rules, slow).first_s[1]
    assert late == pytest.approx(decided + (0.02 if asynchronous else 0.01), abs=1e-6)


def test_its_times_are_found_in_records():
    spec = workload({"kind": "closed", "concurrency": 48}, 6.0)
    from dataclasses import replace

    true = replace(truth(noise=0.0), output_seq_s=2e-4, input_each_s=5e-4, input_s=0.001)
    record, tables = measured(spec, model=true)
    seen = [Seen(record.cell["workload"], tables, observed_steps(tables))]
    constant_s, each_s = output_delay(seen)
    assert each_s == pytest.approx(2e-4, rel=0.1) and constant_s == pytest.approx(5e-4, abs=3e-4)
    assert input_cost(seen, "vllm", 0.0015) == pytest.approx(5e-4, rel=0.15)
    light, light_tables = measured(workload({"kind": "poisson", "rate": "1/s"}, 6.0), model=true)
    only = [Seen(light.cell["workload"], light_tables, observed_steps(light_tables))]
    assert input_cost(only, "openvino", 0.0) == 0.0 < input_cost(only, "vllm", 0.0)


@pytest.mark.parametrize("input_each_s", [1e-3, 2e-3])
def test_a_front_end_full_of_requests_is_not_taken_for_slow_outputs(input_each_s):
    """GIVEN answers of 10 tokens and a request's time like theirs WHEN it is always busy THEN a token's time shows."""
    from dataclasses import replace

    short = {"prompt_tokens": {"kind": "uniform", "low": 20, "high": 60},
             "output_tokens": {"kind": "uniform", "low": 4, "high": 16}}  # fmt: skip
    true = replace(truth(noise=0.0), output_seq_s=2e-4, input_each_s=input_each_s, input_s=0.001)
    record, tables = measured(workload({"kind": "closed", "concurrency": 48}, 6.0, **short), model=true)
    seen = [Seen(record.cell["workload"], tables, observed_steps(tables))]
    assert output_delay(seen, 0.001, input_each_s)[1] == pytest.approx(2e-4, rel=0.1)
    assert abs(output_delay(seen)[1] / 2e-4 - 1) > 0.2, "without them it is not: that is what they are passed for"


def test_mooncakes_hashes_are_prefix_hits(tmp_path):
    """GIVEN a trace whose rows share leading 512-token blocks THEN those blocks, and no others, are found again."""
    rows = [
        {"timestamp": 0, "input_length": 1024, "output_length": 4, "hash_ids": [1, 2]},
        {"timestamp": 1000, "input_length": 1500, "output_length": 4, "hash_ids": [1, 2, 3]},
        {"timestamp": 2000, "input_length": 1024, "output_length": 4, "hash_ids": [9, 2]},
        {"timestamp": 3000, "input_length": 1536, "output_length": 4, "hash_ids": [1, 7, 8]},
        {"timestamp": 9000, "input_length": 10, "output_length": 4, "hash_ids": [99]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    spec = WorkloadSpec.model_validate(
        {"name": "m", "arrivals": {"kind": "trace", "path": str(path), "format": "mooncake"}, "warmup": "0s",
         "prompt_tokens": {"kind": "trace"}, "output_tokens": {"kind": "trace"}, "window": "5s", "drain": "5s"}
    )  # fmt: skip
    from dataclasses import replace

    rules = replace(RULES, prefix_cache=True)
    made = load_of(build(spec, 1, Vocabulary(size=32000)), rules)
    run = fast.simulate(made, rules, constant(0.01))
    assert list(run.hit_tokens) == [0, 1024, 0, 512]
    assert not fast.simulate(made, RULES, constant(0.01)).hit_tokens.any()
