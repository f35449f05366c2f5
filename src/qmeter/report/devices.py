"""One device against another: the same method under the same load on each, where records of several are in."""

from __future__ import annotations

from dataclasses import replace

from qmeter.analysis.interference import ratio
from qmeter.analysis.keys import DeploymentKey
from qmeter.analysis.points import Point
from qmeter.analysis.summary import StudySummary
from qmeter.record import Quantity
from qmeter.report.evidence import Table, Text, text
from qmeter.report.numbers import change, shown

COMPARED = (("ttft_p50_s", "TTFT p50"), ("tpot_mean_s", "TPOT mean"), ("throughput_tok_s", "Output rate"),
            ("j_per_output_token", "Energy/token"))  # fmt: skip


def devices(summary: StudySummary) -> list[str]:
    """The devices that records were made on, in order of first appearance."""
    return list(dict.fromkeys(d.key.device for d in summary.deployments))


def comparison(summary: StudySummary) -> Table:
    """A row a quantity, method and load that two devices share: both values, and the change from the first device.

    Loads are the same where name, lengths, arrival law and rate are. Where a deployment only ever ran side by side with
    others, its device says so.
    """
    points: dict[tuple[DeploymentKey, str, str, float], dict[str, Point]] = {}
    for d in summary.compared:
        device = f"{d.key.device} (side by side)" if d.key.beside else d.key.device
        for p in d.points:
            alike = (replace(d.key, device="", qualifier="", beside=False), p.family, p.workload, p.load.value)
            points.setdefault(alike, {})[device] = p
    rows = []
    for (key, _, workload, _), found in points.items():
        first, *others = found
        for other in others:
            for name, label in COMPARED:
                here, there = found[first].get(name), found[other].get(name)
                lead = (key.model, key.label, workload, label, f"{first} → {other}")
                rows.append((*lead, _text(here), _text(there), _change(ratio(there, here))))
    head = ("Model", "Method", "Workload", "Quantity", "Devices", "First", "Second", "Change")
    return Table(head, tuple(rows), numbers=True)


def _text(q: Quantity) -> Text:
    return text(shown(q), q)


def _change(q: Quantity) -> Text:
    return text(change(q), q)
