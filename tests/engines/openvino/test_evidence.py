"""GIVEN what OpenVINO and oneDNN print, WHEN it is read, THEN types and kernel are what ran, not what was asked."""

from __future__ import annotations

import os

import pytest

from qmeter.engines.openvino.evidence import (
    Evidence,
    Primitive,
    captured_stdout,
    parse_primitives,
    parse_properties,
)

CREATE = "onednn_verbose,v1,primitive,create:cache_miss,cpu"
ATTR = "attr-scratchpad:user attr-scales:wei:1:f32:2::undef:576x48 attr-zero-points:wei:1:u8:4::undef:576x48"
DENSE = f"{CREATE},inner_product,brgemm:avx512_core_bf16,forward_inference,src:bf16::blocked:ab::f0 wei:u8:a:blocked:AB16b64a::f0 bia:undef::undef::: dst:bf16::blocked:ab::f0,{ATTR},,mb8ic576oc192,0.2"  # noqa: E501
DYNAMIC = f"{CREATE},inner_product,brgemm:avx512_core_vnni,forward_inference,src:bf16::blocked:ab::f0 wei:u4:a:blocked:AB16b32a4b::f0 bia:undef::undef::: dst:bf16::blocked:ab::f0,{ATTR}src_dyn_quant_group_size:32;,,mb8ic576oc192,0.2"  # noqa: E501
REORDER = f"{CREATE},reorder,jit_direct_copy:uni,undef,src:u8::blocked:a::f0 dst:s32::blocked:a::f0,,,1,0.01"
EXECUTED = DENSE.replace("create:cache_miss", "exec")

PRINTED = """Model: OV Tokenizer
  KV_CACHE_PRECISION: u8
EXECUTION_DEVICES:
Model: LLM with Paged Attention
  NETWORK_NAME: Model0
  MODEL_DISTRIBUTION_POLICY: 
  DYNAMIC_QUANTIZATION_GROUP_SIZE: 32
  KV_CACHE_PRECISION: u4
EXECUTION_DEVICES:
 CPU: A Processor
  NOT_A_PROPERTY_ANY_MORE: 1
"""


def test_properties_are_the_language_models() -> None:
    assert parse_properties(PRINTED) == {
        "NETWORK_NAME": "Model0",
        "MODEL_DISTRIBUTION_POLICY": "",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
        "KV_CACHE_PRECISION": "u4",
    }


def test_no_print_gives_no_properties() -> None:
    assert parse_properties("nothing here\n") == {}


def test_weight_only_products_are_16_bit_sources_on_integer_weights() -> None:
    found = parse_primitives([DENSE, DENSE, REORDER, EXECUTED, "", "onednn_verbose,v1,info,x"])
    assert found == {Primitive("inner_product", "brgemm:avx512_core_bf16", "bf16", "u8", 0): 2}
    evidence = Evidence({}, found)
    assert (evidence.weight_type, evidence.activation_type) == ("int8", "bf16")
    assert evidence.kernel == "brgemm:avx512_core_bf16"


def test_dynamic_quantization_shows_as_int8_activations() -> None:
    evidence = Evidence({}, parse_primitives([DYNAMIC]))
    assert (evidence.weight_type, evidence.activation_type) == ("int4", "int8")
    assert next(iter(evidence.primitives)).source_group == 32


def test_weights_inflated_to_16_bits_are_seen_although_the_file_is_int4() -> None:
    inflated = DENSE.replace("wei:u8", "wei:f16").replace("src:bf16", "src:f16")
    evidence = Evidence({}, parse_primitives([inflated]), {"u4": 100, "f16": 20})
    assert evidence.weight_type == "f16"
    assert evidence.weight_bytes == 120


def test_without_reports_nothing_is_claimed_beyond_the_constants() -> None:
    evidence = Evidence({}, {}, {"u8": 100, "f16": 20})
    assert (evidence.weight_type, evidence.activation_type, evidence.kernel) == ("int8", None, None)
    assert Evidence({}).weight_bytes is None and Evidence({}).weight_type is None


def test_output_of_native_code_is_captured_and_the_descriptor_restored(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_stdout() as out:
        os.write(1, b"from native code\n")
    os.write(1, b"after\n")
    assert out.text == "from native code\n"
    assert capfd.readouterr().out == "after\n"
