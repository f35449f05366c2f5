"""Workloads: seeded, pure; the same seed gives the same schedule to the byte."""

from qmeter.workload.build import build, replayed
from qmeter.workload.prompts import Items, TaskItem, Vocabulary
from qmeter.workload.schedule import PackedRequests, Schedule, ScheduledRequest, schedule_digest
from qmeter.workload.traces import Trace, read_trace

__all__ = [
    "Items",
    "PackedRequests",
    "Schedule",
    "ScheduledRequest",
    "TaskItem",
    "Trace",
    "Vocabulary",
    "build",
    "read_trace",
    "replayed",
    "schedule_digest",
]
