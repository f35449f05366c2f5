"""The spool: raw reads in the order they came, with their stamps, kept until the run is over.

The loop only appends; parsing waits. Pieces of 64 KiB go to an anonymous memory file, where no disk can hold the loop
up, and past :data:`MEMORY_BYTES` to a nameless file on disk, so that memory stays bounded however long the run is.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator

import numpy as np

HEADER = struct.Struct("<iIqq")
"""Request (within this process), bytes, kernel stamp (CLOCK_REALTIME ns, 0: none), user stamp (monotonic ns)."""

LOOK = -1
"""In the place of a request: no read, but when the loop had last seen every socket that was ready, as user stamp."""

READ_BYTES = 16_384
"""The most that one read takes from a socket; one that took as much may have left some."""

PIECE_BYTES = 65_536
MEMORY_BYTES = 256 << 20
"""What is kept in memory: about a million token events."""


class Spool:
    """Append-only store of reads.

    Attributes:
        buffer: what was not yet written; the loop appends headers and bytes to it and calls :meth:`spill`.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._fds = [os.memfd_create("qmeter-spool", os.MFD_CLOEXEC)]
        self._room = memory_bytes
        self.buffer = bytearray()

    def note_look(self, at_ns: int) -> None:
        """Say that nothing in the reads to come was there before ``at_ns``."""
        self.buffer += HEADER.pack(LOOK, 0, 0, at_ns)

    def append(self, request: int, kernel_ns: int, user_ns: int, data: bytes) -> None:
        """Add one read of ``request``."""
        buffer = self.buffer
        buffer += HEADER.pack(request, len(data), kernel_ns, user_ns)
        buffer += data
        if len(buffer) >= PIECE_BYTES:
            self.spill()

    def spill(self) -> None:
        """Write the buffer out."""
        if self._room <= 0 and len(self._fds) == 1:
            with tempfile.TemporaryFile(prefix="qmeter-spool-", buffering=0) as file:
                self._fds.append(os.dup(file.fileno()))
        self._room -= len(self.buffer)
        view = memoryview(self.buffer)
        try:
            done = 0
            while done < len(view):
                done += os.write(self._fds[-1], view[done:])
        finally:
            view.release()
        self.buffer.clear()

    def batches(self, batch_bytes: int = 4 << 20) -> Iterator[list[tuple[int, int, int, bytes]]]:
        """The reads in order, as lists of ``(request, kernel_ns, user_ns, bytes)``, some megabytes each.

        Among them stand the loop's looks, with :data:`LOOK` for a request.
        """
        self.spill()
        tail = b""
        for piece in self._pieces(batch_bytes):
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

    def _pieces(self, size: int) -> Iterator[bytes]:
        for fd in self._fds:
            os.lseek(fd, 0, os.SEEK_SET)
            while piece := os.read(fd, size):
                yield piece

    def stamps(self, reads: list[tuple[int, int, int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
        """``(kernel_ns, user_ns)`` arrays of one batch."""
        n = len(reads)
        kernel = np.fromiter((r[1] for r in reads), np.int64, n)
        user = np.fromiter((r[2] for r in reads), np.int64, n)
        return kernel, user

    def close(self) -> None:
        """Let the files go."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
