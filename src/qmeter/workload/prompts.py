"""What requests say: synthetic token ids of exact counts, prefixes shared as asked or as a trace has it, task items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.catalog import ModelShape
from qmeter.errors import SpecError
from qmeter.workload.schedule import PackedRequests, ScheduledRequest
from qmeter.workload.streams import Stream, stream
from qmeter.workload.traces import MOONCAKE_BLOCK_TOKENS

I32 = NDArray[np.int32]

MAX_PROMPT_TOKENS = 2**29
"""Most prompt tokens of one schedule (2 GiB of ids)."""


@dataclass(frozen=True)
class Vocabulary:
    """Token ids that a synthetic prompt may have: 0..``size``-1 without ``avoid`` (control and special tokens).

    With ``bos`` every prompt begins with it, and it counts as one of the prompt's tokens.
    """

    size: int
    avoid: frozenset[int] = frozenset()
    bos: int | None = None

    @classmethod
    def of(cls, shape: ModelShape) -> Vocabulary:
        """Ids that are ordinary text in every tokenizer of this vocabulary size that we know.

        Control, byte and reserved tokens stand at the ends (Llama-2: 0..258, Llama-3.1: the last 256, Qwen2.5: the
        last 421, Mistral: the first 771, SmolLM2: the first 17), so the first and last 1,024 ids are left out.
        """
        ends = min(1024, shape.vocab // 4)
        return cls(shape.vocab, frozenset((*range(ends), *range(shape.vocab - ends, shape.vocab))))

    def allowed(self) -> I32:
        """The usable ids, ascending.

        Raises:
            SpecError: fewer than two are left.
        """
        ids = np.setdiff1d(np.arange(self.size, dtype=np.int32), np.array(sorted(self.avoid), dtype=np.int32))
        if ids.size < 2:
            raise SpecError(
                f"a vocabulary of {self.size} with {len(self.avoid)} ids to avoid leaves {ids.size} to make prompts of",
                hint="check the tokenizer's size and its special tokens",
            )
        return ids


@dataclass(frozen=True)
class TaskItem:
    """One prompt of a quality task.

    ``prompt_tokens`` is ``None`` where nobody has counted; ``output_tokens`` is what its answer may take at most
    (``None``: the workload's length law decides).
    """

    item: str
    prompt: str
    prompt_tokens: int | None = None
    output_tokens: int | None = None


Items = Callable[[str], Sequence[TaskItem]]
"""Task name → its items, in a fixed order."""


def synthetic(
    prompt_tokens: I32, output_tokens: I32, shared_prefix: float, vocabulary: Vocabulary, seed: int
) -> PackedRequests:
    """Uniform draws from the vocabulary; the first round(share × tokens) of each prompt come from one common prefix.

    A prompt always keeps at least one token of its own. Prefixes of longer prompts extend those of shorter ones.
    """
    allowed, starts, total = vocabulary.allowed(), *_layout(prompt_tokens)
    ids = allowed[stream(seed, Stream.PROMPT_IDS).integers(0, allowed.size, size=total)]
    if shared_prefix > 0 and prompt_tokens.size:
        shared = np.minimum(np.rint(shared_prefix * prompt_tokens).astype(np.int64), prompt_tokens - 1)
        longest = int(shared.max())
        prefix = allowed[stream(seed, Stream.SHARED_PREFIX).integers(0, allowed.size, size=longest)]
        for start, count in zip(starts.tolist(), shared.tolist(), strict=True):
            ids[start : start + count] = prefix[:count]
    return _pack(ids, starts, prompt_tokens, output_tokens, vocabulary)


def hashed(
    prompt_tokens: I32,
    output_tokens: I32,
    hash_ids: Sequence[tuple[int, ...]],
    vocabulary: Vocabulary,
    seed: int,
) -> PackedRequests:
    """Mooncake's sharing: a block id always becomes the same 512 tokens, so equal ids give equal prefixes.

    A prompt is the first ``prompt_tokens`` tokens of its blocks (fewer than the trace's where the length law cuts it).
    """
    allowed, starts, total = vocabulary.allowed(), *_layout(prompt_tokens)
    ids = np.empty(total, dtype=np.int32)
    blocks: dict[int, I32] = {}
    for start, count, names in zip(starts.tolist(), prompt_tokens.tolist(), hash_ids, strict=True):
        for k, name in enumerate(names[: -(-count // MOONCAKE_BLOCK_TOKENS)]):
            if name not in blocks:
                draws = stream(seed, Stream.HASH_BLOCKS, name).integers(0, allowed.size, size=MOONCAKE_BLOCK_TOKENS)
                blocks[name] = allowed[draws]
            at = k * MOONCAKE_BLOCK_TOKENS
            take = min(MOONCAKE_BLOCK_TOKENS, count - at)
            ids[start + at : start + at + take] = blocks[name][:take]
    return _pack(ids, starts, prompt_tokens, output_tokens, vocabulary)


def from_tasks(tasks: Sequence[str], items: Items, output_tokens: I32, seed: int) -> tuple[ScheduledRequest, ...]:
    """One request for each of ``output_tokens``: the tasks in turn, each task's items in a seeded order, again from
    the start where they run out.

    Raises:
        SpecError: a task has no items.
    """
    pools: list[tuple[str, list[TaskItem]]] = []
    for k, task in enumerate(tasks):
        known = items(task)
        if not known:
            raise SpecError(f"task {task!r} has no items to make prompts of", hint="name another task")
        order = stream(seed, Stream.TASK_ORDER, k).permutation(len(known))
        pools.append((task, [known[i] for i in order]))
    requests = []
    for i, drawn in enumerate(output_tokens.tolist()):
        task, pool = pools[i % len(pools)]
        chosen = pool[(i // len(pools)) % len(pool)]
        tokens = -1 if chosen.prompt_tokens is None else chosen.prompt_tokens
        asked = drawn if chosen.output_tokens is None else chosen.output_tokens
        requests.append(ScheduledRequest(chosen.prompt, tokens, asked, task=task, item=chosen.item))
    return tuple(requests)


def _layout(prompt_tokens: I32) -> tuple[NDArray[np.int64], int]:
    ends = np.cumsum(prompt_tokens, dtype=np.int64)
    total = int(ends[-1]) if ends.size else 0
    if total > MAX_PROMPT_TOKENS:
        raise SpecError(
            f"the workload's {ends.size} prompts have {total} tokens together; the most is {MAX_PROMPT_TOKENS}",
            hint="shorten the window or the prompts, or lower the rate",
        )
    return ends - prompt_tokens, total


def _pack(ids: I32, starts: NDArray[np.int64], prompt: I32, output: I32, vocabulary: Vocabulary) -> PackedRequests:
    if vocabulary.bos is not None:
        ids[starts] = vocabulary.bos
    ids.flags.writeable = False
    return PackedRequests(ids, starts, prompt, output)
