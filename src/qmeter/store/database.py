"""The one way to open DuckDB here: in memory, and silent."""

from __future__ import annotations

import duckdb


def connect() -> duckdb.DuckDBPyConnection:
    """A database in memory that draws no progress bar into the output of a long query."""
    database = duckdb.connect()
    database.execute("SET enable_progress_bar = false")
    return database


def quoted(text: object) -> str:
    """A text or path as an SQL literal, quotes included."""
    return "'" + str(text).replace("'", "''") + "'"
