"""A small fleet whose truth is known: three methods, fast and coarse to slow and fine."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import yaml

from qmeter.capacity import offer_of
from qmeter.record import Quantity
from qmeter.schedule import kinds as kinds_module
from qmeter.schedule.kinds import BANDS, Kind
from qmeter.schedule.spec import ScheduleSpec, _broken_rules
from qmeter.spec.read import read_text
from qmeter.testing.deployments import made_calibration

METHODS = {"bf16": (0.015, 1.0, 60.0), "fp8": (0.021, 0.9, 50.0), "awq-w4a16": (0.025, 0.8, 40.0)}
"""Method → speed, power, start in s. Slow, so that few requests make a fleet of several replicas."""
SCORE = {"bf16": 0.70, "fp8": 0.695, "awq-w4a16": 0.67}

TEXT = """
qmeter_scheduling: 1
name: made
records: made
fleet: {h200: {count: 8, off_power: 40, load_power: 150}}
slot: 1h
classes:
  - name: chat
    rate: 3/s
    prompt_tokens: {kind: uniform, low: 50, high: 300}
    output_tokens: {kind: uniform, low: 20, high: 60}
    slo: {ttft: 16s, tpot: 1100ms, percentile: 0.9}
    quality: {score: 0.685}
quality:
  methods:
    bf16: {score: {value: 0.70, low: 0.695}}
    fp8: {score: {value: 0.695, low: 0.69}}
    awq-w4a16: {score: {value: 0.67, low: 0.665}}
"""


def made_offers(source: str, supply: Any, **_: Any) -> list[Any]:
    return [
        offer_of(made_calibration(method, speed=speed, power=power), supply.get("h200"),
                 load_s=Quantity.of(load_s, "s"), source=source)
        for method, (speed, power, load_s) in METHODS.items()
    ]  # fmt: skip


def install(monkeypatch: Any) -> None:
    """The made offers in place of fitted ones."""
    monkeypatch.setattr(kinds_module, "offers", made_offers)


def spec_of(text: str = TEXT, **changes: Any) -> ScheduleSpec:
    data = yaml.safe_load(text) | changes
    return read_text(yaml.safe_dump(data), "made.yaml", ScheduleSpec, _broken_rules)


def kind(name: str, capacity: tuple[float, ...], power: tuple[float, ...], *, load_j: float = 5e3,
         quality: dict[str, float] | None = None) -> Kind:  # fmt: skip
    """A kind of made-up numbers for the optimiser alone."""
    offer = offer_of(made_calibration(name), None, load_s=Quantity.of(50.0, "s"))
    return Kind(name, offer, capacity, power, 50.0, load_j, quality or {})


def brute_force(spec: ScheduleSpec, kinds: tuple[Kind, ...], off_w: float, mean: np.ndarray, peak: np.ndarray,
                before: np.ndarray | None = None) -> float:  # fmt: skip
    """Least energy over all replica counts, one class, no floors: the work of each kind by enumeration.

    With the counts given, energy is a sum of concave functions of the kinds' work, so that the best split has all kinds
    but one at a limit of their own: none, the most that their peak allows, or an edge of a band.
    """
    count, slot_s = spec.fleet["h200"].count, spec.slot
    options = [n for n in itertools.product(range(count + 1), repeat=len(kinds)) if 0 < sum(n) <= count]

    def running(n: tuple[int, ...], t: int) -> float:
        best = np.inf
        ratio = peak[0, t] / mean[0, t] if mean[0, t] > 0 else 1.0
        most = [k.capacity_hz[0] * c * min(1.0, spec.headroom / ratio) for k, c in zip(kinds, n, strict=True)]
        for free in range(len(kinds)):
            others = [i for i in range(len(kinds)) if i != free]
            ends = [sorted({0.0, most[i], *(e * kinds[i].capacity_hz[0] * n[i] for e in BANDS)}) for i in others]
            for work in itertools.product(*ends):
                left = mean[0, t] - sum(work)
                rates = {**dict(zip(others, work, strict=True)), free: left}
                if all(-1e-9 <= rates[i] <= most[i] + 1e-9 for i in rates):
                    watts = sum(
                        c * (np.interp(max(rates[i], 0) / kinds[i].capacity_hz[0] / c, BANDS, kinds[i].power_w) - off_w)
                        for i, c in enumerate(n) if c
                    )  # fmt: skip
                    best = min(best, watts * slot_s)
        return best

    cost = {n: running(n, 0) + _starts(spec, kinds, off_w, before, n, count) for n in options}
    for t in range(1, mean.shape[1]):
        now = {n: running(n, t) for n in options}
        cost = {n: now[n] + min(c + _starts(spec, kinds, off_w, np.array(m), n, count) for m, c in cost.items())
                for n in options if np.isfinite(now[n])}  # fmt: skip
    return min(cost.values()) + count * off_w * slot_s * mean.shape[1]


def _starts(spec: ScheduleSpec, kinds: tuple[Kind, ...], off_w: float, before: np.ndarray | None, n: tuple[int, ...],
            count: int) -> float:  # fmt: skip
    if before is None:
        return 0.0
    new = [max(0, a - b) for a, b in zip(n, before, strict=True)]
    if sum(before) + sum(new) > count:
        return float("inf")
    return sum(s * max(k.load_j + spec.switch_energy - off_w * k.load_s, 1.0) for s, k in zip(new, kinds, strict=True))
