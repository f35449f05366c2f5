"""GIVEN what an engine reports, WHEN it is verified, THEN a method that did not take effect is caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qmeter import catalog
from qmeter.engines.base import Artifact
from qmeter.engines.verify import WEIGHT_BYTES_TOLERANCE, verify
from qmeter.record import Check, EffectiveConfig, Verification
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

SHAPE = catalog.model("llama-3.1-8b")
BF16_BYTES = catalog.method("bf16").expected_weight_bytes(SHAPE)


def check(method: str, engine: str = "vllm", dp: int = 1, artifact_bytes: int | None = None,
          **reported: Any) -> Verification:  # fmt: skip
    deployment = Deployment(
        model=ModelRef(name="m", source="x", shape=SHAPE.name),
        engine=EngineRef(name=engine),
        method=method,
        device="h200",
        parallelism=Parallelism(dp=dp),
    )
    artifact = Artifact(Path("weights.safetensors"), "safetensors", "0" * 64, weight_bytes=artifact_bytes)
    return verify(deployment, catalog.method(method), SHAPE, artifact, EffectiveConfig(**reported))


def named(verification: Verification, name: str) -> Check:
    return next(c for c in verification.checks if c.name == name)


def expected(method: str, engine: str = "vllm") -> int:
    return catalog.method(method).expected_weight_bytes(SHAPE, engine)


def test_a_gptq_config_that_loads_as_bf16_is_caught_by_its_bytes_though_the_engine_says_auto_gptq() -> None:
    result = check("gptq-w4a16", weight_bytes=BF16_BYTES, properties={"quantization": "auto_gptq"})
    failed = result.failed
    assert [c.name for c in failed] == ["weight_bytes"]
    assert "2.82 times" in (failed[0].why or "") and "unquantized" in (failed[0].why or "")
    assert named(result, "kernel").passed is None and "expected" in (named(result, "kernel").why or "")
    assert not result.verified


def test_gptq_as_it_should_be_is_verified_by_bytes_and_kernel() -> None:
    result = check("gptq-w4a16", weight_bytes=int(expected("gptq-w4a16") * 1.01), kernel="MacheteLinearKernel")
    assert result.verified and not result.failed


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (1.09, True), (0.91, True), (1.11, False), (0.89, False)])
def test_the_tolerance_is_ten_percent_both_ways(factor: float, passed: bool) -> None:
    assert WEIGHT_BYTES_TOLERANCE == 0.10
    assert named(check("fp8", weight_bytes=int(expected("fp8") * factor)), "weight_bytes").passed is passed


def small(method: str, seen_gib: float, excess: int) -> bool | None:
    """As SmolLM2-135M was seen on an H200: "Model loading took 0.18 GiB" for 0.152 GiB of FP8 tensors."""
    deployment = Deployment(
        model=ModelRef(name="m", source="x", shape="smollm2-135m"), engine=EngineRef(name="vllm"), method=method,
        device="h200", parallelism=Parallelism(),
    )  # fmt: skip
    effective = EffectiveConfig(weight_bytes=int(seen_gib * 2**30), weight_excess_bytes=excess)
    artifact = Artifact(Path("weights.safetensors"), "safetensors", "0" * 64)
    return named(
        verify(deployment, catalog.method(method), catalog.model("smollm2-135m"), artifact, effective), "weight_bytes"
    ).passed


@pytest.mark.parametrize(
    ("method", "seen_gib", "passed"),
    [("fp8", 0.18, True), ("kv-fp8", 0.29, True), ("awq-w4a16-kv8", 0.14, True), ("fp8", 0.26, False),
     ("awq-w4a16", 0.18, False), ("fp8", 0.13, False)],
)  # fmt: skip
def test_what_an_allocator_holds_beside_a_small_models_tensors_is_let_pass_and_no_more(
    method: str, seen_gib: float, passed: bool
) -> None:
    assert small(method, seen_gib, 48 << 20) is passed


def test_bytes_that_are_exact_are_excused_nothing() -> None:
    assert small("fp8", 0.18, 0) is False


def test_data_parallel_replicas_multiply_the_bytes() -> None:
    assert named(check("fp8", dp=2, weight_bytes=2 * expected("fp8")), "weight_bytes").passed is True
    assert named(check("fp8", dp=2, weight_bytes=expected("fp8")), "weight_bytes").passed is False


def test_everything_unknown_is_neither_passed_nor_failed_and_each_says_why() -> None:
    result = check("fp8-kv8")
    assert all(c.passed is None and c.why and c.seen is None for c in result.checks)
    assert not result.verified and not result.failed
    assert result.unshown == ("weights", "activations", "kv")


def test_right_weights_do_not_verify_a_kv_method() -> None:
    result = check("kv-fp8", weight_bytes=BF16_BYTES)
    assert not result.failed and not result.verified and result.unshown == ("kv",)
    assert check("kv-fp8", weight_bytes=BF16_BYTES, kv_type="fp8").verified
    assert named(check("kv-fp8", kv_type="bf16"), "kv_type").passed is False


def test_a_baseline_with_a_quantized_cache_or_kernel_fails() -> None:
    assert [c.name for c in check("bf16", weight_bytes=BF16_BYTES, kv_type="fp8").failed] == ["kv_type"]
    wrong = check("bf16", weight_bytes=BF16_BYTES, kernel="CutlassFP8ScaledMMLinearKernel")
    assert [c.name for c in wrong.failed] == ["kernel"]
    assert check("bf16", weight_bytes=BF16_BYTES, kernel="FLASH_ATTN").verified


@pytest.mark.parametrize(
    ("method", "kernel", "passed"),
    [
        ("fp8", "CutlassFP8ScaledMMLinearKernel", True),
        ("fp8", "MarlinFP8ScaledMMLinearKernel", False),
        ("fp8-block", "DeepGemmFp8BlockScaledMMKernel", True),
        ("smoothquant-w8a8", "CutlassInt8ScaledMMLinearKernel", True),
        ("smoothquant-w8a8", "CutlassFP8ScaledMMLinearKernel", False),
        ("w4a8-fp8", "CutlassW4A8LinearKernel", True),
        ("w4a8-fp8", "MacheteLinearKernel", False),
        ("awq-w4a16", "MarlinLinearKernel", True),
    ],
)
def test_the_kernel_must_be_the_methods(method: str, kernel: str, passed: bool) -> None:
    assert named(check(method, kernel=kernel), "kernel").passed is passed


def test_an_int8_activation_kernel_shows_activations_and_a_weight_only_kernel_does_not() -> None:
    bytes_ = {"weight_bytes": expected("smoothquant-w8a8")}
    assert check("smoothquant-w8a8", kernel="CutlassInt8ScaledMMLinearKernel", **bytes_).verified
    marlin = check("w4a8-int8", kernel="MarlinLinearKernel", weight_bytes=expected("w4a8-int8"))
    assert not marlin.failed and marlin.unshown == ("activations",)


def test_types_are_compared_in_the_catalogs_words_ignoring_case() -> None:
    assert check("w8a8", "openvino", weight_type="INT8", activation_type="int8").verified
    seen = named(check("w8a8", "openvino", activation_type="bf16"), "activation_type")
    assert seen.passed is False and seen.why == "the engine runs its activations in bf16"


def test_an_artifact_in_another_format_is_named_as_the_cause() -> None:
    wrong = expected("smoothquant-w8a8")
    why = named(check("gptq-w4a16", weight_bytes=wrong, artifact_bytes=wrong), "weight_bytes").why or ""
    assert "weights.safetensors" in why and "another format" in why


def test_an_engine_the_catalog_does_not_know_is_held_to_the_methods_own_numbers() -> None:
    size = catalog.method("fp8").expected_weight_bytes(SHAPE)
    assert check("fp8", "third-party", weight_bytes=size, activation_type="fp8").verified
    assert check("fp8", "third-party", weight_bytes=BF16_BYTES).failed


@pytest.mark.parametrize(
    ("method", "seen_bytes", "passed"),
    [
        ("f16", 269_030_690, True),
        ("w8a16", 147_229_008, True),
        ("w4a16", 77_887_824, True),
        ("w4a16", 147_229_008, False),
        ("w8a16", 269_030_690, False),
    ],
)
def test_constants_that_openvino_built_from_each_gguf_of_smollm2(method: str, seen_bytes: int, passed: bool) -> None:
    shape = catalog.model("smollm2-135m")
    deployment = Deployment(
        model=ModelRef(name="m", source="x", shape=shape.name),
        engine=EngineRef(name="openvino"),
        method=method,
        device="cpu",
        parallelism=Parallelism(),
    )
    artifact = Artifact(Path("m.gguf"), "gguf", "0" * 64)
    row = catalog.method(method)
    found = verify(deployment, row, shape, artifact, EffectiveConfig(weight_bytes=seen_bytes))
    assert named(found, "weight_bytes").passed is passed
    if passed and method != "w4a16":  # that file had a Q4_0 embedding; qMeter writes Q8_0, and both are right
        assert row.expected_weight_bytes(shape, "openvino") == pytest.approx(seen_bytes, rel=0.001)
