"""Trace files in their own formats, read as far as a cell needs them.

``azure``: the Azure LLM inference traces' CSV (TIMESTAMP, ContextTokens, GeneratedTokens; 2023 and 2024 stamps).
``mooncake``: Mooncake's JSONL (timestamp in ms, input_length, output_length, hash_ids: one id a 512-token block, equal
ids meaning equal content after an equal prefix).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import SpecError

MOONCAKE_BLOCK_TOKENS = 512
_NS = 1_000_000_000
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?$")
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Row:
    """One request of a trace: ``time_ns`` on the trace's own clock, lengths in tokens, block ids if it has them."""

    time_ns: int
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Trace:
    """The rows of a stretch of a trace.

    Attributes:
        time_ns: since the stretch's start, on the trace's clock, ascending, shape (n,).
        prompt_tokens, output_tokens: shape (n,).
        hash_ids: a row's block ids, or ``None`` where the format has none.
        covered_s: how far the file reaches after the stretch's start (at least the length asked for if it does).
    """

    time_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    hash_ids: tuple[tuple[int, ...], ...] | None
    covered_s: float

    def __len__(self) -> int:
        return len(self.time_ns)


class _Malformed(ValueError):
    """A row is wrong; the reader adds file and line."""


def read_trace(path: Path, format: str, *, offset_s: float = 0.0, length_s: float = float("inf")) -> Trace:
    """Rows with ``offset_s`` ≤ time since the first row < ``offset_s + length_s``; reads no further.

    Raises:
        SpecError: the file is missing or a line (named) is malformed, out of order or not the format's.
    """
    start_ns, last_ns = round(offset_s * _NS), None
    end_ns = None if length_s == float("inf") else start_ns + round(length_s * _NS)
    first_ns: int | None = None
    rows: list[Row] = []
    since_ns = 0
    for line, row in _lines(path, format):
        first_ns = row.time_ns if first_ns is None else first_ns
        since_ns = row.time_ns - first_ns
        if last_ns is not None and since_ns < last_ns:
            raise _fault(path, line, "its time is before the line above it", "sort the trace by time")
        last_ns = since_ns
        if end_ns is not None and since_ns >= end_ns:
            break
        if since_ns >= start_ns:
            rows.append(row)
    if first_ns is None:
        raise SpecError(f"{path}: the trace has no requests", hint="name another file, or check that it is complete")
    base_ns = first_ns + start_ns
    return Trace(
        time_ns=np.array([r.time_ns - base_ns for r in rows], dtype=np.int64),
        prompt_tokens=np.array([r.prompt_tokens for r in rows], dtype=np.int32),
        output_tokens=np.array([r.output_tokens for r in rows], dtype=np.int32),
        hash_ids=tuple(r.hash_ids or () for r in rows) if format == "mooncake" else None,
        covered_s=(since_ns - start_ns) / _NS,
    )


def _lines(path: Path, format: str) -> Iterator[tuple[int, Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _READERS[format](path, file)
    except OSError as error:
        raise SpecError(f"cannot read the trace {path}: {error.strerror}", hint="check arrivals.path") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not text in UTF-8", hint=f"a {format} trace is plain text") from None


def _azure(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(file)
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise _fault(path, 1, f"the header lacks {', '.join(missing)}", f"an azure trace has {', '.join(_COLUMNS)}")
    where = [header.index(name) for name in _COLUMNS]
    while True:
        try:
            cells = next(reader)
            if cells:
                yield reader.line_num, _azure_row(cells, where)
        except StopIteration:
            return
        except (_Malformed, csv.Error) as error:
            raise _fault(path, reader.line_num, str(error)) from None


def _azure_row(cells: list[str], where: list[int]) -> Row:
    if len(cells) <= max(where):
        raise _Malformed(f"{len(cells)} columns where {max(where) + 1} are needed")
    stamp, prompt, output = (cells[i].strip() for i in where)
    match = _STAMP.match(stamp)
    if not match:
        raise _Malformed(f"TIMESTAMP {stamp!r} is not like '2023-11-16 18:17:03.9799600'")
    try:
        whole = datetime.fromisoformat(f"{match[1]} {match[2]}") - _EPOCH
    except ValueError as error:
        raise _Malformed(f"TIMESTAMP {stamp!r}: {error}") from None
    time_ns = (whole.days * 86400 + whole.seconds) * _NS + int((match[3] or "0").ljust(9, "0")) - _zone_ns(match[4])
    return Row(time_ns, _count("ContextTokens", prompt), _count("GeneratedTokens", output))


def _zone_ns(zone: str | None) -> int:
    if not zone or zone == "Z":
        return 0
    digits = zone[1:].replace(":", "")
    return (1 if zone[0] == "+" else -1) * (int(digits[:2]) * 3600 + int(digits[2:]) * 60) * _NS


def _mooncake(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            yield number, _mooncake_row(json.loads(text))
        except json.JSONDecodeError as error:
            raise _fault(path, number, f"not JSON: {error.msg} at column {error.colno}") from None
        except (_Malformed, RecursionError) as error:
            raise _fault(path, number, str(error)) from None


def _mooncake_row(data: Any) -> Row:
    if not isinstance(data, dict):
        raise _Malformed("not a JSON object")
    missing = [k for k in ("timestamp", "input_length", "output_length", "hash_ids") if k not in data]
    if missing:
        raise _Malformed(f"lacks {', '.join(missing)}")
    stamp, ids = data["timestamp"], data["hash_ids"]
    if isinstance(stamp, bool) or not isinstance(stamp, int | float) or not 0 <= stamp < 1e15:
        raise _Malformed(f"timestamp {stamp!r} is not a time in milliseconds")
    if not isinstance(ids, list) or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise _Malformed("hash_ids is not a list of whole numbers")
    prompt, output = _count("input_length", data["input_length"]), _count("output_length", data["output_length"])
    blocks = -(-prompt // MOONCAKE_BLOCK_TOKENS)
    if len(ids) != blocks:
        raise _Malformed(f"{len(ids)} hash_ids where {prompt} tokens make {blocks} blocks of {MOONCAKE_BLOCK_TOKENS}")
    return Row(round(stamp * 1_000_000), prompt, output, tuple(ids))


def _count(name: str, value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12 else value
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 10_000_000:
        raise _Malformed(f"{name} {value!r} is not a whole number of tokens from 1 to 10000000")
    return number


def _fault(path: Path, line: int, what: str, hint: str = "correct or remove that line") -> SpecError:
    return SpecError(f"{path}, line {line}: {what}", hint=hint)


_READERS: dict[str, Callable[[Path, TextIO], Iterator[tuple[int, Row]]]] = {"azure": _azure, "mooncake": _mooncake}
