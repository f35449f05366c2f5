"""A model's shape: everything that memory, verification and synthesis need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qmeter.catalog.layout import KVFormat, WeightLayout


@dataclass(frozen=True)
class Linear:
    """One kind of projection: ``name`` as in the checkpoint, its sizes, and whether it has a bias."""

    name: str
    outputs: int
    inputs: int
    bias: bool = False


@dataclass(frozen=True)
class ModelShape:
    """The exact shape of a decoder-only model with gated MLP, RMS norms and rotary positions.

    Attributes:
        name: the catalog's name.
        hf_id: repository on the Hugging Face hub that it is taken from.
        architecture: ``architectures[0]`` of its config.json.
        published_params: parameter count that the hub states for the checkpoint (tied weights once).
        rope_scaling: ``rope_scaling`` of its config.json, ``None`` where it has none.
    """

    name: str
    hf_id: str
    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied_embeddings: bool
    qkv_bias: bool
    rope_theta: float
    max_positions: int
    norm_eps: float
    published_params: int
    model_type: str = "llama"
    rope_scaling: Mapping[str, float | str] | None = None

    def linears(self) -> tuple[Linear, ...]:
        """The projections of one layer."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            Linear("self_attn.q_proj", q, self.hidden, self.qkv_bias),
            Linear("self_attn.k_proj", kv, self.hidden, self.qkv_bias),
            Linear("self_attn.v_proj", kv, self.hidden, self.qkv_bias),
            Linear("self_attn.o_proj", self.hidden, q),
            Linear("mlp.gate_proj", self.intermediate, self.hidden),
            Linear("mlp.up_proj", self.intermediate, self.hidden),
            Linear("mlp.down_proj", self.hidden, self.intermediate),
        )

    @property
    def linear_params(self) -> int:
        """Weights in all layers' projections, biases not counted."""
        return self.layers * sum(item.outputs * item.inputs for item in self.linears())

    @property
    def embedding_params(self) -> int:
        """Weights of the token embedding."""
        return self.vocab * self.hidden

    @property
    def vector_params(self) -> int:
        """Norm weights and biases."""
        biases = self.layers * sum(item.outputs for item in self.linears() if item.bias)
        return biases + (2 * self.layers + 1) * self.hidden

    @property
    def params(self) -> int:
        """All parameters, tied weights counted once."""
        embeddings = self.embedding_params * (1 if self.tied_embeddings else 2)
        return self.linear_params + embeddings + self.vector_params

    def weight_bytes(self, layout: WeightLayout) -> int:
        """Bytes of all weights stored as ``layout`` says, on all devices together (tensor parallel: no replicas)."""
        linear = self.layers * sum(layout.linear.tensor_bytes(i.outputs, i.inputs) for i in self.linears())
        vectors = layout.vector.tensor_bytes(1, self.vector_params)
        if self.tied_embeddings:
            packing = layout.tied_embedding or layout.embedding
            ends = layout.tied_copies * packing.tensor_bytes(self.vocab, self.hidden)
        else:
            ends = layout.embedding.tensor_bytes(self.vocab, self.hidden)
            ends += layout.head.tensor_bytes(self.vocab, self.hidden)
        return linear + vectors + ends

    def kv_bytes_per_token(self, kv: KVFormat | float) -> float:
        """Bytes of KV cache a token takes over all layers; ``kv`` is a format, or bits an element (no scales)."""
        form = kv if isinstance(kv, KVFormat) else KVFormat("", kv)
        return 2 * self.layers * self.kv_heads * form.vector_bytes(self.head_dim)
