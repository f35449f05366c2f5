"""A Llama-shaped GGUF written back as a Hugging Face folder: 16-bit safetensors, configuration and tokenizer.

llama.cpp's converter stores query and key projections with each head's rotary halves interleaved; that is undone here.
The tokenizer is rebuilt from the GGUF's own vocabulary, merges and pre-tokenizer name. No torch is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import MissingExtra, SourceError

F32 = NDArray[np.float32]

_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(pattern: str) -> list[dict[str, Any]]:
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [rule, {**_BYTES, "use_regex": False}]


PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}
"""GGUF pre-tokenizer name → the ``tokenizers`` steps that split text the same way."""


def export_gguf(source: Path, folder: Path, *, dtype: str = "bf16") -> Path:
    """Write ``source`` as a Hugging Face folder that transformers, vLLM and llm-compressor load.

    Args:
        source: GGUF of architecture ``llama``, any tensor types that the ``gguf`` package dequantizes.
        folder: made; an existing whole one is left as it is.
        dtype: ``bf16`` or ``f16``; the GGUF's values are rounded to it.

    Raises:
        MissingExtra: the ``gguf`` package is not installed.
        SourceError: another architecture, tokenizer or number type than these.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingExtra("quantize", "reading a GGUF") from None
    if (folder / "config.json").exists():
        return folder
    if dtype not in ("bf16", "f16"):
        raise SourceError(f"no export to {dtype!r}", stage="source", hint="bf16 or f16")
    try:
        reader = GGUFReader(str(source))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SourceError(f"{source} is no GGUF: {error}", stage="source") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise SourceError(
            f"{source.name} is of architecture {fields.get('general.architecture')!r}; only llama can be exported",
            stage="source", hint="start from the model's own safetensors (hf: source or a folder)",
        )  # fmt: skip
    tokenizer = _tokenizer(fields, source.name)
    folder.mkdir(parents=True, exist_ok=True)
    tied = not any(t.name == "output.weight" for t in reader.tensors)
    _write_safetensors(folder / "model.safetensors", _tensors(reader, fields), dtype)
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(fields))
    _write_json(folder / "generation_config.json", _special_ids(fields))
    _write_json(folder / "config.json", _config(fields, tied, dtype))  # last: its presence says that all is there
    return folder


def _tensors(reader: Any, fields: dict[str, Any]) -> Iterator[tuple[str, F32]]:
    from gguf import dequantize

    heads = {"attn_q": int(fields["llama.attention.head_count"])}
    heads["attn_k"] = int(fields.get("llama.attention.head_count_kv", heads["attn_q"]))
    for tensor in reader.tensors:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name)
        if match is None or match[2] not in _NAMES:
            if tensor.name == "rope_freqs.weight":
                continue
            raise SourceError(f"tensor {tensor.name!r} has no place in a Llama model", stage="source")
        values: F32 = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if match[2] in heads:
            values = unpermute(values, heads[match[2]])
        layer = f"model.layers.{match[1]}." if match[1] else ""
        yield f"{layer}{_NAMES[match[2]]}.{match[3]}", values


def unpermute(weight: F32, heads: int) -> F32:
    """Rotary halves back from interleaved (llama.cpp) to one after the other (Hugging Face), a head at a time."""
    rows = weight.shape[0]
    shaped = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(shaped.swapaxes(1, 2)).reshape(weight.shape)


def to_bf16(values: F32) -> NDArray[np.uint16]:
    """Rounded to nearest even BF16, as bits."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_safetensors(path: Path, tensors: Iterator[tuple[str, F32]], dtype: str) -> None:
    """The safetensors layout: header length (8 bytes), JSON header, raw little-endian tensors one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blocks, at = [], 0
    for name, values in tensors:
        data = (to_bf16(values) if dtype == "bf16" else values.astype(np.float16)).tobytes()
        header[name] = {"dtype": dtype.upper(), "shape": list(values.shape), "data_offsets": [at, at + len(data)]}
        blocks.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(blocks)
    temporary.replace(path)


def _config(fields: dict[str, Any], tied: bool, dtype: str) -> dict[str, Any]:
    heads, width = int(fields["llama.attention.head_count"]), int(fields["llama.embedding_length"])
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "hidden_size": width, "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]), "num_attention_heads": heads,
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
        "head_dim": int(fields.get("llama.rope.dimension_count", width // heads)),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": int(fields["llama.context_length"]),
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)), "rope_scaling": None,
        "tie_word_embeddings": tied, "torch_dtype": {"bf16": "bfloat16", "f16": "float16"}[dtype],
        **_special_ids(fields),
    }  # fmt: skip


def _special_ids(fields: dict[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    return {
        f"{short}_token_id": int(fields[f"tokenizer.ggml.{long}_token_id"])
        for long, short in names.items()
        if f"tokenizer.ggml.{long}_token_id" in fields
    }


def _tokenizer(fields: dict[str, Any], where: str) -> dict[str, Any]:
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise SourceError(
            f"{where} has a tokenizer of kind {kind}/{pre}, which cannot be written as tokenizer.json",
            stage="source", hint=f"known: gpt2 with {', '.join(PRE_TOKENIZERS)}; else start from safetensors",
        )  # fmt: skip
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == 3}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (3, 4)
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "post_processor": None, "decoder": {**_BYTES, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": [m.split(" ", 1) for m in fields["tokenizer.ggml.merges"]]},
    }  # fmt: skip


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    named = {k.removesuffix("_id"): tokens[v] for k, v in _special_ids(fields).items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": int(fields["llama.context_length"]),
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "chat_template": fields.get("tokenizer.chat_template"), **named,
    }  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    temporary.replace(path)
