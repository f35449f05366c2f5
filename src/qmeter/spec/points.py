"""A list where one number is meant makes one workload point a value: ``rate: [2/s, 8/s]``.

Points get stable names of the values as written: ``chat@2/s``, ``chat@c8`` (concurrency), ``chat@b0.5`` (burstiness).
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from qmeter.spec.document import Fault, YamlPath

_SWEPT = {"rate": "", "concurrency": "c", "burstiness": "b"}
"""Keys under ``arrivals`` that may be lists → what their values begin with in the point's name."""

MAX_POINTS = 1000


class Points:
    """The study's data with its workloads expanded, and the way back from a point's path to the file's.

    Attributes:
        data: as the file has it, ``workloads`` expanded.
        faults: lists that are empty or say a value twice.
    """

    def __init__(self, data: Any):
        self.faults: list[Fault] = []
        self.data = data
        self._origin: list[tuple[int, dict[str, int]]] = []
        if isinstance(data, dict) and isinstance(data.get("workloads"), list):
            self.data = {**data, "workloads": self._expanded(data["workloads"])}

    def in_file(self, path: YamlPath) -> YamlPath:
        """The path in the file of a path in the expanded data."""
        if len(path) < 2 or path[0] != "workloads" or not isinstance(path[1], int) or path[1] >= len(self._origin):
            return path
        index, chosen = self._origin[path[1]]
        back: YamlPath = ("workloads", index, *path[2:])
        if len(path) >= 4 and path[2] == "arrivals" and path[3] in chosen:
            back = (*back[:4], chosen[str(path[3])], *back[4:])
        return back

    def _expanded(self, workloads: list[Any]) -> list[Any]:
        out: list[Any] = []
        for i, workload in enumerate(workloads):
            arrivals = workload.get("arrivals") if isinstance(workload, dict) else None
            written = arrivals if isinstance(arrivals, dict) else {}
            lists = {k: written[k] for k in _SWEPT if isinstance(written.get(k), list)}
            if any(self._bad_list(("workloads", i, "arrivals", k), values) for k, values in lists.items()):
                lists = {k: values[:1] or [None] for k, values in lists.items()}
            if prod(len(values) for values in lists.values()) > MAX_POINTS:
                self.faults.append(Fault(("workloads", i, "arrivals"), f"its lists make more than {MAX_POINTS} points"))
                lists = {k: values[:1] for k, values in lists.items()}
            for places in product(*(range(len(values)) for values in lists.values())):
                chosen = dict(zip(lists, places, strict=True))
                self._origin.append((i, chosen))
                out.append(_point(workload, {k: lists[k][at] for k, at in chosen.items()}) if chosen else workload)
        return out

    def _bad_list(self, path: YamlPath, values: list[Any]) -> bool:
        written = [str(v).replace(" ", "") for v in values]
        twice = sorted({w for w in written if written.count(w) > 1})
        if not values:
            self.faults.append(Fault(path, "the list is empty: give one value, or several to make a point of each"))
        elif twice:
            self.faults.append(Fault(path, f"{', '.join(twice)} stands twice: each value makes a point of its own"))
        else:
            return False
        return True


def _point(workload: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    suffix = "".join(f"@{_SWEPT[k]}{str(v).replace(' ', '')}" for k, v in values.items())
    point = {**workload, "arrivals": {**workload["arrivals"], **values}}
    if isinstance(workload.get("name"), str):
        point["name"] = workload["name"] + suffix
    return point
