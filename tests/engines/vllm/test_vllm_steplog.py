"""GIVEN a scheduler, WHEN it is logged, THEN each executed step is one row on the cell's clock."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from qmeter.engines.vllm.steplog import StepWriter, logged, read_steps


class FakeScheduler:
    """Schedules what it is told, as vLLM's scheduler does: one output a call, updated later."""

    def __init__(self):
        self.running, self.waiting = [1, 2], [3]
        self.kv_cache_manager = SimpleNamespace(usage=0.25)

    def schedule(self, new=(), decode=()):
        tokens = {**dict(new), **{r: 1 for r in decode}}
        cached = SimpleNamespace(is_context_phase=lambda r: r.startswith("chunk"))
        return SimpleNamespace(
            scheduled_new_reqs=[SimpleNamespace(req_id=r) for r, _ in new], scheduled_cached_reqs=cached,
            num_scheduled_tokens=tokens, total_num_scheduled_tokens=sum(tokens.values()),
        )  # fmt: skip

    def update_from_output(self, scheduler_output, model_runner_output):
        return model_runner_output


def test_steps_overlap_as_vllm_runs_them_and_each_starts_where_the_last_ended(tmp_path):
    scheduler = logged(FakeScheduler, StepWriter(tmp_path))()
    first = scheduler.schedule(new=[("a", 500)], decode=["b", "c"])
    second = scheduler.schedule(decode=["a", "b", "c"])  # scheduled before the first one's output is there
    assert scheduler.update_from_output(first, "out") == "out"
    scheduler.update_from_output(second, "out")
    steps = read_steps(tmp_path, 0.0)
    assert steps.prefill_tokens.tolist() == [500, 0]
    assert steps.decode_tokens.tolist() == [2, 3]
    assert steps.running.tolist() == [2, 2]
    assert steps.waiting.tolist() == [1, 1]
    assert np.allclose(steps.kv_use, 0.25)
    ends = steps.start_s + steps.duration_s
    assert steps.start_s[1] >= ends[0] - 1e-6


def test_a_later_chunk_of_a_prompt_is_prefill(tmp_path):
    scheduler = logged(FakeScheduler, StepWriter(tmp_path))()
    scheduler.update_from_output(scheduler.schedule(decode=["chunk-1", "d"]), None)
    steps = read_steps(tmp_path, 0.0)
    assert (steps.prefill_tokens.tolist(), steps.decode_tokens.tolist()) == ([1], [1])


def test_empty_steps_are_not_written(tmp_path):
    scheduler = logged(FakeScheduler, StepWriter(tmp_path))()
    scheduler.update_from_output(scheduler.schedule(), None)
    assert len(read_steps(tmp_path, 0.0)) == 0


def test_only_steps_of_this_cell_are_read_and_a_torn_line_is_left_out(tmp_path):
    (tmp_path / "steps-1.csv").write_text("1.0,1.5,1,0,10,0,0.1\n5.0,5.5,2,0,0,2,0.2\n6.0,6.")
    (tmp_path / "steps-2.csv").write_text("4.9,5.2,7,0,0,7,0.3\n")
    steps = read_steps(tmp_path, 4.0)
    assert steps.running.tolist() == [7, 2]
    assert np.allclose(steps.start_s, [0.9, 1.0])


def test_each_data_parallel_rank_keeps_its_own_steps(tmp_path):
    (tmp_path / "steps-11-dp0.csv").write_text("1.0,1.5,1,0,10,0,0.1\n")
    (tmp_path / "steps-12-dp1.csv").write_text("1.2,1.6,2,0,0,2,0.2\n")
    assert read_steps(tmp_path, 0.0).replica.tolist() == [0, 1]
    logged(FakeScheduler, StepWriter(tmp_path / "new", rank=3))()
    assert [path.stem[-4:] for path in (tmp_path / "new").iterdir()] == ["-dp3"]


def test_no_log_is_an_empty_table(tmp_path):
    assert len(read_steps(tmp_path, 0.0)) == 0
