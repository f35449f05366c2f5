"""SQL over a study folder, by DuckDB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from qmeter.errors import StoreError
from qmeter.record import TABLES, Record
from qmeter.store.database import connect, quoted


@dataclass(frozen=True)
class Rows:
    """A query's answer: column names and rows of plain values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def flat(record: Record) -> dict[str, Any]:
    """One record as flat columns: identity, status, and each quantity as ``name``, ``name_low``, ``name_high``.

    Unknown quantities are NULL; quality names keep their dots as underscores. ``gpus`` and ``neighbours`` (cells that
    ran beside it) are indexes and ids, separated by spaces.
    """
    cell = record.cell
    deployment = cell.get("deployment", {})
    row: dict[str, Any] = {
        "cell_id": record.cell_id, "deployment_id": record.deployment_id, "study": record.study,
        "kind": record.kind.value, "status": record.status.value,
        "reason": "; ".join(f"{r.kind}: {r.message}" for r in record.reasons) or None,
        "model": deployment.get("model", {}).get("name"), "engine": deployment.get("engine", {}).get("name"),
        "method": deployment.get("method"), "device": deployment.get("device"),
        "tp": deployment.get("parallelism", {}).get("tp"), "pp": deployment.get("parallelism", {}).get("pp"),
        "dp": deployment.get("parallelism", {}).get("dp"), "placement": deployment.get("placement"),
        "gpus": " ".join(map(str, record.devices)) if record.devices else None,
        "neighbours": " ".join(n.cell_id for n in record.neighbours if n.cell_id) or None,
        "workload": cell.get("workload", {}).get("name"), "repeat": cell.get("repeat"), "seed": cell.get("seed"),
    }  # fmt: skip
    if record.effective:
        for name in ("weight_bytes", "kv_type", "kv_blocks", "token_budget", "max_sequences"):
            row[name] = getattr(record.effective, name)
    for group in (record.metrics, record.energy, record.quality):
        for name, quantity in group.items():
            column = name.replace(".", "_")
            row[column], row[f"{column}_low"], row[f"{column}_high"] = quantity.value, quantity.low, quantity.high
    row.update({f"timing_{stage}_s": seconds for stage, seconds in record.timings.items()})
    return row


def run_query(
    tables: Mapping[str, Sequence[Path]], records: list[Record], sql: str, *, cell_in_path: bool = True
) -> Rows:
    """Run one SQL statement over views; see :meth:`qmeter.store.StudyStore.query`.

    Args:
        tables: table name → its Parquet files.
        cell_in_path: the cell's id is each file's folder; else the files have a column ``cell_id``.
    """
    with connect() as db:
        try:
            db.register("records_rows", _columns([flat(r) for r in records]))
            db.execute("CREATE VIEW records AS SELECT * FROM records_rows")
            for name, paths in tables.items():
                listed = ", ".join(map(quoted, paths))
                cell = "parse_path(filename)[-2] AS cell_id, " if cell_in_path else ""
                chosen = f"{cell}* EXCLUDE (filename)"
                db.execute(f"CREATE VIEW {name} AS SELECT {chosen} FROM read_parquet([{listed}], filename=true)")
            answer = db.execute(sql)
            names = tuple(d[0] for d in answer.description or ())
            return Rows(names, tuple(answer.fetchall()) if names else ())
        except duckdb.Error as error:
            views = ", ".join(["records", *tables])
            absent = [name for name in TABLES if name not in tables]
            note = f" (no cell has {', '.join(absent)} yet)" if absent else ""
            hint = f"views: {views}{note}; columns: DESCRIBE records"
            raise StoreError(f"the query failed: {error}", hint=hint) from error


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row) or dict.fromkeys(["cell_id"])
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        present = [v for v in values if v is not None]
        if present and all(isinstance(v, int | float) for v in present):
            columns[name] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
            if all(isinstance(v, int) for v in present) and len(present) == len(values):
                columns[name] = np.array(values, dtype=np.int64)
            elif len(present) < len(values):
                columns[name] = np.ma.masked_invalid(columns[name])
        elif values:
            columns[name] = np.array([None if v is None else str(v) for v in values], dtype=object)
        else:
            columns[name] = np.empty(0, dtype="<U1")
    return columns
