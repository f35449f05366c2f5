"""What the page shows, as plain text and numbers: groups, table rows, cells, footnotes. No HTML here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qmeter.analysis.keys import DeploymentKey
from qmeter.analysis.metrics import metric
from qmeter.analysis.points import Deployment, Point, SLOVerdict, per_gpu
from qmeter.analysis.recommend import Recommendation
from qmeter.analysis.summary import ParetoSet, StudySummary
from qmeter.record import Quantity, RecordKind
from qmeter.report.numbers import Shown, change, shown
from qmeter.report.words import Advice, advice, load_text, ruled_out, slo_text


class Notes:
    """Footnotes: each reason once, numbered as it first comes up."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def number(self, text: str) -> int:
        """The number of this reason."""
        if text not in self._texts:
            self._texts.append(text)
        return self._texts.index(text) + 1

    @property
    def texts(self) -> list[str]:
        """Every reason in order of its number."""
        return list(self._texts)


@dataclass(frozen=True)
class CellView:
    """One number in a table: its text, its interval, why it is unknown (with its footnote), a bar of its interval.

    ``bar`` is (low, value, high) as shares of the column's range; ``sort`` orders the column.
    """

    value: str
    interval: str = ""
    unit: str = ""
    why: str = ""
    note: int | None = None
    bar: tuple[float, float, float] | None = None
    sort: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class RowView:
    """One method's row: its label, marks (recommended, reference, …), why it is ruled out, its cells."""

    label: str
    title: str
    marks: tuple[str, ...]
    out: str
    cells: tuple[CellView, ...]


@dataclass(frozen=True)
class Column:
    """A table's column: heading, second line, and what it means."""

    head: str
    sub: str
    title: str


@dataclass(frozen=True)
class GroupView:
    """One model on one family of workloads: advice, table, and the summary parts its charts are made of."""

    model: str
    family: str
    slo: str
    advice: Advice
    columns: tuple[Column, ...]
    rows: tuple[RowView, ...]
    at_load: str
    recommendation: Recommendation
    pareto: ParetoSet


def groups(summary: StudySummary, notes: Notes) -> list[GroupView]:
    """A view for each recommendation."""
    return [_group(summary, r, p, notes) for r, p in zip(summary.recommendations, summary.pareto, strict=True)]


def _group(summary: StudySummary, r: Recommendation, pareto: ParetoSet, notes: Notes) -> GroupView:
    mine = [d for d in summary.compared if d.key.model == r.model]
    common = common_workload(mine, r.family)
    at = load_text(common.load) if common else "no load"
    order = _order(mine, r)
    kept = {p.key for p in pareto.points if p.dominated_by is None}
    each = any(a.per_gpu for a in pareto.axes)
    raw = [_quantities(d, r, common, each) for d in order]
    spans = [_span([row[k] for row in raw]) for k in range(len(raw[0]))] if raw else []
    rows = []
    for d, quantities in zip(order, raw, strict=True):
        cells = [_slo_cell(d, r)]
        for (q, how), span in zip(quantities, spans, strict=True):
            cells.append(_cell(q, how, span, notes))
        candidate = next(c for c in r.candidates if c.deployment.key == d.key)
        rows.append(RowView(d.key.label, _title(d), _marks(d, r, kept), ruled_out(candidate, r), tuple(cells)))
    goodput = ("Goodput" if r.slo else "Output rate") + (" a GPU" if each else "")
    columns = (
        Column("SLO kept", "up to", "The highest load tried at which the promised share of requests met the SLO"),
        Column(goodput, "at best load", metric("goodput_hz" if r.slo else "throughput_tok_s").definition),
        Column("TTFT p90", f"at {at}", metric("ttft_p90_s").definition),
        Column("TPOT mean", f"at {at}", metric("tpot_mean_s").definition),
        Column("Energy/token", f"at {at}", metric("j_per_output_token").definition),
        Column("Perplexity", "change", metric("ppl_ratio").definition),
        Column("Weights", "loaded", metric("weight_bytes").definition),
    )
    return GroupView(r.model, r.family, slo_text(r.slo), advice(r, pareto), columns, tuple(rows), at, r, pareto)


def common_workload(deployments: Sequence[Deployment], family: str) -> Point | None:
    """A point of the highest load that most deployments have, sound (not overloaded) where there is such a load.

    Latency and energy depend on load, so the table compares them at this one.
    """
    points = [p for d in deployments for p in d.points if p.family == family]
    if not points:
        return None

    def rank(p: Point) -> tuple[int, float]:
        same = [q for q in points if q.workload == p.workload]
        return sum(not q.overloaded and q.verdict is not SLOVerdict.MISSED for q in same), p.load.value

    return max(points, key=rank)


def _order(deployments: Sequence[Deployment], r: Recommendation) -> list[Deployment]:
    first = [c.deployment.key for c in (r.choice, *r.tied, r.runner_up) if c is not None]
    out = {c.deployment.key: c.out is not None for c in r.candidates}

    def rank(d: Deployment) -> tuple[int, int, float]:
        if d.key in first:
            return 0, first.index(d.key), 0.0
        best = max((p.get("goodput_hz").value or 0.0 for p in d.points if p.family == r.family), default=-1.0)
        return (2 if out.get(d.key) else 1), 0, -best

    return sorted(deployments, key=rank)


def _quantities(d: Deployment, r: Recommendation, common: Point | None, each: bool) -> list[tuple[Quantity, str]]:
    """One row's quantities and how each is shown; ``each``: the rate is a GPU's."""
    candidate = next(c for c in r.candidates if c.deployment.key == d.key)
    name = "goodput_hz" if r.slo else "throughput_tok_s"
    mine = [p for p in d.points if p.family == r.family]
    best = candidate.point or max(mine, key=lambda p: p.get(name).value or 0.0, default=None)
    at = next((p for p in mine if common and p.workload == common.workload), None)
    absent = "no usable cell at this load" if mine else "no usable cell: see failures"
    rate = (per_gpu(best, name) if each else best).get(name) if best else Quantity.unknown("1/s", absent)
    rows = [(rate, "plain")]
    for key, unit in (("ttft_p90_s", "s"), ("tpot_mean_s", "s"), ("j_per_output_token", "J/token")):
        rows.append((at.get(key) if at else Quantity.unknown(unit, absent), "plain"))
    rows.append((d.quality.get("ppl_ratio", Quantity.unknown("1", "quality was not measured")), "change"))
    rows.append((d.memory["weight_bytes"], "plain"))
    return rows


def _slo_cell(d: Deployment, r: Recommendation) -> CellView:
    if r.slo is None:
        return CellView("no SLO", sort=0.0)
    kept = [p for p in d.points if p.family == r.family and p.verdict.counts]
    if kept:
        top = max(kept, key=lambda p: p.load.value)
        said = ["within noise"] if top.verdict is SLOVerdict.LIKELY else []
        said += ["no usable cell above it"] if d.key in r.cut_short else []
        return CellView(load_text(top.load), interval="; ".join(said), sort=top.load.value, tone="good")
    mine = [p for p in d.points if p.family == r.family]
    text = "at no load" if mine else "not measured"
    return CellView(text, sort=-1.0, tone="bad")


def _span(column: Iterable[tuple[Quantity, str]]) -> tuple[float, float]:
    ends = [b for q, _ in column if q.value is not None for b in (q.value, q.low, q.high) if b is not None]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _cell(q: Quantity, how: str, span: tuple[float, float], notes: Notes) -> CellView:
    if q.value is None:
        why = q.why or "unknown"
        return CellView("unknown", why=why, note=notes.number(why))
    text: Shown = change(q) if how == "change" else shown(q)
    low, high = span
    bar = None
    if high > low:
        ends = [q.value if q.low is None else q.low, q.value, q.value if q.high is None else q.high]
        bar = tuple((e - low) / (high - low) for e in ends)
    made = (bar[0], bar[1], bar[2]) if bar else None
    unit = "" if text.unit == "%" else text.unit
    return CellView(text.value, text.interval, unit, why=q.why or "", bar=made, sort=q.value)


def _marks(d: Deployment, r: Recommendation, kept: set[DeploymentKey]) -> tuple[str, ...]:
    out = []
    if r.choice and d.key == r.choice.deployment.key:
        out.append("recommended")
    if any(d.key == c.deployment.key for c in r.tied):
        out.append("tie")
    if d.is_reference:
        out.append("reference")
    if d.key in kept:
        out.append("Pareto")
    if d.key.kind is RecordKind.SIMULATED:
        out.append("simulated")
    return tuple(out)


def _title(d: Deployment) -> str:
    e = d.effective
    named = (("weights", e.weight_type), ("activations", e.activation_type), ("KV", e.kv_type)) if e else ()
    return ", ".join([d.key.engine, *(f"{name} {kind}" for name, kind in named if kind)])
