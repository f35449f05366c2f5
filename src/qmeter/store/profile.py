"""Profiles: a study's records and tables in a few compact Parquet files, to ship, to pass on and to plan from.

A profile is a folder: ``study.json``, ``records.parquet`` (one JSON record a row), and ``requests.parquet``,
``telemetry.parquet``, ``steps.parquet`` with the cell's id in each row; ``tokens.parquet`` only where it was asked for,
since token times are nine tenths of the bytes and the iteration log tells the same. Times are rounded to a
microsecond, readings to five digits (never coarser than a thousandth of their unit). The end of a closed loop's
list, requests that were never due, is left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import duckdb
from pydantic import ValidationError

from qmeter.errors import StoreError, UnknownName
from qmeter.record import TABLES, CellTables, Record
from qmeter.registry import nearest
from qmeter.spec.study import Study
from qmeter.store.database import connect, quoted
from qmeter.store.folder import StudyStore
from qmeter.store.journal import first_fault, parse_record
from qmeter.store.query import Rows, run_query
from qmeter.store.tables import columns_of, table_from

WITHOUT_TOKENS = tuple(name for name in TABLES if name != "tokens")
TIME_DIGITS = 6
READING_DIGITS = 5
DUE = "status <> 'unsent' OR NOT isnan(coalesce(intended_s, 'nan'))"
"""A request that was due, whatever became of it."""


class Results(Protocol):
    """Measured or simulated results, whether a study's folder or a profile."""

    @property
    def study(self) -> Study:
        """The resolved study."""
        ...

    def records(self) -> list[Record]:
        """The latest record of each cell."""
        ...

    def tables(self, record: Record) -> CellTables:
        """The tables of one record."""
        ...


@dataclass(frozen=True)
class ProfileInfo:
    """One profile there is: its name, folder, and whether it ships with qMeter or was added on this host."""

    name: str
    folder: Path
    shipped: bool


class Profile:
    """A profile, read like a study's folder.

    Raises:
        StoreError: the folder is not a profile.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / "records.parquet").is_file():
            raise StoreError(f"{self.folder} is not a profile (no records.parquet)", hint="see: qmeter profiles")

    @property
    def study(self) -> Study:
        """The resolved study that it comes from.

        Raises:
            StoreError: it has none, or one that cannot be read.
        """
        path = self.folder / "study.json"
        try:
            return Study.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def records(self) -> list[Record]:
        """Every record.

        Raises:
            IncompatibleRecords: written by a newer qMeter.
            StoreError: the file cannot be read.
        """
        path = self.folder / "records.parquet"
        try:
            rows = _select(path, "record", "TRUE ORDER BY number")
        except duckdb.Error as error:
            raise _unreadable(path, error) from error
        return [parse_record(text, f"{path} cannot be read", _AGAIN) for (text,) in rows]

    def tables(self, record: Record) -> CellTables:
        """The record's tables; token times are empty where the profile was made without them."""
        made = {}
        with connect() as db:
            for name, kind in TABLES.items():
                path = self.folder / f"{name}.parquet"
                made[name] = table_from(db, path, kind, cell_id=record.cell_id) if path.exists() else kind.empty()
        return CellTables(**made)

    def query(self, sql: str) -> Rows:
        """Run SQL over the views ``records``, ``requests``, ``tokens``, ``telemetry``, ``steps``; see StudyStore."""
        present = {
            name: [self.folder / f"{name}.parquet"] for name in TABLES if (self.folder / f"{name}.parquet").exists()
        }
        return run_query(present, self.records(), sql, cell_in_path=False)


_AGAIN = "remove the profile, or add it again"


def _unreadable(path: Path, error: Exception) -> StoreError:
    why = first_fault(error) if isinstance(error, ValidationError) else next(iter(str(error).splitlines()), repr(error))
    return StoreError(f"{path} cannot be read: {why}", hint=_AGAIN)


def write_profile(store: StudyStore, folder: Path, *, with_tokens: bool = False) -> Path:
    """Write a study's results as a profile into a new folder; returns it.

    Raises:
        StoreError: the folder exists, or the study has no records.
    """
    records = store.records()
    if not records:
        raise StoreError(f"{store.folder} has no records yet", hint="run the study first")
    if folder.exists():
        raise StoreError(f"{folder} exists already", hint="choose another name, or remove it")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        shutil.copy(store.folder / "study.json", temporary / "study.json")
        with connect() as db:
            _write_records(db, records, temporary / "records.parquet")
            for name in TABLES if with_tokens else WITHOUT_TOKENS:
                _write_table(db, store, records, name, temporary / f"{name}.parquet")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


KEPT = ("study.json", "roofline.json", "records.parquet", *(f"{name}.parquet" for name in TABLES))
"""The files of a profile; nothing else is taken over from one made elsewhere."""


def copy_profile(profile: Profile, folder: Path) -> Path:
    """Copy a profile's own files into a new folder; returns it.

    Raises:
        StoreError: the folder exists.
    """
    if folder.exists():
        raise StoreError(f"{folder} exists already", hint="choose another name with --name, or remove it")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        for name in KEPT:
            source = profile.folder / name
            if source.is_file() and not source.is_symlink():
                shutil.copyfile(source, temporary / name)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def list_profiles() -> list[ProfileInfo]:
    """The shipped profiles and the ones added on this host; an added one hides a shipped one of its name."""
    found: dict[str, ProfileInfo] = {}
    for root, shipped in ((Path(str(files("qmeter"))) / "profiles", True), (added_root(), False)):
        for folder in sorted(root.glob("*/records.parquet")):
            found[folder.parent.name] = ProfileInfo(folder.parent.name, folder.parent, shipped)
    return list(found.values())


def added_root() -> Path:
    """Where profiles added on this host lie."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "qmeter" / "profiles"


def open_results(name: str) -> StudyStore | Profile:
    """A study's folder or a profile's by path, else a profile by name.

    Raises:
        UnknownName: neither; carries the nearest profile names.
    """
    path = Path(name)
    if (path / "study.json").is_file():
        return Profile(path) if (path / "records.parquet").is_file() else StudyStore(path)
    known = {p.name: p.folder for p in list_profiles()}
    if name in known:
        return Profile(known[name])
    raise UnknownName("study folder or profile", name, list(known), nearest(name, known))


_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.+@-]+/)+")


def _portable(record: Record) -> str:
    """The record as JSON, to leave the host: absolute folders become "…/", the kernel keeps its version alone."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _FOLDERS.sub("…/", value)
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    data = record.model_dump(mode="json")
    for part in ("provenance", "effective", "verification", "reasons", "warnings"):
        data[part] = clean(data[part])
    if kernel := data["provenance"]["host"].get("kernel"):
        data["provenance"]["host"]["kernel"] = re.split(r"[^0-9.]", kernel)[0]
    return json.dumps(data)


def _write_records(db: duckdb.DuckDBPyConnection, records: list[Record], path: Path) -> None:
    db.execute("CREATE TABLE made (number INTEGER, cell_id VARCHAR, record VARCHAR)")
    db.executemany("INSERT INTO made VALUES (?, ?, ?)", [[i, r.cell_id, _portable(r)] for i, r in enumerate(records)])
    db.execute(f"COPY (FROM made ORDER BY number) TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd)")


def _write_table(
    db: duckdb.DuckDBPyConnection, store: StudyStore, records: list[Record], name: str, path: Path
) -> None:
    sources = [(r.cell_id, store.cell_folder(r.cell_id) / f"{name}.parquet") for r in records]
    present = [(cell, file) for cell, file in sources if file.exists()]
    if not present:
        return
    parts = []
    for cell, file in present:
        columns = columns_of(db, [file], TABLES[name])
        shown = [made if " AS " in made else _compact(made.strip('"')) for made in columns]
        rows = f"FROM read_parquet({quoted(file)}, file_row_number = true)"
        if name == "requests":  # row i is request i: only the list's end is left out
            rows += f" WHERE file_row_number <= (SELECT max(file_row_number) {rows} WHERE {DUE})"
        parts.append(f"SELECT '{cell}' AS cell_id, {', '.join(shown)} {rows}")
    union = " UNION ALL ".join(parts)
    db.execute(f"COPY ({union}) TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 19)")


def _compact(column: str) -> str:
    """Times to a microsecond, readings to five digits (counters, which are large, to a thousandth)."""
    if column.endswith("_s"):
        return f'ROUND("{column}", {TIME_DIGITS}) AS "{column}"'
    if column == "value":
        digits = f"{READING_DIGITS - 1} - CAST(FLOOR(LOG10(ABS(value))) AS INTEGER)"
        return f"CASE WHEN value = 0 THEN 0.0 ELSE ROUND(value, GREATEST(3, {digits})) END AS value"
    return f'"{column}"'


def _select(path: Path, column: str, condition: str) -> list[tuple[str]]:
    with connect() as db:
        return db.execute(f"SELECT {column} FROM read_parquet({quoted(path)}) WHERE {condition}").fetchall()
