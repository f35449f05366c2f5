"""A task's items asked directly of an endpoint, without a timed load: for attached servers, and to ask "does it matter
that requests were batched?".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qmeter.load.target import Target
from qmeter.quality.client import Completions, each
from qmeter.quality.statistics import wilson
from qmeter.quality.tasks.grading import Grades, grade_items, task_items
from qmeter.record import Quantity, Requests, RequestStatus
from qmeter.workload import Schedule
from qmeter.workload.prompts import TaskItem


def answer_tasks(
    target: Target, tasks: Sequence[str], *, seed: int = 1, items: int = 200, concurrency: int = 8,
    allow_code: bool | None = None,
) -> Grades:  # fmt: skip
    """Ask ``items`` items of every task greedily, ``concurrency`` at once, and grade the answers.

    Raises:
        QualityError: the endpoint failed.
        UnknownName, MissingExtra: as :func:`qmeter.quality.tasks.task_items`.
    """
    pools = task_items(tasks, seed, items=items)
    asked = [(task, item) for task in tasks for item in pools(task)]
    client = Completions(target)

    def one(pair: tuple[str, TaskItem]) -> str:
        return client.generate(pair[1].prompt, pair[1].output_tokens or 64).text

    return grade_items(_table(asked, each(one, asked, concurrency)), allow_code=allow_code)


def changed_answers(before: Grades, after: Grades, *, level: float = 0.95) -> dict[str, Quantity]:
    """``task.<name>.changed_text``: the share of items that two runs of one deployment answered in other words.

    Run once alone (``concurrency`` 1) and once under load, it says whether batching changes answers.
    """
    found = {}
    for task in before.tasks():
        mine, theirs = before.of(task), after.of(task)
        shared = [item for item in mine if item in theirs]
        changed = sum(mine[i].text != theirs[i].text for i in shared)
        name = f"task.{task}.changed_text"
        if not shared:
            found[name] = Quantity.unknown("1", "no item was answered in both runs")
            continue
        found[name] = _share(changed, len(shared), level)
    return found


def changed_under_load(
    target: Target, schedule: Schedule, requests: Requests, count: int, *, level: float = 0.95
) -> dict[str, Quantity]:
    """``task.<name>.changed_text`` of a run just ended: its own requests asked again, each alone on the idle server.

    Args:
        target: the deployment, as the load asked it.
        schedule: what the load sent.
        requests: what came of it, row by row of the schedule.
        count: requests a task, evenly spread over those answered.
        level: of the intervals (Wilson).

    Raises:
        QualityError: the endpoint failed.
    """
    tasks = list(dict.fromkeys(str(t) for t in requests.task if t))
    names = {task: f"task.{task}.changed_text" for task in tasks}
    if target.temperature > 0 or target.ignore_eos:
        why = "answers are sampled, or run past their end: two runs differ by themselves"
        return {name: Quantity.unknown("1", why) for name in names.values()}
    client, found = Completions(target, plain=True), dict[str, Quantity]()
    answered = (requests.status == RequestStatus.OK.value) & np.array([t is not None for t in requests.text])
    for task, name in names.items():
        rows = np.flatnonzero(answered & (requests.task == task))
        if not rows.size:
            found[name] = Quantity.unknown("1", "no request was answered")
            continue
        picked = rows[np.linspace(0, rows.size - 1, min(count, rows.size)).round().astype(int)].tolist()
        alone = [client.generate(schedule.requests[i].prompt, schedule.requests[i].output_tokens).text for i in picked]
        changed = sum(text != requests.text[i] for text, i in zip(alone, picked, strict=True))
        found[name] = _share(changed, len(picked), level)
    return found


def _share(changed: int, n: int, level: float) -> Quantity:
    interval = wilson(changed, n, level)
    return Quantity.of(changed / n, "1", low=interval.low, high=interval.high, n=n)


def _table(asked: Sequence[tuple[str, TaskItem]], texts: Sequence[str]) -> Requests:
    n = len(asked)
    never, none = np.full(n, np.nan), np.full(n, None, dtype=np.object_)
    unknown = np.full(n, -1)
    return Requests(
        intended_s=never, sent_s=never, first_token_s=never, last_token_s=never, end_s=never,
        prompt_tokens_asked=unknown, output_tokens_asked=np.array([i.output_tokens or 64 for _, i in asked]),
        prompt_tokens=unknown, output_tokens=unknown, status=np.full(n, RequestStatus.OK.value, dtype=np.object_),
        http_status=np.full(n, 200), finish_reason=none, task=np.array([t for t, _ in asked], dtype=np.object_),
        item=np.array([i.item for _, i in asked], dtype=np.object_), text=np.array(texts, dtype=np.object_),
        error=none,
    )  # fmt: skip
