"""Each wrong input names its field and the way out."""

import pytest

from qmeter.errors import SpecError
from qmeter.plan.load import load_plan, load_plan_text
from qmeter.plan.run import make_plan


def faults(text):
    with pytest.raises(SpecError) as caught:
        make_plan(load_plan_text(text), what_if=False)
    found = {}
    for field, message in caught.value.faults:
        found[field] = f"{found[field]}; {message}" if field in found else message
    return found, caught.value


def one(rate="60/s", slo="{ttft: 300ms, tpot: 14ms}", more=""):
    return (f"  - {{name: chat, rate: {rate}, prompt_tokens: {{kind: fixed, tokens: 100}}, "
            f"output_tokens: {{kind: fixed, tokens: 40}}, slo: {slo}{more}}}")  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "field", "says"),
    [
        (one(rate="-3/s"), "classes[0].rate", "must not be negative"),
        (one(rate="3"), "classes[0].rate", "needs a unit"),
        (one(rate="[1/s, -2/s]"), "classes[0].rate", "period 1"),
        (one(rate="0/s"), "classes[0].rate", "leave the class out"),
        (one(slo="{tpot: 0ms}"), "classes[0].slo.tpot", "can never be kept"),
        (one(slo="{ttft: 300ms, percentile: 95}"), "classes[0].slo.percentile", "write 0.95"),
        (one(slo="{tfft: 300ms}"), "classes[0].slo.tfft", "did you mean 'ttft'"),
        (one(more=", share: 0.5"), "classes[0]", "needs one of rate, share or trace"),
        (one() + "\n" + one(), "classes[1].name", "stands twice"),
        (one("[1/s, 2/s]") + "\n" + one("[1/s, 2/s, 3/s]").replace("chat", "b"), "classes[1].rate", "value a period"),
    ],
)  # fmt: skip
def test_traffic(plan_text, classes, field, says):
    found, _ = faults(plan_text(classes))
    assert says in found[field], found


def test_shares_need_a_rate_and_sum_to_one(plan_text):
    half = one().replace("rate: 60/s", "share: 0.5")
    found, _ = faults(plan_text(half))
    assert "missing" in found["classes[0].share"]
    found, _ = faults(plan_text(half, more="rate: 50/s"))
    assert "sum to 0.5" in found["classes[0].share"]


def test_an_empty_fleet(plan_text):
    text = plan_text(one())
    found, _ = faults(text[: text.index("fleet:")] + "fleet: []\n")
    assert "empty" in found["fleet"]
    found, _ = faults(plan_text(one(), fleet="price_usd_h: 4, count: 0"))
    assert "the fleet is empty" in found["fleet"]
    found, _ = faults(plan_text(one(), fleet="price_usd_h: 4, methods: [fp9]"))
    assert "did you mean 'fp8'" in found["fleet[0].methods"]
    found, _ = faults(plan_text(one(), fleet="price_usd_h: 4, device: l40s"))
    assert "'carry'" in found["fleet[0].device"]


def test_no_such_source(plan_text, source):
    found, _ = faults(plan_text(one()).replace(str(source), "h200-8b-gird"))
    assert "did you mean 'h200-8b-grid'" in found["fleet[0].source"]


def test_a_price_where_cost_is_least(plan_text):
    found, _ = faults(plan_text(one(), fleet="count: 3"))
    assert "the objective is cost" in found["fleet[0].price_usd_h"]
    found, _ = faults(plan_text(one(), more="objective: carbon"))
    assert "electricity.carbon_g_kwh" in found


def test_devices_are_priced_and_counted_once(plan_text):
    listed = "devices: {h200: {count: 3, price_usd_h: 2}}"
    found, _ = faults(plan_text(one(), more=listed, fleet="count: 3"))
    assert "devices.h200 counts this device for all entries" in found["fleet[0].count"]
    found, _ = faults(plan_text(one(), more="devices: {h100-sxm: {price_usd_h: 2}}", fleet="models: [llama-3.1-8b]"))
    assert "or in devices.h200" in found["fleet[0].price_usd_h"]
    found, _ = faults(plan_text(one(), more="devices: {h200: {count: 0, price_usd_h: 2}}", fleet="engines: [vllm]"))
    assert "the fleet is empty" in found["devices"]


def test_an_slo_below_the_zero_load_latency(plan_text):
    found, error = faults(plan_text(one(slo="{ttft: 3ms, tpot: 14ms}")))
    assert "below the zero-load TTFT of every deployment; the lowest is 0.0" in found["classes[0].slo.ttft"]
    assert "(fp8)" in found["classes[0].slo.ttft"] and "nothing was planned" in str(error)


def test_a_profile_that_lacks_quality(plan_text):
    found, _ = faults(plan_text(one(more=", quality: {task.facts.accuracy: 0.8}")))
    assert "has it measured" in found["classes[0].quality.task.facts.accuracy"]
    assert "fleet[].quality: {from: DIR}" in found["classes[0].quality.task.facts.accuracy"]
    found, error = faults(plan_text(one(), fleet="price_usd_h: 4, quality: {from: h200-8b-grid}"))
    assert "holds no measured quality" in found["fleet[0].quality.from"] and "qmeter quality" in error.hint


GIVEN = ("price_usd_h: 4, quality: {given: {bf16: {task.facts.accuracy: [0.7, 0.8, 0.9], ppl_ratio: [1.0, 1.0, 1.0]}, "
         "fp8: {task.facts.accuracy: [0.85, 0.9, 0.95], ppl_ratio: [1.02, 1.05, 1.08]}}}")  # fmt: skip


def test_floors_out_of_reach_or_contradictory(plan_text):
    found, _ = faults(plan_text(one(more=", quality: {task.facts.accuracy: 0.88}"), fleet=GIVEN))
    assert "the best is fp8 with 0.9 [0.85, 0.95]: ask at most 0.85" in found["classes[0].quality.task.facts.accuracy"]
    both = ", quality: {task.facts.accuracy: 0.8, ppl_ratio: 1.01}"
    found, _ = faults(plan_text(one(more=both), fleet=GIVEN))
    assert "contradict each other" in found["classes[0].quality"]
    assert "0.8 is kept by fp8" in found["classes[0].quality"] and "1.01 is kept by bf16" in found["classes[0].quality"]


def test_a_quality_interval_must_hold_its_value(plan_text):
    text = plan_text(one(), fleet="price_usd_h: 4, quality: {given: {fp8: {ppl_ratio: [1.1, 1.0, 1.2]}}}")
    found, _ = faults(text)
    assert "in order" in found["fleet[0].quality.given.fp8.ppl_ratio"]


def test_knobs_and_carrying_say_what_they_need(plan_text):
    found, _ = faults(plan_text(one(), fleet="price_usd_h: 4, knobs: [{max_sequences: 500}]"))
    assert "outside what was measured" in found["fleet[0].knobs[0]"]
    found, _ = faults(plan_text(one(), fleet="price_usd_h: 4, carry: {device: l40s}"))
    assert "extrapolate: true" in found["fleet[0].carry"]
    found, _ = faults(plan_text(one(), more="extrapolate: true", fleet="price_usd_h: 4, carry: {device: l40s}"))
    assert "has no records" in found["fleet[0].source"]


def test_lengths_that_the_calibration_does_not_cover(plan_text):
    long = one().replace("tokens: 100", "tokens: 20000")
    found, _ = faults(plan_text(long))
    assert any("20040 tokens" in text or "request length" in text for text in found.values())


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SpecError, match="no file at"):
        load_plan(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="1 fault"):
        load_plan_text("qmeter: [")
