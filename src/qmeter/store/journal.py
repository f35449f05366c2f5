"""Append-only journals such as ``records.jsonl``: an entry a line; one torn by a crash is set aside, never fatal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from qmeter.errors import IncompatibleRecords, StoreError
from qmeter.record import SCHEMA_VERSION, Record


def append_line(path: Path, line: bytes, hint: str) -> None:
    """Append one line and flush it to the disk before returning.

    A torn last line, left by a killed run, is first moved to a file beside it (``.torn``), so that nothing is glued to
    it.

    Raises:
        StoreError: the disk is full, or the file cannot be written; with ``hint``.
    """
    try:
        _set_torn_tail_aside(path)
        with open(path, "ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """``(number, line)`` of every whole line that is not empty; a torn last one is left out, a missing file empty."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    lines.pop()  # what follows the last newline: nothing, or a torn line
    yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _set_torn_tail_aside(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        raw = path.read_bytes()
        keep = raw.rfind(b"\n") + 1
        with open(path.with_suffix(".torn"), "ab") as torn:
            torn.write(raw[keep:] + b"\n")
        file.truncate(keep)


class Journal:
    """Appends and reads records.

    Args:
        path: the file; made at the first append.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: Record) -> None:
        """Append one record, on the disk when this returns: see :func:`append_line`.

        Raises:
            StoreError: the disk is full, or the file cannot be written.
        """
        hint = "free disk space or make it writable, then: qmeter resume DIR"
        append_line(self.path, record.model_dump_json().encode(), hint)

    def read(self) -> Iterator[Record]:
        """Every whole record, in order; a torn last line is left out.

        Raises:
            StoreError: a line in the middle is not a record (names the line).
            IncompatibleRecords: written by a newer qMeter.
        """
        for number, line in whole_lines(self.path):
            yield parse_record(line, f"{self.path}, line {number}", "remove that line; its cell can be resumed")


def parse_record(text: str | bytes, where: str, hint: str) -> Record:
    """One record from its JSON.

    Args:
        where: what the messages begin with.
        hint: what to do about one that is no record.

    Raises:
        StoreError: it is not a record; names the first field that is wrong.
        IncompatibleRecords: written by a newer qMeter.
    """
    try:
        data = json.loads(text)
        newer = (version := data.get("schema_version", 0)) > SCHEMA_VERSION
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{where}: not a record ({error})", hint=hint) from error
    if newer:
        raise IncompatibleRecords(
            f"{where}: schema {version} is newer than this qMeter's {SCHEMA_VERSION}", hint="upgrade qMeter"
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        raise StoreError(f"{where}: {first_fault(error)}", hint=hint) from error


def first_fault(error: ValidationError) -> str:
    """The first field that is wrong, and why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
