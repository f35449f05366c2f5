"""GIVEN a ``synth:`` source, WHEN it is prepared, THEN config, tokenizer and recipe say what the engine needs."""

from __future__ import annotations

import json

import pytest

from qmeter import catalog
from qmeter.errors import MethodUnsupported, SourceError, UnknownName
from qmeter.sources.synth.checkpoint import RECIPE, Recipe
from qmeter.sources.synth.config import model_config, write_tokenizer
from qmeter.sources.synth.prepare import checkpoint_kind, prepare_synth

MODEL = "synth:llama-3.1-8b"


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("bf16", "bf16"), ("kv-fp8", "bf16"), ("gptq-w4a16", "gptq-int4-g128"), ("awq-w4a16", "awq-int4-g128"),
        ("smoothquant-w8a8", "ct-int8-w8a8"), ("fp8", "ct-fp8-dynamic"), ("fp8-block", "fp8-block"),
        ("w4a8-fp8", "ct-w4a8-fp8"), ("w4a8-int8", "gptq-int4-g128"),
    ],
)  # fmt: skip
def test_each_method_has_its_format(method, kind):
    assert checkpoint_kind(catalog.method(method)) == kind


def test_a_method_that_the_engine_lacks_is_refused():
    with pytest.raises(MethodUnsupported):
        checkpoint_kind(catalog.method("gguf-q4_0"))


def test_in_place_writes_everything_but_weights(tmp_path):
    found = prepare_synth(MODEL, catalog.method("gptq-w4a16"), "vllm", tmp_path)
    assert found.format == "synth"
    assert {p.name for p in found.path.iterdir()} == {"config.json", "tokenizer.json", "tokenizer_config.json", RECIPE}
    config = json.loads((found.path / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "gptq"
    # without this list vLLM would run the model in BF16 and say nothing
    named = quantization["modules_in_block_to_quantize"][0]
    assert set(named) == {linear.name for linear in catalog.model("llama-3.1-8b").linears()}
    assert Recipe.read(found.path).digest == found.sha256
    assert prepare_synth(MODEL, catalog.method("gptq-w4a16"), "vllm", tmp_path) == found


def test_methods_and_seeds_never_share_a_folder(tmp_path):
    paths = {
        prepare_synth(MODEL, catalog.method(m), "vllm", tmp_path, seed=s).path for m in ("bf16", "fp8") for s in (1, 2)
    }
    assert len(paths) == 4


@pytest.mark.parametrize(
    ("source", "error"), [("synth:llama-3.1-8b@tape", SourceError), ("synth:lama-9b", UnknownName)]
)
def test_wrong_sources_are_named(tmp_path, source, error):
    with pytest.raises(error):
        prepare_synth(source, catalog.method("bf16"), "vllm", tmp_path)


def test_a_folder_without_a_recipe_says_how_to_make_one(tmp_path):
    with pytest.raises(SourceError) as caught:
        Recipe.read(tmp_path)
    assert "qmeter synth" in caught.value.hint


def test_the_tokenizer_has_every_id_once(tmp_path):
    write_tokenizer(tmp_path, 300)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(300))
    assert not any(" " in word or not word for word in vocab)


def test_the_config_is_the_catalogs_shape():
    shape = catalog.model("llama-3.1-70b")
    config = model_config(shape, None)
    assert "quantization_config" not in config
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_key_value_heads"]) == (8192, 80, 8)
    assert config["vocab_size"] == 128256
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert "rope_scaling" not in model_config(catalog.model("llama-2-7b"), None)
