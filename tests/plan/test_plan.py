import json

import numpy as np
import pytest
from plan_texts import BATCH, CHAT

from qmeter.plan.check import loads, watch
from qmeter.plan.demand import demand_of
from qmeter.plan.load import load_plan_text
from qmeter.plan.run import NoPlan, PlanResult, make_plan
from qmeter.plan.words import data, promises, reason, rows
from qmeter.simulate.calibration import save
from qmeter.testing.deployments import made_calibration

GIVEN = ("price_usd_h: 4, quality: {given: {bf16: {task.facts.accuracy: [0.88, 0.9, 0.92]}, "
         "fp8: {task.facts.accuracy: [0.7, 0.9, 0.95]}}}")  # fmt: skip


@pytest.fixture(scope="module")
def text(source):
    return f"qmeter: 1\nname: made\nclasses:\n{CHAT}{BATCH}\nfleet:\n  - {{source: '{source}', price_usd_h: 4.0}}\n"


@pytest.fixture(scope="module")
def made(text):
    return make_plan(load_plan_text(text))


def test_a_plan_serves_all_traffic_and_keeps_its_promises_with_fresh_requests(made):
    assert isinstance(made, PlanResult)
    plan = made.found.solution
    assert np.allclose(plan.routing.sum(axis=1)[made.demand.rate_hz > 0], 1.0)
    assert not made.found.watched.broken
    fresh = [watch(made.spec, made.table, plan, seed=s, fresh=1).broken for s in (5000, 6000, 7000, 8000)]
    assert sum(bool(b) for b in fresh) <= 1
    assert {made.choice(p).offer.method for p in made.pools} == {"fp8"}, "the faster one at the same price"


def test_one_replica_fewer_does_not_hold(made):
    """Each pool is needed: without one of its replicas, at the same routing, a promise breaks."""
    from dataclasses import replace

    plan = made.found.solution
    for pool in made.pools:
        fewer = plan.replicas.copy()
        fewer[pool] -= 1
        if fewer[pool] > 0:
            assert watch(made.spec, made.table, replace(plan, replicas=fewer), seed=9000, fresh=1).broken


def test_the_answer_tells_gap_headroom_reason_and_alternatives(made):
    out = data(made)
    json.dumps(out, allow_nan=False)
    assert out["milp_gap"] <= 0.01 and 0 <= out["gap"] < 0.5 and out["bound"] <= out["value"]
    growth = out["headroom"]["growth"]
    assert growth["low"] <= growth["value"] <= growth["high"] and growth["value"] >= 1
    assert 0 <= out["headroom"]["certainty"]["value"] <= 1
    assert out["next_best"][0]["without"].startswith("llama-3.1-8b/fp8") and out["next_best"][0]["value"] > out["value"]
    assert any("fp8 on h200: one replica sustains" in line for line in out["reason"])
    assert all(s["saves"] > 0 for s in out["savings"])
    assert out["energy"]["low"] <= out["energy"]["value"] <= out["energy"]["high"]
    assert [p["class"] for p in promises(made)] == ["chat", "batch"]
    assert all(p["worst"] >= p["asked"] for p in promises(made))


def test_relaxing_what_binds_saves(made):
    fields = {s.field for s in made.savings}
    assert not fields or fields <= {f"classes[{c}].slo.{n}" for c in (0, 1) for n in ("ttft", "tpot")}


def test_the_same_file_gives_the_same_plan(made, text):
    again = make_plan(load_plan_text(text), what_if=False)
    assert again.found.solution.replicas.tolist() == made.found.solution.replicas.tolist()
    assert again.headroom == made.headroom


def test_certainty_costs_replicas_and_is_reached(text, made):
    sure = make_plan(load_plan_text(text.replace("name: made", "name: made\ncertainty: 0.9")), what_if=False)
    assert sure.found.solution.value >= made.found.solution.value
    assert sure.headroom.certainty.value >= 0.9


def test_floors_hold_on_the_confidence_bound(plan_text):
    chat = """
  - {name: chat, rate: 90/s, prompt_tokens: {kind: fixed, tokens: 100}, output_tokens: {kind: fixed, tokens: 40},
     slo: {ttft: 300ms, tpot: 14ms}, quality: {task.facts.accuracy: 0.85}}"""
    found = make_plan(load_plan_text(plan_text(chat, fleet=GIVEN)), what_if=True)
    assert {found.choice(p).offer.method for p in found.pools} == {"bf16"}, "fp8's value is the same, its bound is not"
    assert any("task.facts.accuracy" in e.text for e in found.table.exclusions)
    assert found.savings[0].field == "classes[0].quality.task.facts.accuracy"


def test_least_energy_prefers_the_less_hungry(plan_text, tmp_path):
    path = save(
        [made_calibration("bf16", speed=1.1, power=1.6), made_calibration("fp8", power=0.8)], tmp_path / "c.json"
    )
    chat = """
  - {name: chat, rate: 20/s, prompt_tokens: {kind: fixed, tokens: 100}, output_tokens: {kind: fixed, tokens: 40},
     slo: {ttft: 300ms, tpot: 14ms}}"""
    power = "electricity: {carbon_g_kwh: 300, pue: 1.2}"
    fleet = f"fleet:\n  - {{source: '{path}', price_usd_h: 1}}\n"
    base = f"qmeter: 1\nname: e\nobjective: OBJ\n{power}\nclasses:{chat}\n{fleet}"
    least = make_plan(load_plan_text(base.replace("OBJ", "energy")), what_if=False)
    assert {least.choice(p).offer.method for p in least.pools} == {"fp8"}
    assert least.energy_j.value == pytest.approx(least.found.solution.value, rel=0.1), "the model's energy is off"
    green = make_plan(load_plan_text(base.replace("OBJ", "carbon")), what_if=False)
    assert green.carbon_g.value == pytest.approx(green.energy_j.value / 3.6e6 * 300, rel=1e-6)


def test_of_deployments_that_cost_the_same_the_less_hungry_is_chosen_and_the_words_say_so(plan_text, tmp_path):
    """GIVEN a faster and a less hungry method at one price WHEN one replica of either is enough THEN power decides."""
    both = [made_calibration("bf16", speed=1.3, power=2.0), made_calibration("fp8", power=0.7)]
    path = save(both, tmp_path / "t.json")
    chat = """
  - {name: chat, rate: 4/s, prompt_tokens: {kind: fixed, tokens: 100}, output_tokens: {kind: fixed, tokens: 40},
     slo: {ttft: 300ms, tpot: 20ms}}"""
    text = f"qmeter: 1\nname: t\nclasses:{chat}\nfleet:\n  - {{source: '{path}', price_usd_h: 1}}\n"
    made = make_plan(load_plan_text(text), what_if=False)
    assert {made.choice(p).offer.method for p in made.pools} == {"fp8"}
    said = next(line for line in reason(made) if "one replica sustains" in line)
    assert "equal in cost with bf16" in said and "more power" in said and "best of the others" not in said


def test_deployments_of_several_models_are_told_apart(tmp_path):
    """GIVEN a fleet of two models WHEN a plan is told THEN each method stands after its model; with one, alone."""
    small = made_calibration()
    other = small.model_copy(update={"deployment": {**small.deployment, "model": "llama-2-13b"}})
    chat = """
  - {name: chat, rate: 4/s, prompt_tokens: {kind: fixed, tokens: 100}, output_tokens: {kind: fixed, tokens: 40},
     slo: {ttft: 300ms, tpot: 20ms}}"""
    for found, label in (([small, other], "/bf16"), ([small], "bf16")):
        path = save(found, tmp_path / f"{len(found)}.json")
        text = f"qmeter: 1\nname: t\nclasses:{chat}\nfleet:\n  - {{source: '{path}', price_usd_h: 1}}\n"
        made = make_plan(load_plan_text(text), what_if=False)
        (row,) = rows(made)
        assert row["label"] == (label if len(found) == 1 else made.choice(row["pool"]).offer.model + label)
        assert any(line.startswith(f"{row['label']} on ") for line in reason(made))


def test_a_load_within_what_was_measured_is_planned_though_saturation_is_beyond_it(plan_text, tmp_path):
    """GIVEN records of at most 16 sequences at once WHEN a light load is planned THEN it is, and the bound is told."""
    made = made_calibration()
    support = made.support.model_copy(update={"sequences": 16})
    path = save([made.model_copy(update={"support": support})], tmp_path / "s.json")
    chat = """
  - {name: chat, rate: 4/s, prompt_tokens: {kind: fixed, tokens: 100}, output_tokens: {kind: fixed, tokens: 40},
     slo: {ttft: 3s, tpot: 100ms}}"""
    text = f"qmeter: 1\nname: t\nclasses:{chat}\nfleet:\n  - {{source: '{path}', price_usd_h: 1}}\n"
    found = make_plan(load_plan_text(text), what_if=False)
    assert isinstance(found, PlanResult)
    assert data(found)["pools"][0]["bounded_by_measured"] == "up to 16 sequences in a step"
    assert any("bounded by what was measured (up to 16 sequences in a step)" in line for line in reason(found))


def test_too_few_devices_conflict_with_the_promises(plan_text):
    found = make_plan(load_plan_text(plan_text(CHAT, fleet="price_usd_h: 4, methods: [bf16], count: 1")))
    assert isinstance(found, NoPlan)
    fields = [c.field for c in found.conflict.constraints]
    assert "fleet[0].count" in fields
    ways = {w.field: w.change for w in found.conflict.ways}
    assert ways["fleet[0].count"].startswith("at least")
    assert 0.2 < found.conflict.served < 1 and found.conflict.nearest.replicas.sum() == 1
    enough = int(ways["fleet[0].count"].split()[2])
    more = plan_text(CHAT, fleet=f"price_usd_h: 4, methods: [bf16], count: {enough + 1}")
    assert isinstance(make_plan(load_plan_text(more), what_if=False), PlanResult)
    out = data(found)
    json.dumps(out, allow_nan=False)
    assert out["feasible"] is False and out["nearest"]


def test_entries_share_the_devices_that_the_plan_counts(source):
    """Two entries on one device: together they may take no more than there are."""
    from qmeter.plan.supply import choices_of
    from qmeter.plan.table import device_kind

    fleet = f"  - {{source: '{source}', methods: [bf16]}}\n  - {{source: '{source}', methods: [fp8]}}"
    devices = "devices: {h200: {count: 2, price_usd_h: 3}}"
    spec = load_plan_text(f"qmeter: 1\nname: x\n{devices}\nclasses:\n{CHAT}\nfleet:\n{fleet}\n")
    found = choices_of(spec)
    assert [device_kind(spec, c) for c in found] == [2, 2]
    assert [(c.offer.price_usd_h, c.offer.count) for c in found] == [(3, 2), (3, 2)]


def test_a_power_budget_is_kept_or_named(plan_text):
    kept = make_plan(load_plan_text(plan_text(CHAT, more="power_budget_w: 2000")), what_if=False)
    assert kept.found.watched.power_w.sum(axis=0).max() <= 2000
    none = make_plan(load_plan_text(plan_text(CHAT, more="power_budget_w: 300")))
    assert isinstance(none, NoPlan) and none.conflict.constraints[0].field == "power_budget_w"


def test_curves_shares_and_traces_become_rates(tmp_path):
    trace = tmp_path / "t.csv"
    rows = [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d}.0000000,{100 + i % 7},{10 + i % 3}" for i in range(0, 1201, 2)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    spec = load_plan_text(f"""
qmeter: 1
name: t
period: 5min
rate: [10/s, 20/s, 30/s, 40/s]
classes:
  - {{name: a, share: 1, prompt_tokens: {{kind: fixed, tokens: 9}}, output_tokens: {{kind: fixed, tokens: 9}},
     slo: {{ttft: 1s}}}}
  - {{name: b, trace: {{path: {trace}, format: azure, time_scale: 1}}, slo: {{ttft: 1s}}}}
fleet: [{{source: x, price_usd_h: 1}}]
""")  # fmt: skip
    demand = demand_of(spec)
    assert demand.rate_hz[0].tolist() == [10, 20, 30, 40]
    assert np.allclose(demand.rate_hz[1], 0.5) and demand.period_s == 300 and demand.horizon_h == pytest.approx(1 / 3)
    assert demand.classes[1].burstiness == 10.0, "equal gaps"
    assert set(demand.classes[1].lengths.prompt) == set(range(100, 107))


def test_loads_add_up(made):
    flow = loads(made.table, made.found.solution)
    assert np.allclose(flow.sum(axis=1), made.demand.rate_hz)
