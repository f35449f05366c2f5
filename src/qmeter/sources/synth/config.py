"""``config.json`` and the tokenizer of a synthetic checkpoint, written without any tokenizer library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qmeter.catalog.shape import ModelShape

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


def model_config(shape: ModelShape, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """The model's ``config.json`` as Hugging Face Transformers reads it."""
    config: dict[str, Any] = {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    if shape.rope_scaling:
        config["rope_scaling"] = dict(shape.rope_scaling)
    if quantization:
        config["quantization_config"] = quantization
    return config


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A word tokenizer with exactly ``vocab`` entries: ``w7 w8`` is two tokens, and every id decodes to a word."""
    words = {UNKNOWN: 0, BEGIN: 1, END: 2} | {f"w{i}": i for i in range(3, vocab)}
    special = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, text in enumerate((UNKNOWN, BEGIN, END))
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": UNKNOWN},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, separators=(",", ":")))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN,
        "model_max_length": 1_000_000, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
