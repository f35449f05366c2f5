"""GIVEN the shipped studies and hosts of 1 to 8 GPUs, WHEN they are planned, THEN GPUs, memory and time are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmeter import catalog
from qmeter.catalog.memory import memory_fit
from qmeter.cli.main import EXIT_BAD_INPUT, _run
from qmeter.record import Reason
from qmeter.spec import load_study
from qmeter.spec.study import Deployment, Placement, Study, deployments, expand
from qmeter.study.check import open_study
from qmeter.study.dry_run import plan_study, totals
from qmeter.study.findings import HostFacts

STUDIES = Path(__file__).parents[2] / "studies"
LEASE_S = 25 * 60


def host(gpus: int, device: str = "h100-sxm") -> HostFacts:
    return HostFacts(gpus=gpus, device=device)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_the_parallelism_study_plans_on_every_host(gpus: int) -> None:
    study, warnings = open_study(STUDIES / "parallelism.yaml", host(gpus))
    plans = plan_study(study, host(gpus))
    whole = totals(plans, gpus)
    for plan in plans:
        assert plan.command and plan.command[2] == "vllm.entrypoints.cli.main"
        assert plan.fit is not None and plan.fit.fits and plan.start_s > 20
        need = len(plan.devices)
        assert (plan.waits is not None) == (need > gpus), plan.label
        if plan.waits is None:
            assert max(plan.devices) < gpus
            assert plan.env.get("NCCL_NVLS_ENABLE") == ("0" if need > 1 else None)
            assert plan.env.get("CUDA_VISIBLE_DEVICES") == (None if need == gpus else ",".join(map(str, range(need))))
            command = " ".join(plan.command)
            for axis, flag in (("tp", "--tensor"), ("pp", "--pipeline"), ("dp", "--data")):
                degree = int(plan.label.rpartition(axis)[2]) if f"/{axis}" in plan.label else 1
                assert (f"{flag}-parallel-size {degree}" in command) == (degree > 1)
    assert whole.waiting == sum(len(p.cells) for p in plans if len(p.devices) > gpus)
    assert (whole.waiting > 0) == (gpus < 4) == any(w.kind == "waits_for_gpus" for w in warnings)
    assert whole.cells + whole.waiting == len(expand(study)) == 176
    assert whole.gpu_share is not None and 0 < whole.gpu_share <= whole.share < 1


def test_the_parallelism_study_leaves_out_just_what_cannot_fit() -> None:
    study = load_study(STUDIES / "parallelism.yaml")
    planned = {d.id for d in (c.deployment for c in expand(study))}
    counted = {(c.deployment.id, c.workload.name) for c in expand(study)}
    for d in deployments(study):
        assert (d.id in planned) == _fits(d), d.label
        if d.id in planned:
            assert len({w for i, w in counted if i == d.id}) == 4  # loads


def _fits(d: Deployment) -> bool:
    found = memory_fit(
        catalog.model(d.model.shape), catalog.method(d.method), catalog.device("h100-sxm"), engine="vllm",
        parallelism=d.parallelism, sequences=16, sequence_tokens=640, memory_fraction=0.9,
    )  # fmt: skip
    return bool(found.fits)


def test_one_lease_of_two_gpus_holds_the_small_study() -> None:
    study, _ = open_study(STUDIES / "parallelism_x2.yaml", host(2))
    plans = plan_study(study, host(2))
    whole = totals(plans, 2)
    assert whole.cells >= 20 and whole.waiting == 0
    assert whole.seconds <= LEASE_S
    pair = [p for p in plans if "side by side" in p.label]
    assert len(pair) == 2 and len({p.group for p in pair}) == 1
    assert [p.devices for p in pair] == [(0,), (1,)]
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in pair] == ["0", "1"]


def test_on_one_gpu_what_needs_two_waits() -> None:
    study = load_study(STUDIES / "parallelism_x2.yaml")
    waits = {p.label: p.waits for p in plan_study(study, host(1)) if p.waits}
    assert len(waits) == 5
    assert any("no other deployment" in (why or "") for why in waits.values())


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        *[(f"h200_{name}", 1) for name in ("8b_grid", "models", "refusals", "roads")],
        ("application", 2),
        ("models_side_by_side", 4),
        ("grid_side_by_side", 4),
        ("grid_side_by_side", 2),
    ],
)
def test_the_next_campaign_meets_its_bars_by_plan(name: str, gpus: int) -> None:
    path = STUDIES / f"{name}.yaml"
    study, warnings = open_study(path, host(gpus, "h200"))
    assert not {w.kind for w in warnings} & {"short_energy_window", "repeats_differ"}, warnings
    whole = totals(plan_study(study, host(gpus, "h200")), gpus)
    if name != "h200_refusals":  # which never measures
        assert whole.share >= 0.60


def test_a_start_that_was_measured_counts_more_than_the_estimate() -> None:
    study = load_study(STUDIES / "h200_8b_grid.yaml")
    plans = {p.label.split("/")[1]: p for p in plan_study(study, host(1, "h200"))}
    assert (plans["bf16"].start_s >= 110 and "first start" in plans["bf16"].start_from) or "estimate" in plans[
        "bf16"
    ].start_from
    assert plans["gptq-w4a16"].start_from == "measured in a profile"
    assert plans["gptq-w4a16"].start_s == pytest.approx(26, abs=1)
    assert plans["kv-int4"].start_from == "estimate"


def test_starts_count_by_device_and_placement() -> None:
    # GIVEN BF16 and W4A16 starts measured on two H100, alone and two at once, and on an H200
    study = load_study(STUDIES / "parallelism_x2.yaml")
    h100 = {p.label: p for p in plan_study(study, host(2, "h100-sxm"))}
    assert h100["llama-3.1-8b/awq-w4a16/vllm"].start_s == pytest.approx(41, abs=0.5)
    assert h100["llama-3.1-8b/bf16/vllm/side by side"].start_s == pytest.approx(44.6, abs=0.5)
    h200 = {p.label: p for p in plan_study(study, host(2, "h200"))}
    assert h200["llama-3.1-8b/awq-w4a16/vllm"].start_s == pytest.approx(39.4, abs=0.5)
    two = h200["llama-3.1-8b/awq-w4a16/vllm/tp2"]
    assert two.start_s == pytest.approx(45.3, abs=0.5) and two.start_from == "measured on another device"


def test_the_command_prints_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(STUDIES / "parallelism_x2.yaml"), "--dry-run", "--gpus", "2", "--device", "h100"]
    assert _run(arguments) == 0
    text = capsys.readouterr().out
    assert "2 deployments side by side:" in text
    assert "NCCL_NVLS_ENABLE=0" in text and "--tensor-parallel-size 2" in text and "GPUs 0, 1" in text
    assert "inside windows and warm-up" in text and "of the GPU time of all 2 GPUs" in text
    assert _run([*arguments, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plans = [line for line in lines if "deployment_id" in line]
    assert len(plans) == 7 and all(p["fit"]["weights_bytes"] > 0 and p["devices"] for p in plans)
    assert lines[-1]["event"] == "totals" and lines[-1]["cells"] == 27


def test_gpus_are_for_planning_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["run", str(STUDIES / "parallelism_x2.yaml"), "--gpus", "2"]) == EXIT_BAD_INPUT
    assert "--dry-run" in capsys.readouterr().err


def test_a_study_of_side_by_side_and_alone_doubles_its_cells() -> None:
    study = load_study(STUDIES / "parallelism_x2.yaml")
    only = study.model_copy(update={"placement": (Placement.ALONE,), "exclude": ()})
    assert isinstance(only, Study)
    assert len(expand(only)) == 2 * 3 * 4


def test_a_gpu_study_plans_on_a_host_without_gpus() -> None:
    study, warnings = open_study(STUDIES / "h200_8b_grid.yaml", HostFacts())
    plans = plan_study(study, HostFacts())
    assert plans[0].command and plans[0].fit is None and plans[0].waits is None
    assert not {w.kind for w in warnings} & {"short_energy_window", "waits_for_gpus"}


@pytest.mark.parametrize("name", ["application", "grid_side_by_side", "models_side_by_side", "roads_side_by_side"])
def test_a_study_for_several_gpus_runs_on_one_where_it_is_told_to(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def waits(warnings: list[Reason]) -> list[str]:
        return [str(w.hint) for w in warnings if w.kind == "waits_for_gpus"]

    # GIVEN a study whose deployments fill a host, and one GPU THEN its cells wait, and how to run them is said
    path = STUDIES / f"{name}.yaml"
    waiting, warnings = open_study(path, host(1))
    assert waits(warnings) and all("--placement alone" in hint for hint in waits(warnings))
    assert totals(plan_study(waiting, host(1)), 1).waiting == len(expand(waiting))
    # AND told to, they run one after another, the same loads; on hosts with more GPUs nothing of this is said
    alone, warnings = open_study(path, host(1), Placement.ALONE)
    assert not waits(warnings) and totals(plan_study(alone, host(1)), 1).waiting == 0
    assert [c.workload for c in expand(alone)] == [c.workload for c in expand(waiting)]
    assert {c.deployment.placement for c in expand(alone)} == {Placement.ALONE}
    assert not any("--placement" in hint for hint in waits(open_study(path, host(2))[1]))
    asked = ["run", str(path), "--dry-run", "--gpus", "1", "--device", "h100-sxm"]
    assert _run([*asked, "--placement", "alone"]) == 0
    assert "wait for a host" not in capsys.readouterr().out
    assert _run([*asked, "--placement", "beside"]) == EXIT_BAD_INPUT


def test_placing_a_study_drops_the_rules_of_the_other_placement() -> None:
    study = load_study(STUDIES / "parallelism_x2.yaml")
    made = study.model_copy(update={"placement": tuple(Placement), "exclude": (
        {"placement": "alone", "method": "bf16"}, {"placement": "side_by_side", "tp": "2"}, {"repeat": "1"},
    )})  # fmt: skip
    assert made.placed(Placement.ALONE).exclude == ({"placement": "alone", "method": "bf16"}, {"repeat": "1"})
    assert made.placed(Placement.SIDE_BY_SIDE).placement == (Placement.SIDE_BY_SIDE,)
