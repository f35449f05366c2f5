"""GIVEN logs that vLLM 0.25.1 wrote on H200 and H100 (paths replaced, routes and progress bars left out), WHEN they are
read, THEN what took effect is found, and a regular end is not taken for a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_pages import make_page

from qmeter import catalog
from qmeter.engines.base import Artifact
from qmeter.engines.verify import verify
from qmeter.engines.vllm import log
from qmeter.engines.vllm.adapter import effective_config
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

FIXTURES = Path(__file__).parent / "fixtures"
GIB = 2**30
RECORDED = [
    # method, kernel, weights in GiB, weight, activation and KV type, KV tokens that fit
    ("bf16", None, 15.00, ("bf16", "bf16", "bf16"), 896_912),
    ("awq-w4a16", "MacheteLinearKernel", 5.49, ("int4", "bf16", "bf16"), 974_864),
    ("smoothquant-w8a8", "CutlassInt8ScaledMMLinearKernel", 8.52, ("int8", "int8", "bf16"), 950_064),
    ("w4a8-fp8", "CutlassW4A8LinearKernel", 5.71, ("int4", "fp8", "bf16"), 972_768),
    ("kv-fp8", None, 15.04, ("bf16", "bf16", "fp8"), 1_793_328),
    ("fp8-kv8", "CutlassFP8ScaledMMLinearKernel", 8.55, ("fp8", "fp8", "fp8"), 1_899_104),
]


def recorded(name: str) -> str:
    return (FIXTURES / f"{name}.log").read_text(encoding="utf-8")


def checked(method: str, text: str, blocks: str = "None", **parallelism: int):
    cache = "fp8" if "kv_cache_dtype=fp8" in text else "auto"
    effective = effective_config(text, make_page(cache_dtype=cache, blocks=blocks))
    asked = Deployment(
        model=ModelRef(name="m", source="synth:llama-3.1-8b", shape="llama-3.1-8b"), engine=EngineRef(name="vllm"),
        method=method, device="h200", parallelism=Parallelism(**parallelism),
    )  # fmt: skip
    artifact = Artifact(None, "synth", "")  # type: ignore[arg-type]
    return effective, verify(asked, catalog.method(method), catalog.model("llama-3.1-8b"), artifact, effective)


@pytest.mark.parametrize(("method", "kernel", "gib", "types", "kv_tokens"), RECORDED)
def test_what_took_effect_is_read_from_a_real_log(method, kernel, gib, types, kv_tokens):
    effective, found = checked(method, recorded(method))
    assert found.verified and found.failed == ()
    assert effective.kernel == kernel
    assert effective.weight_bytes == pytest.approx(gib * GIB, rel=1e-3)
    assert (effective.weight_type, effective.activation_type, effective.kv_type) == types
    assert effective.engine_version == "0.25.1"
    assert (effective.token_budget, effective.max_model_tokens) == (8192, 4096)
    assert effective.properties["log.kv_tokens"] == f"{kv_tokens:,}"
    assert effective.kv_blocks == kv_tokens // 16


@pytest.mark.parametrize("method", [row[0] for row in RECORDED])
def test_the_noise_of_a_regular_end_is_no_failure(method):
    text = recorded(method)
    assert "Shutting down" in text
    assert log.failure(text) is None


def test_the_recorded_gptq_trap_is_caught():
    text = recorded("gptq-w4a16-not-applied")
    assert "quantization=auto_gptq" in text
    effective, found = checked("gptq-w4a16", text)
    assert effective.weight_bytes == 15 * GIB
    assert {check.name for check in found.failed} == {"weight_bytes", "weight_type"}


def test_two_data_parallel_ranks_are_two_copies_though_one_says_its_configuration():
    # GIVEN both ranks' processes in one log, the second silent about its configuration, workers without a rank's name
    text = recorded("bf16-dp2")
    assert text.count("Initializing a V1 LLM engine") == 1 and text.count("data_parallel_size=1") == 1
    facts = log.parse(text)
    assert facts.replicas == 2
    assert facts.worker_gib == (15.0, 15.0)
    assert facts.replica_kv_tokens == (451_840, 449_968)
    # THEN both copies count, and the cache is the smaller replica's, where the page gives the sum of both
    effective, found = checked("bf16", text, blocks=str((451_840 + 449_968) // 16), dp=2)
    assert found.verified and found.failed == ()
    assert effective.weight_bytes == 30 * GIB
    assert effective.kv_blocks == 449_968 // 16
    # AND it is neither one replica nor tensor parallel
    for wrong in ({}, {"tp": 2}):
        assert [c.name for c in checked("bf16", text, **wrong)[1].failed] == ["weight_bytes"]
    assert log.failure(text) is None


def test_a_start_that_was_interrupted_says_nothing_of_weights():
    effective = effective_config(recorded("interrupted"), "")
    assert effective.engine_version == "0.25.1"
    assert effective.weight_bytes is None and effective.kv_blocks is None


def test_no_fixture_names_a_place_of_the_host_it_is_from():
    for path in FIXTURES.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not any(place in text for place in ("/root/", "/opt/", "/home/", "/usr/")), path.name
