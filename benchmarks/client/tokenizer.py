"""A tokenizer folder that Hugging Face's loaders read: one token a word. Peers count tokens with it."""

from __future__ import annotations

import json
from pathlib import Path


def write_tokenizer(folder: Path) -> Path:
    """Write ``tokenizer.json`` and its configuration into ``folder``; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["unk", "<s>", "</s>", "hello", *(f"w{i}" for i in range(2000))]
    special = [{"id": i, "content": words[i], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i in (1, 2)]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "unk"},
    }  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
              "eos_token": "</s>", "model_max_length": 100000,
              "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(words)}))
    return folder
