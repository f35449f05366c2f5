"""The spool gives back what it was given, in order, from memory and from disk."""

from __future__ import annotations

import os

import pytest

from qmeter.load.spool import Spool


@pytest.mark.parametrize("memory_bytes", [1 << 30, 200_000, 0])
def test_reads_come_back_in_order_from_memory_and_disk(memory_bytes: int) -> None:
    spool = Spool(memory_bytes)
    given = [(i % 7, i, i + 5, os.urandom(i % 3000)) for i in range(1000)]
    for read in given:
        spool.append(*read)
    got = [read for batch in spool.batches(batch_bytes=50_000) for read in batch]
    assert got == given
    kernel, user = spool.stamps(got[:3])
    assert (kernel.tolist(), user.tolist()) == ([0, 1, 2], [5, 6, 7])
    spool.close()


def test_an_empty_spool_has_no_batch() -> None:
    assert list(Spool().batches()) == []
