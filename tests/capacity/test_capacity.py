import numpy as np
import pytest

from qmeter.analysis.cell import analyse
from qmeter.capacity import (
    ClassLoad,
    Drawn,
    Empirical,
    Mix,
    Pool,
    Precision,
    Supply,
    lower_bound,
    offer_of,
    offers,
    sample,
    sustain,
    with_knobs,
)
from qmeter.capacity import source as source_module
from qmeter.capacity.offer import lower_is_better
from qmeter.errors import AnalysisError
from qmeter.record import Quantity
from qmeter.simulate.calibration import save
from qmeter.simulate.engine import run_cell
from qmeter.simulate.fleet import Fleet, ReplicaKind, run_fleet
from qmeter.simulate.load import SimLoad
from qmeter.spec.workload import SLO, FixedLength, UniformLength, WorkloadSpec
from qmeter.testing.deployments import made_calibration
from qmeter.workload import Vocabulary, build

CHAT = ClassLoad(
    "chat", Drawn(UniformLength(low=50, high=300), UniformLength(low=20, high=80)), SLO(ttft="300ms", tpot="14ms")
)
BATCH = ClassLoad("batch", Drawn(FixedLength(tokens=400), FixedLength(tokens=60)), SLO(ttft="3s", tpot="40ms"))


@pytest.fixture(scope="module")
def offer():
    return offer_of(made_calibration(), Supply(price_usd_h=4.0, count=8))


@pytest.mark.parametrize("front", [{}, {"output_seq_s": 2e-3, "input_each_s": 7e-4}], ids=["none", "behind"])
def test_latencies_are_those_that_a_client_of_the_simulated_engine_measures(front):
    offer = offer_of(made_calibration(**front))
    spec = WorkloadSpec.model_validate({
        "name": "w", "arrivals": {"kind": "poisson", "rate": "8/s"}, "warmup": "0s", "window": "60s", "drain": "60s",
        "prompt_tokens": {"kind": "uniform", "low": 50, "high": 300},
        "output_tokens": {"kind": "uniform", "low": 20, "high": 80}, "slo": {"ttft": "300ms", "tpot": "14ms"},
    })  # fmt: skip
    schedule = build(spec, 3, Vocabulary(size=1000))
    cell = run_cell(offer.calibration, schedule, seed=5)
    measured = analyse(cell.tables, spec, cell.series, seed=1).metrics
    pool = Pool.of(offer, seed=5)
    n = len(schedule)
    mix = sample(Mix((CHAT,)), n, 1)
    lengths = [np.array([getattr(r, k) for r in schedule.requests]) for k in ("prompt_tokens", "output_tokens")]
    requests = type(mix)(mix.mix, np.asarray(schedule.send_s), *lengths, np.zeros(n, dtype=int))
    served = pool.serve_times(np.asarray(schedule.send_s), requests)
    columns = cell.tables.requests
    np.testing.assert_allclose(served.ttft_s, columns.first_token_s - columns.sent_s, atol=1e-9)
    np.testing.assert_allclose(served.e2e_s, columns.last_token_s - columns.sent_s, atol=1e-9)
    assert np.mean(served.ttft_s) == pytest.approx(measured["ttft_mean_s"].value, rel=1e-6)
    assert np.mean(served.tpot_s) == pytest.approx(measured["tpot_mean_s"].value, rel=1e-6)
    assert served.met(CHAT.slo).mean() == pytest.approx(measured["slo_attainment"].value, abs=1e-9)


def test_every_replica_of_a_pool_has_a_front_end_of_its_own():
    offer = offer_of(made_calibration(output_seq_s=2e-3, input_each_s=7e-4))
    requests = sample(Mix((CHAT,)), 900, 3)
    pool = Pool.of(offer, 3, seed=2)
    served = pool.serve(requests, 8.0)
    at = served.sent_s + offer.calibration.input_s
    kinds = tuple(ReplicaKind("replica", pool.rules, m) for m in pool.models)
    home = run_fleet(Fleet(kinds, (0, 1, 2)), SimLoad(at, requests.prompt, requests.output)).home
    for r in range(3):
        own = home == r
        columns = (served.sent_s, requests.prompt, requests.output, requests.group)
        mine = type(requests)(requests.mix, *(column[own] for column in columns))
        alone = Pool(pool.rules, (pool.models[r],), 1, True).serve_times(served.sent_s[own], mine)
        np.testing.assert_allclose(served.ttft_s[own], alone.ttft_s, atol=1e-9)
        np.testing.assert_allclose(served.e2e_s[own], alone.e2e_s, atol=1e-9)


def test_a_front_end_that_falls_behind_costs_capacity():
    """GIVEN steps of 64 sequences in 20 ms WHEN each token takes the front end 0.6 ms THEN it binds, not the steps."""
    rates = [
        sustain(offer_of(made_calibration(output_seq_s=each)), Mix((BATCH,)), curve=False).rate_hz.value
        for each in (0.0, 6e-4)
    ]
    tokens_hz = rates[1] * 60
    assert tokens_hz * 6e-4 < 1.0 < rates[0] * 60 * 6e-4, "no queue sends on more than it can"


def test_the_rate_found_is_kept_by_fresh_requests_and_a_higher_one_is_not(offer):
    found = sustain(offer, Mix((CHAT,)))
    assert found.rate_hz.value and found.binds == "chat: TPOT"
    fresh = [sample(Mix((CHAT,)), 6000, seed) for seed in range(100, 120)]
    shares = [Pool.of(offer, seed=7).serve(r, found.rate_hz.value).met(CHAT.slo).mean() for r in fresh]
    assert np.mean(np.array(shares) >= 0.9) >= 0.8
    over = [Pool.of(offer, seed=7).serve(r, 1.15 * found.rate_hz.value).met(CHAT.slo).mean() for r in fresh[:5]]
    assert max(over) < 0.9


def test_the_same_seed_gives_the_same_answer_and_draws_give_an_interval(offer):
    a = sustain(offer, Mix((CHAT, BATCH), (3, 1)), seed=4, draws=6, curve=False)
    b = sustain(offer, Mix((CHAT, BATCH), (0.75, 0.25)), seed=4, draws=6, curve=False)
    assert a.rate_hz == b.rate_hz and a.draws_hz == b.draws_hz
    assert a.rate_hz.low < a.rate_hz.value <= a.rate_hz.high
    assert min(sample(a.mix, 1000, 1).group.tolist().count(k) for k in (0, 1)) >= 200


def test_a_shared_replica_holds_less_than_the_linear_rule_says(offer):
    alone = [sustain(offer, Mix((c,)), curve=False).rate_hz.value for c in (CHAT, BATCH)]
    mixed = sustain(offer, Mix((CHAT, BATCH), (1, 1)), curve=False).rate_hz.value
    assert mixed < 0.97 / (0.5 / alone[0] + 0.5 / alone[1])


def test_several_replicas_behind_a_router_sustain_more_each(offer):
    one, four = (sustain(offer, Mix((CHAT,)), replicas=n, curve=False).rate_hz.value for n in (1, 4))
    assert four > one


def test_a_limit_below_the_zero_load_latency_says_so(offer):
    tight = ClassLoad("tight", CHAT.lengths, SLO(ttft="2ms"))
    found = sustain(offer, Mix((tight,)))
    assert found.rate_hz.value == 0.0
    assert "tight" in found.binds and "TTFT limit of 0.002 s is below the zero-load TTFT" in found.binds


def test_power_runs_from_idle_to_the_limit_which_cuts_the_rate():
    plain = sustain(offer_of(made_calibration()), Mix((BATCH,)))
    power = [p.power_w for p in plain.curve]
    assert power == sorted(power) and power[0] == pytest.approx(80, rel=0.03)
    assert plain.curve[2].j_per_request == pytest.approx(power[2] / plain.curve[2].rate_hz, rel=0.02)
    limit = plain.power_w(0.5 * plain.rate_hz.value)
    cut = sustain(offer_of(made_calibration(), Supply(power_limit_w=limit)), Mix((BATCH,)))
    assert cut.binds == f"power limit of {limit:.0f} W"
    assert cut.rate_hz.value == pytest.approx(0.5 * plain.rate_hz.value, rel=0.05)


def test_energy_unknown_stays_unknown():
    found = offer_of(made_calibration(energy=False))
    assert found.idle_w.value is None and found.load_energy_j.value is None and found.load_energy_j.why
    assert np.isnan(sustain(found, Mix((CHAT,)), curve=False).curve[-1].power_w)


def test_beyond_the_support_is_refused_unless_allowed():
    short = offer_of(made_calibration(longest_tokens=100))
    with pytest.raises(AnalysisError, match="request length"):
        sustain(short, Mix((CHAT,)), curve=False)
    assert sustain(short, Mix((CHAT,)), curve=False, allow_extrapolation=True).notes


def test_a_capacity_ends_where_the_records_do_and_says_so(offer):
    """GIVEN records of at most 24 sequences at once WHEN the promise allows more THEN the rate stops at them."""
    made = made_calibration()
    few = offer_of(made.model_copy(update={"support": made.support.model_copy(update={"sequences": 24})}))
    whole, bounded = (sustain(o, Mix((BATCH,)), draws=4, curve=False) for o in (offer, few))
    assert 0 < bounded.rate_hz.value < whole.rate_hz.value and not whole.bounded
    assert bounded.bounded == "up to 24 sequences in a step" and bounded.bounded in bounded.binds
    assert max(bounded.draws_hz) <= bounded.rate_hz.value == bounded.rate_hz.high
    free = sustain(few, Mix((BATCH,)), curve=False, allow_extrapolation=True)
    assert free.rate_hz.value == whole.rate_hz.value and free.notes and not free.bounded
    half = offer_of(made.model_copy(update={"support": made.support.model_copy(update={"step_tokens": 100})}))
    with pytest.raises(AnalysisError, match="tokens in a step"):  # a lone prompt of 400 tokens is beyond it
        sustain(half, Mix((BATCH,)), curve=False)


def test_knobs_turn_down_within_what_was_measured(offer):
    small = with_knobs(offer, max_sequences=8)
    assert small.name.endswith("/max_sequences=8") and small.calibration.scheduler().max_sequences == 8
    held = [sustain(o, Mix((BATCH,)), curve=False).rate_hz.value for o in (small, offer)]
    assert held[0] < held[1]
    assert with_knobs(offer, max_sequences=64) is offer
    with pytest.raises(AnalysisError, match="outside what was measured"):
        with_knobs(offer, max_sequences=65)
    with pytest.raises(AnalysisError, match="cannot turn"):
        with_knobs(offer, chunked_prefill=True)


def test_floors_are_compared_with_the_confidence_bound(offer):
    quality = {"task.facts.accuracy": Quantity.of(0.9, "1", low=0.85, high=0.94),
               "ppl_ratio": Quantity.of(1.02, "1", low=1.0, high=1.06)}  # fmt: skip
    good = offer_of(made_calibration(), quality=quality)
    assert lower_is_better("ppl_ratio") and not lower_is_better("task.facts.accuracy")
    assert good.keeps({"task.facts.accuracy": 0.85, "ppl_ratio": 1.06})
    assert good.misses({"task.facts.accuracy": 0.88, "ppl_ratio": 1.05}) == ("task.facts.accuracy", "ppl_ratio")
    assert offer.misses({"ppl_ratio": 9.0}) == ("ppl_ratio",)


def test_prices_and_counts_are_a_replicas():
    pair = offer_of(made_calibration(devices=2), Supply(price_usd_h=4.0, count=7, power_limit_w=500))
    assert (pair.price_usd_h, pair.count, pair.power_limit_w, pair.devices) == (8.0, 3, 1000, 2)
    assert pair.name == "llama-3.1-8b/bf16/vllm@h200/tp2"


def test_offers_from_a_file_and_the_shipped_profile_is_fitted_once(tmp_path, monkeypatch):
    path = save([made_calibration(), made_calibration("fp8", speed=1.6)], tmp_path / "c.json")
    assert [o.method for o in offers(path, {"h200": Supply(price_usd_h=3.0)})] == ["bf16", "fp8"]
    monkeypatch.setattr(source_module, "calibrate", lambda group, tables: made_calibration().model_copy(
        update={"deployment": made_calibration().deployment | {"id": group[0].deployment_id}}))  # fmt: skip
    fits = []
    first = offers("h200-8b-grid", cache=tmp_path, on_fit=fits.append)
    again = offers("h200-8b-grid", cache=tmp_path, on_fit=fits.append)
    assert len(fits) == len(first) == len(again) == 9
    assert first[0].load_s.value > 10 and again[0].calibration.id == first[0].calibration.id
    assert first[0].load_energy_j.low < first[0].load_energy_j.high and "not measured" in first[0].load_energy_j.why


def test_samples_have_the_shares_rates_and_burstiness_asked_for():
    bursty = ClassLoad("bursty", Empirical((10, 20), (3, 4)), SLO(ttft="1s"), burstiness=0.25)
    got = sample(Mix((CHAT, bursty), (3, 1)), 20000, 1)
    assert np.mean(got.group == 0) == pytest.approx(0.75, abs=0.02)
    assert len(got) / got.sent_unit[-1] == pytest.approx(1.0, abs=0.03)
    gaps = np.diff(got.sent_unit[got.group == 1])
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.1)
    pairs = set(zip(got.prompt[got.group == 1].tolist(), got.output[got.group == 1].tolist(), strict=True))
    assert pairs == {(10, 3), (20, 4)}


def test_the_lower_bound_widens_where_misses_come_in_clusters():
    scattered, clustered = np.ones(4000, dtype=bool), np.ones(4000, dtype=bool)
    scattered[::20] = False
    clustered[:200] = False
    assert lower_bound(scattered) == pytest.approx(0.95, abs=1e-9)
    assert lower_bound(clustered) < 0.9
    assert Precision().sure
