"""GIVEN a model, a method and a device, WHEN asked whether it fits, THEN the parts add up and the reason names them."""

from __future__ import annotations

import pytest

from qmeter import catalog
from qmeter.catalog import memory_fit
from qmeter.catalog.memory import MemoryFit
from qmeter.spec.study import Parallelism


def fit(model: str, method: str, device: str = "h200", tp: int = 1, pp: int = 1, **more: int) -> MemoryFit:
    return memory_fit(
        catalog.model(model), catalog.method(method), catalog.device(device), engine="vllm",
        parallelism=Parallelism(tp=tp, pp=pp), **more,
    )  # fmt: skip


def test_70b_in_bf16_exceeds_one_h200_and_fits_two() -> None:
    one, two = fit("llama-3.1-70b", "bf16"), fit("llama-3.1-70b", "bf16", tp=2)
    assert one.fits is False and "exceed" in one.reason and one.kv_tokens == 0
    assert two.fits is True
    assert two.weights_bytes == pytest.approx(one.weights_bytes / 2, rel=0.001)


def test_70b_in_int4_fits_one_h200_with_the_weights_the_engine_logged() -> None:
    result = fit("llama-3.1-70b", "awq-w4a16")
    assert result.fits is True
    assert result.weights_bytes / 2**30 == pytest.approx(35.4 + 1.2, rel=0.02)  # logged at 49,152 tokens, 1.2 less


def test_room_for_kv_counts_tokens_and_a_smaller_cache_type_holds_more() -> None:
    bf16, fp8, int4 = (fit("llama-2-13b", m).kv_tokens for m in ("bf16", "kv-fp8", "kv-int4"))
    assert bf16 and fp8 and int4
    assert fp8 == pytest.approx(2 * bf16, rel=0.001)
    assert 3.5 < int4 / bf16 < 4
    full = fit("llama-2-13b", "bf16", sequences=bf16 // 4096 + 1, sequence_tokens=4096)
    assert full.fits is False and full.needed_bytes > (full.available_bytes or 0)


def test_pipeline_stages_split_layers_and_keep_one_embedding() -> None:
    whole, staged = fit("llama-3.1-8b", "bf16"), fit("llama-3.1-8b", "bf16", pp=2)
    shape = catalog.model("llama-3.1-8b")
    assert staged.weights_bytes == pytest.approx(shape.linear_params + 2 * shape.embedding_params, rel=0.001)
    assert staged.weights_bytes < whole.weights_bytes


@pytest.mark.parametrize(
    ("model", "tp", "pp", "words"),
    [("qwen2.5-7b", 8, 1, "does not divide the 28"), ("llama-3.1-8b", 1, 64, "more than the 32 layers"),
     ("smollm2-135m", 9, 1, None)],
)  # fmt: skip
def test_shapes_that_cannot_be_split_say_so(model: str, tp: int, pp: int, words: str | None) -> None:
    result = fit(model, "bf16", tp=tp, pp=pp)
    assert (result.fits is False) == (words is not None)
    assert words is None or words in result.reason


def test_kv_heads_are_repeated_when_there_are_more_devices_than_heads() -> None:
    assert fit("qwen2.5-7b", "bf16", tp=4).kv_needed_bytes == fit("qwen2.5-7b", "bf16", tp=1).kv_needed_bytes / 4
    eight, sixteen = (fit("llama-3.1-70b", "bf16", tp=tp).kv_needed_bytes for tp in (8, 16))
    assert eight == sixteen


def test_a_group_split_across_devices_is_warned_of() -> None:
    assert "no multiple of the weight group" in fit("llama-2-7b", "gptq-w4a16", tp=4).warnings[0]
    assert not fit("llama-2-7b", "bf16", tp=4).warnings
    assert not fit("llama-3.1-8b", "gptq-w4a16", tp=4).warnings


def test_a_host_without_a_catalogued_memory_is_unknown_until_told() -> None:
    unknown = fit("smollm2-135m", "f16", "cpu")
    assert unknown.fits is None and unknown.kv_tokens is None and "every host" in unknown.reason
    assert fit("smollm2-135m", "f16", "cpu", memory_bytes=8 * 2**30).fits is True
    assert fit("llama-2-7b", "f16", "cpu", memory_bytes=8 * 2**30).fits is False
