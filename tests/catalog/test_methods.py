"""GIVEN the method rows, WHEN they are read, THEN each is complete, consistent and honest about where it runs."""

from __future__ import annotations

import pytest

from qmeter import catalog
from qmeter.catalog import CHECKPOINTS, Method, MethodClass, why_not
from qmeter.engines.table import ENGINES
from qmeter.errors import MethodUnsupported, UnknownName

EMBEDDED = {"f16", "w8a16", "w4a16", "w8a8", "w4a8", "kv8", "kv4", "w8a8-kv8", "w4a8kv4"}
ALL = catalog.methods()
FLAGGED = [(m, engine) for m in ALL for engine in m.engines]


def test_there_are_at_least_twenty_methods_besides_the_16_bit_ones_and_names_are_unique() -> None:
    quantized = [m for m in ALL if m.kind is not MethodClass.NONE]
    names = [name for m in ALL for name in (m.name, *m.aliases)]
    assert len(quantized) >= 20
    assert len(names) == len(set(names))


def test_the_embedded_engine_has_its_nine_methods() -> None:
    assert {m.name for m in ALL if "openvino" in m.engines} >= EMBEDDED


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_the_class_says_what_the_bits_say(method: Method) -> None:
    quantized = (method.weight_bits < 16, method.activation_bits < 16, method.kv_bits < 16)
    classes = {
        (False, False, False): MethodClass.NONE,
        (True, False, False): MethodClass.WEIGHT_ONLY,
        (True, True, False): MethodClass.WEIGHT_ACTIVATION,
        (False, False, True): MethodClass.KV_CACHE,
    }
    if method.name == "llm-int8":  # usually filed under weight-only, though its inliers multiply in INT8
        assert method.kind is MethodClass.WEIGHT_ONLY
        return
    assert method.kind is classes.get(quantized, MethodClass.COMBINED)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_quantized_weights_state_group_and_symmetry_and_quantized_methods_a_source(method: Method) -> None:
    assert (method.group_size is None) == (method.weight_bits == 16) == (method.symmetric is None)
    if method.kind is not MethodClass.NONE:
        assert method.paper is not None and (method.paper.arxiv or method.format == "gguf")


@pytest.mark.parametrize(("method", "engine"), FLAGGED, ids=[f"{m.name}-{e}" for m, e in FLAGGED])
def test_an_engines_flags_agree_with_the_method(method: Method, engine: str) -> None:
    flags = method.engines[engine]
    assert engine in ENGINES.names()
    assert flags.checkpoint in CHECKPOINTS
    assert method.weight_type in flags.weight_types
    assert method.activation_type in flags.activation_types
    assert method.kv_type in flags.kv_types
    assert flags.kv.type == method.kv_type or {flags.kv.type, method.kv_type} <= {"bf16", "f16"}
    shape = catalog.model("llama-3.1-8b")
    ratio = method.expected_weight_bytes(shape, engine) / method.expected_weight_bytes(shape)
    assert 0.75 < ratio < 1.1


def test_a_method_with_smaller_weights_expects_fewer_bytes_on_every_model() -> None:
    order = ["w4a8kv4", "smoothquant-w8a8", "bf16"]
    for shape in catalog.models():
        sizes = [catalog.method(name).expected_weight_bytes(shape) for name in order]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("method", "engine", "device", "runs"),
    [
        ("fp8", "vllm", "h200", True),
        ("fp8", "vllm", "a100-80g", False),
        ("w4a8-fp8", "vllm", "h100-sxm", True),
        ("w4a8-fp8", "vllm", "b200", False),
        ("smoothquant-w8a8", "vllm", "a100-80g", True),
        ("smoothquant-w8a8", "vllm", "b200", False),
        ("bf16", "vllm", "cpu", False),
        ("f16", "openvino", "h200", False),
        ("w4a8kv4", "openvino", "cpu", True),
        ("gguf-q4_0", "vllm", "h200", False),
        ("kv8", "llamacpp", "cpu", True),
    ],
)
def test_where_a_method_runs(method: str, engine: str, device: str, runs: bool) -> None:
    reason = why_not(catalog.method(method), engine, catalog.device(device))
    assert (reason is None) == runs, reason


def test_a_refusal_says_what_is_needed_and_what_the_device_has() -> None:
    reason = why_not(catalog.method("fp8"), "vllm", catalog.device("a100"))
    assert reason == "vllm: needs compute capability 8.9 or more; the device has 8.0"
    exact = why_not(catalog.method("w4a8-fp8"), None, catalog.device("rtx-4090"))
    assert exact == "vllm: needs compute capability 9.0 exactly; the device has 8.9"


def test_flags_of_an_engine_without_the_method_is_method_unsupported_with_the_engines_that_have_it() -> None:
    with pytest.raises(MethodUnsupported) as caught:
        catalog.method("gptq-w4a16").flags("openvino")
    assert "vllm" in str(caught.value.hint)


def test_unknown_methods_name_the_nearest_and_aliases_work() -> None:
    with pytest.raises(UnknownName) as caught:
        catalog.method("gptq-w4a8")
    assert "gptq-w4a16" in caught.value.nearest
    assert catalog.method("QoQ").name == "w4a8kv4"


def test_parts_are_what_a_verification_must_show() -> None:
    assert catalog.method("bf16").parts == ("weights",)
    assert catalog.method("kv-fp8").parts == ("kv",)
    assert catalog.method("w4a8kv4").parts == ("weights", "activations", "kv")
