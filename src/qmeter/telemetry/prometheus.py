"""An engine's live state from its Prometheus page."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

from qmeter.engines.base import Launch, MetricsMap, MetricSource, Over
from qmeter.record import SeriesInfo

TIMEOUT_S = 2.0


class EngineSampler:
    """Reads the canonical ``engine.*`` series from ``/metrics`` over one kept connection.

    Args:
        launch: how to reach the server.
        mapping: which metric is which series.
    """

    def __init__(self, launch: Launch, mapping: MetricsMap):
        self._launch, self._mapping = launch, mapping
        self._connection: http.client.HTTPConnection | None = None
        self._last_error: str | None = None
        self._present: set[str] = set()

    def series(self) -> tuple[SeriesInfo, ...]:
        """The mapped series; those absent from the page get a gap once it was read."""
        if self._mapping.path is None:
            why = self._mapping.gap or "the engine has no metrics page"
            return (SeriesInfo(name="engine.running", unit="1", source="none", gap=why),)
        made = []
        for source in self._mapping.sources:
            gap = self._last_error if not self._present else None
            if self._present and source.series not in self._present:
                gap = f"{source.metric} is not on {self._mapping.path}"
            made.append(
                SeriesInfo(
                    name=source.series, unit=source.unit, source=source.metric, cumulative=source.cumulative, gap=gap
                )
            )
        return tuple(made)

    def read(self) -> Mapping[str, float]:
        """One scrape; empty (and the reason kept for the gap) where the page does not answer."""
        if self._mapping.path is None:
            return {}
        try:
            page = self._get(self._mapping.path)
        except (OSError, http.client.HTTPException) as error:
            self._last_error = f"{self._mapping.path}: {type(error).__name__}: {error}"
            self.close()
            return {}
        found = samples(page, {s.metric for s in self._mapping.sources})
        values = {s.series: _combined(found[s.metric], s) for s in self._mapping.sources if s.metric in found}
        self._present.update(values)
        return values

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _get(self, path: str) -> str:
        if self._connection is None:
            url = urlsplit(self._launch.base_url)
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(url.hostname or "127.0.0.1", url.port, timeout=TIMEOUT_S)
        self._connection.request("GET", path, headers=dict(self._launch.headers))
        answer = self._connection.getresponse()
        body = answer.read().decode(errors="replace")
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}")
        return body


def _combined(values: list[float], source: MetricSource) -> float:
    total = sum(values) * source.scale
    return total / len(values) if source.over is Over.MEAN else total


def parse_page(page: str, wanted: set[str]) -> dict[str, float]:
    """The wanted metrics of a Prometheus text page, each summed over its label sets."""
    return {name: sum(values) for name, values in samples(page, wanted).items()}


def samples(page: str, wanted: set[str]) -> dict[str, list[float]]:
    """The wanted metrics of a Prometheus text page, a value for each label set. NaN samples are left out.

    Source: the Prometheus text exposition format 0.0.4.
    """
    found: dict[str, list[float]] = {}
    for line in page.splitlines():
        if not line or line[0] == "#":
            continue
        brace = line.find("{")
        name = line[:brace] if brace >= 0 else line.split(None, 1)[0]
        if name not in wanted:
            continue
        fields = line[line.rfind("}") + 1 :].split() if brace >= 0 else line.split()[1:]
        try:
            value = float(fields[0])
        except (IndexError, ValueError):
            continue
        if value == value:
            found.setdefault(name, []).append(value)
    return found
