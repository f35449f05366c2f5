"""Task tables: scores of each method, paired comparisons with the reference, and speed and energy at each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qmeter.analysis.metrics import metric
from qmeter.analysis.points import Deployment, Point
from qmeter.analysis.summary import StudySummary
from qmeter.quality.paired import POOLED, Comparison, Verdict, compare_methods
from qmeter.quality.tasks import Grades, grade_items
from qmeter.quality.tasks.grading import accuracies
from qmeter.record import Quantity, Record
from qmeter.report.charts import Chart, Row, dots
from qmeter.report.evidence import Table, Text, text
from qmeter.report.numbers import share, shown
from qmeter.report.palette import Style
from qmeter.report.pictures import slug
from qmeter.store.profile import Results

AT_TASK = ("goodput_hz", "ttft_p90_s", "tpot_mean_s", "e2e_mean_s", "j_per_output_token")
"""What a task's own load is shown with."""


Graded = Mapping[tuple[str, str], Grades]
"""Model and label of a deployment → its grades over every cell."""


def graded(summary: StudySummary, results: Results, records: Sequence[Record]) -> Graded:
    """The answers of every deployment that was asked tasks, graded again from its stored tables."""
    by_id = {r.cell_id: r for r in records}
    return {
        (d.key.model, d.key.label): merged(
            [grade_items(results.tables(by_id[c]).requests) for p in d.points if _has_tasks(p) for c in p.cells]
        )
        for d in summary.deployments
        if any(_has_tasks(p) for p in d.points)
    }


def task_tables(summary: StudySummary, found: Graded) -> dict[str, Table]:
    """``task_scores``, ``task_pairs`` and ``tasks``; empty where no workload's prompts were tasks."""
    tasks = _tasks(found)
    return {
        "task_scores": _scores(found, tasks),
        "task_pairs": _pairs(summary, found, tasks),
        "tasks": _at_load(summary),
    }


def task_charts(found: Graded, styles: Sequence[Style]) -> list[Chart]:
    """A chart a model and task: each method's score with its interval."""
    made = []
    for model in dict.fromkeys(model for model, _ in found):
        scores = {label: accuracies(grades) for (m, label), grades in found.items() if m == model}
        for task in _tasks(found):
            known = {label: q for label, qs in scores.items() if (q := qs.get(f"task.{task}.accuracy")) and q.known}
            rows: list[Row] = [
                {"method": label, "text": str(share(q)), "x": 100 * (q.value or 0.0),
                 "x_low": 100 * (q.value if q.low is None else q.low or 0.0),
                 "x_high": 100 * (q.value if q.high is None else q.high or 0.0)}
                for label, q in known.items() if q.value is not None
            ]  # fmt: skip
            if len(rows) > 1:
                made.append(
                    Chart(
                        name=slug(f"task-{task}-{model}"), title=f"Task: {task}", caption="", rows=rows,
                        spec=dots(rows, styles, "Mean score, %", mark=None),
                        description=f"Score of {len(rows)} methods on {task}.",
                    )
                )  # fmt: skip
    return made


def _tasks(found: Graded) -> list[str]:
    return list(dict.fromkeys(t for g in found.values() for t in (*g.tasks(), *g.unknown)))


def merged(runs: Sequence[Grades]) -> Grades:
    """The grades of several runs as one; an item that an earlier run answered counts as repeated."""
    rows, unanswered, unknown = [], dict[str, int](), dict[str, str]()
    seen = set[tuple[str, str]]()
    for run in runs:
        for row in run.rows:
            again = (row.task, row.item) in seen
            rows.append(replace(row, repeated=row.repeated or again))
        seen |= {(r.task, r.item) for r in run.rows}
        unknown |= run.unknown
        for task, n in run.unanswered.items():
            unanswered[task] = unanswered.get(task, 0) + n
    return Grades(tuple(rows), unanswered, unknown)


def _has_tasks(point: Point) -> bool:
    return any(name.startswith("task.") for name in point.quality)


def _scores(found: Graded, tasks: Sequence[str]) -> Table:
    rows = []
    for (model, label), grades in found.items():
        mine = accuracies(grades)
        absent = Quantity.unknown("1", "no request of this task")
        cells = [_score(mine.get(f"task.{t}.accuracy", absent)) for t in tasks]
        rows.append((model, label, *cells))
    return Table(("Model", "Method", *(t.capitalize() for t in tasks)), tuple(rows), numbers=True)


def _score(q: Quantity) -> Text:
    made = text(share(q), q)
    made.why = "; ".join(filter(None, [f"{q.n} items" if q.n else None, q.why]))
    return made


def _pairs(summary: StudySummary, found: Graded, tasks: Sequence[str]) -> Table:
    """A row a method, a column a task: difference in points against the reference's answers to the same items."""
    rows: list[tuple[str, ...]] = []
    tones = []
    for base in (d for d in summary.deployments if d.is_reference):
        reference = found.get((base.key.model, base.key.label))
        if reference is None or not reference.tasks():
            continue
        peers = [d for d in summary.deployments if _same_place(d, base) and (d.key.model, d.key.label) in found]
        methods = {d.key.label: found[d.key.model, d.key.label] for d in peers}
        pairs = {(c.task, c.name): c for c in compare_methods(reference, methods)}
        for label in methods:
            mine = [pairs.get((t, label)) for t in (*tasks, POOLED)]
            rows.append((base.key.model, label, *(_pair(c) for c in mine)))
            tones.append("bad" if any(c is not None and c.verdict is Verdict.WORSE for c in mine) else "")
    return Table(
        ("Model", "Method", *(t.capitalize() for t in tasks), "All items"), tuple(rows), tuple(tones), numbers=True
    )


def _same_place(other: Deployment, base: Deployment) -> bool:
    a, b = other.key, base.key
    same = (a.model, a.engine, a.parallelism, a.device, a.kind) == (b.model, b.engine, b.parallelism, b.device, b.kind)
    return same and not other.is_reference


def _pair(c: Comparison | None) -> Text:
    """``−2.1 [−5.0, +0.9], 6↓ 3↑``, with ``worse``/``better`` before it where that is shown beyond chance."""
    if c is None or c.verdict is Verdict.TOO_FEW or c.difference.value is None:
        made = Text("unknown")
        made.why = "too few items that both answered"
        return made
    d = c.difference
    span = f" [{_points(d.low)}, {_points(d.high)}]" if d.low is not None and d.high is not None else ""
    word = f"{c.verdict.value} " if c.verdict in (Verdict.WORSE, Verdict.BETTER) else ""
    made = Text(f"{word}{_points(d.value or 0.0)}{span}, {c.lost}↓ {c.gained}↑")
    made.why = c.sentence()
    return made


def _points(value: float) -> str:
    """A difference of shares in percentage points, signed: 0.021 → +2.1."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _at_load(summary: StudySummary) -> Table:
    """A row a workload and method: the score, what its own load gave, and whether batching changed answers."""
    rows: list[tuple[str, ...]] = []
    points = [(d, p) for d in summary.deployments for p in d.points if _has_tasks(p)]
    order = list(dict.fromkeys(p.workload for _, p in points))
    for d, p in sorted(points, key=lambda pair: order.index(pair[1].workload)):
        scores = {n: q for n, q in p.quality.items() if n.startswith("task.") and n.endswith(".accuracy")}
        for name, q in scores.items():
            task = name.split(".")[1]
            changed = p.quality.get(f"task.{task}.changed_text", Quantity.unknown("1", "not asked (prompts.alone)"))
            at = [text(shown(v), v) for v in (p.get(n) for n in AT_TASK)]
            rows.append((d.key.model, p.workload, task, d.key.label, _score(q), _score(changed), *at))
    head = ("Model", "Workload", "Task", "Method", "Score", "Answers changed by batching")
    return Table((*head, *(metric(n).label for n in AT_TASK)), tuple(rows), numbers=True)
