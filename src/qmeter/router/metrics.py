"""The router's Prometheus page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from qmeter.router.board import Board, State

TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
WAIT_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters and histograms that the router keeps; the replicas' state is read when the page is."""

    def __init__(self, board: Board):
        self._registry = CollectorRegistry()
        self.board, self.slot, self.slots_changed, self.restarts = board, 0, 0, 0

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"qmeter_router_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"qmeter_router_{name}", text, labels, registry=self._registry, buckets=buckets)

        self.requests = counter("requests_total", "Requests by class and how they ended", "class_name", "outcome")
        self.tries = counter("tries_total", "Tries by deployment and how they ended", "deployment", "outcome")
        self.retries = counter("retries_total", "Requests tried again on a replica", "class_name")
        self.ttft = histogram("ttft_seconds", "First byte of the answer's body after the request was read",
                              TTFT_BUCKETS_S, "class_name", "deployment")  # fmt: skip
        self.wait = histogram("queue_seconds", "Wait for a replica", WAIT_BUCKETS_S, "class_name")
        self._registry.register(_Live(self))

    def outcomes(self) -> dict[str, int]:
        """Requests so far by outcome, all classes together."""
        found: dict[str, int] = {}
        for family in self.requests.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    name = sample.labels["outcome"]
                    found[name] = found.get(name, 0) + int(sample.value)
        return found

    def page(self) -> bytes:
        """The page in the text format."""
        return generate_latest(self._registry)


class _Live:
    """Gauges read from the board."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def collect(self) -> Iterator[Any]:
        board = self._metrics.board
        state = GaugeMetricFamily("qmeter_router_replicas", "Replicas by state", labels=["deployment", "state"])
        count: dict[tuple[str, str], int] = {}
        for r in board.replicas.values():
            name = "unhealthy" if r.state is State.READY and not r.healthy else r.state.value
            count[r.kind, name] = count.get((r.kind, name), 0) + 1
        for (kind, name), n in sorted(count.items()):
            state.add_metric([kind, name], n)
        yield state
        flight = GaugeMetricFamily("qmeter_router_in_flight", "Requests in flight", labels=["replica"])
        for r in board.replicas.values():
            flight.add_metric([r.name], r.in_flight)
        yield flight
        waiting = GaugeMetricFamily("qmeter_router_waiting", "Requests waiting for a replica", labels=["class_name"])
        for cls in board.shares:
            waiting.add_metric([cls], board.waiting(cls))
        yield waiting
        yield GaugeMetricFamily("qmeter_router_slot", "Number of the slot in force", value=self._metrics.slot)
        yield CounterMetricFamily("qmeter_router_slot_changes", "Slot changes", value=self._metrics.slots_changed)
        yield CounterMetricFamily("qmeter_router_restarts", "Starts after a replica died", value=self._metrics.restarts)
        yield CounterMetricFamily(
            "qmeter_router_fallbacks", "Requests served outside their shares: no live replica", value=board.fallbacks
        )
