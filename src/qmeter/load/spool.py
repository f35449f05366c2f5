"""The spool: raw reads in the order they came, with their stamps, kept on disk until the run is over.

The loop only appends; parsing waits. Memory stays bounded by one piece however long the run is; the file has no name
(it goes with the process) and is written to the page cache in pieces of 64 KiB, about 20 µs each.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator

import numpy as np

HEADER = struct.Struct("<iIqq")
"""Request (within this process), bytes, kernel stamp (CLOCK_REALTIME ns, 0: none), user stamp (monotonic ns)."""

PIECE_BYTES = 65_536


class Spool:
    """Append-only store of reads.

    Attributes:
        buffer: what was not yet written; the loop appends headers and bytes to it and calls :meth:`spill`.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="qmeter-spool-", buffering=0)  # noqa: SIM115
        self._fd = self._file.fileno()
        self.buffer = bytearray()

    def append(self, request: int, kernel_ns: int, user_ns: int, data: bytes) -> None:
        """Add one read of ``request``."""
        buffer = self.buffer
        buffer += HEADER.pack(request, len(data), kernel_ns, user_ns)
        buffer += data
        if len(buffer) >= PIECE_BYTES:
            self.spill()

    def spill(self) -> None:
        """Write the buffer out."""
        view = memoryview(self.buffer)
        try:
            done = 0
            while done < len(view):
                done += os.write(self._fd, view[done:])
        finally:
            view.release()
        self.buffer.clear()

    def batches(self, batch_bytes: int = 4 << 20) -> Iterator[list[tuple[int, int, int, bytes]]]:
        """The reads in order, as lists of ``(request, kernel_ns, user_ns, bytes)``, some megabytes each."""
        self.spill()
        os.lseek(self._fd, 0, os.SEEK_SET)
        tail = b""
        while piece := os.read(self._fd, batch_bytes):
            data = tail + piece if tail else piece
            reads, at = [], 0
            while at + HEADER.size <= len(data):
                request, length, kernel_ns, user_ns = HEADER.unpack_from(data, at)
                start = at + HEADER.size
                if start + length > len(data):
                    break
                reads.append((request, kernel_ns, user_ns, data[start : start + length]))
                at = start + length
            tail = data[at:]
            if reads:
                yield reads
        if tail:
            raise ValueError(f"the spool ends inside a read ({len(tail)} bytes left)")

    def stamps(self, reads: list[tuple[int, int, int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
        """``(kernel_ns, user_ns)`` arrays of one batch."""
        n = len(reads)
        kernel = np.fromiter((r[1] for r in reads), np.int64, n)
        user = np.fromiter((r[2] for r in reads), np.int64, n)
        return kernel, user

    def close(self) -> None:
        """Let the file go."""
        self._file.close()
