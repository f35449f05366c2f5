"""Writing a study's report: one HTML page, its charts as SVG, PNG and CSV, its tables as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from qmeter.analysis.points import Deployment
from qmeter.analysis.recommend import Recommendation
from qmeter.analysis.summary import StudySummary, summarise
from qmeter.record import Reason, Record
from qmeter.report import devices, evidence, hardware, parallelism, pictures, tasks
from qmeter.report.charts import Chart, altair
from qmeter.report.context import page_parts
from qmeter.report.export import write_csv, write_pictures, write_quantities
from qmeter.report.page import render
from qmeter.report.palette import Style, styles
from qmeter.report.views import GroupView, Notes, common_workload, groups
from qmeter.spec.study import Study
from qmeter.store import Profile, StudyStore, open_results, write_atomic
from qmeter.store.merged import Merged
from qmeter.store.profile import Results


def write_report(
    folder: Path,
    out: Path | None = None,
    others: Sequence[Path] = (),
    on_warning: Callable[[Reason], None] = lambda _: None,
) -> Path:
    """Write the report of a study's folder (or a profile's, or a profile by name); returns the page's path.

    With ``others`` it holds the records of all of them, told apart by device and engine; a measurement that several of
    them hold is counted once, and page and warning say so.

    Beside ``report.html`` lie ``charts/`` (SVG, PNG, CSV each) and ``tables/`` (CSV).

    Args:
        folder: the study's folder.
        out: where to; by default ``report/`` in the study's folder, for a profile ``<name>-report/`` here, for several
            ``compared-report/`` here.
        others: more of them to compare with.
        on_warning: told what a reader of the page must know before.

    Raises:
        MissingExtra: the report extra is not installed.
        StoreError: the folder cannot be read.
        UnknownName: it is neither a study's folder nor a profile.
    """
    altair()
    results: StudyStore | Profile | Merged = open_results(str(folder))
    if others:
        results = Merged([results, *(open_results(str(other)) for other in others)], [str(folder), *map(str, others)])
        out = out or Path.cwd() / "compared-report"
    if out is None:
        profile = isinstance(results, Profile)
        out = Path.cwd() / f"{results.folder.name}-report" if profile else results.folder / "report"
    records, warnings = results.read() if isinstance(results, Merged) else (results.records(), ())
    for warning in warnings:
        on_warning(warning)
    study = results.study
    loaded = hardware.load_cells(results, records)
    summary = summarise(records, reference=study.quality.reference or _scored_against(study), loaded=loaded)
    notes = Notes()
    made = groups(summary, notes)
    looks = styles(*pictures.all_labels(summary))
    charts, itl_note = _charts(summary, made, looks, results, records)
    charts["parallelism"] = parallelism.scaling_charts(summary, looks, loaded)
    graded = tasks.graded(summary, results, records)
    charts["tasks"] = tasks.task_charts(graded, looks)
    tables = evidence.all_tables(summary, records)
    tables |= tasks.task_tables(summary, graded)
    tables |= hardware.hardware_tables(summary, loaded, results.folder)
    tables["devices"] = devices.comparison(summary)
    tables["neighbours"] = parallelism.neighbours(summary, records, loaded)
    tables["scaling"] = parallelism.comparisons(summary, loaded)
    found = parallelism.matrices(summary)
    parts = page_parts(study, summary, records, made, notes, tables) | {
        "itl_note": itl_note,
        "matrices": found,
        "doubts": [w.message for w in warnings],
    }
    out.mkdir(parents=True, exist_ok=True)
    page = out / "report.html"
    write_atomic(page, render(parts, charts, looks))
    for old in (p for part in ("tables", "charts") for p in (out / part).glob("*.*")):
        old.unlink()
    tables |= {pictures.slug(f"matrix {k} {m.title}"): m.table for k, m in enumerate(found)}
    for name, table in tables.items():
        write_csv(out / "tables" / f"{name}.csv", [table.columns, *table.rows])
    write_quantities(out / "tables" / "quantities.csv", summary)
    write_pictures(out / "charts", [c for group in charts.values() for c in group])
    return page


def _charts(
    summary: StudySummary,
    made: Sequence[GroupView],
    looks: Sequence[Style],
    results: Results,
    records: Sequence[Record],
) -> tuple[dict[str, list[Chart]], str]:
    charts: dict[str, list[Chart]] = {"pareto": [], "load": [], "itl": [], "quality": [], "energy": []}
    itl_note = ""
    models = []
    for group in made:
        mine = [d for d in summary.compared if d.key.model == group.model]
        r = group.recommendation
        charts["pareto"] += pictures.pareto_charts(group.pareto, mine, looks)
        charts["load"] += pictures.load_charts(r, mine, looks)
        charts["energy"] += pictures.load_charts(r, mine, looks, pictures.ENERGY_CURVES)
        chart, note = _itl(r, mine, looks, results, records)
        charts["itl"] += [chart] if chart else []
        itl_note = itl_note or note
        if group.model not in models:
            models.append(group.model)
            quality = pictures.quality_chart(mine, looks, group.model, r.tolerance)
            charts["quality"] += [quality] if quality else []
    if len(made) > 1:
        charts = {k: [_named(c, made) for c in group] for k, group in charts.items()}
    return charts, itl_note


def _named(chart: Chart, made: Sequence[GroupView]) -> Chart:
    """The chart, its title naming the model and workload it is of: several groups share a section."""
    mine = [g for g in made if pictures.slug(g.model) in chart.name]
    exact = [g for g in mine if pictures.slug(g.family) in chart.name]
    for g in sorted(exact, key=lambda g: -len(g.family)):
        return replace(chart, title=f"{chart.title} · {g.model}, {g.family}")
    return replace(chart, title=f"{chart.title} · {mine[0].model}") if mine else chart


def _itl(
    r: Recommendation, deployments: Sequence[Deployment], looks: Sequence[Style], results: Results,
    records: Sequence[Record],
) -> tuple[Chart | None, str]:  # fmt: skip
    """ITL quantiles of each deployment's first valid cell at the load that most have, and why some are missing."""
    common = common_workload(deployments, r.family)
    if common is None:
        return None, ""
    by_id = {record.cell_id: record for record in records}
    found: dict[str, list[float]] = {}
    missing = []
    for d in deployments:
        point = next((p for p in d.points if p.family == r.family and p.workload == common.workload), None)
        if point is None:
            continue
        record = by_id[point.cells[0]]
        values = pictures.itl_quantiles(results.tables(record), record.window) if record.window else None
        if values is None:
            missing.append(d.key.label)
        else:
            found[d.key.label] = values
    note = f"No distribution (too few token times, or not kept) for: {', '.join(missing)}." if missing else ""
    if missing and not found and isinstance(results, Profile):
        note = "A profile keeps no token times: the distribution of gaps is in the study's own report."
    return pictures.itl_chart(found, looks, common.workload, f"{r.model}-{r.family}"), note


def _scored_against(study: Study) -> str | None:
    """The study's first method where anything was scored; else ``None``: an unquantized method needs no score."""
    scored = study.quality.fidelity or any(w.prompts.kind == "tasks" for w in study.workloads)
    return study.methods[0] if scored else None
