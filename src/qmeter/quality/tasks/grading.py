"""From a load run's own responses to grades: what each item's answer was worth, and a quantity for each task.

An item's key in the requests table is ``<seed>.<n>/<id>``: with the task's name it is enough to make the item again,
so a stored run can be graded later, or graded again by a better grader.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from qmeter.errors import QMeterError, QualityError
from qmeter.quality.statistics import Interval, bootstrap_ratio, wilson
from qmeter.quality.tasks.base import Grade, Item, Task
from qmeter.record import Quantity, Requests, RequestStatus
from qmeter.workload.prompts import TaskItem

ITEMS = 400
"""Items a task offers to a workload unless told otherwise."""

ALLOW_CODE = "QMETER_ALLOW_CODE"
"""Environment variable that, set to 1, lets the task ``code`` run generated programs in the sandbox."""


@dataclass(frozen=True)
class Graded:
    """One item's grade.

    Attributes:
        task, item, group: which question (``item`` is its id without seed).
        request: row of the requests table.
        score: 0..1; ``passed`` and ``why`` as :class:`Grade`.
        repeated: an item that this run had asked before: kept for looking at, left out of every statistic.
    """

    task: str
    item: str
    group: str
    request: int
    score: float
    passed: bool
    why: str
    text: str
    repeated: bool


@dataclass(frozen=True)
class Grades:
    """Every graded answer of one run, and what could not be graded.

    Attributes:
        rows: in order of the requests.
        unanswered: task → requests that failed and were left out.
        unknown: task → why it has no grades at all.
    """

    rows: tuple[Graded, ...]
    unanswered: dict[str, int]
    unknown: dict[str, str]

    def of(self, task: str) -> dict[str, Graded]:
        """Item id → its first answer's grade, for pairing with another run's."""
        return {r.item: r for r in self.rows if r.task == task and not r.repeated}

    def tasks(self) -> tuple[str, ...]:
        """Tasks that have grades, in order of appearance."""
        return tuple(dict.fromkeys(r.task for r in self.rows))

    def save(self, path: Path) -> None:
        """Write as JSON lines, one a graded answer (to a temporary name, then renamed)."""
        temporary = path.with_name(path.name + ".tmp")
        head = json.dumps({"unanswered": self.unanswered, "unknown": self.unknown})
        lines = [head, *(json.dumps(asdict(r), ensure_ascii=False) for r in self.rows)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Grades:
        """Read what :meth:`save` wrote.

        Raises:
            QualityError: the file is no table of grades.
        """
        try:
            head, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            return cls(tuple(Graded(**r) for r in rows), head["unanswered"], head["unknown"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise QualityError(f"{path} is no table of grades: {error}", stage="quality") from None


def task_items(
    tasks: Sequence[str], seed: int, *, items: int = ITEMS
) -> Callable[[str], Sequence[TaskItem]]:  # fmt: skip
    """The items of the named tasks, as :func:`qmeter.workload.build` takes them.

    Raises:
        UnknownName: no such task.
        MissingExtra: a task's data package is not installed.
    """
    pools = {
        task: tuple(
            TaskItem(f"{seed}.{items}/{i.id}", i.prompt, None, i.output_tokens)
            for i in _bank(task, seed, items).values()
        )
        for task in tasks
    }
    return pools.__getitem__


def grade_items(requests: Requests, *, allow_code: bool | None = None) -> Grades:
    """Grade every answered task request of a run; a task that cannot be graded is unknown with its reason.

    Args:
        requests: the run's table, with ``task``, ``item`` and ``text``.
        allow_code: whether generated programs may run in the sandbox; ``None``: as ``QMETER_ALLOW_CODE`` says.
    """
    allowed = os.environ.get(ALLOW_CODE) == "1" if allow_code is None else allow_code
    rows: list[Graded] = []
    unanswered: dict[str, int] = {}
    unknown: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for i in np.flatnonzero([bool(t) for t in requests.task]).tolist():
        task, key = str(requests.task[i]), str(requests.item[i])
        if task in unknown:
            continue
        if requests.status[i] != RequestStatus.OK or requests.text[i] is None:
            unanswered[task] = unanswered.get(task, 0) + 1
            continue
        text = str(requests.text[i])
        try:
            item, grade = _graded(task, key, text, allowed)
        except QMeterError as error:
            unknown[task] = f"{error.message}; {error.hint}" if error.hint else error.message
            continue
        repeated = (task, item.id) in seen
        seen.add((task, item.id))
        rows.append(
            Graded(task, item.id, item.group, i, grade.score, grade.passed, grade.why, text, repeated)
        )  # fmt: skip
    return Grades(tuple(r for r in rows if r.task not in unknown), unanswered, unknown)


def grade_requests(requests: Requests, *, level: float = 0.95, allow_code: bool | None = None) -> dict[str, Quantity]:
    """Quantities ``task.<name>.accuracy`` of one run, from the very responses that the load produced.

    Each is the mean score over distinct items (their first answers): a share with a Wilson interval where scores are
    0 or 1, else (summarization) a mean with a bootstrap interval. Failed requests are left out and counted in ``why``.
    """
    return accuracies(grade_items(requests, allow_code=allow_code), level=level)


def accuracies(grades: Grades, *, level: float = 0.95) -> dict[str, Quantity]:
    """See :func:`grade_requests`."""
    found = {f"task.{task}.accuracy": Quantity.unknown("1", why) for task, why in grades.unknown.items()}
    for task in dict.fromkeys([*grades.tasks(), *grades.unanswered]):
        if task in grades.unknown:
            continue
        scores = np.array([r.score for r in grades.of(task).values()])
        lost = grades.unanswered.get(task, 0)
        why = f"{lost} requests without an answer left out" if lost else None
        if not scores.size:
            found[f"task.{task}.accuracy"] = Quantity.unknown("1", why or "no request was answered")
            continue
        interval = score_interval(scores, level)
        low, high = (interval.low, interval.high) if interval else (None, None)
        found[f"task.{task}.accuracy"] = Quantity.of(
            float(scores.mean()), "1", low=low, high=high, n=scores.size, why=why
        )
    return found


def score_interval(scores: np.ndarray, level: float) -> Interval | None:
    """Wilson where every score is 0 or 1, else percentile bootstrap; ``None`` from fewer than 3 graded scores."""
    if np.isin(scores, (0.0, 1.0)).all():
        return wilson(int(scores.sum()), scores.size, level)
    return bootstrap_ratio(scores, np.ones(scores.size), level=level)


def _graded(task: str, key: str, text: str, allowed: bool) -> tuple[Item, Grade]:
    head, _, name = key.partition("/")
    seed, _, count = head.partition(".")
    if not (seed.isdigit() and count.isdigit()):
        raise QualityError(f"item {key!r} of task {task!r} is not of the form <seed>.<n>/<id>", stage="quality")
    item = _bank(task, int(seed), int(count)).get(name)
    if item is None:
        raise QualityError(
            f"task {task!r} has no item {name!r} any more", stage="quality",
            hint="grade with the qMeter and data packages that made the run",
        )  # fmt: skip
    maker = _task(task)
    if getattr(maker, "needs_permission", False):
        maker = type(maker)(allowed)  # type: ignore[call-arg]
    return item, maker.grade(item, text)


@lru_cache(maxsize=64)
def _bank(task: str, seed: int, n: int) -> dict[str, Item]:
    return {item.id: item for item in _task(task).items(seed, n)}


@lru_cache(maxsize=64)
def _task(name: str) -> Task:
    from qmeter.quality.tasks import TASKS

    return TASKS.create(name)
