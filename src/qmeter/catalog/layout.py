"""How formats store weights and KV cache, and how many bytes that takes: exact accounting, no engine named."""

from __future__ import annotations

from dataclasses import dataclass

PER_TENSOR = 0
"""``Packing.group``: one scale for the whole tensor."""
PER_CHANNEL = -1
"""``Packing.group``: one scale for each output channel (row)."""


@dataclass(frozen=True)
class Packing:
    """How one weight tensor of ``[rows = outputs, cols = inputs]`` is stored.

    Attributes:
        bits: of one weight.
        group: inputs that share a scale along a row (128, 32, …), :data:`PER_CHANNEL` or :data:`PER_TENSOR`.
        group_rows: rows that share a scale too (128 for FP8 blocks of 128x128; else 1).
        scale_bits: of one scale; 0 for formats without scales.
        zero_bits: of one zero point; 0 for symmetric formats.
        cols_multiple: the format takes only rows of a multiple of this many inputs …
        fallback: … and this packing stands in for others.
    """

    bits: float
    group: int = PER_TENSOR
    group_rows: int = 1
    scale_bits: float = 0
    zero_bits: float = 0
    cols_multiple: int = 1
    fallback: Packing | None = None

    def tensor_bytes(self, rows: int, cols: int) -> int:
        """Bytes of one tensor with its scales and zero points, rounded up."""
        if self.fallback is not None and cols % self.cols_multiple:
            return self.fallback.tensor_bytes(rows, cols)
        overhead_bits = self._groups(rows, cols) * (self.scale_bits + self.zero_bits)
        return -int(-(rows * cols * self.bits + overhead_bits) // 8)

    def _groups(self, rows: int, cols: int) -> int:
        if self.group == PER_TENSOR:
            return 1
        row_groups = -(-rows // self.group_rows)
        return row_groups if self.group == PER_CHANNEL else row_groups * -(-cols // self.group)


BITS16 = Packing(bits=16)
"""BF16 or F16, no scales."""
BITS32 = Packing(bits=32)
"""F32, as GGUF stores norms and biases."""


@dataclass(frozen=True)
class WeightLayout:
    """Which tensors a format quantizes and how it stores each kind, in the engine's memory.

    Attributes:
        linear: the projections of every layer (q, k, v, o, gate, up, down).
        embedding: the token embedding.
        head: the output projection where the model has one of its own.
        tied_embedding: the token embedding where it also is the output projection; ``None``: as ``embedding``.
        tied_copies: copies of a tied embedding in memory (1: truly shared).
        vector: norms and biases.
    """

    linear: Packing
    embedding: Packing = BITS16
    head: Packing = BITS16
    tied_embedding: Packing | None = None
    tied_copies: int = 1
    vector: Packing = BITS16


@dataclass(frozen=True)
class KVFormat:
    """How one key or value vector of one head is stored.

    Attributes:
        type: number type in the catalog's words ("bf16", "fp8", "int8", "int4").
        bits: of one element.
        overhead_bytes: scale and zero point stored with each (token, head) vector, the mean of key and value.
        overhead_bits: scales and zero points shared along channels or blocks, spread over the elements.
    """

    type: str
    bits: float
    overhead_bytes: float = 0.0
    overhead_bits: float = 0.0

    def vector_bytes(self, head_dim: int) -> float:
        """Bytes of one key or value vector of one head."""
        return head_dim * (self.bits + self.overhead_bits) / 8 + self.overhead_bytes
