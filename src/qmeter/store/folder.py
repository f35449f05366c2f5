"""A study's folder: the study, its records, its tables, its logs. Everything a reader needs is in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from qmeter.errors import IncompatibleRecords, StoreError
from qmeter.record import TABLES, CellTables, Record
from qmeter.spec.identity import essence
from qmeter.spec.study import Study, cell_names, expand
from qmeter.store.journal import Journal, first_fault
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

        A study that has every cell measured there, and others, takes the place of the one that is there (which is kept
        beside it as ``study.1.yaml``, ``study.2.yaml``, …): a method, a load or a repeat added to a study is measured
        without measuring the rest again.

        Raises:
            StoreError: the folder holds another study, or other files, or cannot be written.
        """
        folder = Path(folder)
        resolved = folder / "study.json"
        if resolved.exists():
            store = cls(folder)
            if essence(store.study.model_dump(mode="json")) != essence(study.model_dump(mode="json")):
                store._grow(study, text)
            return store
        try:
            if folder.exists() and not all(p.name.startswith("study.") for p in folder.iterdir()):
                raise StoreError(
                    f"{folder} is not empty and is no study folder", hint="choose another folder with --out"
                )
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "study.yaml").write_text(text, encoding="utf-8")
            write_atomic(resolved, json.dumps(study.model_dump(mode="json"), indent=1))
        except OSError as error:
            raise StoreError(
                f"cannot write the study folder {folder}: {error.strerror or error}",
                hint="choose another folder with --out, or free disk space",
            ) from error
        return cls(folder)

    @property
    def study(self) -> Study:
        """The resolved study.

        Raises:
            IncompatibleRecords: this qMeter does not understand it (another version wrote it, or it was edited).
        """
        try:
            return Study.model_validate_json((self.folder / "study.json").read_text())
        except ValidationError as error:
            raise IncompatibleRecords(
                f"{self.folder / 'study.json'}: {first_fault(error)}",
                hint="it was edited, or written by another version of qMeter: use that one, or run study.yaml anew",
            ) from error

    def _grow(self, study: Study, text: str) -> None:
        with self.lock():
            records = self.records()
            known = cell_names(expand(study))
            strange = [record for record in records if record.cell_id not in known]
            if strange or not records:
                lacks = (
                    f": {len(strange)} of its {len(records)} records belong to no cell of this one" if strange else ""
                )
                raise StoreError(
                    f"{self.folder} already holds a different study{lacks}",
                    hint="choose another folder with --out, or resume that one: qmeter resume DIR (a study may grow, "
                    "but what was measured must stay in it unchanged)",
                )
            number = next(n for n in range(1, 10_000) if not (self.folder / f"study.{n}.yaml").exists())
            try:
                if (self.folder / "study.yaml").is_file():
                    os.replace(self.folder / "study.yaml", self.folder / f"study.{number}.yaml")
                write_atomic(self.folder / "study.yaml", text)
                write_atomic(self.folder / "study.json", json.dumps(study.model_dump(mode="json"), indent=1))
            except OSError as error:
                raise StoreError(
                    f"cannot write to {self.folder}: {error.strerror or error}", hint="make the folder writable"
                ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run; a second run is refused rather than mixed in.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(self.folder / ".lock", "w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(f"another run is writing to {self.folder}", hint="wait for it, or end it") from error
            except OSError as error:
                raise StoreError(
                    f"cannot lock {self.folder}: {error.strerror or error}", hint="make the folder writable"
                ) from error
            yield

    def append(self, record: Record) -> None:
        """Append one record; on return it is on the disk.

        Raises:
            StoreError: it cannot be written, or the study's folder was removed or moved meanwhile.
        """
        if not (self.folder / "study.json").is_file():
            raise StoreError(
                f"{self.folder} was removed or moved while the study ran", hint="put it back, then: qmeter resume DIR"
            )
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

    def adopt_deployment(self, former_id: str, deployment_id: str) -> None:
        """Go on with the logs and caches that an older qMeter kept under another name."""
        former, now = (self.folder / "deployments" / name for name in (former_id, deployment_id))
        if former != now and former.is_dir() and not now.exists():
            former.rename(now)

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
