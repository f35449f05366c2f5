"""KV blocks in the fast kernel: a count, and with a prefix cache the eviction order by unit of shared prefix.

What :mod:`qmeter.simulate.blocks` does block by block is kept here by *unit* (the run of blocks that one prefix hash
covers) and by request (the blocks after its shared prefix, found again only by itself after a preemption). A unit is
evicted from its last block, so its leading blocks stay a valid prefix. Departure from the block-wise pool: of two
copies of one block only one stays findable.
"""

from __future__ import annotations

from qmeter.simulate.jit import jit
from qmeter.simulate.state import BLANK, BLOCK, CACHE, FREE, I64, LHEAD, LTAIL, NZ, UNIT, Cache, Replica, Work


@jit
def _unlink(ints: I64, cache: Cache, node: int) -> None:
    before, after = cache.prev[node], cache.next[node]
    if before >= 0:
        cache.next[before] = after
    else:
        ints[LHEAD] = after
    if after >= 0:
        cache.prev[after] = before
    else:
        ints[LTAIL] = before
    cache.prev[node] = -1
    cache.next[node] = -1


@jit
def _append(ints: I64, cache: Cache, node: int) -> None:
    tail = ints[LTAIL]
    cache.prev[node] = tail
    cache.next[node] = -1
    if tail >= 0:
        cache.next[tail] = node
    else:
        ints[LHEAD] = node
    ints[LTAIL] = node


@jit
def take(ints: I64, cache: Cache, rule: I64, count: int) -> None:
    """Hand out ``count`` free blocks: those without a hash first, then the longest-free ones."""
    ints[FREE] -= count
    if rule[CACHE] == 0:
        return
    blank = min(ints[BLANK], count)
    ints[BLANK] -= blank
    count -= blank
    while count > 0:
        node = ints[LHEAD]
        part = min(cache.resident[node], count)
        cache.resident[node] -= part
        count -= part
        if cache.resident[node] == 0:
            _unlink(ints, cache, node)


@jit
def lookup(ints: I64, work: Work, cache: Cache, rule: I64, i: int, tokens: int) -> tuple[int, int]:
    """Blocks of request ``i`` found in the cache, and how many of them nobody holds."""
    if rule[CACHE] == 0:
        return 0, 0
    limit = (tokens - 1) // rule[BLOCK]
    inside, start, count = rule[UNIT], cache.start[i], cache.start[i + 1] - cache.start[i]
    hit, idle, j = 0, 0, 0
    while j < count and hit < limit:
        unit = cache.units[start + j]
        found = min(cache.resident[unit], limit - hit)
        hit += found
        if cache.holders[unit] == 0:
            idle += found
        j += 1
        if found < inside:
            break
    if hit == count * inside and hit < limit:
        own = len(cache.resident) - len(work.prompt) + i
        found = min(cache.resident[own], limit - hit)
        hit += found
        idle += found
    return hit, idle


@jit
def hold(ints: I64, work: Work, cache: Cache, rule: I64, i: int, hit: int) -> None:
    """Take ``hit`` found blocks for request ``i``."""
    work.shared_blocks[i] = 0
    work.shared_units[i] = 0
    if rule[CACHE] == 0 or hit == 0:
        return
    inside, start, count = rule[UNIT], cache.start[i], cache.start[i + 1] - cache.start[i]
    left, j = hit, 0
    while j < count and left > 0:
        unit = cache.units[start + j]
        if cache.holders[unit] == 0:
            _unlink(ints, cache, unit)
            ints[FREE] -= cache.resident[unit]
        cache.holders[unit] += 1
        part = min(inside, left)
        work.shared_blocks[i] += part
        left -= part
        j += 1
    work.shared_units[i] = j
    if left > 0:
        own = len(cache.resident) - len(work.prompt) + i
        _unlink(ints, cache, own)
        ints[FREE] -= left
        ints[BLANK] += cache.resident[own] - left
        cache.resident[own] = 0


@jit
def publish(ints: I64, work: Work, cache: Cache, rule: I64, i: int, tokens: int) -> None:
    """Make the full blocks of request ``i``'s first ``tokens`` tokens findable."""
    if rule[CACHE] == 0:
        return
    inside, start, count = rule[UNIT], cache.start[i], cache.start[i + 1] - cache.start[i]
    full = tokens // rule[BLOCK]
    j = max(work.shared_units[i] - 1, 0)
    while j < count and j * inside < full:
        unit = cache.units[start + j]
        cover = min(inside, full - j * inside)
        if j >= work.shared_units[i]:
            if cache.holders[unit] == 0 and cache.resident[unit] > 0:
                _unlink(ints, cache, unit)
                ints[BLANK] += cache.resident[unit]
                cache.resident[unit] = 0
            cache.holders[unit] += 1
            work.shared_units[i] = j + 1
        if cover > cache.resident[unit]:
            work.shared_blocks[i] += cover - cache.resident[unit]
            cache.resident[unit] = cover
        j += 1


@jit
def release(ints: I64, work: Work, cache: Cache, rule: I64, i: int, tokens: int) -> None:
    """Give back all blocks of request ``i``, which hold ``tokens`` computed tokens."""
    size = rule[BLOCK]
    total = (tokens + size - 1) // size
    if rule[CACHE] == 0:
        ints[FREE] += total
        return
    full = tokens // size
    own = len(cache.resident) - len(work.prompt) + i
    keep = full - work.shared_blocks[i]
    ints[FREE] += total - work.shared_blocks[i]
    ints[BLANK] += total - full
    cache.resident[own] = keep
    if keep > 0:
        _append(ints, cache, own)
    for back in range(work.shared_units[i]):
        unit = cache.units[cache.start[i] + work.shared_units[i] - 1 - back]
        cache.holders[unit] -= 1
        if cache.holders[unit] == 0:
            ints[FREE] += cache.resident[unit]
            _append(ints, cache, unit)
    work.shared_units[i] = 0
    work.shared_blocks[i] = 0


@jit
def ended_blocks(rep: Replica, work: Work, size: int) -> int:
    """Blocks that requests which ended one step ago still hold (shared ones counted once a holder)."""
    blocks = 0
    for at in range(rep.ints[NZ]):
        i = rep.ended[at]
        blocks += (work.prompt[i] + work.output[i] - 1 + size - 1) // size
    return blocks
