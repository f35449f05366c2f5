"""A vLLM scheduler that writes one line for each engine step: start, end, running, waiting, tokens, KV use.

vLLM's own ``--enable-logging-iteration-details`` has neither a time nor the queue nor the KV use, and passes through
the logger. Named by ``--scheduler-cls``, vLLM calls :func:`scheduler` in its engine process; the class made there is
vLLM's own scheduler (asynchronous where vLLM chose so) with the times taken around it. The cost is one ``write`` of
about 60 bytes a step. Times are CLOCK_MONOTONIC, the clock of every qMeter sampler on the same host.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from qmeter.record.tables import Steps

PATH_ENV = "QMETER_STEP_LOG"
"""Environment variable with the folder that the logs go to, one file a process."""
QUALNAME = "qmeter.engines.vllm.steplog.scheduler"
COLUMNS = ("start", "end", "running", "waiting", "prefill", "decode", "kv_use")


def scheduler(**kwargs: Any) -> Any:
    """vLLM's scheduler for this configuration, with a step log where :data:`PATH_ENV` names a folder."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    config = kwargs["vllm_config"].scheduler_config
    base = AsyncScheduler if config.async_scheduling else Scheduler
    folder = os.environ.get(PATH_ENV)
    rank = int(getattr(kwargs["vllm_config"].parallel_config, "data_parallel_index", 0) or 0)
    return logged(base, StepWriter(Path(folder), rank))(**kwargs) if folder else base(**kwargs)


class StepWriter:
    """Appends step lines to ``steps-<pid>-dp<rank>.csv``, unbuffered: what was written survives the engine's end."""

    def __init__(self, folder: Path, rank: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._fd = os.open(folder / f"steps-{os.getpid()}-dp{rank}.csv", flags, 0o644)
        self._last_end_s = 0.0

    def write(
        self, scheduled_s: float, ended_s: float, running: int, waiting: int, prefill: int, decode: int, kv_use: float
    ) -> None:
        """One step. It starts when it was scheduled or when the step before it ended, whichever was later."""
        start_s = max(scheduled_s, self._last_end_s)
        self._last_end_s = ended_s
        line = f"{start_s:.6f},{ended_s:.6f},{running},{waiting},{prefill},{decode},{kv_use:.5f}\n"
        os.write(self._fd, line.encode())


def logged(base: type, writer: StepWriter) -> type:
    """``base`` (a vLLM scheduler class) with each executed step written to ``writer``."""

    class StepLogScheduler(base):  # type: ignore[misc]
        """Takes the times around the scheduler's two calls a step; decides nothing."""

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            """As the base schedules; remembers when, and the queue after it."""
            called_s = time.monotonic()
            output = super().schedule(*args, **kwargs)
            if output.total_num_scheduled_tokens:
                prefill, decode = split_tokens(output)
                seen = (called_s, len(self.running), len(self.waiting), prefill, decode)
                self.__dict__.setdefault("_qmeter_steps", {})[id(output)] = seen
            return output

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            """As the base updates; the step ends when its output is here."""
            ended_s = time.monotonic()
            result = super().update_from_output(scheduler_output, model_runner_output)
            seen = self.__dict__.get("_qmeter_steps", {}).pop(id(scheduler_output), None)
            if seen is not None:
                called_s, running, waiting, prefill, decode = seen
                writer.write(called_s, ended_s, running, waiting, prefill, decode, self.kv_cache_manager.usage)
            return result

    return StepLogScheduler


def split_tokens(output: Any) -> tuple[int, int]:
    """Tokens of the step that belong to prompts, and to decoding, from a vLLM ``SchedulerOutput``."""
    new = {request.req_id for request in output.scheduled_new_reqs}
    cached = output.scheduled_cached_reqs
    prefill = sum(n for r, n in output.num_scheduled_tokens.items() if r in new or cached.is_context_phase(r))
    return prefill, output.total_num_scheduled_tokens - prefill


def read_steps(folder: Path, origin_monotonic_s: float) -> Steps:
    """The steps that ended after the origin, in time order, on the cell's clock; empty where there is no log."""
    parts = [_read(path) for path in sorted(folder.glob("steps-*.csv"))]
    rows = np.concatenate(parts) if parts else np.empty((0, len(COLUMNS) + 1))
    rows = rows[rows[:, 1] >= origin_monotonic_s]
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    start, end = rows[:, 0] - origin_monotonic_s, rows[:, 1] - origin_monotonic_s
    counts = rows[:, 2:6].astype(np.int32)
    return Steps(
        start_s=start, duration_s=end - start, running=counts[:, 0], waiting=counts[:, 1],
        prefill_tokens=counts[:, 2], decode_tokens=counts[:, 3], kv_use=rows[:, 6], replica=rows[:, 7].astype(np.int16),
    )  # fmt: skip


def _read(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The file's whole lines and, as the last column, the rank in its name; a torn last line is left out."""
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    rows = [line.split(",") for line in whole.split("\n") if line.count(",") == len(COLUMNS) - 1]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    rank = re.search(r"-dp(\d+)$", path.stem)
    return np.column_stack([table, np.full(len(table), float(rank[1]) if rank else 0.0)])
