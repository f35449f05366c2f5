"""The Prometheus page: the engine's live state in the text format 0.0.4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SERIES: dict[str, tuple[str, str]] = {
    "qmeter_requests_running": ("gauge", "Requests scheduled in the last step"),
    "qmeter_requests_waiting": ("gauge", "Requests accepted that the last step did not schedule"),
    "qmeter_kv_cache_usage_ratio": ("gauge", "Share of KV-cache blocks in use, 0 to 1"),
    "qmeter_batched_tokens": ("gauge", "Tokens of the last step, prompt and generated"),
    "qmeter_steps_total": ("counter", "Scheduler steps"),
    "qmeter_prompt_tokens_total": ("counter", "Prompt tokens of accepted requests"),
    "qmeter_generated_tokens_total": ("counter", "Generated tokens"),
    "qmeter_requests_total": ("counter", "Requests accepted"),
    "qmeter_requests_finished_total": ("counter", "Requests that ended by themselves"),
    "qmeter_requests_cancelled_total": ("counter", "Requests whose client went away, or that a stop string ended"),
    "qmeter_requests_failed_total": ("counter", "Requests that the engine gave up"),
    "qmeter_step_busy_seconds_total": ("counter", "Time spent in steps"),
}
"""Metric → type and help text."""


@dataclass
class Metrics:
    """Counters and gauges; a gauge that is not known is left out of the page."""

    values: dict[str, float] = field(default_factory=lambda: {k: 0.0 for k in SERIES})

    def add(self, name: str, amount: float = 1.0) -> None:
        """Raise a counter."""
        self.values[name] += amount

    def step(self, row: Sequence[float]) -> None:
        """Take in a row of the iteration log."""
        _, duration, running, waiting, prefill, decode, kv_use = row
        values = self.values
        values["qmeter_requests_running"] = running
        values["qmeter_requests_waiting"] = waiting
        values["qmeter_kv_cache_usage_ratio"] = kv_use
        values["qmeter_batched_tokens"] = prefill + decode if prefill >= 0 else -1
        values["qmeter_steps_total"] += 1
        values["qmeter_step_busy_seconds_total"] += duration

    def idle(self) -> None:
        """No request is left: nothing runs or waits, and no block is in use."""
        for name in ("qmeter_requests_running", "qmeter_requests_waiting", "qmeter_batched_tokens"):
            self.values[name] = 0.0
        self.values["qmeter_kv_cache_usage_ratio"] = 0.0

    def page(self) -> str:
        """The whole page."""
        lines = []
        for name, (kind, text) in SERIES.items():
            value = self.values[name]
            if name == "qmeter_batched_tokens" and value < 0:
                continue
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value:.17g}"]
        return "\n".join(lines) + "\n"
