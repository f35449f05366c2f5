"""Which tokens a step batched: the scheduler's rule, followed beside it and checked against what it reports.

The pipeline reports how many requests a step scheduled, not how many prompt tokens. GenAI's rule under
``dynamic_split_fuse`` is: one token for every sequence that generates, then prompts in order of arrival, each with as
many tokens as the budget leaves. Where a step's outcome contradicts the rule (a full KV cache, a preemption), the
step's prompt tokens are unknown (-1), not guessed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

UNKNOWN = -1


@dataclass
class _Row:
    prompt_tokens: int
    done_tokens: int | None = 0
    """Prompt tokens processed; ``None`` where a step contradicted the rule."""
    generating: bool = False


class Shadow:
    """The requests in the pipeline, in its order."""

    def __init__(self, token_budget: int, prefix_cache: bool = False):
        self._budget, self._prefix_cache = token_budget, prefix_cache
        self._rows: dict[int, _Row] = {}

    def add(self, request: int, prompt_tokens: int) -> None:
        """A request that the next step will see."""
        self._rows[request] = _Row(prompt_tokens, None if self._prefix_cache else 0)

    def remove(self, request: int) -> None:
        """A request that ended."""
        self._rows.pop(request, None)

    def is_generating(self, request: int) -> bool:
        """Whether it has given a token."""
        return request in self._rows and self._rows[request].generating

    def observe(self, scheduled_requests: int, emitted: Collection[int]) -> int:
        """Take in one step's outcome; returns the prompt tokens it batched, or -1 where they are unknown.

        Args:
            scheduled_requests: as the pipeline reports for this step.
            emitted: requests that gave a token (or, with echo alone, finished their prompt) in it.
        """
        chunks, decoding = self._plan()
        known = chunks is not None and scheduled_requests == decoding + len(chunks)
        known = known and all(
            ((self._rows[r].done_tokens or 0) + n >= self._rows[r].prompt_tokens) == (r in emitted)
            for r, n in (chunks or {}).items()
        )
        for request, row in self._rows.items():
            if row.generating:
                continue
            if known and chunks is not None and row.done_tokens is not None:
                row.done_tokens += chunks.get(request, 0)
            elif not known:
                row.done_tokens = None
            if request in emitted:
                row.generating = True
        return sum(chunks.values()) if known and chunks is not None else UNKNOWN

    def _plan(self) -> tuple[dict[int, int] | None, int]:
        decoding = sum(row.generating for row in self._rows.values())
        left, chunks = self._budget - min(decoding, self._budget), dict[int, int]()
        for request, row in self._rows.items():
            if row.generating:
                continue
            if row.done_tokens is None:
                return None, decoding
            take = min(left, row.prompt_tokens - row.done_tokens)
            if take > 0:
                chunks[request] = take
                left -= take
        return chunks, decoding
