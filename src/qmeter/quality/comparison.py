"""Fidelity quantities: one deployment's scores against the reference's, with paired bootstrap intervals.

Names, units and what each means (nat = natural-log units):

``ppl_ratio`` [1]             exp of the mean drop in log-probability of the reference's tokens; 1 is no change
``logprob_gap`` [nat/token]   that mean drop itself: mean of (reference - deployment); above 0 is worse
``kl_sampled`` [nat/token]    KL(reference || deployment), unbiased, from the sampled continuations: mean of
                              (r - 1) - ln r with r = q/p (Schulman's k3 estimator: unbiased and never negative)
``kl_topk`` [nat/token]       KL of the distributions coarsened to the tokens that both lists hold and one rest
                              bucket: by the data-processing inequality never above the true KL (biased low); where
                              the endpoint lists no alternatives for prompt tokens, at some places a continuation
``top1_agreement`` [1]        share of tokens where both give the same best next token for the same prefix; where the
                              endpoint lists no alternatives at all: of the greedy tokens, by decoding on from each
                              prefix
``greedy_agreement`` [1]      the same from free-running text (decode path): agreed / (agreed + first differences)
``first_divergence_tokens``   mean of min(first difference, length) of free-running greedy text [token]
``changed_share`` [1]         share of greedy continuations that differ from the reference's anywhere
``decode_logprob_gap``        mean drop in log-probability of its own tokens before the first difference, as
                              generated (decode path reads the quantized KV cache; biased low: only agreed tokens)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import QualityError
from qmeter.quality.data import Reference, Scores
from qmeter.quality.statistics import bootstrap_ratio
from qmeter.record import Quantity

F64 = NDArray[np.float64]

NO_TOP = "the endpoint returns no top-k alternatives for prompt tokens"
NO_SAMPLED = "the reference has no sampled continuations"
NO_FREE_RUN = "no free-running greedy text was generated"


def compare(reference_scores: Scores, scores: Scores, *, reference: Reference | None = None, level: float = 0.95,
            seed: int = 0) -> dict[str, Quantity]:  # fmt: skip
    """Every fidelity quantity of ``scores`` against ``reference_scores``; unit of resampling: the continuation.

    Args:
        reference_scores: the reference deployment's scores of its own continuations.
        scores: the deployment's scores of the same continuations.
        reference: needed for ``decode_logprob_gap`` alone (it holds the reference's decode-path log-probabilities).
        level: of the intervals.
        seed: of the bootstrap.

    Raises:
        QualityError: the two score different continuations.
    """
    if reference_scores.reference_id != scores.reference_id:
        raise QualityError(
            f"scores of reference {scores.reference_id} cannot be compared with {reference_scores.reference_id}",
            stage="quality", hint="score both deployments on the same reference",
        )  # fmt: skip
    estimate = _Estimator(scores, level, seed)
    gap = reference_scores.logprobs - scores.logprobs
    return {
        "ppl_ratio": estimate(gap, "1", link=np.exp),
        "logprob_gap": estimate(gap, "nat/token"),
        "kl_sampled": _kl_sampled(gap, scores, estimate),
        "kl_topk": _kl_topk(reference_scores, scores, estimate),
        "top1_agreement": _top1(reference_scores, scores, estimate),
        **_free_run(scores, estimate),
        "decode_logprob_gap": _decode_gap(reference, scores, estimate),
    }


class _Estimator:
    """Token means with a bootstrap over continuations."""

    def __init__(self, scores: Scores, level: float, seed: int):
        self.scores, self.level, self.seed = scores, level, seed

    def __call__(self, values: F64, unit: str, mask: NDArray[np.bool_] | None = None, why: str | None = None,
                 link: np.ufunc | None = None) -> Quantity:  # fmt: skip
        """Mean of ``values`` (one a token, NaN left out) over the tokens in ``mask``."""
        kept = np.isfinite(values) if mask is None else np.isfinite(values) & mask
        c = len(self.scores.lengths)
        owner = self.scores.owner[kept]
        sums = np.bincount(owner, weights=values[kept], minlength=c)
        counts = np.bincount(owner, minlength=c).astype(np.float64)
        return self.ratio(sums.astype(np.float64), counts, unit, int(counts.sum()), why, link)

    def ratio(self, above: F64, below: F64, unit: str, n: int, why: str | None = None,
              link: np.ufunc | None = None) -> Quantity:  # fmt: skip
        """sum(above) / sum(below), one row a continuation; rows without tokens are left out."""
        used = below > 0
        if not used.any():
            return Quantity.unknown(unit, "no token to estimate it from")
        above, below = above[used], below[used]
        value = above.sum() / below.sum()
        interval = bootstrap_ratio(above, below, level=self.level, seed=self.seed, link=link)
        if interval is None:
            why = "; ".join(filter(None, [why, f"no interval from {len(above)} continuations"]))
        low, high = (interval.low, interval.high) if interval else (None, None)
        return Quantity.of(float(link(value) if link else value), unit, low=low, high=high, n=n, why=why)


def _kl_sampled(gap: F64, scores: Scores, estimate: _Estimator) -> Quantity:
    mask = scores.sampled[scores.owner]
    if not mask.any():
        return Quantity.unknown("nat/token", NO_SAMPLED)
    return estimate(np.expm1(-gap) + gap, "nat/token", mask)


def _kl_topk(reference: Scores, scores: Scores, estimate: _Estimator) -> Quantity:
    if not reference.top_ids.shape[1] or not scores.top_ids.shape[1]:
        return Quantity.unknown("nat/token", NO_TOP)
    same = (reference.top_ids[:, :, None] == scores.top_ids[:, None, :]) & (reference.top_ids[:, :, None] >= 0)
    q_log = np.where(same, scores.top_logprobs[:, None, :], -np.inf).max(axis=2)
    shared = same.any(axis=2)
    p = np.where(shared, np.exp(np.where(shared, reference.top_logprobs, 0.0)), 0.0)
    q = np.where(shared, np.exp(np.where(shared, q_log, 0.0)), 0.0)
    inside = np.where(shared, p * (np.where(shared, reference.top_logprobs, 0.0) - np.where(shared, q_log, 0.0)), 0.0)
    rest_p, rest_q = np.clip(1 - p.sum(axis=1), 0, 1), np.clip(1 - q.sum(axis=1), 1e-12, 1)
    rest = np.where(rest_p > 1e-12, rest_p * np.log(np.maximum(rest_p, 1e-12) / rest_q), 0.0)
    k, known = reference.top_ids.shape[1], _listed(reference, scores)
    why = f"lower bound from top-{k} lists and one rest bucket{_share_said(known)}"
    return estimate(inside.sum(axis=1) + rest, "nat/token", known, why=why)


def _listed(reference: Scores, scores: Scores) -> NDArray[np.bool_]:
    """Tokens where both list their best next tokens, shape (t,)."""
    listed: NDArray[np.bool_] = (reference.top_ids.max(axis=1) >= 0) & (scores.top_ids.max(axis=1) >= 0)
    return listed


def _share_said(known: NDArray[np.bool_]) -> str:
    return "" if known.all() else f"; at {int(known.sum())} of {known.size} tokens, evenly spread"


def _best(scores: Scores) -> NDArray[np.int64]:
    order = np.argmax(np.where(np.isfinite(scores.top_logprobs), scores.top_logprobs, -np.inf), axis=1)
    best: NDArray[np.int64] = scores.top_ids[np.arange(len(order)), order]
    return best


def _top1(reference: Scores, scores: Scores, estimate: _Estimator) -> Quantity:
    if not reference.top_ids.shape[1] or not scores.top_ids.shape[1]:
        asked = scores.agrees >= 0
        if not asked.any():
            return Quantity.unknown("1", NO_TOP)
        return estimate(scores.agrees.astype(np.float64), "1", asked, why="of greedy tokens, by decoding")
    known = _listed(reference, scores)
    said = _share_said(known).removeprefix("; ") or None
    return estimate((_best(reference) == _best(scores)).astype(np.float64), "1", known, why=said)


def _free_run(scores: Scores, estimate: _Estimator) -> dict[str, Quantity]:
    ran = scores.matched >= 0
    if not ran.any():
        units = {"greedy_agreement": "1", "first_divergence_tokens": "token", "changed_share": "1"}
        return {name: Quantity.unknown(unit, NO_FREE_RUN) for name, unit in units.items()}
    matched = np.where(ran, scores.matched, 0).astype(np.float64)
    changed = (ran & (scores.matched < scores.lengths)).astype(np.float64)
    one = ran.astype(np.float64)
    n = int(ran.sum())
    censored = f"{n - int(changed.sum())} of {n} never differ within their length, which bounds it from below"
    return {
        "greedy_agreement": estimate.ratio(matched, matched + changed, "1", int((matched + changed).sum())),
        "first_divergence_tokens": estimate.ratio(matched, one, "token", n, why=censored),
        "changed_share": estimate.ratio(changed, one, "1", n),
    }


def _decode_gap(reference: Reference | None, scores: Scores, estimate: _Estimator) -> Quantity:
    if reference is None:
        return Quantity.unknown("nat/token", "needs the reference's own decode log-probabilities")
    own = np.array([v for c in reference.continuations for v in c.logprobs], np.float64)
    position = np.arange(len(scores.owner)) - np.repeat(np.cumsum(scores.lengths) - scores.lengths, scores.lengths)
    mask = position < scores.matched[scores.owner]
    return estimate(own - scores.own_logprobs, "nat/token", mask, why="over tokens before the first difference only")
