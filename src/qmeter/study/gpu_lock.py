"""One run at a time measures on a GPU: a second would disturb the first's numbers, and neither record would say so.

The locks are files of the host (``$TMPDIR/qmeter-gpu-UUID.lock``), held by the kernel for as long as the process
lives: one that is killed leaves none behind. They keep apart the runs of all users of one ``/tmp``, not those in
containers with a ``/tmp`` of their own; what other programs hold of a GPU stands in each record's idle baseline.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qmeter.errors import StoreError
from qmeter.telemetry.nvml import open_gpus


def gpu_uuids(devices: Iterable[int], nvml: Any = None) -> list[str]:
    """The UUIDs of these of the visible GPUs (indexes in NVML's order); none where NVML shows no GPU.

    Args:
        nvml: a stand-in for ``pynvml``, for tests.
    """
    found = open_gpus(nvml)
    if found.nvml is None:
        return []
    try:
        handles = [handle for _, handle in found.handles]
        return [_name(found.nvml, handles[d]) for d in sorted(set(devices)) if d < len(handles)]
    finally:
        found.nvml.nvmlShutdown()


def _name(nvml: Any, handle: Any) -> str:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)


@contextmanager
def hold_gpus(uuids: Iterable[str], used_by: str, folder: Path | None = None) -> Iterator[None]:
    """Hold these GPUs for one run.

    Args:
        used_by: who holds them, told to a run that is refused (the study's folder).
        folder: where the lock files lie; default: the host's temporary folder.

    Raises:
        StoreError: another run measures on one of them, or the lock cannot be made.
    """
    with contextlib.ExitStack() as stack:
        for uuid in uuids:
            stack.callback(os.close, _held(uuid, used_by, folder or Path(tempfile.gettempdir())))
        yield


def _held(uuid: str, used_by: str, folder: Path) -> int:
    path = folder / f"qmeter-gpu-{re.sub(r'[^A-Za-z0-9_.-]', '_', uuid)}.lock"
    try:
        handle = _opened(path)
    except OSError as error:
        raise StoreError(
            f"cannot lock GPU {uuid} ({path}: {error.strerror or error})",
            hint="remove that file where no run uses the GPU, or set TMPDIR to a folder that you may write to",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 4096, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise StoreError(
            f"another run measures on GPU {uuid}: {holder}",
            hint="wait for it or end it; or give this run other GPUs with CUDA_VISIBLE_DEVICES",
        ) from None
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}, {used_by}".encode(), 0)
    return handle


def _opened(path: Path) -> int:
    """The lock file, made where there is none.

    In a shared ``/tmp`` the kernel refuses to open another user's file with ``O_CREAT`` (``fs.protected_regular``).
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):  # another run made it in between
            handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(handle, 0o666)  # whatever the umask: other users lock it too
            return handle
    return os.open(path, flags)
