from __future__ import annotations

from typing import Any

from qmeter.spec.workload import WorkloadSpec
from qmeter.workload import Vocabulary

VOCABULARY = Vocabulary(1000, frozenset({0, 1, 2, 999}))


def workload(arrivals: dict[str, Any], **more: Any) -> WorkloadSpec:
    data = {"name": "w", "arrivals": arrivals, "warmup": "2s", "window": "10s", **more}
    return WorkloadSpec.model_validate(data)
