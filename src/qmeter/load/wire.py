"""How parent and client processes talk: memory files for bulk, one JSON line each way for the rest. No pickle."""

from __future__ import annotations

import io
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def memory_file(name: str) -> int:
    """A new anonymous memory file (close-on-exec; pass it on with ``pass_fds``)."""
    return os.memfd_create(f"qmeter-{name}", os.MFD_CLOEXEC)


@dataclass(frozen=True)
class Payloads:
    """The bytes of every request, one after the other in shared memory: made once, mapped by each process."""

    view: memoryview
    offsets: NDArray[np.int64]

    def __getitem__(self, index: int) -> memoryview:
        return self.view[self.offsets[index] : self.offsets[index + 1]]


def write_payloads(fd: int, payloads: Iterable[bytes]) -> NDArray[np.int64]:
    """Write every request's bytes to ``fd``; return the n + 1 offsets."""
    offsets = [0]
    with os.fdopen(os.dup(fd), "wb", buffering=1 << 20) as file:
        for payload in payloads:
            file.write(payload)
            offsets.append(offsets[-1] + len(payload))
    return np.asarray(offsets, np.int64)


def map_payloads(fd: int, offsets: NDArray[np.int64]) -> Payloads:
    """The requests' bytes, read-only, as written by :func:`write_payloads`."""
    if not offsets[-1]:
        return Payloads(memoryview(b""), offsets)
    return Payloads(memoryview(mmap.mmap(fd, int(offsets[-1]), prot=mmap.PROT_READ)), offsets)


def write_arrays(fd: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Replace the content of ``fd`` by ``arrays`` (numpy's npz, plain types only)."""
    os.ftruncate(fd, 0)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.seek(0)
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(fd: int) -> dict[str, NDArray[Any]]:
    """What :func:`write_arrays` wrote."""
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        with np.load(io.BytesIO(file.read()), allow_pickle=False) as data:
            return {name: data[name] for name in data.files}


def pack_texts(texts: Iterable[str | None]) -> NDArray[np.uint8]:
    """Strings (or ``None``) as one array of bytes that needs no pickle."""
    return np.frombuffer(json.dumps(list(texts)).encode("utf-8", "surrogatepass"), np.uint8)


def unpack_texts(packed: NDArray[np.uint8]) -> list[str | None]:
    """What :func:`pack_texts` packed."""
    texts: list[str | None] = json.loads(packed.tobytes().decode("utf-8", "surrogatepass"))
    return texts
