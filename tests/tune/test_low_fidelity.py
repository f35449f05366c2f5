"""GIVEN calibrations of several models, parallelisms and devices THEN each point gets the one that is its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qmeter.errors import AnalysisError
from qmeter.simulate import Calibration, calibrate, save
from qmeter.tune.fidelity import Kind, Known, calibration_for, calibrations, kind_of, screen
from qmeter.tune.spec import Tuning, load_tune_text

sys.path.insert(0, str(Path(__file__).parents[1] / "simulate"))
import records

TEXT = """
qmeter: 1
tune: t
study:
  models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
  engines: [{name: vllm}]
  device: h200
  workloads:
    - {name: chat, arrivals: {kind: poisson, rate: 4/s}, prompt_tokens: {kind: fixed, tokens: 256},
       output_tokens: {kind: fixed, tokens: 64}, warmup: 1s, window: 5s}
space: {method: [bf16], tp: [1, 2]}
objectives: [tpot_mean_s, j_per_output_token]
"""
KIND = Kind("llama-3.1-8b", "bf16", device="h200")


@pytest.fixture(scope="module")
def one() -> Calibration:
    """A calibration of bf16 on one GPU."""
    loads = (
        records.workload({"kind": "poisson", "rate": "2/s"}),
        records.workload({"kind": "closed", "concurrency": 24}),
    )
    return calibrate(*records.study(loads))


def like(made: Calibration, faster: float = 1.0, **changes: object) -> Calibration:
    """The same deployment but for ``changes``, its device ``faster`` by that."""
    return made.model_copy(update={
        "deployment": {**made.deployment, **changes}, "coefficients": tuple(c / faster for c in made.coefficients),
        "host": tuple(c / faster for c in made.host),
    })  # fmt: skip


def two_gpus(made: Calibration) -> Calibration:
    return like(made, 2.0, parallelism={"tp": 2, "pp": 1, "dp": 1})


def tuning(text: str = TEXT) -> Tuning:
    return load_tune_text(text, "t.yaml", Path())


@pytest.mark.parametrize("order", [1, -1])
def test_one_gpu_and_two_of_a_method_each_have_their_own(one: Calibration, tmp_path: Path, order: int) -> None:
    both = [one, two_gpus(one)][::order]
    made = tuning()
    known = calibrations(str(save(both, tmp_path / "c.json")), {kind_of(made, p) for p in made.space.points})
    found = {p.get("tp"): v["tpot_mean_s@chat"] for p, v in screen(made, known).items()}
    assert found[1] / found[2] == pytest.approx(2.0, rel=0.1)
    for point in made.space.points:
        assert calibration_for(made, point, known).deployment["parallelism"]["tp"] == point.get("tp")


def test_another_models_calibration_does_not_stand_in(one: Calibration) -> None:
    made = tuning(TEXT.replace("llama-3.1-8b", "llama-3.1-70b"))
    with pytest.raises(AnalysisError, match=r"no calibration of llama-3\.1-70b/bf16, tp 1"):
        calibration_for(made, made.space.points[0], Known((one,), None, "c.json"))


def test_of_several_devices_the_studys_is_taken_and_none_is_guessed(one: Calibration, tmp_path: Path) -> None:
    known = Known((like(one, device="h100-sxm"), one), None, "c.json")
    assert known.of(KIND, "vllm") == one
    assert known.of(KIND._replace(device="b200"), "vllm") is None
    path = save(list(known.found), tmp_path / "c.json")
    with pytest.raises(AnalysisError, match="several devices: h100-sxm, h200"):
        calibrations(str(path), {KIND._replace(device="auto")})
    assert len(calibrations(str(path), {KIND}).found) == 2


def test_the_tunes_own_engine_comes_first(one: Calibration) -> None:
    other = like(one, engine="llamacpp")
    assert Known((other, one), None, "c").of(KIND, "vllm") == one
    assert Known((other,), None, "c").of(KIND, "vllm") == other


def test_what_is_carried_over_keeps_its_neighbours_joules_only_where_the_method_alone_differs() -> None:
    known = calibrations("h200-70b", {Kind("llama-3.1-70b", "gptq-w4a16", device="h200")})
    assert known.physics is not None
    text = TEXT.replace("llama-3.1-8b", "llama-3.1-70b").replace("[bf16], tp: [1, 2]", "[gptq-w4a16], tp: [1, 2]")
    made = tuning(text)
    carried = {p.get("tp"): calibration_for(made, p, known) for p in made.space.points}
    assert carried[1].energy is not None and carried[2].energy is None
    assert all(c.extrapolated and "from llama-3.1-70b" in c.extrapolated for c in carried.values())
