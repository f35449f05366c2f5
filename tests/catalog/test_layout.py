"""GIVEN a format, WHEN its bytes are counted, THEN they are what the format's definition gives by hand."""

from __future__ import annotations

import pytest

from qmeter import catalog
from qmeter.catalog import Packing, formats
from qmeter.catalog.layout import BITS16, PER_CHANNEL

GIB = 2**30


@pytest.mark.parametrize(
    ("packing", "expected"),
    [
        (BITS16, 256 * 512 * 2),
        (Packing(4, group=128, scale_bits=16), 256 * 512 // 2 + 256 * 4 * 2),
        (Packing(4, group=128, scale_bits=16, zero_bits=4), 256 * 512 // 2 + 256 * 4 * 2 + 256 * 4 // 2),
        (Packing(8, group=PER_CHANNEL, scale_bits=32), 256 * 512 + 256 * 4),
        (Packing(8, group=128, group_rows=128, scale_bits=32), 256 * 512 + 2 * 4 * 4),
        (Packing(8, scale_bits=32), 256 * 512 + 4),
        (formats.Q8_0, 256 * 512 // 32 * 34),
        (formats.Q4_0, 256 * 512 // 32 * 18),
        (formats.Q6_K, 256 * 512 // 256 * 210),
    ],
)
def test_bytes_of_one_tensor(packing: Packing, expected: int) -> None:
    assert packing.tensor_bytes(256, 512) == expected


def test_partial_groups_and_blocks_are_counted_whole() -> None:
    assert Packing(4, group=128, scale_bits=16).tensor_bytes(1, 129) == 65 + 4  # 64.5 bytes of nibbles, two scales
    assert Packing(8, group=128, group_rows=128, scale_bits=32).tensor_bytes(129, 129) == 129 * 129 + 4 * 4


def test_rows_that_a_gguf_block_does_not_divide_take_the_fallback() -> None:
    assert formats.Q6_K.tensor_bytes(10, 576) == formats.Q8_0.tensor_bytes(10, 576)
    assert formats.Q4_0.tensor_bytes(10, 40) == 10 * 40 * 2


def test_linear_layers_are_quantized_and_embeddings_head_and_norms_are_not() -> None:
    shape, layout = catalog.model("llama-3.1-8b"), formats.FP8_TENSOR
    kept = (2 * shape.vocab * shape.hidden + shape.vector_params) * 2
    assert shape.weight_bytes(layout) == shape.linear_params + 7 * 32 * 4 + kept


def test_a_tied_embedding_counts_once_and_takes_its_own_packing_in_gguf() -> None:
    shape = catalog.model("smollm2-135m")
    embedding = formats.Q8_0.tensor_bytes(shape.vocab, shape.hidden)  # 576 is no multiple of 256, so not Q6_K
    rest = shape.linear_params // 32 * 18 + shape.vector_params * 4
    assert shape.weight_bytes(formats.GGUF_Q4_0) == embedding + rest
    assert shape.weight_bytes(formats.PLAIN) == shape.params * 2


@pytest.mark.parametrize(
    ("method", "seen_gib"),
    [("bf16", 13.75), ("fp8", 7.3), ("smoothquant-w8a8", 7.3), ("gptq-w4a16", 4.1), ("w4a8-fp8", 4.5)],
)
def test_an_8b_shape_with_49152_tokens_weighs_what_vllm_logged_on_an_h200(method: str, seen_gib: float) -> None:
    from dataclasses import replace

    shape = replace(catalog.model("llama-3.1-8b"), vocab=49_152)
    assert catalog.method(method).expected_weight_bytes(shape, "vllm") / GIB == pytest.approx(seen_gib, rel=0.025)


@pytest.mark.parametrize(("kv", "seen"), [("f16", 128), ("kv8", 76), ("kv4", 44)])
def test_kv_bytes_are_what_openvino_allocated_a_vector_of_64(kv: str, seen: int) -> None:
    flags = catalog.method(kv).engines["openvino"]
    assert flags.kv.vector_bytes(64) == seen


def test_kv_bytes_of_llama_cpps_block_types() -> None:
    assert formats.KV_Q8_0.vector_bytes(64) == 2 * 34
    assert formats.KV_Q4_0.vector_bytes(64) == 2 * 18
