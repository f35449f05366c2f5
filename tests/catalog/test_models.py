"""GIVEN the catalogued shapes, WHEN parameters and KV bytes are counted, THEN they are the published numbers."""

from __future__ import annotations

import pytest

from qmeter import catalog
from qmeter.catalog import KVFormat, ModelShape
from qmeter.errors import UnknownName

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "codellama-34b": 33_743_970_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "mistral-7b": 7_248_023_552,
}
"""Parameter counts that the hub shows for each repository's safetensors."""


def test_every_catalogued_model_has_a_published_count_here() -> None:
    assert {shape.name for shape in catalog.models()} == set(PUBLISHED)


@pytest.mark.parametrize("shape", catalog.models(), ids=lambda shape: shape.name)
def test_parameters_computed_from_the_shape_are_the_published_count(shape: ModelShape) -> None:
    assert shape.params == PUBLISHED[shape.name] == shape.published_params


@pytest.mark.parametrize("shape", catalog.models(), ids=lambda shape: shape.name)
def test_heads_divide_and_rotary_dimensions_are_even(shape: ModelShape) -> None:
    assert shape.heads % shape.kv_heads == 0
    assert shape.heads * shape.head_dim == shape.hidden
    assert shape.head_dim % 2 == 0


def test_kv_bytes_of_llama_3_1_8b_are_128_kib_a_token() -> None:
    shape = catalog.model("llama-3.1-8b")
    assert shape.kv_bytes_per_token(16) == 131_072
    assert shape.kv_bytes_per_token(8) == 65_536
    assert shape.kv_bytes_per_token(KVFormat("int4", 4, overhead_bytes=4)) == 2 * 32 * 8 * (64 + 4)


def test_models_are_found_by_hub_id_and_regardless_of_case() -> None:
    assert catalog.model("meta-llama/Llama-3.1-8B").name == "llama-3.1-8b"
    assert catalog.model("Mistral-7B").name == "mistral-7b"


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        catalog.model("llama-3-8b")
    assert "llama-3.1-8b" in caught.value.nearest
