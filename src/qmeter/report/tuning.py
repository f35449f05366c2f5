"""The page of a search: its front as it grows, every evaluation, and what to deploy. One file, nothing fetched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import qmeter
from qmeter.record import Quantity
from qmeter.report.charts import Chart, altair, growth, scatter
from qmeter.report.numbers import shown
from qmeter.report.page import render_template, runtime
from qmeter.report.palette import Style, styles
from qmeter.store import write_atomic
from qmeter.tune.advise import Advice, FrontRow
from qmeter.tune.hypervolume import Partition
from qmeter.tune.noise import Standing
from qmeter.tune.problem import Term
from qmeter.tune.tuner import Tuner

REFRESH_S = 10


def write_tuning(tuner: Tuner, folder: Path, advice: Advice, *, running: bool) -> Path:
    """Write ``tune.html`` into the search's folder; a page of a running search reloads itself.

    Raises:
        MissingExtra: the report extra is not installed.
    """
    altair()
    looks = styles(list(dict.fromkeys(tuner.tuning.space.method_of(e.point) for e in tuner.evaluated())))
    charts = [*_scatters(tuner, looks), *_growth(tuner)]
    spec = tuner.tuning.spec
    parts: dict[str, Any] = {
        "name": spec.tune, "description": spec.description, "version": qmeter.__version__, "running": running,
        "refresh_s": REFRESH_S if running else None, "made": time.strftime("%Y-%m-%d %H:%M"), "advice": advice,
        "simulated": "Every value here is simulated." if spec.measure.kind == "simulator" else "",
        "facts": _facts(tuner), "front": _front(tuner, advice), "evaluations": _evaluations(tuner),
        "limits": [_limit(t) for t in tuner.tuning.limits],
    }  # fmt: skip
    page = folder / "tune.html"
    text = render_template("tune.html.j2", parts, {"search": charts}, looks, _runtime() if charts else "")
    write_atomic(page, text)
    return page


@cache
def _runtime() -> str:
    return runtime()


def _facts(tuner: Tuner) -> list[tuple[str, str]]:
    space, search = tuner.tuning.space, tuner.tuning.spec.search
    axes = " × ".join(f"{n} ({len(v)})" for n, v in space.axes.items())
    low = f"simulator, {len(tuner.problem.low)} points" if tuner.problem.low else "none"
    return [("Space", f"{len(space)} points: {axes}"), ("Evaluations", f"{tuner.done} of {search.evaluations}"),
            ("Sampler", search.sampler), ("Low fidelity", low)]  # fmt: skip


def _limit(term: Term) -> str:
    side = "at most" if term.better.value == "lower" else "at least"
    return f"{term.label} ({term.workload}) {side} {shown(Quantity.of(term.limit or 0.0, term.unit))}"


def _front(tuner: Tuner, advice: Advice) -> dict[str, Any]:
    columns = ["Point", *(f"{t.label} ({t.workload})" for t in tuner.terms), "Sure", "Measured", "Study"]
    rows = [
        [_label(r), *(str(shown(r.values[t.key])) for t in tuner.terms),
         f"{r.standing.chance:.0%}", f"{r.standing.measured.repeats}×", r.folder]
        for r in advice.rows
    ]  # fmt: skip
    return {"columns": columns, "rows": rows, "chosen": [r.recommended for r in advice.rows]}


def _label(row: FrontRow) -> str:
    more = f" (and {len(row.equals)} equal within noise)" if row.equals else ""
    return row.standing.measured.point.label + more


def _evaluations(tuner: Tuner) -> dict[str, Any]:
    columns = ["#", "Point", "Why", *(f"{t.label} ({t.workload})" for t in tuner.terms), "Seconds"]
    runs = sorted(((p, o) for e in tuner.evaluated() for p, o in e.runs), key=lambda pair: pair[0].number)
    rows = []
    for p, o in runs:
        if o.failure:
            values = [f"{o.failure.kind}: {o.failure.message}", *[""] * (len(tuner.terms) - 1)]
        else:
            values = [str(shown(o.values[t.key])) for t in tuner.terms]
        rows.append([str(p.number), p.point.label, p.why, *values, f"{o.seconds:.1f}"])
    return {"columns": columns, "rows": rows}


def _scatters(tuner: Tuner, looks: Sequence[Style]) -> list[Chart]:
    """The first objective against each of the others."""
    found = tuner.standings()
    terms = tuner.tuning.objectives
    if not found or len(terms) < 2:
        return []
    first = terms[0]
    return [_pair(tuner, found, first, other, looks) for other in terms[1:]]


def _pair(tuner: Tuner, found: Sequence[Standing], x: Term, y: Term, looks: Sequence[Style]) -> Chart:
    noise = tuner.noise()
    good = [e for e in tuner.evaluated() if e.good]
    single = {e.point: e.good[-1].values for e in good}
    rows = []
    for s in found:
        row: dict[str, Any] = {"method": tuner.tuning.space.method_of(s.measured.point), "kept": s.on_front,
                               "label": _state(s)}  # fmt: skip
        for axis, term in (("x", x), ("y", y)):
            q = noise.interval(s.measured, term, single[s.measured.point][term.key])
            value = q.value or 0.0
            row |= {axis: value, f"{axis}_low": value if q.low is None else q.low,
                    f"{axis}_high": value if q.high is None else q.high, f"{axis}_text": str(shown(q))}  # fmt: skip
        rows.append(row)
    titles = [f"{t.label}, {t.unit}" if t.unit != "1" else t.label for t in (x, y)]
    name = f"{x.name}-{y.name}".replace(".", "-")
    return Chart(name, f"{y.label} against {x.label}",
                 "Filled: on the front over all objectives together. Hollow: dominated, or breaks a limit.",
                 scatter(rows, looks, *titles), rows, f"{y.name} against {x.name} of every measured point")  # fmt: skip


def _state(s: Standing) -> str:
    place = "on the front" if s.on_front else "breaks a limit" if not s.feasible else "dominated"
    return f"{s.measured.point.label}: {place}, {s.chance:.0%} sure to be on it"


def _growth(tuner: Tuner) -> list[Chart]:
    """Hypervolume after each evaluation, as a share of the last."""
    seen = [(p.number, tuner.problem.seen(p.point, o.values, o.kind)) for e in tuner.evaluated() for p, o in e.runs]
    good = [s.losses for _, s in seen if s.feasible and s.losses is not None]
    if len(good) < 2:
        return []
    import numpy as np

    losses = np.array(good)
    made = Partition(tuner.problem.reference(losses), losses.min(axis=0))
    rows = []
    for number, s in sorted(seen, key=lambda pair: pair[0]):
        if s.feasible and s.losses is not None:
            made.add(np.array(s.losses))
        rows.append({"x": number, "y": made.volume})
    last = rows[-1]["y"] or 1.0
    rows = [{"x": r["x"], "y": r["y"] / last} for r in rows]
    return [Chart("growth", "How the front grew", "Hypervolume of the losses, as a share of the last.",
                  growth(rows, "Evaluation", "Hypervolume"), rows, "Hypervolume after each evaluation")]  # fmt: skip
