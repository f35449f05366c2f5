"""The recommendation, verdicts and SLOs in plain words. No chart library is needed here."""

from __future__ import annotations

from dataclasses import dataclass

from qmeter.analysis.compare import bounds
from qmeter.analysis.metrics import metric
from qmeter.analysis.points import Load, Point, SLOVerdict
from qmeter.analysis.recommend import Candidate, Criterion, QualityVerdict, Recommendation
from qmeter.analysis.summary import ParetoSet
from qmeter.record import Quantity
from qmeter.report.numbers import change, seconds, share, shown
from qmeter.spec.workload import SLO


@dataclass(frozen=True)
class Advice:
    """A recommendation in words: one headline, why, how sure, and what to know."""

    headline: str
    method: str | None
    why: tuple[str, ...]
    sure: str
    caveats: tuple[str, ...]


def slo_text(slo: SLO | None) -> str:
    """``TTFT ≤ 300 ms and TPOT ≤ 15 ms for 90% of requests``."""
    if slo is None:
        return "no SLO"
    limits = [
        f"{name} ≤ {seconds(limit)}"
        for name, limit in (("TTFT", slo.ttft), ("TPOT", slo.tpot), ("E2E", slo.e2e))
        if limit is not None
    ]
    return f"{' and '.join(limits)} for {100 * slo.percentile:.4g}% of requests"


def load_text(load: Load) -> str:
    """``24 req/s``, ``8 concurrent``."""
    unit = {"1/s": "req/s"}.get(load.unit, load.unit)
    return f"{load.value:.4g} {unit}"


def advice(r: Recommendation, pareto: ParetoSet | None = None) -> Advice:
    """One recommendation in words; with the Pareto set, it says where the choice is dominated."""
    if r.choice is None or r.choice.point is None:
        return _no_choice(r)
    label = r.choice.deployment.key.label
    untold = [c for c in r.candidates if c is not r.choice and c.quality is QualityVerdict.UNKNOWN]
    only = r.choice.quality is QualityVerdict.REFERENCE and len(untold) == len(r.candidates) - 1 and bool(untold)
    return Advice(
        headline=f"Serve {r.model} with {label}" + (", until other methods' quality is known" if only else ""),
        method=label,
        why=tuple(filter(None, [_performance(r), _quality(r), _cost(r.choice)])),
        sure=_sure(r),
        caveats=(*r.caveats, *_dominated(r, pareto)),
    )


def _dominated(r: Recommendation, pareto: ParetoSet | None) -> list[str]:
    assert r.choice is not None
    mine = next((p for p in pareto.points if p.key == r.choice.deployment.key), None) if pareto else None
    if pareto is None or mine is None or mine.dominated_by is None:
        return []
    axes = ", ".join(metric(a.name).label.lower() + (" a GPU" if a.per_gpu else "") for a in pareto.axes)
    return [f"on {axes} together, {mine.dominated_by.label} is better on one beyond noise and worse on none"]


def _no_choice(r: Recommendation) -> Advice:
    measured = [c for c in r.candidates if any(p.family == r.family for p in c.deployment.points)]
    if not measured:
        return Advice("No recommendation: no cell gave usable numbers", None, (), "", r.caveats)
    worse = [c for c in r.candidates if c.out is Criterion.QUALITY]
    headline = f"No method qualifies for {r.model}"
    why = []
    if r.slo is not None and len(worse) < len(measured):
        closest = max(
            (p for c in measured for p in c.deployment.points if p.family == r.family),
            key=lambda p: p.get("slo_attainment").value or 0.0,
        )
        why.append(
            f"None keeps the SLO ({slo_text(r.slo)}) at any load that was tried. Closest: {closest.key.label} at "
            f"{load_text(closest.load)}, where {share(closest.get('slo_attainment'))} of requests met it."
        )
    if worse:
        names = ", ".join(c.deployment.key.label for c in worse)
        why.append(f"Ruled out by quality although it keeps the SLO: {names}.")
    why.append("Try lower loads, a looser SLO, or other methods.")
    return Advice(headline, None, tuple(why), "", r.caveats)


def _performance(r: Recommendation) -> str:
    assert r.choice is not None and r.choice.point is not None
    point = r.choice.point
    if r.slo is None:
        rate = shown(point.get("throughput_tok_s"))
        return f"The study sets no SLO, so it is judged by its highest output rate: {rate} at {load_text(point.load)}."
    limit = ", the highest load that was tried: its limit was not seen" if r.at_limit else ""
    if r.choice.deployment.key in r.cut_short:
        limit = ", with no usable cell above it: its limit was not seen"
    kept = ", within noise," if point.verdict is SLOVerdict.LIKELY else ""
    met, goodput = share(point.get("slo_attainment")), str(shown(point.get("goodput_hz")))
    gpus = r.choice.deployment.key.gpus
    if any(c.deployment.key.gpus != gpus for c in r.candidates):
        goodput = f"{goodput} on {gpus} GPU{'s' if gpus > 1 else ''} ({shown(r.choice.value(Criterion.PER_GPU))} a GPU)"
    return (
        f"It keeps{kept} the SLO ({slo_text(r.slo)}) up to {load_text(point.load)}{limit}. "
        f"There, {met} of requests meet it, a goodput of {goodput}."
    )


def _quality(r: Recommendation) -> str:
    assert r.choice is not None
    verdict = r.choice.quality
    if verdict is QualityVerdict.REFERENCE:
        return "It is the reference that quality is measured against."
    if verdict is QualityVerdict.UNKNOWN:
        return ""
    reference = next((c.deployment.key.label for c in r.candidates if c.deployment.is_reference), "the reference")
    ratio = r.choice.deployment.quality["ppl_ratio"]
    stand = {
        QualityVerdict.BOUNDED: f"inside the {r.tolerance:.0%} that is let pass",
        QualityVerdict.UNPROVEN: f"not shown to be worse, and not shown to stay inside {r.tolerance:.0%}",
        QualityVerdict.WORSE: "worse",
    }[verdict]
    return f"Its perplexity is {change(ratio)} against {reference}: {stand}."


def _cost(c: Candidate) -> str:
    parts = []
    energy = c.value(Criterion.ENERGY)
    if energy.known:
        parts.append(f"{shown(energy)} an output token")
    weights = c.value(Criterion.MEMORY)
    if weights.known:
        parts.append(f"{shown(weights)} of weights")
    return f"It takes {' and '.join(parts)}." if parts else ""


_ON = {
    Criterion.PER_GPU: "goodput a GPU",
    Criterion.GOODPUT: "goodput",
    Criterion.THROUGHPUT: "output rate",
    Criterion.ENERGY: "energy an output token",
    Criterion.MEMORY: "weight memory",
    Criterion.LATENCY: "mean latency",
}


def _sure(r: Recommendation) -> str:
    assert r.choice is not None
    text = []
    if r.tied:
        names = ", ".join(c.deployment.key.label for c in r.tied)
        text.append(f"A tie within noise with {names}; more repeats or a longer window would tell them apart.")
    if r.runner_up is not None and r.lost_on is not None:
        mine, other = r.choice.value(r.lost_on), r.runner_up.value(r.lost_on)
        name = r.runner_up.deployment.key.label
        equal = _equal_before(r)
        text.append(
            f"Runner-up: {name}{equal}, behind on {_ON[r.lost_on]} beyond noise "
            f"({_value(other)} against {_value(mine)}{_paired(mine, other)})."
        )
    elif r.runner_up is None and not r.tied:
        text.append("No other candidate was left to compare it with.")
    return " ".join(text)


def _paired(a: Quantity, b: Quantity) -> str:
    """Where the intervals overlap, what told them apart: the same requests at the same times, pair by pair."""
    (a_low, a_high), (b_low, b_high) = bounds(a), bounds(b)
    apart = a_low > b_high or b_low > a_high
    return "" if apart else "; the intervals overlap, the same requests compared with each other do not"


def _equal_before(r: Recommendation) -> str:
    """The criteria that did not separate choice and runner-up, in words."""
    before = []
    for step in r.steps[1:]:
        if step.criterion is r.lost_on:
            break
        if not step.skipped:
            before.append(_ON[step.criterion])
    return f", equal within noise on {' and '.join(before)}" if before else ""


def _value(q: Quantity) -> str:
    return str(shown(q))


def ruled_out(c: Candidate, r: Recommendation) -> str:
    """Why a candidate is not the choice, in a few words; empty where nothing rules it out."""
    if c.out is Criterion.QUALITY:
        if c.quality is QualityVerdict.UNKNOWN:
            return "quality unknown"
        return f"perplexity {change(c.deployment.quality['ppl_ratio'])}, beyond {r.tolerance:.0%}"
    if c.out is Criterion.SLO:
        mine = [p for p in c.deployment.points if p.family == r.family]
        return "keeps the SLO at no load tried" if mine else "no usable cell"
    return ""


def verdict_text(p: Point) -> str:
    """Whether a point keeps its SLO, and whether it is overloaded."""
    return f"{p.verdict.value}, overloaded" if p.overloaded else p.verdict.value
