"""The scheduler's rules: what vLLM V1 (0.25) does with a batch, each rule a small function with a test of its own.

Both modes, the step-by-step one (:mod:`qmeter.simulate.reference`) and the fast one (:mod:`qmeter.simulate.kernel`),
follow these. The behaviours are those of ``vllm/v1/core/sched/scheduler.py`` and ``kv_cache_manager.py``:

=====================  ============================================================================================
running first          requests that run get their tokens before any that wait, in the order of their admission
token budget           decodes and prefill chunks of one step share ``token_budget`` tokens
chunked prefill        a prompt takes what is left of the budget, the rest in later steps
FCFS, head of line     the first of the queue that cannot be admitted stops admission for the step
sequence limit         at most ``max_sequences`` run; one that ends frees its seat when its last step was processed
blocks                 a request holds ceil(tokens / block) blocks; one block of the pool is never handed out
full prompt must fit   a request is admitted only if blocks for all its tokens are free (not only the chunk's)
preemption             no block for a running request: the last admitted one gives all back, goes to the queue's front
no admission then      a step that preempted admits nobody
recompute              a preempted request prefills its prompt and what it had generated, then goes on
prefix cache           full blocks are found by hash, at most up to the last token but one, until they are evicted
asynchronous           step k is decided when step k-1 starts: it sees what arrived by then, and the seats and blocks
                       of requests that end in step k-1 are still taken
=====================  ============================================================================================

Known departures: a request that ends (and holds its seat one step more) is never the victim of a preemption; a stop
that only the model knows (EOS) costs no extra step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qmeter.errors import AnalysisError
from qmeter.record import EffectiveConfig


@dataclass(frozen=True)
class Rules:
    """One replica's scheduler.

    Attributes:
        token_budget: most tokens of one step.
        max_sequences: most sequences running at once.
        kv_blocks: KV-cache blocks as the engine reports them: measured, never derived.
        block_tokens: tokens a block holds.
        max_model_tokens: longest prompt + output accepted; ``None``: what the blocks hold.
        prefix_cache: blocks are found again by hash.
        reserve_full_prompt: admission needs free blocks for all of the request's tokens.
        async_scheduling: a step is decided while the one before it runs.
        chunked_prefill: a prompt may be split over steps.
        null_block: one block of the pool is a placeholder and never handed out.
        mixed: prompts and decodes share steps; False: prompts go first, in steps of their own.
    """

    token_budget: int
    max_sequences: int
    kv_blocks: int
    block_tokens: int = 16
    max_model_tokens: int | None = None
    prefix_cache: bool = False
    reserve_full_prompt: bool = True
    async_scheduling: bool = True
    chunked_prefill: bool = True
    null_block: bool = True
    mixed: bool = True

    def __post_init__(self) -> None:
        low = {n: getattr(self, n) for n in ("token_budget", "max_sequences", "kv_blocks", "block_tokens")}
        bad = [f"{name} = {value}" for name, value in low.items() if value < 1]
        if bad or self.usable_blocks < 1:
            raise AnalysisError(f"no scheduler can run with {', '.join(bad) or 'one block, the placeholder'}",
                                hint="take the counts from a record's effective configuration")  # fmt: skip
        if not self.mixed and not self.reserve_full_prompt:
            raise AnalysisError(
                "prompts in steps of their own need reserve_full_prompt",
                hint="a prompt that stalls the decodes could wait for their blocks for ever",
            )
        if self.token_budget < self.max_sequences:
            raise AnalysisError(f"token_budget {self.token_budget} is below max_sequences {self.max_sequences}",
                                hint="every running sequence needs one token a step")  # fmt: skip

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can hold (vLLM's block 0 is a placeholder)."""
        return self.kv_blocks - (1 if self.null_block else 0)

    @property
    def longest_tokens(self) -> int:
        """Longest prompt + output that can be served at all."""
        fits = self.usable_blocks * self.block_tokens
        return fits if self.max_model_tokens is None else min(fits, self.max_model_tokens)


VLLM_V1 = Rules(token_budget=8192, max_sequences=256, kv_blocks=8192)
"""vLLM V1's defaults on a large GPU; ``kv_blocks`` must be replaced by the measured count."""

CONTINUOUS = Rules(
    token_budget=256, max_sequences=256, kv_blocks=4096, block_tokens=32, reserve_full_prompt=False,
    async_scheduling=False, null_block=False,
)  # fmt: skip
"""Plain continuous batching: decodes first, then prompts into what is left, decided between steps (OpenVINO GenAI's
split-fuse scheduling)."""

PRESETS: dict[str, Rules] = {"vllm": VLLM_V1, "openvino": CONTINUOUS, "llamacpp": replace(CONTINUOUS, block_tokens=1)}
"""Engine → rules; engines that are not named here take plain continuous batching."""


PREFIX_NAMES = ("log.prefix_caching", "cache.enable_prefix_caching", "enable_prefix_caching", "prefix_cache")
ASYNC_NAMES = ("log.async_scheduling", "async_scheduling")
CHUNKED_NAMES = ("log.chunked_prefill", "enable_chunked_prefill", "chunked_prefill")
"""What engines call these properties, the most telling first."""


def rules_of(engine: str, effective: EffectiveConfig, options: Mapping[str, Any] | None = None) -> Rules:
    """The rules of a deployment from what its engine reported; where it is silent, from the options it was given.

    Raises:
        AnalysisError: the engine did not report its KV-block count, which is never guessed.
    """
    if effective.kv_blocks is None:
        raise AnalysisError(
            f"the record of engine '{engine}' has no measured KV-block count, and it is never derived",
            hint="measure the deployment again with an engine version that reports it",
        )
    base = PRESETS.get(engine, CONTINUOUS)
    said = {k.lower(): v.lower() for k, v in effective.properties.items()}
    asked = options or {}
    budget = effective.token_budget or int(asked.get("token_budget", base.token_budget))
    seats = effective.max_sequences or int(asked.get("max_sequences", base.max_sequences))
    return replace(
        base,
        kv_blocks=effective.kv_blocks,
        block_tokens=effective.kv_block_tokens or base.block_tokens,
        token_budget=max(budget, seats),
        max_sequences=seats,
        max_model_tokens=effective.max_model_tokens,
        prefix_cache=_said(said, PREFIX_NAMES, base.prefix_cache),
        async_scheduling=_said(said, ASYNC_NAMES, base.async_scheduling),
        chunked_prefill=_said(said, CHUNKED_NAMES, base.chunked_prefill),
    )


def _said(properties: dict[str, str], names: tuple[str, ...], default: bool) -> bool:
    for name in names:
        if name in properties:
            return properties[name] in ("true", "1", "yes", "on", "enabled")
    return default


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that ``tokens`` tokens occupy: the last one may be part full."""
    return -(-tokens // block_tokens)


def chunk(remaining_tokens: int, budget_tokens: int, chunked: bool = True) -> int:
    """Tokens of a prompt that go into a step with ``budget_tokens`` left; 0: it must wait."""
    if not chunked and remaining_tokens > budget_tokens:
        return 0
    return min(remaining_tokens, budget_tokens)


def hit_limit(tokens: int, block_tokens: int) -> int:
    """Most blocks a prefix hit may give: the last token is always computed, for its logits."""
    return (tokens - 1) // block_tokens


def admissible(rules: Rules, tokens: int, hit_blocks: int, idle_hit_blocks: int, first_chunk: int, free: int) -> bool:
    """Whether the queue's head may start.

    Args:
        tokens: all it must hold now (prompt, and what it generated before a preemption).
        hit_blocks: found in the prefix cache.
        idle_hit_blocks: those of them that nobody holds: taking them uses up free blocks.
        first_chunk: tokens it would compute in this step.
        free: free blocks, cached ones included.
    """
    computed = hit_blocks * rules.block_tokens
    held = tokens if rules.reserve_full_prompt else computed + first_chunk
    return blocks_for(held, rules.block_tokens) - hit_blocks + idle_hit_blocks <= free


def chunk_pairs(chunk_tokens: int, context_tokens: int) -> float:
    """Query-key pairs of a prefill chunk behind ``context_tokens``: its attention work."""
    return chunk_tokens * context_tokens + chunk_tokens * (chunk_tokens + 1) / 2


def capture_sizes(max_sequences: int, token_budget: int) -> tuple[int, ...]:
    """CUDA-graph batch sizes that vLLM captures: 1, 2, 4, then steps of 8 below 256 and of 16 from there.

    The largest is min(2 x max_sequences, 512, token_budget); a decode batch is padded to the next size.
    """
    largest = min(2 * max_sequences, 512, token_budget)
    sizes = [*(s for s in (1, 2, 4) if s <= largest), *range(8, min(largest + 1, 256), 8)]
    return tuple([*sizes, *range(256, largest + 1, 16)])


def padded(batch: int, sizes: tuple[int, ...]) -> int:
    """The captured size that a batch of ``batch`` tokens runs with; itself above the largest."""
    return next((s for s in sizes if s >= batch), batch)


def isfinite_positive(value: float) -> bool:
    """Whether a coefficient is usable."""
    return math.isfinite(value) and value >= 0
