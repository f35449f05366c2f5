"""What one_host.py needs and a test can check without a server: the compressed day, who serves which hour, the slots of
all replays laid out one after another, and the comparison at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.stats import t_interval
from qmeter.record import Record
from qmeter.schedule.spec import DIURNAL
from qmeter.spec.workload import Lengths
from qmeter.workload import Schedule, Vocabulary
from qmeter.workload.lengths import draw_tokens
from qmeter.workload.prompts import synthetic

F64 = NDArray[np.float64]

SHAPES: dict[str, tuple[float, ...]] = {
    "site": (0, 0, 0, 0, 0, 0, 0, 0.1, 0.4, 0.9, 1, 1, 0.9, 0.95, 1, 1, 0.95, 0.7, 0.3, 0.1, 0.05, 0, 0, 0),
    "office": DIURNAL,
}
"""Load of each hour, stretched to the lowest and highest rate asked. ``site``: one site's working day, nearly idle at
night (an assumption, not a measurement). ``office``: the default day of ``qmeter schedule``."""

SWITCH = "schedule"
"""The policy that switches; every other policy is a deployment's name and sends all to it."""


@dataclass(frozen=True)
class Day:
    """A day in ``24 x hour_s`` seconds: each hour's rate. Units: 1/s, s."""

    rate_hz: tuple[float, ...]
    hour_s: float

    @property
    def length_s(self) -> float:
        """The whole day, compressed. Units: s."""
        return len(self.rate_hz) * self.hour_s


def make_day(shape: str, low_hz: float, high_hz: float, hour_s: float) -> Day:
    """A named shape stretched so that its quietest hour has ``low_hz`` and its busiest ``high_hz``."""
    s = np.asarray(SHAPES[shape], dtype=np.float64)
    rates = low_hz + (high_hz - low_hz) * (s - s.min()) / (s.max() - s.min())
    return Day(tuple(float(r) for r in rates), hour_s)


def make_trace(day: Day, prompt: Lengths, output: Lengths, vocabulary: Vocabulary, seed: int, drain_s: float
               ) -> Schedule:  # fmt: skip
    """The day's requests: Poisson arrivals hour by hour, lengths drawn for each. The same seed gives the same bytes."""
    rng = np.random.default_rng((seed, 0))
    at = [h * day.hour_s + np.sort(rng.uniform(0, day.hour_s, rng.poisson(rate * day.hour_s)))
          for h, rate in enumerate(day.rate_hz)]  # fmt: skip
    send_s = np.rint(np.concatenate(at) * 1e9) / 1e9
    n = len(send_s)
    prompts = draw_tokens(prompt, n, np.random.default_rng((seed, 1)))
    outputs = draw_tokens(output, n, np.random.default_rng((seed, 2)))
    return Schedule(
        send_s=send_s, requests=synthetic(prompts, outputs, 0.0, vocabulary, seed),
        law=("trace", {"rate_hz": n / day.length_s}), warmup_s=0.0, window_s=day.length_s, drain_s=drain_s,
    )  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A method's mean power at the output rates it was measured at, ascending. Units: token/s, W."""

    tok_s: tuple[float, ...]
    power_w: tuple[float, ...]

    def at(self, tok_s: float) -> float:
        """Power at a rate: linear between the measured ones, the nearest one's beyond them. Units: W."""
        return float(np.interp(tok_s, self.tok_s, self.power_w))


def curves(records: Sequence[Record], methods: Sequence[str]) -> dict[str, Curve]:
    """Each method's power by output rate, from a profile's valid open-loop records (repeats averaged).

    Raises:
        ValueError: a method has no such record with a known power.
    """
    found: dict[str, Curve] = {}
    for method in methods:
        points: dict[str, list[tuple[float, float]]] = {}
        for r in records:
            workload = r.cell["workload"]
            mine = r.cell["deployment"]["method"] == method and workload["arrivals"]["kind"] != "closed"
            power, rate = r.energy.get("power_mean_w"), r.metrics.get("throughput_tok_s")
            if mine and r.status == "ok" and power and rate and power.value and rate.value:
                points.setdefault(workload["name"], []).append((rate.value, power.value))
        means = sorted(tuple(np.mean(p, axis=0)) for p in points.values())
        if not means:
            raise ValueError(f"no record of {method} with a known power: give --threshold instead")
        found[method] = Curve(tuple(float(x) for x, _ in means), tuple(float(w) for _, w in means))
    return found


def cheapest(day: Day, power: Mapping[str, Curve], output_tokens: float) -> list[str]:
    """For each hour the name whose curve asks for the least power at that hour's output rate."""
    return [min(power, key=lambda k: power[k].at(rate * output_tokens)) for rate in day.rate_hz]


def mean_power(day: Day, power: Mapping[str, Curve], choice: Sequence[str], output_tokens: float) -> float:
    """Mean power over the day where each hour is served by its choice, by the curves. Units: W."""
    return float(np.mean([power[k].at(r * output_tokens) for k, r in zip(choice, day.rate_hz, strict=True)]))


def by_threshold(day: Day, light: str, heavy: str, threshold_hz: float) -> list[str]:
    """``heavy`` from ``threshold_hz`` on, else ``light``."""
    return [heavy if rate >= threshold_hz else light for rate in day.rate_hz]


@dataclass(frozen=True)
class Part:
    """Hours in a row that the schedule gives to one deployment. Times from the replay's start. Units: s."""

    kind: str
    start_s: float
    end_s: float


def parts(day: Day, choice: Sequence[str]) -> list[Part]:
    """The day's parts by the switching schedule."""
    out, hour = [], 0
    for kind, run in groupby(choice):
        n = len(list(run))
        out.append(Part(kind, hour * day.hour_s, (hour + n) * day.hour_s))
        hour += n
    return out


@dataclass(frozen=True)
class Segment:
    """One replay of the day under one policy; ``number`` is its place in the run."""

    number: int
    policy: str
    repeat: int

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.policy}-{self.repeat}"


def rotated(policies: Sequence[str], repeats: int) -> list[Segment]:
    """Every policy once a repeat, the order moved on by one each time: none is always first on a cool card."""
    order = [(policies[(i + r) % len(policies)], r) for r in range(repeats) for i in range(len(policies))]
    return [Segment(n, policy, repeat) for n, (policy, repeat) in enumerate(order)]


@dataclass(frozen=True)
class Layout:
    """Where each segment lies in the served schedule: warm-up, then gap, day and drain of each segment. Units: s."""

    warm_s: float
    gap_s: float
    day_s: float
    drain_s: float

    def begin_s(self, index: int) -> float:
        """When segment number ``index`` of this run starts its replay."""
        return self.warm_s + index * (self.gap_s + self.day_s + self.drain_s) + self.gap_s

    def end_s(self, count: int) -> float:
        """When the last of ``count`` segments has drained, with one more gap for the last reading."""
        return self.begin_s(count)


def slots(segments: Sequence[Segment], names: Sequence[str], found: Sequence[Part], layout: Layout,
          classes: Sequence[str]) -> list[dict[str, Any]]:  # fmt: skip
    """The served schedule's slots: all deployments stay up, only the shares change."""
    up = dict.fromkeys(names, 1)

    def slot(at_s: float, by: Mapping[str, float]) -> dict[str, Any]:
        return {"at": f"{at_s:.3f}s", "up": up, "shares": {c: dict(by) for c in classes}}

    out = [slot(0.0, dict.fromkeys(names, 1 / len(names)))]
    for i, segment in enumerate(segments):
        begin_s = layout.begin_s(i)
        first = found[0].kind if segment.policy == SWITCH else segment.policy
        out.append(slot(begin_s - layout.gap_s, {first: 1.0}))
        if segment.policy == SWITCH:
            out += [slot(begin_s + p.start_s, {p.kind: 1.0}) for p in found[1:]]
    return out


# ---------------------------------------------------------------- the comparison


def ratio(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Ours over theirs, paired by repeat: geometric mean, each repeat's, and Student's interval of the log ratios.

    With two repeats the interval rests on one degree of freedom and is wide: that is what two repeats tell.
    """
    logs = np.log(np.asarray(ours) / np.asarray(theirs))
    out: dict[str, Any] = {"value": float(np.exp(logs.mean())), "each": [float(r) for r in np.exp(logs)]}
    if len(logs) < 2:
        return out | {"low": None, "high": None, "why": "one repeat has no spread"}
    made = t_interval(logs, confidence)
    return out | {"low": math.exp(made.low), "high": math.exp(made.high)}


def summarise(rows: Sequence[Mapping[str, Any]], percentile: float) -> dict[str, Any]:
    """The segments' rows as one comparison: each policy, the best static one that holds the SLO, and the saving.

    Args:
        rows: of valid segments, with ``policy``, ``repeat``, ``j``, ``tokens``, ``violations``, ``due``, ``parts``.
        percentile: share of a policy's requests that must keep the SLO.
    """
    by: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: int(r["repeat"])):
        by.setdefault(str(row["policy"]), []).append(row)
    policies = {name: _policy(mine, percentile) for name, mine in by.items()}
    static = {n: p for n, p in policies.items() if n != SWITCH and p["j_mean"] is not None}
    held = {n: p for n, p in static.items() if p["holds"]}
    best = min(held or static, key=lambda n: float((held or static)[n]["j_per_token"]), default=None)
    out: dict[str, Any] = {"policies": policies, "best_static": best, "best_static_holds": bool(held)}
    if best is None or SWITCH not in by or policies[SWITCH]["j_mean"] is None:
        why = next((p["why"] for p in policies.values() if p.get("why")), "a policy has no whole replay")
        return out | {"ratio": None, "why": why}
    pairs = paired(by[SWITCH], by[best])
    if not pairs:
        return out | {"ratio": None, "why": "no repeat has both the schedule and the best static policy"}
    out["ratio"] = ratio([a["j"] / a["tokens"] for a, _ in pairs], [b["j"] / b["tokens"] for _, b in pairs])
    others = {n: paired(by[SWITCH], by[n]) for n in static}
    out["beside"] = {n: ratio([a["j"] / a["tokens"] for a, _ in p], [b["j"] / b["tokens"] for _, b in p])
                     for n, p in others.items() if p}  # fmt: skip
    return out


def paired(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
           ) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:  # fmt: skip
    """Rows of the same repeat whose energy is known on both sides."""
    known = {r["repeat"]: r for r in theirs if r["j"] is not None}
    return [(r, known[r["repeat"]]) for r in ours if r["j"] is not None and r["repeat"] in known]


def _policy(rows: Sequence[Mapping[str, Any]], percentile: float) -> dict[str, Any]:
    due, over = sum(int(r["due"]) for r in rows), sum(int(r["violations"]) for r in rows)
    known = [r for r in rows if r["j"] is not None]
    out: dict[str, Any] = {
        "repeats": len(rows), "violation_share": over / due if due else None,
        "holds": bool(due) and over / due <= 1 - percentile, "j": [r["j"] for r in rows],
        "j_mean": None, "j_per_token": None, "spread": None,
    }  # fmt: skip
    if not known or len(known) < len(rows):
        return out | {"why": next((r.get("j_why") for r in rows if r["j"] is None), "no energy")}
    each = [r["j"] / r["tokens"] for r in known]
    out |= {"j_mean": float(np.mean([r["j"] for r in known])), "j_per_token": float(np.mean(each)),
            "spread": (max(each) - min(each)) / float(np.mean(each))}  # fmt: skip
    out["parts"] = [
        {"kind": p["kind"], "start_s": p["start_s"], "end_s": p["end_s"],
         "j_mean": _mean([r["parts"][i]["j"] for r in known]),
         "power_w": _mean([r["parts"][i]["j"] for r in known], 1 / (p["end_s"] - p["start_s"]))}
        for i, p in enumerate(known[0]["parts"])
    ]  # fmt: skip
    return out


def _mean(values: Sequence[float | None], factor: float = 1.0) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) * factor if known and len(known) == len(values) else None
