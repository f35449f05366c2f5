"""The models: exact shapes from each repository's config.json, parameter counts as the hub states them."""

from __future__ import annotations

from collections.abc import Mapping

from qmeter.catalog.shape import ModelShape

LLAMA3_ROPE: Mapping[str, float | str] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
"""Llama 3.1's stretching of the rotary positions, as its config.json has it."""


def _llama(name: str, hf_id: str, sizes: tuple[int, int, int, int, int], *, vocab: int, theta: float, positions: int,
           params: int, tied: bool = False, architecture: str = "LlamaForCausalLM", model_type: str = "llama",
           qkv_bias: bool = False, eps: float = 1e-5, head_dim: int = 128,
           rope_scaling: Mapping[str, float | str] | None = None) -> ModelShape:  # fmt: skip
    """One row; ``sizes`` is (hidden, layers, heads, kv heads, intermediate)."""
    hidden, layers, heads, kv_heads, intermediate = sizes
    return ModelShape(
        name=name, hf_id=hf_id, architecture=architecture, hidden=hidden, layers=layers, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, intermediate=intermediate, vocab=vocab, tied_embeddings=tied,
        qkv_bias=qkv_bias, rope_theta=theta, max_positions=positions, norm_eps=eps, published_params=params,
        model_type=model_type, rope_scaling=rope_scaling,
    )  # fmt: skip


def _qwen(size: str, sizes: tuple[int, int, int, int, int], params: int, eps: float = 1e-5) -> ModelShape:
    return _llama(f"qwen2.5-{size.lower()}", f"Qwen/Qwen2.5-{size}", sizes, vocab=152064, theta=1e6, positions=131072,
                  params=params, architecture="Qwen2ForCausalLM", model_type="qwen2", qkv_bias=True,
                  eps=eps)  # fmt: skip


MODELS: tuple[ModelShape, ...] = (
    _llama("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", (576, 30, 9, 3, 1536), vocab=49152, theta=1e5,
           positions=8192, params=134_515_008, tied=True, head_dim=64),
    _llama("llama-2-7b", "meta-llama/Llama-2-7b-hf", (4096, 32, 32, 32, 11008), vocab=32000, theta=1e4,
           positions=4096, params=6_738_415_616),
    _llama("llama-2-13b", "meta-llama/Llama-2-13b-hf", (5120, 40, 40, 40, 13824), vocab=32000, theta=1e4,
           positions=4096, params=13_015_864_320),
    _llama("llama-2-70b", "meta-llama/Llama-2-70b-hf", (8192, 80, 64, 8, 28672), vocab=32000, theta=1e4,
           positions=4096, params=68_976_648_192),
    _llama("llama-3.1-8b", "meta-llama/Llama-3.1-8B", (4096, 32, 32, 8, 14336), vocab=128256, theta=5e5,
           positions=131072, params=8_030_261_248, rope_scaling=LLAMA3_ROPE),
    _llama("llama-3.1-70b", "meta-llama/Llama-3.1-70B", (8192, 80, 64, 8, 28672), vocab=128256, theta=5e5,
           positions=131072, params=70_553_706_496, rope_scaling=LLAMA3_ROPE),
    _llama("codellama-34b", "codellama/CodeLlama-34b-hf", (8192, 48, 64, 8, 22016), vocab=32000, theta=1e6,
           positions=16384, params=33_743_970_304),
    _qwen("7B", (3584, 28, 28, 4, 18944), 7_615_616_512, eps=1e-6),
    _qwen("14B", (5120, 48, 40, 8, 13824), 14_770_033_664),
    _qwen("32B", (5120, 64, 40, 8, 27648), 32_763_876_352),
    _qwen("72B", (8192, 80, 64, 8, 29568), 72_706_203_648),
    _llama("mistral-7b", "mistralai/Mistral-7B-v0.3", (4096, 32, 32, 8, 14336), vocab=32768, theta=1e6,
           positions=32768, params=7_248_023_552, architecture="MistralForCausalLM", model_type="mistral"),
)  # fmt: skip
"""Every model, small to large within a family."""
