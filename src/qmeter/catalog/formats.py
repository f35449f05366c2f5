"""The weight and KV formats that methods use, in bits, groups and scales; each with where its layout is defined."""

from __future__ import annotations

from qmeter.catalog.layout import (
    BITS16,
    BITS32,
    PER_CHANNEL,
    PER_TENSOR,
    KVFormat,
    Packing,
    WeightLayout,
)

CHECKPOINTS: dict[str, str] = {
    "bf16": "safetensors, BF16, as published",
    "f16": "safetensors, F16",
    "rtn-int4-g128": "compressed-tensors pack-quantized: INT4, groups of 128, symmetric, rounded to nearest",
    "gptq-int4-g128": "GPTQ: INT4 packed in int32, groups of 128, symmetric, no act-order",
    "gptq-int8-g128": "GPTQ: INT8 packed in int32, groups of 128, symmetric, no act-order",
    "awq-int4-g128": "AWQ (GEMM order): INT4 packed in int32, groups of 128, zero points",
    "ct-int8-w8a8": "compressed-tensors int-quantized: INT8 a channel, INT8 activations a token, dynamic",
    "ct-fp8-dynamic": "compressed-tensors float-quantized: FP8 E4M3 a channel, FP8 activations a token, dynamic",
    "ct-fp8-static": "compressed-tensors float-quantized: FP8 E4M3 a tensor, static FP8 activations a tensor",
    "fp8-block": "quant_method fp8: FP8 E4M3 in blocks of 128x128 with FP32 scales",
    "ct-w4a8-fp8": "compressed-tensors pack-quantized: INT4, groups of 128, FP8 activations a token, dynamic",
    "bnb-nf4": "bitsandbytes 4-bit NormalFloat, blocks of 64",
    "bnb-int8": "bitsandbytes LLM.int8(), a row",
    "gguf-f16": "GGUF, F16",
    "gguf-q8_0": "GGUF, Q8_0",
    "gguf-q4_0": "GGUF, Q4_0",
    "remote": "nothing on this host: the server has its own",
}
"""Kind of checkpoint → what it is. ``EngineFlags.checkpoint`` is one of these."""

PLAIN = WeightLayout(linear=BITS16)

# Linear projections quantized; embeddings, output projection, norms and biases stay at 16 bits (the default ignore
# list of llm-compressor, AutoGPTQ and AutoAWQ, and what vLLM's online quantization leaves).
INT4_G128 = WeightLayout(linear=Packing(4, group=128, scale_bits=16))
GPTQ_INT4_FILE = WeightLayout(linear=Packing(4, group=128, scale_bits=16, zero_bits=4))
AWQ_INT4 = WeightLayout(linear=Packing(4, group=128, scale_bits=16, zero_bits=4))
INT8_G128 = WeightLayout(linear=Packing(8, group=128, scale_bits=16))
GPTQ_INT8_FILE = WeightLayout(linear=Packing(8, group=128, scale_bits=16, zero_bits=8))
INT8_CHANNEL = WeightLayout(linear=Packing(8, group=PER_CHANNEL, scale_bits=32))
FP8_CHANNEL = WeightLayout(linear=Packing(8, group=PER_CHANNEL, scale_bits=32))
FP8_TENSOR = WeightLayout(linear=Packing(8, group=PER_TENSOR, scale_bits=32))
FP8_BLOCK = WeightLayout(linear=Packing(8, group=128, group_rows=128, scale_bits=32))
# vLLM's CUTLASS W4A8 kernel keeps each group's FP8 scale eight times over (cutlass_pack_scale_fp8): 64 bits a group.
W4A8_FP8_CUTLASS = WeightLayout(linear=Packing(4, group=128, scale_bits=64))
# bitsandbytes: an FP32 absmax for each block of 64 weights.
NF4 = WeightLayout(linear=Packing(4, group=64, scale_bits=32))
BNB_INT8 = WeightLayout(linear=Packing(8, group=PER_CHANNEL, scale_bits=32))

# GGUF (ggml-common.h): Q8_0 and Q4_0 are blocks of 32 with one F16 scale, Q6_K is 210 bytes for 256 weights.
# llama-quantize gives the output projection, and a tied embedding, Q6_K under Q4_0 (Q8_0 where rows are no multiple
# of 256) and Q8_0 under Q8_0; the token embedding takes the file's type; norms and biases stay F32.
Q8_0 = Packing(8, group=32, scale_bits=16, cols_multiple=32, fallback=BITS16)
Q4_0 = Packing(4, group=32, scale_bits=16, cols_multiple=32, fallback=BITS16)
Q6_K = Packing(6.5625, cols_multiple=256, fallback=Q8_0)
GGUF_F16 = WeightLayout(linear=BITS16, vector=BITS32)
GGUF_Q8_0 = WeightLayout(linear=Q8_0, embedding=Q8_0, head=Q8_0, vector=BITS32)
GGUF_Q4_0 = WeightLayout(linear=Q4_0, embedding=Q4_0, head=Q6_K, tied_embedding=Q6_K, vector=BITS32)
# What qMeter writes: Q8_0 for the output projection or tied embedding of every size; OpenVINO reads no K-quants.
GGUF_Q4_0_HEAD_Q8_0 = WeightLayout(linear=Q4_0, embedding=Q4_0, head=Q8_0, tied_embedding=Q8_0, vector=BITS32)
# llama-quantize --pure: every matrix in the file's type.
GGUF_Q4_0_PURE = WeightLayout(linear=Q4_0, embedding=Q4_0, head=Q4_0, vector=BITS32)

# OpenVINO GenAI's GGUF reader turns each block into unsigned weights, an F16 scale and a zero point of the weights'
# type (seen in the saved model: u8 or u4 constants of [rows, groups, 32] and [rows, groups, 1]).
OV_Q8_0 = Packing(8, group=32, scale_bits=16, zero_bits=8)
OV_Q4_0 = Packing(4, group=32, scale_bits=16, zero_bits=4)
OPENVINO_Q8_0 = WeightLayout(linear=OV_Q8_0, embedding=OV_Q8_0, head=OV_Q8_0, vector=BITS32)
OPENVINO_Q4_0 = WeightLayout(linear=OV_Q4_0, embedding=OV_Q4_0, head=OV_Q4_0, vector=BITS32)
OPENVINO_Q4_0_HEAD_Q8_0 = WeightLayout(
    linear=OV_Q4_0, embedding=OV_Q4_0, head=OV_Q8_0, tied_embedding=OV_Q8_0, vector=BITS32
)

KV_BF16 = KVFormat("bf16", 16)
KV_F16 = KVFormat("f16", 16)
KV_FP8 = KVFormat("fp8", 8)
# vLLM's *_per_token_head caches keep one FP32 scale beside each (token, head) vector.
KV_INT8_TOKEN_HEAD = KVFormat("int8", 8, overhead_bytes=4)
KV_INT4_TOKEN_HEAD = KVFormat("int4", 4, overhead_bytes=4)
# OpenVINO (CPU) keeps an FP32 scale and zero point for each value vector, and for each key channel of a block of 32
# tokens: 8 bytes a value vector, head_dim / 4 a key vector; by halves: 4 bytes and 1 bit an element. Measured with
# SmolLM2-135M: 76 bytes a vector for u8.
KV_U8_OPENVINO = KVFormat("int8", 8, overhead_bytes=4, overhead_bits=1)
KV_U4_OPENVINO = KVFormat("int4", 4, overhead_bytes=4, overhead_bits=1)
# llama.cpp stores the cache in its block formats: an F16 scale for each 32 elements.
KV_Q8_0 = KVFormat("int8", 8, overhead_bits=0.5)
KV_Q4_0 = KVFormat("int4", 4, overhead_bits=0.5)
