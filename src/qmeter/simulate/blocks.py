"""The KV-block pool, block by block, as vLLM's ``block_pool.py`` keeps it: the reference mode's own.

A block without a hash is evicted before any that has one; blocks with a hash stay findable after they are freed, and
are evicted in the order they were freed, a request's last block first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from qmeter.errors import AnalysisError


class BlockPool:
    """``blocks`` blocks that can be handed out, with reference counts and, if ``caching``, lookup by hash."""

    def __init__(self, blocks: int, caching: bool):
        self._caching = caching
        self._unhashed = list(range(blocks))
        self._hashed: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * blocks
        self._hash: list[Hashable | None] = [None] * blocks
        self._find: dict[Hashable, dict[int, None]] = {}
        self.blocks = blocks

    @property
    def free(self) -> int:
        """Blocks that could be handed out now, those still findable by hash included."""
        return len(self._unhashed) + len(self._hashed)

    def hits(self, hashes: Sequence[Hashable], limit: int) -> list[int]:
        """The blocks of the longest known prefix of ``hashes``, at most ``limit``."""
        found: list[int] = []
        if self._caching:
            for key in hashes[:limit]:
                same = self._find.get(key)
                if not same:
                    break
                found.append(next(iter(same)))
        return found

    def idle(self, found: Sequence[int]) -> int:
        """How many of these nobody holds."""
        return sum(1 for b in found if self._references[b] == 0)

    def take_found(self, found: Sequence[int]) -> None:
        """Hold blocks found by hash."""
        for block in found:
            if self._references[block] == 0:
                del self._hashed[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """Hand out ``count`` blocks, evicting the longest-free ones.

        Raises:
            AnalysisError: fewer are free (a fault of the caller's).
        """
        if count > self.free:
            raise AnalysisError(f"{count} blocks asked, {self.free} free", hint="report this as a fault")
        taken = []
        for _ in range(count):
            block = self._unhashed.pop() if self._unhashed else self._hashed.popitem(last=False)[0]
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def name(self, block: int, key: Hashable) -> None:
        """Make a held, full block findable."""
        if self._caching and self._hash[block] is None:
            self._hash[block] = key
            self._find.setdefault(key, {})[block] = None

    def release(self, held: Sequence[int]) -> None:
        """Give back a request's blocks, in the order they were allocated."""
        for block in reversed(held):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hash[block] is None:
                    self._unhashed.append(block)
                else:
                    self._hashed[block] = None

    def _forget(self, block: int) -> None:
        key = self._hash[block]
        if key is not None:
            same = self._find[key]
            del same[block]
            if not same:
                del self._find[key]
            self._hash[block] = None
