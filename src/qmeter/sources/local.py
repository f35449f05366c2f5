"""A path: a GGUF file, or a folder with safetensors or OpenVINO's own format."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

from qmeter.engines.base import Artifact
from qmeter.errors import SourceError
from qmeter.sources.base import Request
from qmeter.sources.cache import check_sha256, digest_of, read_json, sha256_of, write_json


class PathSource:
    """A file or folder that is here already; it is used where it lies."""

    def fetch(self, request: Request) -> Artifact:
        """The file or folder, with the hash of its content.

        Raises:
            SourceError: it is missing, is no model, or has another sha256 than named.
        """
        path = Path(request.reference).expanduser().absolute()
        if not path.exists():
            raise SourceError(
                f"{path} does not exist", stage="source",
                hint="models[].source is a path, hf:org/name@revision, pypi:package==version/file or synth:model",
            )  # fmt: skip
        model = folder_artifact(path, "") if path.is_dir() else file_artifact(path, "")
        digest = _remembered_sha256(path, request.cache)
        check_sha256(digest, request.sha256, str(path))
        return replace(model, sha256=digest)


def file_artifact(path: Path, sha256: str) -> Artifact:
    """A GGUF file as an artifact.

    Raises:
        SourceError: it is not a GGUF.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise SourceError(
            f"{path.name} is not a GGUF (it begins with {magic!r})", stage="source",
            hint="a single file must be a GGUF; for safetensors name the folder",
        )  # fmt: skip
    return Artifact(path, "gguf", sha256)


def folder_artifact(path: Path, sha256: str, notes: tuple[str, ...] = ()) -> Artifact:
    """A model folder as an artifact.

    Raises:
        SourceError: it holds no model.
    """
    if (path / "openvino_model.xml").is_file():
        size = (path / "openvino_model.bin").stat().st_size
        return Artifact(path, "openvino", sha256, weight_bytes=size, notes=notes)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise SourceError(
            f"{path} has neither *.safetensors nor openvino_model.xml", stage="source",
            hint="name the folder that holds the weights, or a GGUF file itself",
        )  # fmt: skip
    return Artifact(path, "safetensors", sha256, weight_bytes=sum(map(safetensors_bytes, files)), notes=notes)


def safetensors_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file, from its header (8-byte length, then JSON).

    Raises:
        SourceError: the header cannot be read.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        return sum(e["data_offsets"][1] - e["data_offsets"][0] for k, e in header.items() if k != "__metadata__")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise SourceError(f"{path.name} is no safetensors file: {error}", stage="source") from error


def _remembered_sha256(path: Path, cache: Path) -> str:
    """Hash of a file, or of a folder's names and contents; kept until a size or a change time differs."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stamp = digest_of(json.dumps([[str(p), (s := p.stat()).st_size, s.st_mtime_ns] for p in files]))
    note = cache / "refs" / f"path-{digest_of(str(path))}.json"
    known = read_json(note)
    if known is not None and known.get("stamp") == stamp:
        return str(known["sha256"])
    if path.is_dir():
        lines = "".join(f"{sha256_of(p)} {p.relative_to(path)}\n" for p in files)
        digest = hashlib.sha256(lines.encode()).hexdigest()
    else:
        digest = sha256_of(path)
    write_json(note, {"path": str(path), "stamp": stamp, "sha256": digest})
    return digest
