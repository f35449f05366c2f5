"""A study's folder: the study, its records, its tables, its logs. Everything a reader needs is in it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qmeter.errors import StoreError
from qmeter.record import TABLES, CellTables, Record
from qmeter.spec.study import Study
from qmeter.store.journal import Journal
from qmeter.store.query import Rows, run_query
from qmeter.store.tables import read_tables, write_tables


class StudyStore:
    """One study on disk.

    Layout: ``study.yaml`` (as given), ``study.json`` (resolved), ``records.jsonl``,
    ``cells/<cell_id>/{requests,tokens,telemetry,steps}.parquet``, ``deployments/<id>/`` (logs, quality cache),
    ``report/``.

    Args:
        folder: an existing study folder (see :meth:`create` for a new one).

    Raises:
        StoreError: the folder is not a study's.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / "study.json").is_file():
            raise StoreError(
                f"{self.folder} is not a study folder (no study.json)",
                hint="name the folder that 'qmeter run' wrote, or start one: qmeter run STUDY.yaml",
            )
        self._journal = Journal(self.folder / "records.jsonl")

    @classmethod
    def create(cls, folder: Path, study: Study, text: str) -> StudyStore:
        """Make the folder, or open it where the same study already is there.

        Raises:
            StoreError: the folder holds another study, or other files.
        """
        folder = Path(folder)
        resolved = folder / "study.json"
        wanted = study.model_dump(mode="json")
        if resolved.exists():
            if json.loads(resolved.read_text()) != wanted:
                raise StoreError(
                    f"{folder} already holds a different study",
                    hint="choose another folder with --out, or resume that one: qmeter resume DIR",
                )
            return cls(folder)
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f"{folder} is not empty and is no study folder", hint="choose another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.yaml").write_text(text)
        write_atomic(resolved, json.dumps(wanted, indent=1))
        return cls(folder)

    @property
    def study(self) -> Study:
        """The resolved study."""
        return Study.model_validate_json((self.folder / "study.json").read_text())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run; a second run is refused rather than mixed in.

        Raises:
            StoreError: another process holds it.
        """
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(f"another run is writing to {self.folder}", hint="wait for it, or end it") from error
            yield

    def append(self, record: Record) -> None:
        """Append one record; on return it is on the disk."""
        self._journal.append(record)

    def records(self) -> list[Record]:
        """The latest record of each cell, in order of first appearance."""
        latest: dict[str, Record] = {}
        for record in self._journal.read():
            latest[record.cell_id] = record
        return list(latest.values())

    def cell_folder(self, cell_id: str) -> Path:
        """Where a cell's tables lie."""
        return self.folder / "cells" / cell_id

    def deployment_folder(self, deployment_id: str) -> Path:
        """Where a deployment's logs and caches lie; made on demand."""
        folder = self.folder / "deployments" / deployment_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_tables(self, cell_id: str, tables: CellTables) -> dict[str, str]:
        """Write the cell's tables; returns table name → path relative to the study folder, for the record."""
        written = write_tables(self.cell_folder(cell_id), tables)
        return {name: str(path.relative_to(self.folder)) for name, path in written.items()}

    def tables(self, record: Record) -> CellTables:
        """The tables of one record (empty ones where the cell failed before its load)."""
        return read_tables(self.cell_folder(record.cell_id))

    def query(self, sql: str) -> Rows:
        """Run SQL over the views ``records``, ``requests``, ``tokens``, ``telemetry`` and ``steps``.

        Raises:
            StoreError: the SQL is wrong, with DuckDB's own message.
        """
        found = {name: sorted((self.folder / "cells").glob(f"*/{name}.parquet")) for name in TABLES}
        return run_query({name: paths for name, paths in found.items() if paths}, self.records(), sql)


def write_atomic(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it into place."""
    temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
