"""The cache of files: found by content, written once, safe for several processes.

Layout: ``blobs/<sha256>/<name>`` (files as fetched), ``refs/<digest>.json`` (reference → content), ``variants/…``
(files made from blobs), ``locks/``. Whatever has its final name is whole: it is written under another name and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmeter.errors import SourceError

_CHUNK = 1 << 22


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache: one process makes a thing, the others wait and then find it.

    Raises:
        SourceError: the cache cannot be written.
    """
    folder = cache / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / f"{digest_of(name)}.lock").open("w")
    except OSError as error:
        raise SourceError(
            f"cannot write to the model cache {cache}: {error.strerror}", stage="source",
            hint="choose another cache folder, or free its disk",
        ) from error  # fmt: skip
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, renamed to ``final`` when the block ends well and removed when it does not.

    Raises:
        SourceError: the disk is full or cannot be written.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{final.name[:24]}-", dir=final.parent))
    try:
        yield draft
        if not final.exists():
            os.rename(draft, final)
    except OSError as error:
        raise SourceError(
            f"cannot write {final}: {error.strerror or error}", stage="source", hint="free disk space, then run again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@dataclass(frozen=True)
class Blob:
    """One cached file."""

    path: Path
    sha256: str


class BlobStore:
    """Files by content, and which reference gave which content."""

    def __init__(self, cache: Path):
        self._cache = cache

    def find(self, reference: str, sha256: str | None) -> Blob | None:
        """The file of ``reference`` (or of ``sha256``, if named), ``None`` where it was not fetched yet."""
        known = self._reference(reference)
        digest = sha256 or (known or {}).get("sha256")
        folder = self._cache / "blobs" / digest if digest else None
        if folder is None or not folder.is_dir():
            return None
        files = [p for p in folder.iterdir() if p.is_file()]
        size = (known or {}).get("bytes")
        if len(files) != 1 or (size is not None and known is not None and known.get("sha256") == digest
                               and files[0].stat().st_size != size):  # fmt: skip
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Blob(files[0], str(digest))

    def add(self, reference: str, file: Path, name: str) -> Blob:
        """Move ``file`` into the store as the content of ``reference``."""
        digest = sha256_of(file)
        final = self._cache / "blobs" / digest
        with new_folder(final) as draft:
            shutil.move(file, draft / name)
        blob = Blob(next(p for p in final.iterdir() if p.is_file()), digest)
        write_json(self._path(reference), {"reference": reference, "sha256": digest, "bytes": blob.path.stat().st_size})
        return blob

    def _path(self, reference: str) -> Path:
        return self._cache / "refs" / f"{digest_of(reference)}.json"

    def _reference(self, reference: str) -> dict[str, Any] | None:
        return read_json(self._path(reference))


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, ``None`` where it is missing or broken."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(data, sort_keys=True))
    os.replace(draft, path)


def check_sha256(found: str, asked: str | None, what: str) -> None:
    """Raises:
    SourceError: the content is not what was named.
    """
    if asked is not None and found != asked:
        raise SourceError(
            f"{what} has sha256 {found}, but the study names {asked}", stage="source",
            hint="the file was changed or damaged, or models[].sha256 is of another file",
        )  # fmt: skip
