"""EleutherAI's lm-evaluation-harness against a served endpoint (extra ``lm-eval``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qmeter.errors import MissingExtra, QualityError
from qmeter.load.target import Target
from qmeter.record import Quantity

_SHARES = ("acc", "acc_norm", "exact_match", "f1")
"""Metrics that lie in 0..1; a normal interval is cut there."""


def run_lm_eval(
    target: Target, tasks: Sequence[str], *, include: Path | None = None, tokenizer: str | None = None,
    limit: int | None = None, concurrency: int = 8, level: float = 0.95,
) -> dict[str, Quantity]:  # fmt: skip
    """``lm_eval.<task>.<metric>`` for every metric that the harness reports, with its own standard errors as intervals.

    Args:
        target: the endpoint; requests go to ``/v1/completions``.
        tasks: the harness's task names.
        include: folder with more task files (YAML), such as a local task.
        tokenizer: folder or hub name; needed by tasks that score log-likelihoods.
        limit: items a task; ``None``: all.
        concurrency: requests in flight.
        level: of the intervals (normal, from the standard error).

    Raises:
        MissingExtra: the harness is not installed.
        QualityError: an unknown task, or the harness failed.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtra("lm-eval", "running the lm-evaluation-harness") from None
    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [t for t in tasks if t not in manager.all_tasks]
    if unknown:
        raise QualityError(
            f"the harness has no task {unknown[0]!r}", stage="quality",
            hint="`lm_eval ls tasks` lists its own; --include names a folder with yours",
        )  # fmt: skip
    try:
        answer: dict[str, Any] = simple_evaluate(
            model="local-completions", model_args=_arguments(target, tokenizer, concurrency), tasks=list(tasks),
            task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=1000,
        )  # fmt: skip
    except Exception as error:
        raise QualityError(
            f"the harness failed: {type(error).__name__}: {error}", stage="quality",
            hint="tasks that score log-likelihoods need --tokenizer; data sets may need the hub",
        ) from error  # fmt: skip
    return _quantities(answer, level)


def _arguments(target: Target, tokenizer: str | None, concurrency: int) -> dict[str, Any]:
    backend = {"tokenizer": tokenizer, "tokenizer_backend": "huggingface"} if tokenizer else {"tokenizer_backend": None}
    return {
        "model": target.model, "base_url": f"{target.base_url}/v1/completions", "num_concurrent": concurrency,
        "max_retries": 3, "tokenized_requests": False, "header": dict(target.headers) or None, **backend,
    }  # fmt: skip


def _quantities(answer: dict[str, Any], level: float) -> dict[str, Quantity]:
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + level / 2)
    found = {}
    for task, metrics in answer["results"].items():
        count = answer.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in metrics.items():
            name, _, kind = key.partition(",")
            if not isinstance(value, int | float) or name.endswith("_stderr") or not kind:
                continue
            error = metrics.get(f"{name}_stderr,{kind}")
            half = z * error if isinstance(error, int | float) else None
            low, high = (value - half, value + half) if half is not None else (None, None)
            if name in _SHARES and low is not None and high is not None:
                low, high = max(0.0, low), min(1.0, high)
            plain = name if kind == "none" else f"{name}.{kind}"
            found[f"lm_eval.{task}.{plain}"] = Quantity.of(value, "1", low=low, high=high, n=count)
    return found
