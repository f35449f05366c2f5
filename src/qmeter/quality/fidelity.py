"""Fidelity to the reference, through the served endpoint and without labels: make, score, compare.

The reference deployment writes greedy and sampled continuations once (:func:`make_reference`). Every deployment, the
reference too, then scores those very tokens (:func:`score`): their log-probabilities given the reference's prefix, in
one prefill each, and its own free-running greedy text. Where the endpoint gives no alternatives for prompt tokens, it
is asked for the best next tokens at :data:`POSITIONS` places of each continuation, one request a place; where it gives
none there either, the greedy text is taken up again from the reference's prefix after each difference, so that every
greedy token says whether the two agree. :func:`compare` turns two scores into quantities.

Prefill and decode are different code paths: a quantized KV cache may be read in decode alone, so both are measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np

from qmeter.errors import QualityError
from qmeter.load.target import Target
from qmeter.quality.client import Answer, Completions, PromptScores, each
from qmeter.quality.comparison import compare
from qmeter.quality.data import I64, Continuation, Reference, Scores

POSITIONS = 8
"""Places a continuation where a deployment is asked for its best next tokens one by one, evenly spread. Each costs a
prefill of the prefix."""

__all__ = ["Continuation", "Reference", "Scores", "builtin_prompts", "compare", "make_reference", "score"]


def builtin_prompts(n: int, *, seed: int = 0) -> tuple[str, ...]:
    """``n`` of the shipped short prompts (prose, dialogue, code, lists, other languages, …), the same for a seed.

    Beyond the shipped ones they repeat in a new order: more prompts than are shipped give no new information when
    greedy, but new sampled continuations.
    """
    shipped: list[str] = json.loads((files("qmeter.quality") / "prompts.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < n:
        order += rng.permutation(len(shipped)).tolist()
    return tuple(shipped[i] for i in order[:n])


def make_reference(
    target: Target, prompts: Sequence[str], tokens: int, *, top_k: int = 5, sampled_share: float = 0.5, seed: int = 0,
    concurrency: int = 8,
) -> Reference:  # fmt: skip
    """The reference deployment's own continuations of ``prompts``, at most ``tokens`` tokens each.

    The first ``1 - sampled_share`` of the prompts are continued greedily, the others at temperature 1 with no
    truncation and a seed each. A continuation ends early where the model ends it; empty ones are dropped and noted.

    Raises:
        QualityError: the server gives no token ids, or no continuation at all.
    """
    client, notes = Completions(target), list[str]()
    greedy = len(prompts) - round(len(prompts) * sampled_share)

    def one(i: int) -> Continuation | None:
        sampled = i >= greedy
        answer = client.generate(prompts[i], tokens, temperature=float(sampled), seed=seed + i)
        if not answer.ids and not answer.text:
            return None
        return _continuation(answer, sampled)

    made = [c for c in each(one, range(len(prompts)), concurrency) if c is not None]
    if not made:
        raise QualityError("the reference continued no prompt", stage="quality", hint="try other prompts")
    if len(made) < len(prompts):
        notes.append(f"{len(prompts) - len(made)} of {len(prompts)} prompts were continued by nothing and dropped")
    return Reference(target.model, top_k, tuple(made), tuple(notes))


def score(target: Target, reference: Reference, *, concurrency: int = 8, free_run: bool = True) -> Scores:
    """One deployment's scores of the reference's continuations.

    Args:
        target: the deployment.
        reference: what to score.
        concurrency: requests in flight; 1 takes batching out of the numbers.
        free_run: also generate the deployment's own greedy text for every greedy continuation.

    Raises:
        QualityError: the endpoint gives no prompt log-probabilities, or failed.
    """
    client = Completions(target)

    def prefill(c: Continuation) -> PromptScores:
        return client.score(c.prompt_ids + c.ids, top=reference.top_k)

    def decode(c: Continuation) -> Answer | None:
        return None if c.sampled or not free_run else client.generate(c.prompt_ids, len(c.ids))

    prefills = each(prefill, reference.continuations, concurrency)
    decodes = each(decode, reference.continuations, concurrency)
    if reference.top_k > 0 and not any(p.top for p in prefills):
        prefills = _with_alternatives(client, reference, prefills, concurrency)
    asked = free_run and reference.top_k > 0 and not any(p.top for p in prefills)
    pairs = list(zip(reference.continuations, decodes, strict=True))
    agrees = each(lambda pair: _agreement(client, *pair) if asked else _unasked(pair[0]), pairs, concurrency)
    parts = [_part(*row) for row in zip(reference.continuations, prefills, decodes, agrees, strict=True)]
    width = max(p.width for p in parts)
    return Scores(
        reference_id=reference.id,
        lengths=np.array([len(c.ids) for c in reference.continuations], np.int64),
        sampled=np.array([c.sampled for c in reference.continuations], np.bool_),
        logprobs=np.concatenate([p.logprobs for p in parts]),
        top_ids=np.concatenate([_widened(p.top_ids, width, -1) for p in parts]),
        top_logprobs=np.concatenate([_widened(p.top_logprobs, width, np.nan) for p in parts]),
        own_ids=np.concatenate([p.own_ids for p in parts]),
        own_logprobs=np.concatenate([p.own_logprobs for p in parts]),
        agrees=np.concatenate([p.agrees for p in parts]),
        matched=np.array([p.matched for p in parts], np.int64),
    )


def places(length: int) -> tuple[int, ...]:
    """At most :data:`POSITIONS` places of a continuation of ``length`` tokens, evenly spread, the last one included."""
    count = min(POSITIONS, length)
    return tuple(length - 1 - i * length // count for i in reversed(range(count)))


def _with_alternatives(
    client: Completions, reference: Reference, prefills: Sequence[PromptScores], concurrency: int
) -> list[PromptScores]:
    """The scores with the best next tokens at some places, each asked by a request for one greedy token.

    The same places for every deployment. Left as they are where the endpoint lists no alternatives there either.
    """
    wanted = [(n, at) for n, c in enumerate(reference.continuations) for at in places(len(c.ids))]

    def best(place: tuple[int, int]) -> dict[int, float]:
        n, at = place
        c = reference.continuations[n]
        answer = client.generate(c.prompt_ids + c.ids[:at], 1, top=reference.top_k, ignore_eos=True)
        return answer.top[0] if answer.top else {}

    if not best(wanted[0]):
        return list(prefills)
    tops = [[dict[int, float]() for _ in p.logprobs] for p in prefills]
    for (n, at), found in zip(wanted, each(best, wanted, concurrency), strict=True):
        tops[n][len(reference.continuations[n].prompt_ids) + at] = found
    return [replace(p, top=tuple(t)) for p, t in zip(prefills, tops, strict=True)]


def _unasked(c: Continuation) -> I64:
    return np.full(len(c.ids), -1, np.int64)


def _agreement(client: Completions, c: Continuation, first: Answer | None) -> I64:
    """For each token of a greedy continuation: is it what the deployment would say next? (1, 0; -1 unknown).

    ``first`` is the free run from the prompt. After a difference generation starts again behind the reference's own
    token, in chunks of about twice the last run, since what follows a difference says nothing.
    """
    agrees, done, chunk = _unasked(c), 0, len(c.ids)
    if first is None or first.ids is None:
        return agrees
    own = first.ids
    while True:
        wanted = c.ids[done : done + chunk]
        run = next((i for i, t in enumerate(wanted) if i >= len(own) or own[i] != t), len(wanted))
        agrees[done : done + run] = 1
        done += run
        if run < len(wanted):
            agrees[done] = 0
            done += 1
        if done >= len(c.ids):
            return agrees
        chunk = min(max(2, 2 * run), len(c.ids) - done)
        own = client.generate(c.prompt_ids + c.ids[:done], chunk).ids or ()


@dataclass(frozen=True)
class _Part:
    """One continuation's share of :class:`Scores`."""

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    own_ids: np.ndarray
    own_logprobs: np.ndarray
    agrees: I64
    matched: int

    @property
    def width(self) -> int:
        return int(self.top_ids.shape[1])


def _continuation(answer: Answer, sampled: bool) -> Continuation:
    if answer.ids is None or answer.prompt_ids is None:
        raise QualityError(
            "the endpoint returns no token ids, so continuations cannot be scored token by token",
            stage="quality", hint="the endpoint must honour return_token_ids (vLLM and the embedded engine do)",
        )  # fmt: skip
    logprobs = answer.logprobs if answer.logprobs and len(answer.logprobs) == len(answer.ids) else None
    return Continuation(
        answer.prompt_ids, answer.ids, answer.text, sampled, logprobs or (float("nan"),) * len(answer.ids)
    )


def _part(c: Continuation, prefill: PromptScores, decode: Answer | None, agrees: I64) -> _Part:
    n, skip = len(c.ids), len(c.prompt_ids)
    tops = prefill.top[skip:] if prefill.top else ({},) * n
    width = max((len(t) for t in tops), default=0)
    top_ids, top_logprobs = np.full((n, width), -1, np.int64), np.full((n, width), np.nan)
    for i, top in enumerate(tops):
        ranked = sorted(top.items(), key=lambda kv: -kv[1])
        top_ids[i, : len(ranked)] = [k for k, _ in ranked]
        top_logprobs[i, : len(ranked)] = [v for _, v in ranked]
    own_ids, own_logprobs, matched = np.full(n, -1, np.int64), np.full(n, np.nan), -1
    if decode is not None and decode.ids is not None:
        own = decode.ids[:n]
        own_ids[: len(own)] = own
        if decode.logprobs is not None and len(decode.logprobs) >= len(own):
            own_logprobs[: len(own)] = decode.logprobs[: len(own)]
        same = own_ids == np.array(c.ids)
        matched = n if same.all() else int(np.argmin(same))
    logprobs = np.array(prefill.logprobs[skip:], np.float64)
    return _Part(logprobs, top_ids, top_logprobs, own_ids, own_logprobs, agrees, matched)


def _widened(array: np.ndarray, width: int, fill: float) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)
