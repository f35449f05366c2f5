"""A replica's decodes by the step of their last token: a binary heap in its arrays, compiled with the kernel."""

from __future__ import annotations

from qmeter.simulate.jit import jit
from qmeter.simulate.state import HEAPN, Replica


@jit
def push(rep: Replica, key: int, i: int) -> None:
    """Add request ``i`` with its key."""
    at = rep.ints[HEAPN]
    rep.ints[HEAPN] += 1
    keys, reqs = rep.heap_key, rep.heap_req
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] <= key:
            break
        keys[at], reqs[at] = keys[up], reqs[up]
        at = up
    keys[at], reqs[at] = key, i


@jit
def sink(rep: Replica, at: int, key: int, i: int) -> None:
    """Put a key and its request in from position ``at`` down."""
    n, keys, reqs = rep.ints[HEAPN], rep.heap_key, rep.heap_req
    while True:
        down = 2 * at + 1
        if down >= n:
            break
        if down + 1 < n and keys[down + 1] < keys[down]:
            down += 1
        if keys[down] >= key:
            break
        keys[at], reqs[at] = keys[down], reqs[down]
        at = down
    keys[at], reqs[at] = key, i


@jit
def pop(rep: Replica) -> int:
    """Take out the request with the least key."""
    top = rep.heap_req[0]
    rep.ints[HEAPN] -= 1
    n = rep.ints[HEAPN]
    if n > 0:
        sink(rep, 0, rep.heap_key[n], rep.heap_req[n])
    return int(top)


@jit
def drop(rep: Replica, i: int) -> None:
    """Take out request ``i``, wherever it is."""
    n = rep.ints[HEAPN]
    kept = 0
    for at in range(n):
        if rep.heap_req[at] != i:
            rep.heap_key[kept], rep.heap_req[kept] = rep.heap_key[at], rep.heap_req[at]
            kept += 1
    rep.ints[HEAPN] = kept
    for at in range(kept // 2 - 1, -1, -1):
        sink(rep, at, rep.heap_key[at], rep.heap_req[at])
