from pathlib import Path

import numpy as np
import pytest
from bigram import Bigram, served

from qmeter.errors import QualityError
from qmeter.load.target import Target
from qmeter.quality import fidelity
from qmeter.quality.fidelity import Reference, Scores, builtin_prompts, compare, make_reference, score

SHAPES = ["vllm", "spelled", "embedded", "chosen-only", "strict-extras", "no-zero"]


def measure(noise: float, shape: str = "vllm", prompts: int = 24, tokens: int = 40, top_k: int = 5):
    reference_model, variant = Bigram(), Bigram(noise)
    with served(reference_model, shape) as (target, _):
        reference = make_reference(target, builtin_prompts(prompts), tokens, top_k=top_k)
        base = score(target, reference)
    with served(variant, shape) as (target, _):
        return reference, base, score(target, reference)


def states(reference: Reference, sampled: bool) -> np.ndarray:
    rows = [c for c in reference.continuations if c.sampled == sampled]
    return np.array([s for c in rows for s in (c.prompt_ids[-1], *c.ids[:-1])])


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_against_itself_is_exactly_equal_in_every_json_shape(shape: str) -> None:
    reference, base, again = measure(0.0, shape)
    q = compare(base, again, reference=reference)
    assert q["ppl_ratio"].value == 1.0 and q["logprob_gap"].value == 0.0
    assert q["kl_sampled"].value == 0.0
    assert q["greedy_agreement"].value == 1.0 and q["changed_share"].value == 0.0
    assert q["decode_logprob_gap"].value == pytest.approx(0.0, abs=1e-12)
    assert q["top1_agreement"].value == 1.0


def test_scores_are_the_models_own_log_probabilities() -> None:
    reference, base, _ = measure(0.0)
    model = Bigram()
    expected = [
        model.logp[b, t]
        for c in reference.continuations
        for b, t in zip((c.prompt_ids[-1], *c.ids), c.ids, strict=False)
    ]
    assert np.allclose(base.logprobs, expected)
    assert np.allclose([v for c in reference.continuations for v in c.logprobs], expected)


def test_sampled_kl_estimates_the_true_kl_and_topk_kl_stays_below_it() -> None:
    reference, base, scores = measure(0.5, prompts=48, tokens=60)
    q = compare(base, scores)
    true = Bigram().kl_to(Bigram(0.5), states(reference, sampled=True))
    assert q["kl_sampled"].value == pytest.approx(true, rel=0.15)
    assert q["kl_sampled"].low < true < q["kl_sampled"].high
    greedy_and_sampled = np.concatenate([states(reference, False), states(reference, True)])
    assert 0 < q["kl_topk"].value <= Bigram().kl_to(Bigram(0.5), greedy_and_sampled)
    assert "lower bound" in (q["kl_topk"].why or "")


def test_topk_kl_with_every_token_listed_is_the_true_kl() -> None:
    reference, base, scores = measure(0.5, top_k=24)
    every = np.concatenate([states(reference, False), states(reference, True)])
    assert compare(base, scores)["kl_topk"].value == pytest.approx(Bigram().kl_to(Bigram(0.5), every), rel=1e-6)


def test_quality_falls_with_the_noise() -> None:
    results = [compare(*measure(noise)[1:]) for noise in (0.0, 0.2, 0.8, 2.0)]
    for name, sign in (("kl_sampled", 1), ("kl_topk", 1), ("ppl_ratio", 1), ("top1_agreement", -1)):
        values = [q[name].value * sign for q in results]
        assert values == sorted(values) and values[-1] > values[0], name


def test_top1_agreement_and_first_divergence_match_the_tables() -> None:
    reference, base, scores = measure(0.8)
    q = compare(base, scores)
    best, other = np.argmax(Bigram().logp, axis=1), np.argmax(Bigram(0.8).logp, axis=1)
    every = np.concatenate([states(reference, False), states(reference, True)])
    assert q["top1_agreement"].value == pytest.approx((best == other)[every].mean())
    first = []
    for c in (c for c in reference.continuations if not c.sampled):
        agree = [best[s] == other[s] for s in (c.prompt_ids[-1], *c.ids[:-1])]
        first.append(agree.index(False) if False in agree else len(c.ids))
    assert q["first_divergence_tokens"].value == pytest.approx(np.mean(first))
    assert q["changed_share"].value == pytest.approx(np.mean([f < 40 for f in first]))
    assert q["greedy_agreement"].value == pytest.approx(sum(first) / (sum(first) + sum(f < 40 for f in first)))


def test_alternatives_of_next_tokens_alone_are_asked_for_at_some_places_of_every_continuation() -> None:
    reference, base, scores = measure(0.5, "embedded", prompts=48, top_k=24)
    q = compare(base, scores)
    at = [i for c in reference.continuations for i in (n in fidelity.places(len(c.ids)) for n in range(len(c.ids)))]
    rows = [s for c in reference.continuations for s in (c.prompt_ids[-1], *c.ids[:-1])]
    asked = np.array(rows)[np.array(at)]
    assert q["kl_topk"].n == 48 * fidelity.POSITIONS == asked.size
    assert q["kl_topk"].value == pytest.approx(Bigram().kl_to(Bigram(0.5), asked), rel=1e-6)
    best, other = np.argmax(Bigram().logp, axis=1), np.argmax(Bigram(0.5).logp, axis=1)
    assert q["top1_agreement"].value == pytest.approx((best == other)[asked].mean())
    assert "of 1920 tokens, evenly spread" in (q["kl_topk"].why or "")


@pytest.mark.parametrize("length", [1, 3, 8, 9, 40])
def test_places_are_evenly_spread_and_end_with_the_last_token(length: int) -> None:
    at = fidelity.places(length)
    assert at[-1] == length - 1 and len(at) == min(length, fidelity.POSITIONS) == len(set(at))
    gaps = np.diff((-1, *at))
    assert gaps.max() - gaps.min() <= 1


def test_endpoint_without_alternatives_says_so_and_still_gives_kl() -> None:
    _, base, scores = measure(0.5, "chosen-only")
    q = compare(base, scores)
    assert not q["kl_topk"].known and "top-k" in q["kl_topk"].why
    best, other = np.argmax(Bigram().logp, axis=1), np.argmax(Bigram(0.5).logp, axis=1)
    reference = measure(0.5, "chosen-only")[0]
    assert q["top1_agreement"].value == pytest.approx((best == other)[states(reference, sampled=False)].mean())
    assert q["top1_agreement"].n == 12 * 40
    assert q["kl_sampled"].value > 0 and q["greedy_agreement"].known


def test_refused_extensions_are_left_out_and_remembered() -> None:
    with served(Bigram(), "strict-extras") as (target, seen):
        reference = make_reference(target, builtin_prompts(6), 8)
        score(target, reference)
    refused = [b for b in seen if "repetition_penalty" in b]
    assert 0 < len(refused) < len(seen) and all("return_token_ids" in b for b in seen)


def test_endpoint_without_token_ids_is_refused_with_the_next_step() -> None:
    with served(Bigram(), "openai") as (target, _), pytest.raises(QualityError, match="no token ids") as caught:
        make_reference(target, builtin_prompts(2), 4)
    assert "return_token_ids" in caught.value.hint


def test_a_dead_server_is_a_quality_error_without_its_headers() -> None:
    target = Target("http://127.0.0.1:9", "m", headers={"Authorization": "Bearer sk-secret"}, timeout_s=1.0)
    from qmeter.quality.client import Completions

    with pytest.raises(QualityError, match="no answer") as caught:
        Completions(target, retries=0).generate("x", 1)
    assert "sk-secret" not in str(caught.value)


def test_scores_of_another_reference_are_refused() -> None:
    _, base, _ = measure(0.0, prompts=4, tokens=4)
    _, other, _ = measure(0.0, prompts=4, tokens=5)
    with pytest.raises(QualityError, match="cannot be compared"):
        compare(base, other)


def test_reference_and_scores_survive_saving(tmp_path: Path) -> None:
    reference, base, scores = measure(0.3, prompts=6, tokens=9)
    reference.save(tmp_path / "reference.npz")
    scores.save(tmp_path / "scores.npz")
    assert Reference.load(tmp_path / "reference.npz") == reference
    loaded = Scores.load(tmp_path / "scores.npz")
    assert compare(base, loaded, reference=reference) == compare(base, scores, reference=reference)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "scores.npz").read_bytes()[:200])
    with pytest.raises(QualityError, match="is not fidelity scores"):
        Scores.load(tmp_path / "torn.npz")


def test_intervals_cover_the_true_kl_about_as_often_as_they_say() -> None:
    """GIVEN 60 references WHEN each estimates the stationary KL THEN about 95% of the intervals hold it."""
    p, model, variant = np.exp(Bigram().logp), Bigram(), Bigram(0.5)
    stationary = np.linalg.matrix_power(p, 200)[0]
    per_state = (p * (model.logp - variant.logp)).sum(axis=1)
    rng, held = np.random.default_rng(5), 0
    for trial in range(200):
        lengths, gaps = np.full(16, 30), []
        for _ in range(16):
            state = int(rng.choice(24, p=stationary / stationary.sum()))
            for _ in range(30):
                token = int(rng.choice(24, p=p[state]))
                gaps.append(model.logp[state, token] - variant.logp[state, token])
                state = token
        empty, unset = np.full((480, 0), -1), np.full(480, -1)
        rest = (unset, np.full(480, np.nan), unset, np.full(16, -1))
        base = Scores("r", lengths, np.ones(16, bool), np.array(gaps), empty, empty * 1.0, *rest)
        zero = Scores("r", lengths, np.ones(16, bool), np.zeros(480), empty, empty * 1.0, *rest)
        q = compare(base, zero, seed=trial)["kl_sampled"]
        held += q.low <= stationary @ per_state <= q.high
    assert held / 200 >= 0.90


def test_builtin_prompts_are_diverse_and_seeded() -> None:
    assert builtin_prompts(16, seed=3) == builtin_prompts(16, seed=3) != builtin_prompts(16, seed=4)
    assert len(set(builtin_prompts(48))) == 48 and len(builtin_prompts(100)) == 100
