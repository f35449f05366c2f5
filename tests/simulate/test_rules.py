"""Each rule of vLLM V1's scheduler, on the smallest case that shows it."""

import numpy as np
import pytest
from sim_loads import constant, load

from qmeter.errors import AnalysisError
from qmeter.record import EffectiveConfig
from qmeter.simulate import rules as r
from qmeter.simulate.reference import simulate_steps
from qmeter.simulate.rules import Rules

SYNC = {"async_scheduling": False}


def run(made, rules, seconds=1.0):
    return simulate_steps(made, rules, constant(seconds))


def test_running_requests_come_first_and_prompts_take_what_is_left():
    """vLLM: 'First, schedule the RUNNING requests', then WAITING with the rest of the token budget."""
    d = run(load([0, 0.5], [6, 30], [9, 1]), Rules(8, 4, 100, **SYNC)).detail
    assert list(d.step_prefill[:5]) == [6, 7, 7, 7, 7]
    assert list(d.step_decodes[:5]) == [0, 1, 1, 1, 1]


def test_several_prompts_share_a_step_up_to_the_budget():
    d = run(load([0, 0, 0], [3, 3, 9], [1, 1, 1]), Rules(8, 4, 100, **SYNC)).detail
    assert list(d.step_prefill) == [8, 7]


def test_head_of_line_blocks_smaller_requests_behind_it():
    """vLLM: 'The request cannot be scheduled': break, not continue."""
    result = run(load([0, 0, 0], [30, 60, 2], [20, 2, 2]), Rules(256, 4, 9, 8, **SYNC))
    assert result.first_s[2] >= result.first_s[1] > result.end_s[0] - 1


def test_the_full_prompt_must_fit_at_admission():
    """vLLM: scheduler_reserve_full_isl. Without it the first chunk's blocks are enough."""
    made = load([0, 0], [60, 64], [4, 2])
    reserved = run(made, Rules(8, 4, 17, 8, **SYNC)).detail
    eager = run(made, Rules(64, 4, 17, 8, reserve_full_prompt=False, **SYNC)).detail
    assert reserved.step_running[0] == 1
    assert eager.step_running[0] == 2


def test_sequence_limit():
    d = run(load([0] * 5, [2] * 5, [4] * 5), Rules(64, 2, 100, **SYNC)).detail
    assert d.step_running.max() == 2


def test_one_block_is_never_handed_out():
    """vLLM: block_pool's null_block."""
    assert Rules(8, 4, 10, 16).usable_blocks == 9
    assert Rules(8, 4, 10, 16, null_block=False).usable_blocks == 10


def test_preemption_takes_the_last_admitted_and_recomputes_it():
    """vLLM: running.pop(), num_computed_tokens = 0, prepend to waiting; it resumes with prompt + output to prefill."""
    rules = Rules(64, 4, 5, 4, null_block=False, **SYNC)
    result = run(load([0, 0], [8, 8], [8, 8]), rules)
    assert list(result.preemptions) == [0, 1]
    resumed = result.detail.step_prefill[result.detail.step_prefill > 0]
    assert list(resumed) == [16, 9]  # both prompts, then prompt and the one token it had
    assert result.end_s[0] < result.end_s[1]


def test_nobody_is_admitted_in_a_step_that_preempted():
    """vLLM: 'if not preempted_reqs'. The third request would fit into what the victim gave back."""
    rules = Rules(64, 4, 5, 4, null_block=False, **SYNC)
    d = run(load([0, 0, 0.5], [8, 8, 1], [8, 8, 1]), rules).detail
    preempting = int(np.flatnonzero(np.diff(d.step_running) < 0)[0]) + 1
    assert d.step_prefill[preempting] == 0 and d.step_waiting[preempting] >= 1


def test_prefix_hits_stop_before_the_last_token():
    """vLLM: max_cache_hit_length = num_tokens - 1, so a prompt found whole computes its last block again."""
    units, start = np.array([0, 1, 0, 1]), np.array([0, 2, 4])
    made = load([0, 5], [8, 8], [1, 1], unit_tokens=4, units=units, unit_start=start)
    result = run(made, Rules(64, 4, 50, 4, prefix_cache=True, **SYNC))
    assert list(result.hit_tokens) == [0, 4]
    assert list(result.detail.step_prefill) == [8, 4]


def test_a_prefix_is_found_as_soon_as_its_blocks_are_allocated():
    """vLLM: cache_blocks is called by allocate_slots, before the step ran."""
    units, start = np.array([0, 1, 0, 2]), np.array([0, 2, 4])
    made = load([0, 0], [9, 9], [1, 1], unit_tokens=4, units=units, unit_start=start)
    result = run(made, Rules(64, 4, 50, 4, prefix_cache=True, **SYNC))
    assert list(result.detail.step_prefill) == [9 + 5]


def test_a_preempted_request_finds_its_own_blocks_again():
    """vLLM: freed blocks keep their hash until evicted."""
    rules = Rules(64, 4, 5, 4, null_block=False, prefix_cache=True, **SYNC)
    d = run(load([0, 0], [8, 8], [8, 8]), rules).detail
    assert list(d.step_prefill[d.step_prefill > 0])[1] < 9


def test_async_scheduling_sees_an_arrival_one_step_later():
    """vLLM: step_with_batch_queue schedules step k while step k-1 runs."""
    made = load([0, 2.5], [4, 4], [10, 1])
    sync, asynchronous = (run(made, Rules(64, 4, 100, async_scheduling=a)) for a in (False, True))
    assert sync.first_s[1] == 4.0  # waits for the step that ends at 3
    assert asynchronous.first_s[1] == 5.0  # step 3..4 was decided at 2


def test_async_scheduling_holds_a_seat_for_one_more_step():
    made = load([0, 0], [4, 4], [3, 1])
    sync, asynchronous = (run(made, Rules(64, 1, 100, async_scheduling=a)) for a in (False, True))
    assert (sync.first_s[1], asynchronous.first_s[1]) == (4.0, 4.0)  # nothing else runs: the pipeline drains
    made = load([0, 0, 0], [4, 4, 4], [3, 9, 1])
    sync, asynchronous = (run(made, Rules(64, 2, 100, async_scheduling=a)) for a in (False, True))
    assert (sync.first_s[2], asynchronous.first_s[2]) == (4.0, 5.0)


def test_prompts_in_steps_of_their_own():
    d = run(load([0, 1.5], [4, 4], [6, 2]), Rules(64, 4, 100, mixed=False, **SYNC)).detail
    assert not np.any((d.step_prefill > 0) & (d.step_decodes > 0))


def test_without_chunking_a_prompt_waits_for_a_step_that_holds_it():
    d = run(load([0, 0], [6, 6], [1, 1]), Rules(8, 4, 100, chunked_prefill=False, **SYNC)).detail
    assert list(d.step_prefill) == [6, 6]


def test_capture_sizes_and_padding():
    """vLLM config: [1, 2, 4] + range(8, 256, 8) + range(256, max + 1, 16), max = min(2 max_num_seqs, 512)."""
    sizes = r.capture_sizes(256, 8192)
    assert sizes[:5] == (1, 2, 4, 8, 16) and sizes[-1] == 512 and 248 in sizes and 264 not in sizes
    assert [r.padded(n, sizes) for n in (1, 3, 5, 9, 250, 257, 600)] == [1, 4, 8, 16, 256, 272, 600]


def test_rules_of_a_record_need_the_measured_block_count():
    known = EffectiveConfig(kv_blocks=1000, kv_block_tokens=32, token_budget=512, max_sequences=64,
                            properties={"async_scheduling": "False"})  # fmt: skip
    found = r.rules_of("vllm", known)
    assert (found.kv_blocks, found.block_tokens, found.async_scheduling) == (1000, 32, False)
    with pytest.raises(AnalysisError, match="never derived"):
        r.rules_of("vllm", EffectiveConfig(token_budget=512))


@pytest.mark.parametrize("bad", [{"kv_blocks": 1}, {"token_budget": 2}, {"mixed": False, "reserve_full_prompt": False}])
def test_rules_that_cannot_run_are_refused(bad):
    with pytest.raises(AnalysisError):
        Rules(**({"token_budget": 64, "max_sequences": 4, "kv_blocks": 10} | bad))
