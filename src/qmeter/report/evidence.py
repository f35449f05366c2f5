"""The report's plain tables: every load point, quality, evidence, failures, warnings. Text only, no HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qmeter.analysis.metrics import metric
from qmeter.analysis.summary import StudySummary
from qmeter.record import CellStatus, Check, Quantity, Record
from qmeter.report.numbers import change, seconds, share, shown
from qmeter.report.words import verdict_text


class Text(str):
    """A table cell's text that may carry a reason, shown when pointed at; ``best`` of its table stands out."""

    why: str = ""
    best: bool = False


def text(shown_text: object, q: Quantity) -> Text:
    """A quantity's text with its reason or caveat."""
    made = Text(shown_text)
    made.why = q.why or ""
    return made


@dataclass(frozen=True)
class Table:
    """A plain table: columns, rows of text, and a tone a row (``bad``, ``warn``, ``good`` or empty).

    ``numbers``: its cells are numbers, which are not broken over lines.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    tones: tuple[str, ...] = field(default=())
    numbers: bool = False

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why cells are unknown: column and reason, each once."""
        return tuple(
            dict.fromkeys(
                f"{column}: {cell.why}"
                for row in self.rows
                for column, cell in zip(self.columns, row, strict=True)
                if isinstance(cell, Text) and cell == "unknown" and cell.why
            )
        )


def failures(summary: StudySummary) -> Table:
    """Cells without usable numbers, and why; cells of one deployment that ended alike share a row."""
    alike: dict[tuple[str, ...], list[str]] = {}
    tones = {}
    for p in summary.problems:
        kinds = ", ".join(r.kind for r in p.reasons) or "no reason recorded"
        what = "; ".join(r.message for r in p.reasons)
        hints = "; ".join(r.hint for r in p.reasons if r.hint)
        stage = ", ".join(dict.fromkeys(r.stage for r in p.reasons))
        row = (p.key.model, p.key.label, p.status.value, stage, kinds, what, hints)
        alike.setdefault(row, []).append(f"{p.workload} #{p.repeat}")
        tones[row] = "bad" if p.status is CellStatus.FAILED else "warn"
    rows = tuple((*row[:2], ", ".join(cells), *row[2:]) for row, cells in alike.items())
    head = ("Model", "Method", "Cells", "Status", "Stage", "Kind", "What happened", "What to do")
    return Table(head, rows, tuple(tones.values()))


def warnings(summary: StudySummary) -> Table:
    """Warnings on valid cells."""
    rows = tuple(
        (p.key.model, p.key.label, p.workload, w.kind, w.message, w.hint or "")
        for d in summary.deployments
        for p in d.points
        for w in p.warnings
    )
    return Table(("Model", "Method", "Workload", "Kind", "What", "What to do"), rows, ("warn",) * len(rows))


POINT_NAMES = (
    "throughput_tok_s", "goodput_hz", "ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "itl_p99_s", "e2e_p50_s",
    "power_mean_w", "j_per_output_token", "kv_use_max", "memory_peak_bytes",
)  # fmt: skip


def points_table(summary: StudySummary) -> Table:
    """Every load point with its main numbers."""
    head = ("Model", "Method", "Workload", "SLO", "Met by", *(metric(n).label for n in POINT_NAMES))
    rows: list[tuple[str, ...]] = []
    tones = []
    for d in summary.deployments:
        for p in d.points:
            cells = [text((share if n == "kv_use_max" else shown)(q), q) for n in POINT_NAMES for q in [p.get(n)]]
            rows.append(
                (d.key.model, d.key.label, p.workload, verdict_text(p), str(share(p.get("slo_attainment"))), *cells)
            )
            tones.append("warn" if p.overloaded or p.warnings else "")
    return Table(head, tuple(rows), tuple(tones), numbers=True)


def quality_table(summary: StudySummary) -> Table:
    """Every quality quantity a deployment."""
    names = list(dict.fromkeys(n for d in summary.deployments for n in d.quality))
    head = ("Model", "Method", *(metric(n).label for n in names))
    rows = []
    for d in summary.deployments:
        if not d.quality:
            continue
        cells = [d.quality.get(n, Quantity.unknown("1", "not measured")) for n in names]
        rows.append((d.key.model, d.key.label, *(_quality_text(n, q) for n, q in zip(names, cells, strict=True))))
    return Table(head, tuple(rows), numbers=True)


def _quality_text(name: str, q: Quantity) -> Text:
    if name == "ppl_ratio":
        return text(change(q), q)
    return text(share(q) if q.unit == "1" else shown(q), q)


def verification(summary: StudySummary) -> Table:
    """What each engine said it runs, against what was asked: a row a deployment, a column a check."""
    names = list(dict.fromkeys(c.name for d in summary.deployments if d.verification for c in d.verification.checks))
    rows, tones = [], []
    for d in summary.deployments:
        checks = {c.name: c for c in d.verification.checks} if d.verification else {}
        cells = [_check_text(checks[n]) if n in checks else Text("—") for n in names]
        verdict = "never got so far" if d.verification is None else "contradicted" if d.verification.failed else ""
        verdict = verdict or ("shown" if d.verification and d.verification.verified else "not shown")
        rows.append((d.key.model, d.key.label, verdict, *cells))
        tones.append({"shown": "good", "contradicted": "bad"}.get(verdict, "warn"))
    return Table(("Model", "Method", "In effect", *(_heading(n) for n in names)), tuple(rows), tuple(tones))


def _heading(name: str) -> str:
    words = name.replace("_", " ")
    return (words[:1].upper() + words[1:]).replace("Kv ", "KV ")


def _check_text(c: Check) -> Text:
    if c.passed is None:
        made = Text("not reported")
        made.why = f"expected {c.expected}; {c.why or 'the engine does not report it'}"
        return made
    made = Text(f"✓ {c.seen}" if c.passed else f"✗ {c.seen}, expected {c.expected}")
    made.why = f"expected {c.expected}" + (f"; {c.why}" if c.why else "")
    return made


PROOFS = (
    ("send_lateness_p99", "Sent late, p99"),
    ("send_lateness_max", "Sent late, most"),
    ("loop_lag_p99", "Loop lag, p99"),
    ("ttft_stamp_doubt_p99", "TTFT stamp doubt, p99"),
    ("rate_asked", "Rate asked"),
    ("rate_achieved", "Rate sent"),
    ("arrival_ks_p", "Arrival law, KS p"),
    ("kernel_stamp_share", "Kernel stamps"),
    ("cpu_share", "Client CPU"),
)


def proofs(records: Sequence[Record], labels: Mapping[str, str]) -> Table:
    """The client's own accuracy in each cell."""
    rows, tones = [], []
    used = [(n, t) for n, t in PROOFS if any(r.proof and n in r.proof.checks for r in records)]
    for r in records:
        if r.proof is None:
            continue
        cells = []
        for name, _ in used:
            q = r.proof.checks.get(name)
            cells.append("—" if q is None else str(share(q)) if name.endswith("share") else str(shown(q)))
        verdict = "; ".join(f.message for f in r.proof.failures) or "accurate"
        workload = str(r.cell.get("workload", {}).get("name", "?"))
        rows.append((labels[r.cell_id], workload, f"#{r.cell.get('repeat', 0)}", *cells, verdict))
        tones.append("bad" if r.proof.failures else "good")
    head = ("Method", "Workload", "Repeat", *(t for _, t in used), "Verdict")
    return Table(head, tuple(rows), tuple(tones))


def windows(records: Sequence[Record], labels: Mapping[str, str]) -> Table:
    """Each cell's window and the time it took."""
    rows, tones = [], []
    for r in records:
        if r.window is None:
            continue
        w = r.window
        span = f"{w.start_s:.2f} to {w.end_s:.2f} s"
        took = ", ".join(f"{k} {seconds(v)}" for k, v in r.timings.items())
        workload = str(r.cell.get("workload", {}).get("name", "?"))
        rows.append(
            (labels[r.cell_id], workload, f"#{r.cell.get('repeat', 0)}", span, w.method, w.why or "stationary", took)
        )
        tones.append("" if w.stationary else "warn")
    return Table(
        ("Method", "Workload", "Repeat", "Window", "Found by", "State", "Time taken"), tuple(rows), tuple(tones)
    )


def all_tables(summary: StudySummary, records: Sequence[Record]) -> dict[str, Table]:
    """Every plain table by the name the page and the CSV files use."""
    return {
        "points": points_table(summary),
        "quality": quality_table(summary),
        "verification": verification(summary),
        "proofs": proofs(records, summary.labels),
        "failures": failures(summary),
        "warnings": warnings(summary),
        "windows": windows(records, summary.labels),
    }


def lean(table: Table) -> Table:
    """The table without its model column where there is only one model: a page need not repeat it."""
    if not table.rows or table.columns[0] != "Model" or len({row[0] for row in table.rows}) > 1:
        return table
    return Table(table.columns[1:], tuple(row[1:] for row in table.rows), table.tones, table.numbers)
