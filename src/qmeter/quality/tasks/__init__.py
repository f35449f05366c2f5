"""Tasks: what a deployment is asked and how its answers are graded. One file and one row each."""

from __future__ import annotations

from qmeter.quality.tasks.base import Grade, Item, Profile, SloClass, Task
from qmeter.registry import Registry

TASKS: Registry[Task] = Registry(
    "task",
    {
        "facts": "qmeter.quality.tasks.facts:Facts",
        "arithmetic": "qmeter.quality.tasks.arithmetic:Arithmetic",
        "instructions": "qmeter.quality.tasks.instructions:Instructions",
        "retrieval": "qmeter.quality.tasks.retrieval:Retrieval",
        "retrieval-long": "qmeter.quality.tasks.retrieval:long_retrieval",
        "summarization": "qmeter.quality.tasks.summarization:Summarization",
        "code": "qmeter.quality.tasks.code:Code",
    },
    group="qmeter.tasks",
)

from qmeter.quality.tasks.grading import Graded, Grades, grade_items, grade_requests, task_items  # noqa: E402

__all__ = [
    "TASKS",
    "Grade",
    "Graded",
    "Grades",
    "Item",
    "Profile",
    "SloClass",
    "Task",
    "grade_items",
    "grade_requests",
    "task_items",
]
