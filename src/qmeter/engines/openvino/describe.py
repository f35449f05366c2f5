"""The effective configuration, as ``/qmeter/config`` gives it: what runs, and where each part was read."""

from __future__ import annotations

import base64
from typing import Any

from qmeter.engines.openvino.evidence import TYPES
from qmeter.engines.openvino.options import KV_BLOCK_TOKENS, ServerOptions
from qmeter.engines.openvino.pipeline import Loaded


def describe(options: ServerOptions, loaded: Loaded, max_model_tokens: int) -> dict[str, Any]:
    """Plain data for the server process: ``config`` (the page) and ``vocabulary`` (what detokenizing needs)."""
    return {"config": _config(options, loaded, max_model_tokens), "vocabulary": _vocabulary(loaded.tokenizer)}


def _config(options: ServerOptions, loaded: Loaded, max_model_tokens: int) -> dict[str, Any]:
    import openvino
    import openvino_genai

    evidence = loaded.evidence
    kv = evidence.properties.get("KV_CACHE_PRECISION")
    return {
        "engine": "openvino",
        "engine_version": f"openvino-genai {openvino_genai.__version__}, openvino {openvino.__version__}",
        "served_model": options.served_model,
        "weight_bytes": evidence.weight_bytes,
        "weight_bytes_by_type": dict(evidence.constants_bytes),
        "weight_type": evidence.weight_type,
        "activation_type": evidence.activation_type,
        "kv_type": TYPES.get(kv, kv) if kv else None,
        "kernel": evidence.kernel,
        "primitives": [
            {"implementation": p.implementation, "source": p.source, "weights": p.weights,
             "source_group": p.source_group, "built": n}
            for p, n in evidence.primitives.items()
        ],
        "kv_blocks": options.kv_blocks,
        "kv_block_tokens": KV_BLOCK_TOKENS,
        "kv_bytes_reported": loaded.kv_bytes,
        "kv_bytes": loaded.kv_bytes // 2 if kv == "u4" else loaded.kv_bytes,
        "token_budget": options.token_budget,
        "max_sequences": options.max_sequences,
        "max_model_tokens": max_model_tokens,
        "prefix_cache": options.prefix_cache,
        "properties": dict(evidence.properties),
        "asked": dict(options.properties),
        "sources": {
            "weight_bytes": evidence.constants_source,
            "weight_type": "oneDNN: weights of the inner products built",
            "activation_type": "oneDNN: sources of the inner products built, and their dynamic quantization group",
            "kv_type": "compiled model: KV_CACHE_PRECISION",
            "kv_blocks": "pipeline metrics: kv_cache_size_in_bytes over the blocks allocated",
            "kernel": "oneDNN: implementation of the inner products built",
        },
    }  # fmt: skip


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    pieces: list[str | None] = []
    by_id = {int(i): raw for raw, i in tokenizer.get_vocab().items()}
    for token in range(max(by_id, default=-1) + 1):
        raw = by_id.get(token)
        pieces.append(None if raw is None else base64.b64encode(raw).decode())
    whole = [token for token in by_id if _is_text(by_id[token])]
    shown = tokenizer.decode([[token] for token in whole])
    special = [token for token, text in zip(whole, shown, strict=True) if text == ""]
    return {"pieces": pieces, "special": special, "eos": tokenizer.get_eos_token_id()}


def _is_text(piece: bytes) -> bool:
    """Whether a token is whole characters: the tokenizer shows nothing for a part of one, special or not."""
    try:
        return bool(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return False
