"""The parallelism level: speed-up and energy against GPUs, the method × parallelism matrix, what neighbours cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from qmeter.analysis.interference import interference, point_ratios, ratio
from qmeter.analysis.metrics import metric
from qmeter.analysis.paired import COMPARED
from qmeter.analysis.points import Deployment, Point, per_gpu
from qmeter.analysis.summary import StudySummary
from qmeter.record import Quantity, Record
from qmeter.report import charts
from qmeter.report.charts import Chart, Row
from qmeter.report.evidence import Table, Text, text
from qmeter.report.hardware import Loaded
from qmeter.report.numbers import change, share, shown
from qmeter.report.palette import Style
from qmeter.report.pictures import slug
from qmeter.report.views import common_workload
from qmeter.report.words import load_text, slo_text


@dataclass(frozen=True)
class Matrix:
    """One table of methods × parallelism: its title, how to read it, the table."""

    title: str
    note: str
    table: Table


def parallel(summary: StudySummary) -> list[Deployment]:
    """Deployments that ran alone, of models that were measured at more than one parallelism."""
    alone = [d for d in summary.deployments if not d.key.beside]
    degrees: dict[str, set[str]] = {}
    for d in alone:
        degrees.setdefault(d.key.model, set()).add(d.key.parallelism)
    return [d for d in alone if len(degrees[d.key.model]) > 1]


def _families(deployments: Sequence[Deployment]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((d.key.model, p.family) for d in deployments for p in d.points))


KINDS = {"tensor": "Circles, joined: tensor parallel", "pipeline": "squares: pipeline", "data": "diamonds: data"}


def _kinds(rows: Sequence[Row]) -> str:
    return "; ".join(said for kind, said in KINDS.items() if any(r["kind"] == kind for r in rows)) + "."


# Charts


def scaling_charts(summary: StudySummary, styles: Sequence[Style], loaded: Loaded | None = None) -> list[Chart]:
    """For each model and family: speed-up, then energy per output token, against GPUs, at the highest common load."""
    made: list[Chart] = []
    chosen = parallel(summary)
    for model, family in _families(chosen):
        mine = [d for d in chosen if d.key.model == model]
        common = common_workload(mine, family)
        if common is None:
            continue
        at = [(d, p) for d in mine for p in d.points if p.family == family and p.workload == common.workload]
        where = f"{load_text(common.load)} · {model}, {family}"
        name = "throughput_tok_s" if common.load.law == "closed" else "tpot_mean_s"
        what = "output rate" if name == "throughput_tok_s" else "TPOT"
        rows = _speedup_rows(at, name, loaded)
        if len({r["x"] for r in rows}) > 1:
            made.append(
                Chart(
                    name=slug(f"speedup-{model}-{family}"),
                    title=f"Speed-up of {what} at {where}",
                    caption="Against the same method on the fewest GPUs that were measured. Dashed: as many times "
                    "faster as there are more GPUs. " + _kinds(rows),
                    spec=charts.against_gpus(rows, styles, f"Speed-up ({what})", ideal=True),
                    rows=rows,
                    description=f"Speed-up against GPUs for {len(rows)} deployments.",
                )
            )
        energy = [r for d, p in at if (r := _row(d, p.get("j_per_output_token"))) is not None]
        if len({r["x"] for r in energy}) > 1:
            made.append(
                Chart(
                    name=slug(f"energy-gpus-{model}-{family}"),
                    title=f"Energy per output token at {where}",
                    caption="All GPUs of the deployment together. " + _kinds(energy),
                    spec=charts.against_gpus(energy, styles, "J per output token", ideal=False),
                    rows=energy,
                    description=f"Energy against GPUs for {len(energy)} deployments.",
                )
            )
    return made


def _speedup_rows(at: Sequence[tuple[Deployment, Point]], name: str, loaded: Loaded | None) -> list[Row]:
    rows: list[Row] = []
    for d, p in at:
        peers = [(o, q) for o, q in at if _method(o) == _method(d)]
        base = min(peers, key=lambda pair: pair[0].key.gpus)
        over, under = (p, base[1]) if metric(name).better.value == "higher" else (base[1], p)
        gained = point_ratios(over, under, loaded)[name]
        if base[0] is d:
            gained = Quantity.of(1.0, "1") if gained.known else gained
        row = _row(d, gained)
        if row is not None:
            rows.append(row | {"base": base[0].key.gpus})
    return rows


def _row(d: Deployment, q: Quantity) -> Row | None:
    if q.value is None:
        return None
    kind = d.key.parallelism.rstrip("0123456789") or "tp"
    return {
        "method": _method(d),
        "kind": "tensor" if kind == "tp" else {"pp": "pipeline", "dp": "data"}.get(kind, d.key.parallelism),
        "label": d.key.label,
        "x": d.key.gpus,
        "y": q.value,
        "y_low": q.value if q.low is None else q.low,
        "y_high": q.value if q.high is None else q.high,
        "text": str(shown(q)),
    }


def _method(d: Deployment) -> str:
    """The deployment's label without its parallelism: engines and devices stay apart."""
    return replace(d.key, parallelism="").label


# Tables


def matrices(summary: StudySummary) -> list[Matrix]:
    """For each model, family and SLO: the best goodput of each method and parallelism, a GPU, and a kilojoule."""
    chosen = parallel(summary)
    made = []
    for model, family in _families(chosen):
        mine = [d for d in chosen if d.key.model == model and (not d.points or _has(d, family))]
        if len({d.key.parallelism for d in mine}) < 2:
            continue
        slo = next((p.slo for d in mine for p in d.points if p.family == family and p.slo), None)
        name = "goodput_hz" if slo else "throughput_tok_s"
        best = {d.key.label: _best(d, family, name) for d in mine}
        open_end = [d.key.label for d in mine if (p := best[d.key.label]) and p.load.value == _highest(mine, family)]
        under = f"under the SLO ({slo_text(slo)})" if slo else "(no SLO)"
        word, kept = ("Goodput", " that keeps the SLO") if slo else ("Output rate", "")
        note = f"{model}, {family}: the best load tried{kept}. Bold: best of the table."
        if open_end:
            note += f" It was the highest load tried, so that the limit was not seen, for: {', '.join(open_end)}."
        for suffix, of in (("", _whole), (" a GPU", _per_gpu), (" a kilojoule", _per_kilojoule)):
            made.append(Matrix(f"{word}{suffix} {under}", note, _matrix(mine, best, name, of)))
    return made


def _has(d: Deployment, family: str) -> bool:
    return any(p.family == family for p in d.points)


def _highest(deployments: Sequence[Deployment], family: str) -> float:
    return max(p.load.value for d in deployments for p in d.points if p.family == family)


Measure = Callable[[Deployment, Point, str], Quantity]
"""What a matrix shows of a deployment at its best point, given the name of its rate."""


def _best(d: Deployment, family: str, name: str) -> Point | None:
    kept = [p for p in d.points if p.family == family and (p.slo is None or p.verdict.counts) and p.get(name).known]
    return max(kept, key=lambda p: p.get(name).value or 0.0, default=None)


def _matrix(mine: Sequence[Deployment], best: dict[str, Point | None], name: str, of: Measure) -> Table:
    columns = sorted({(d.key.gpus, d.key.parallelism) for d in mine}, key=lambda c: (c[0], c[1][:2] != "tp", c[1]))
    methods = list(dict.fromkeys(_method(d) for d in mine))
    cells: dict[tuple[str, str], Quantity | str] = {}
    for d in mine:
        point, none = best[d.key.label], "misses the SLO" if d.points else "no usable cell"
        cells[_method(d), d.key.parallelism] = of(d, point, name) if point else none
    values = [q.value for q in cells.values() if isinstance(q, Quantity) and q.value is not None]
    top = max(values, default=0.0)
    if 2 * values.count(top) > len(values):
        top = float("inf")  # most of them are alike: none stands out
    rows = []
    for method in methods:
        row: list[str] = [method]
        for _, parallelism in columns:
            if (method, parallelism) not in cells:
                row.append("not measured")
                continue
            q = cells[method, parallelism]
            row.append(q if isinstance(q, str) else _marked(q, top))
        rows.append(tuple(row))
    names = [f"{p or 'one GPU'}{f' ({g} GPUs)' if g > 1 else ''}" for g, p in columns]
    return Table(("Method", *names), tuple(rows), numbers=True)


def _marked(q: Quantity, top: float) -> Text:
    made = text(shown(q), q)
    made.best = q.value is not None and q.value >= top > 0
    return made


def _whole(d: Deployment, p: Point, name: str) -> Quantity:
    return p.get(name)


def _per_gpu(d: Deployment, p: Point, name: str) -> Quantity:
    return per_gpu(p, name).get(name)


def _per_kilojoule(d: Deployment, p: Point, name: str) -> Quantity:
    unit = "req/kJ" if name == "goodput_hz" else "token/kJ"
    power, rate = p.get("power_mean_w"), p.get(name)
    if power.value is None:
        return Quantity.unknown(unit, power.why or "power is unknown")
    made = ratio(rate, power)
    return _scaled(made, 1000.0, unit)


def _scaled(q: Quantity, factor: float, unit: str) -> Quantity:
    if q.value is None:
        return Quantity.unknown(unit, q.why or "unknown")
    low, high = (None if b is None else b * factor for b in (q.low, q.high))
    return Quantity.of(q.value * factor, unit, low=low, high=high, n=q.n)


RATIO_HEAD = ("TTFT p50", "TPOT mean", "Output rate", "Energy/token")


def comparisons(summary: StudySummary, loaded: Loaded | None = None) -> Table:
    """What more GPUs change for a method, and how it stands to the reference on as many and on more, at each load."""
    rows, tones = [], []
    for d, other in _opponents(parallel(summary)):
        points = {(q.family, q.workload): q for q in other.points}
        for p in d.points:
            base = points.get((p.family, p.workload))
            if base is None:
                continue
            ratios = point_ratios(p, base, loaded)
            sent = p.get("nvlink_bytes_per_token") if d.key.gpus > 1 else Quantity.unknown("B/token", "one GPU")
            cells = [text(change(ratios[name]), ratios[name]) for name in COMPARED]
            link = text(shown(sent), sent) if sent.known or d.key.gpus > 1 else "one GPU"
            rows.append((d.key.model, d.key.label, other.key.label, p.workload, *cells, link))
            tones.append("warn" if any(_apart(q) for q in ratios.values()) else "")
    head = ("Model", "Method", "Against", "Workload", *RATIO_HEAD, "NVLink/token")
    return Table(head, tuple(rows), tuple(tones), numbers=True)


def _opponents(chosen: Sequence[Deployment]) -> Iterator[tuple[Deployment, Deployment]]:
    """Each deployment and its opponent: itself on the fewest GPUs; the reference placed alike; on more GPUs."""
    first: dict[tuple[str, str], Deployment] = {}
    for d in sorted(chosen, key=lambda d: d.key.gpus):
        if d.points:
            first.setdefault((d.key.model, _method(d)), d)
    for d in chosen:
        base = first.get((d.key.model, _method(d)))
        if base is not None and base is not d:
            yield d, base
    rivals = [
        (d, other)
        for d in chosen
        for other in chosen
        if other.key.model == d.key.model and other.is_reference and not d.is_reference
    ]
    yield from ((d, other) for d, other in rivals if other.key.parallelism == d.key.parallelism)
    yield from ((d, other) for d, other in rivals if d in first.values() and other.key.gpus > d.key.gpus)


def neighbours(summary: StudySummary, records: Sequence[Record], loaded: Loaded | None = None) -> Table:
    """What running side by side changed at each load point: beside against alone, with intervals."""
    rows, tones = [], []
    for found in interference(summary.deployments, records, loaded):
        cells = [text(change(found.ratios[name]), found.ratios[name]) for name in COMPARED]
        overlap = text(share(found.overlap), found.overlap)
        key = found.beside.key
        by = ", ".join(found.neighbours) or "nobody"
        label = replace(key, beside=False).label
        gpus = ", ".join(map(str, found.gpus))
        if found.gpus != found.gpus_alone:
            gpus += f" (alone: {', '.join(map(str, found.gpus_alone))})"
        rows.append((key.model, label, found.beside.workload, by, gpus, overlap, *cells))
        apart = any(_apart(found.ratios[name]) for name in COMPARED)
        tones.append("warn" if apart else "")
    head = ("Model", "Method", "Workload", "Beside", "GPU", "Overlap", *RATIO_HEAD)
    return Table(head, tuple(rows), tuple(tones), numbers=True)


def _apart(q: Quantity) -> bool:
    return q.low is not None and q.high is not None and (q.low > 1 or q.high < 1)
