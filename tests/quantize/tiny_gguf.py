"""A Llama of 2 layers as GGUF, as llama.cpp's converter would have written it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS = 64, 4, 2, 128, 2
TOKENS = ["<|end|>", "a", "b", "ab", "Ġ", "Ġa"]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to query and key projections."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Hugging Face names → F32 values that BF16 holds exactly."""
    rng = np.random.default_rng(seed)

    def made(*shape: int) -> np.ndarray:
        return (rng.integers(-64, 64, shape) / 64).astype(np.float32)

    out = {"model.embed_tokens": made(len(TOKENS), WIDTH), "model.norm": made(WIDTH)}
    for i in range(LAYERS):
        kv = WIDTH // HEADS * KV_HEADS
        shapes = {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (kv, WIDTH),
            "self_attn.v_proj": (kv, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (HIDDEN, WIDTH),
            "mlp.up_proj": (HIDDEN, WIDTH),
            "mlp.down_proj": (WIDTH, HIDDEN),
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
        }
        out |= {f"model.layers.{i}.{n}": made(*s) for n, s in shapes.items()}
    return out


def write(path: Path, *, architecture: str = "llama", pre: str = "smollm", seed: int = 0) -> Path:
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, value in weights(seed).items():
        parts = name.split(".")
        short = names[parts[-1]]
        prefix = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(short)
        stored = interleave(value, heads) if heads else value
        writer.add_tensor(f"{prefix}{short}.weight", stored if stored.ndim == 1 else stored.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
