"""Which method to serve with: SLO, then quality, then goodput, energy a token and memory; ties are called ties.

Where candidates take different numbers of GPUs, goodput counts a GPU: what one does not need, a replica can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from qmeter.analysis.compare import Relation, bounds, counts_per_gpu, relation
from qmeter.analysis.keys import DeploymentKey
from qmeter.analysis.metrics import Better
from qmeter.analysis.points import Deployment, Point, Ratios, SLOVerdict, per_gpu, stand
from qmeter.record import Quantity
from qmeter.spec.workload import SLO

QUALITY_TOLERANCE = 0.05
"""Perplexity increase over the reference (as a share) that is let pass; a study may ask for another."""


class QualityVerdict(StrEnum):
    """How the perplexity ratio stands to 1 + tolerance.

    BOUNDED: the whole interval is within. UNPROVEN: the estimate is within, or the interval still holds 1, but the
    interval's end is not within: too few items to say. WORSE: significantly worse, and by more than the tolerance.
    """

    REFERENCE = "reference"
    BOUNDED = "within tolerance"
    UNPROVEN = "not shown to be worse"
    WORSE = "worse"
    UNKNOWN = "unknown"


class Criterion(StrEnum):
    """What decides, in this order."""

    SLO = "slo"
    QUALITY = "quality"
    PER_GPU = "per_gpu"
    GOODPUT = "goodput_hz"
    THROUGHPUT = "throughput_tok_s"
    ENERGY = "j_per_output_token"
    MEMORY = "weight_bytes"
    LATENCY = "e2e_mean_s"


@dataclass(frozen=True)
class Candidate:
    """One deployment before the decision.

    Attributes:
        point: the highest load at which it keeps the SLO (no SLO: highest throughput), or ``None``.
        quality: verdict against the reference.
        out: the criterion that rules it out, or ``None``.
        ratios: compares two cells request by request, where the tables are at hand.
    """

    deployment: Deployment
    point: Point | None
    quality: QualityVerdict
    out: Criterion | None
    ratios: Ratios | None = None

    def value(self, criterion: Criterion) -> Quantity:
        """The quantity a criterion compares, at the candidate's point."""
        if criterion is Criterion.MEMORY:
            return self.deployment.memory["weight_bytes"]
        if self.point is None:
            return Quantity.unknown("1", "no load point")
        if criterion is Criterion.PER_GPU:
            rate = "goodput_hz" if self.point.slo else "throughput_tok_s"
            return per_gpu(self.point, rate).get(rate)
        return self.point.get(criterion.value)

    def stands(self, other: Candidate, criterion: Criterion) -> Relation:
        """How it stands to another candidate on a criterion."""
        better = _BETTER[criterion]
        if criterion in (Criterion.MEMORY, Criterion.PER_GPU) or self.point is None or other.point is None:
            return relation(self.value(criterion), other.value(criterion), better)
        family = self.point.family
        peers = [[p for p in c.deployment.points if p.family == family] for c in (self, other)]
        return stand(self.point, other.point, criterion.value, better, (peers[0], peers[1]), self.ratios)


@dataclass(frozen=True)
class Step:
    """One criterion as applied: how many candidates it began and ended with, or why it could not be applied."""

    criterion: Criterion
    before: int
    after: int
    skipped: str | None = None


@dataclass(frozen=True)
class Recommendation:
    """The decision for one model and one family of workloads.

    Attributes:
        choice: what to serve, or ``None`` where no candidate qualifies.
        tied: candidates that no criterion tells from the choice (the choice has the best point estimate).
        runner_up, lost_on: the best candidate that is not tied, and the criterion on which it lost.
        steps: every criterion in order.
        at_limit: whether the choice kept the SLO at the highest load that was tried: its limit was not seen.
        caveats: what a reader must know, in plain words.
        candidates: every deployment, ruled out or not.
        cut_short: those that kept the SLO at the highest load of which they have a usable cell, where others have a
            higher one.
    """

    model: str
    family: str
    slo: SLO | None
    tolerance: float
    choice: Candidate | None
    tied: tuple[Candidate, ...]
    runner_up: Candidate | None
    lost_on: Criterion | None
    steps: tuple[Step, ...]
    at_limit: bool
    caveats: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    cut_short: tuple[DeploymentKey, ...]


_BETTER = {
    Criterion.PER_GPU: Better.HIGHER,
    Criterion.GOODPUT: Better.HIGHER,
    Criterion.THROUGHPUT: Better.HIGHER,
    Criterion.ENERGY: Better.LOWER,
    Criterion.MEMORY: Better.LOWER,
    Criterion.LATENCY: Better.LOWER,
}


def quality_verdict(deployment: Deployment, tolerance: float) -> QualityVerdict:
    """Stand of one deployment's perplexity ratio to 1 + ``tolerance``."""
    if deployment.is_reference:
        return QualityVerdict.REFERENCE
    ratio = deployment.quality.get("ppl_ratio")
    if ratio is None or ratio.value is None:
        return QualityVerdict.UNKNOWN
    low, high = bounds(ratio)
    if high <= 1 + tolerance:
        return QualityVerdict.BOUNDED
    return QualityVerdict.UNPROVEN if low <= 1 or ratio.value <= 1 + tolerance else QualityVerdict.WORSE


def recommend(
    deployments: Sequence[Deployment], model: str, family: str, *, tolerance: float = QUALITY_TOLERANCE,
    ratios: Ratios | None = None,
) -> Recommendation:  # fmt: skip
    """Decide among the deployments of one model on one family of workloads."""
    relevant = [d for d in deployments if d.key.model == model]
    points = [p for d in relevant for p in d.points if p.family == family]
    slo = next((p.slo for p in points if p.slo), None)
    found = [replace(_candidate(d, family, slo, tolerance), ratios=ratios) for d in relevant]
    left = [c for c in found if c.out is None]
    judged = [c for c in left if c.quality is not QualityVerdict.UNKNOWN]
    caveats = []
    if judged and len(judged) < len(left):
        names = ", ".join(c.deployment.key.label for c in left if c.quality is QualityVerdict.UNKNOWN)
        caveats.append(f"left out because their quality is unknown: {names}")
        found = [_ruled_out(c) if c in left and c.quality is QualityVerdict.UNKNOWN else c for c in found]
        left = judged
    elif left and not judged:
        caveats.append("quality is unknown for every candidate, so nothing here says what the method costs in answers")
    first = Criterion.GOODPUT if slo else Criterion.THROUGHPUT
    if counts_per_gpu(first.value, (c.deployment.key.gpus for c in left)):
        first = Criterion.PER_GPU
    order, steps = _ranked(left, [first, Criterion.ENERGY, Criterion.MEMORY, Criterion.LATENCY])
    steps = (Step(Criterion.SLO, len(found), sum(c.point is not None for c in found)), *steps)
    groups = order or [[]]
    choice = groups[0][0] if groups[0] else None
    second = groups[1][0] if len(groups) > 1 else None
    lost = _separator(choice, second, [s.criterion for s in steps[1:] if not s.skipped]) if choice and second else None
    if shared := [c.deployment.key for c in found if c.deployment.key.beside]:
        whom = "all" if shared[0].all_beside else ", ".join(k.label for k in shared)
        caveats.append(f"measured while other deployments ran on the host, at a cost that is not known: {whom}")
    top = max((p.load.value for p in points), default=0.0)
    cut_short = _cut_short(found, family) if slo else ()
    if short := ", ".join(k.label for k in cut_short):
        caveats.append(f"no usable cell above the load at which they keep the SLO, so that they may do better: {short}")
    caveats += _caveats(choice, slo, steps)
    return Recommendation(
        model=model,
        family=family,
        slo=slo,
        tolerance=tolerance,
        choice=choice,
        tied=tuple(groups[0][1:]),
        runner_up=second,
        lost_on=lost,
        steps=steps,
        at_limit=bool(choice and choice.point and slo and choice.point.load.value >= top),
        caveats=tuple(caveats),
        candidates=tuple(found),
        cut_short=cut_short,
    )


def _cut_short(found: Sequence[Candidate], family: str) -> tuple[DeploymentKey, ...]:
    """Those whose limit may lie above what they were seen to keep, where others of their kind were judged at more."""
    judged = [(c, _judged(c, family)) for c in found]
    top = {kind: max(load for c, load in judged if c.deployment.key.kind is kind)
           for kind in {c.deployment.key.kind for c in found}}  # fmt: skip
    return tuple(
        c.deployment.key
        for c, load in judged
        if c.point is not None and c.quality is not QualityVerdict.WORSE
        and c.point.load.value >= load and load < top[c.deployment.key.kind]
    )  # fmt: skip


def _judged(c: Candidate, family: str) -> float:
    """The highest load at which the SLO was kept or missed."""
    known = [p.load.value for p in c.deployment.points if p.family == family and p.verdict is not SLOVerdict.UNKNOWN]
    return max(known, default=0.0)


def _ruled_out(c: Candidate) -> Candidate:
    return replace(c, out=Criterion.QUALITY)


def _candidate(d: Deployment, family: str, slo: SLO | None, tolerance: float) -> Candidate:
    mine = [p for p in d.points if p.family == family]
    quality = quality_verdict(d, tolerance)
    if slo is None:
        known = [p for p in mine if p.get("throughput_tok_s").known]
        point = max(known, key=lambda p: p.get("throughput_tok_s").value or 0.0, default=None)
    else:
        kept = [p for p in mine if p.verdict.counts]
        point = max(kept, key=lambda p: (p.load.value, p.get("goodput_hz").value or 0.0), default=None)
    out = Criterion.SLO if point is None else Criterion.QUALITY if quality is QualityVerdict.WORSE else None
    return Candidate(d, point, quality, out)


def _ranked(left: list[Candidate], criteria: Sequence[Criterion]) -> tuple[list[list[Candidate]], tuple[Step, ...]]:
    """Groups of candidates from best to worst; those inside a group are tied on every criterion applied.

    The steps are those that found the first group.
    """
    if not left:
        return [], ()
    groups: list[list[Candidate]] = []
    steps: tuple[Step, ...] = ()
    rest = list(left)
    while rest:
        best, applied = _winners(rest, criteria)
        steps = steps or applied
        groups.append(best)
        rest = [c for c in rest if c not in best]
    return groups, steps


def _winners(left: list[Candidate], criteria: Sequence[Criterion]) -> tuple[list[Candidate], tuple[Step, ...]]:
    steps = []
    for criterion in criteria:
        before = len(left)
        values = [c.value(criterion) for c in left]
        lost = [(c, q) for c, q in zip(left, values, strict=True) if q.value is None]
        if lost:
            whom = "all" if len(lost) == before else ", ".join(c.deployment.key.label for c, _ in lost)
            steps.append(Step(criterion, before, before, f"unknown for {whom}: {lost[0][1].why}"))
            continue
        left = sorted(left, key=partial(_merit, criterion=criterion))
        leader = left[0]
        left = [c for c in left if c is leader or c.stands(leader, criterion) is not Relation.WORSE]
        steps.append(Step(criterion, before, len(left)))
        if len(left) == 1:
            break
    return left, tuple(steps)


def _merit(c: Candidate, criterion: Criterion) -> float:
    value = c.value(criterion).value or 0.0
    return -value if _BETTER[criterion] is Better.HIGHER else value


def _separator(a: Candidate, b: Candidate, criteria: Sequence[Criterion]) -> Criterion | None:
    for criterion in criteria:
        if a.stands(b, criterion) is Relation.BETTER:
            return criterion
    return None


def _caveats(choice: Candidate | None, slo: SLO | None, steps: Sequence[Step]) -> list[str]:
    if choice is None:
        return []
    out = []
    if choice.point and choice.point.verdict is SLOVerdict.LIKELY:
        out.append("its SLO attainment is above the promise, but the interval reaches below it: lengthen the window")
    if choice.quality is QualityVerdict.UNPROVEN:
        out.append("its quality is not shown to be worse, but the interval reaches past the tolerance: score more text")
    out += [f"{_WORDS[s.criterion]} was not compared: {s.skipped}" for s in steps if s.skipped]
    if choice.deployment.verification is not None and not choice.deployment.verification.verified:
        out.append("the engine did not confirm that the method took effect")
    if choice.point and any(w.kind == "not_stationary" for w in choice.point.warnings):
        out.append("its cell was not stationary")
    return out


_WORDS = {
    Criterion.PER_GPU: "goodput a GPU",
    Criterion.SLO: "the SLO",
    Criterion.QUALITY: "quality",
    Criterion.GOODPUT: "goodput",
    Criterion.THROUGHPUT: "throughput",
    Criterion.ENERGY: "energy",
    Criterion.MEMORY: "memory",
    Criterion.LATENCY: "latency",
}
