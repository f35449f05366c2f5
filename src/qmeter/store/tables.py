"""Parquet for a cell's tables, through DuckDB: written to a temporary name, then renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from qmeter.errors import StoreError
from qmeter.record import TABLES, CellTables
from qmeter.store.database import connect, quoted

_SQL_TYPES: dict[Any, str] = {
    np.float64: "DOUBLE", np.int32: "INTEGER", np.int16: "SMALLINT", np.int8: "TINYINT", np.bool_: "BOOLEAN",
    np.object_: "VARCHAR",
}  # fmt: skip


def write_tables(folder: Path, tables: CellTables) -> dict[str, Path]:
    """Write each table to ``folder/<name>.parquet`` (zstd); returns name → path. Replaces what was there, whole.

    On return the tables are on the disk, as the record that will name them will be.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with connect() as db:
            return {name: _write_table(db, folder, name, getattr(tables, name), kind) for name, kind in TABLES.items()}
    except (OSError, duckdb.IOException) as error:
        raise StoreError(
            f"cannot write {folder}: {error}", hint="free disk space or make it writable, then: qmeter resume DIR"
        ) from error


def _write_table(db: duckdb.DuckDBPyConnection, folder: Path, name: str, table: Any, kind: Any) -> Path:
    columns = {c: _plain(v) for c, v in table.columns().items()}
    casts = ", ".join(f'CAST("{c}" AS {_SQL_TYPES[kind.dtypes[c]]}) AS "{c}"' for c in columns)
    path = folder / f"{name}.parquet"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    db.register("source_rows", columns)
    db.execute(f"COPY (SELECT {casts} FROM source_rows) TO {quoted(temporary)} (FORMAT parquet, COMPRESSION zstd)")
    db.unregister("source_rows")
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read_tables(folder: Path) -> CellTables:
    """Read back what :func:`write_tables` wrote; an absent table is empty.

    Raises:
        StoreError: a file is there but is not what it should be.
    """
    made = {}
    with connect() as db:
        for name, kind in TABLES.items():
            path = folder / f"{name}.parquet"
            made[name] = table_from(db, path, kind) if path.exists() else kind.empty()
    return CellTables(**made)


def table_from(db: duckdb.DuckDBPyConnection, path: Path, kind: Any, *, cell_id: str | None = None) -> Any:
    """One Parquet file as a table of type ``kind``; with ``cell_id`` only that cell's rows, in the file's order.

    Raises:
        StoreError: the file is not what it should be.
    """
    chosen = "" if cell_id is None else " WHERE cell_id = ?"
    try:
        listed = ", ".join(columns_of(db, [path], kind))
        query = f"SELECT {listed} FROM read_parquet({quoted(path)}){chosen}"
        found = db.execute(query, [] if cell_id is None else [cell_id]).fetchnumpy()
    except duckdb.Error as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="remove the cell's folder, then resume") from error
    return kind(**{c: _unmasked(found[c], kind.dtypes[c]) for c in kind.dtypes})


def columns_of(db: duckdb.DuckDBPyConnection, paths: list[Path], kind: Any) -> list[str]:
    """SQL for each column of ``kind``: those that came later and the files lack are their constant.

    Raises:
        duckdb.Error: a file cannot be read.
    """
    listed = ", ".join(quoted(path) for path in paths)
    rows = db.execute(f"DESCRIBE SELECT * FROM read_parquet([{listed}], union_by_name = true)").fetchall()
    present = {row[0] for row in rows}
    return [f'{kind.later[c]} AS "{c}"' if c in kind.later and c not in present else f'"{c}"' for c in kind.dtypes]


def _plain(column: Any) -> Any:
    """DuckDB scans empty object arrays as no type at all: give them one."""
    if column.dtype == object and len(column) == 0:
        return np.empty(0, dtype="<U1")
    return np.ascontiguousarray(column)


def _unmasked(column: Any, dtype: Any) -> Any:
    """A DuckDB result column without its mask: NULL becomes None, NaN or -1."""
    mask, values = np.ma.getmaskarray(column), np.ma.getdata(column)
    if dtype is np.object_:
        listed = [None if null or value is None else value for null, value in zip(mask, values, strict=True)]
        return np.array(listed, dtype=object) if listed else np.empty(0, dtype=object)
    if mask.any():
        return np.ma.filled(column, np.nan if dtype is np.float64 else -1)
    return values
