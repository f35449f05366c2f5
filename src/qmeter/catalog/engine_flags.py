"""What each engine is told for each building block of a method; rows in ``method_rows`` put these together.

vLLM: names and choices of 0.25.1 (``--quantization``, ``--kv-cache-dtype``, ``--linear-backend``); kernels are the
class names its log gives ("Using MacheteLinearKernel for AutoGPTQLinearMethod", "Selected CutlassFP8Scaled… for …").
OpenVINO: CPU plugin properties of 2026.x. llama.cpp: ``llama-server`` arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qmeter.catalog import formats as f
from qmeter.catalog.layout import KVFormat, WeightLayout
from qmeter.catalog.scheme import EngineFlags

QUANTIZED_KERNELS = ("ScaledMM", "Machete", "Marlin", "W4A8", "AllSpark", "Exllama", "Conch", "Humming", "W4A16")
"""Parts of the names of vLLM's quantized matrix kernels: none of them may run under a 16-bit method."""

_INT_WEIGHT_KERNELS = ("Machete", "Marlin", "AllSpark", "Exllama", "Conch", "TritonW4A16", "Humming")
_SIXTEEN = ("bf16", "f16")


@dataclass(frozen=True)
class KVChoice:
    """A KV cache type on one engine: how it is stored, what asks for it, and the GPUs that have it."""

    form: KVFormat
    args: tuple[str, ...] = ()
    properties: tuple[tuple[str, str], ...] = ()
    min_capability: tuple[int, int] | None = None
    note: str | None = None

    @property
    def types(self) -> tuple[str, ...]:
        """Words that the engine may report for it."""
        return _SIXTEEN if self.form.bits == 16 else (self.form.type,)


VLLM_KV = {
    "bf16": KVChoice(f.KV_BF16),
    "fp8": KVChoice(
        f.KV_FP8, ("--kv-cache-dtype", "fp8"), min_capability=(8, 9),
        note="scales are 1.0 where the checkpoint has none",
    ),
    "int8": KVChoice(
        f.KV_INT8_TOKEN_HEAD, ("--kv-cache-dtype", "int8_per_token_head"), min_capability=(8, 0),
        note="only the Triton attention backend has it, so attention differs from BF16's",
    ),
    "int4": KVChoice(
        f.KV_INT4_TOKEN_HEAD, ("--kv-cache-dtype", "int4_per_token_head"), min_capability=(8, 0),
        note="only the Triton attention backend has it, so attention differs from BF16's",
    ),
}  # fmt: skip

OPENVINO_KV = {
    "f16": KVChoice(f.KV_F16, properties=(("KV_CACHE_PRECISION", "f16"),)),
    "int8": KVChoice(f.KV_U8_OPENVINO, properties=(("KV_CACHE_PRECISION", "u8"),)),
    "int4": KVChoice(f.KV_U4_OPENVINO, properties=(("KV_CACHE_PRECISION", "u4"),)),
}

LLAMACPP_KV = {
    "f16": KVChoice(f.KV_F16, ("--cache-type-k", "f16", "--cache-type-v", "f16")),
    "int8": KVChoice(f.KV_Q8_0, ("--cache-type-k", "q8_0", "--cache-type-v", "q8_0", "--flash-attn", "on")),
    "int4": KVChoice(f.KV_Q4_0, ("--cache-type-k", "q4_0", "--cache-type-v", "q4_0", "--flash-attn", "on")),
}


@dataclass(frozen=True)
class VllmWeights:
    """A weight scheme on vLLM: checkpoint, layout in memory, what asks for it, kernels that are it, GPUs with it."""

    checkpoint: str
    layout: WeightLayout
    weight_type: str
    activation_type: str = "bf16"
    load_args: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    dtype: str = "bfloat16"
    kernels: tuple[str, ...] = ()
    wrong_kernels: tuple[str, ...] = ()
    kernel_proves_activations: bool = False
    min_capability: tuple[int, int] | None = (7, 5)
    max_capability: tuple[int, int] | None = None
    needs: tuple[str, ...] = ()
    note: str | None = None


VLLM_WEIGHTS = {
    "bf16": VllmWeights("bf16", f.PLAIN, "bf16", wrong_kernels=QUANTIZED_KERNELS, min_capability=(8, 0)),
    "f16": VllmWeights(
        "f16", f.PLAIN, "f16", "f16", dtype="float16", wrong_kernels=QUANTIZED_KERNELS, min_capability=(7, 0)
    ),
    "rtn-int4": VllmWeights("rtn-int4-g128", f.INT4_G128, "int4", kernels=_INT_WEIGHT_KERNELS),
    "gptq-int4": VllmWeights(
        "gptq-int4-g128", f.INT4_G128, "int4", kernels=_INT_WEIGHT_KERNELS,
        note="a config without safetensors metadata and without modules_in_block_to_quantize loads unquantized",
    ),
    "gptq-int8": VllmWeights("gptq-int8-g128", f.INT8_G128, "int8", kernels=_INT_WEIGHT_KERNELS),
    "awq-int4": VllmWeights("awq-int4-g128", f.AWQ_INT4, "int4", kernels=(*_INT_WEIGHT_KERNELS, "AWQ")),
    "nf4": VllmWeights(
        "bf16", f.NF4, "nf4", load_args=("--quantization", "bitsandbytes"), min_capability=(7, 0),
        kernels=("bitsandbytes",), needs=("bitsandbytes>=0.48.1",),
        note="quantized while loading; a checkpoint quantized before takes pipeline but no tensor parallelism",
    ),
    "llm-int8": VllmWeights(
        "bnb-int8", f.BNB_INT8, "int8", "int8", min_capability=(7, 5), kernels=("bitsandbytes",),
        needs=("bitsandbytes>=0.48.1",), note="needs a checkpoint quantized before; no tensor parallelism",
    ),
    "int8-w8a8": VllmWeights(
        "ct-int8-w8a8", f.INT8_CHANNEL, "int8", "int8", kernels=("Int8ScaledMM",), kernel_proves_activations=True,
        max_capability=(9, 9),
        note="the CUTLASS INT8 kernel ends at Hopper",
    ),
    "fp8": VllmWeights(
        "bf16", f.FP8_CHANNEL, "fp8", "fp8", load_args=("--quantization", "fp8_per_channel"),
        kernels=("FP8ScaledMM",), wrong_kernels=("MarlinFP8",), kernel_proves_activations=True, min_capability=(8, 9),
        note="below 8.9 vLLM keeps 16-bit activations (Marlin), which is another method",
    ),
    "fp8-static": VllmWeights(
        "ct-fp8-static", f.FP8_TENSOR, "fp8", "fp8", kernels=("FP8ScaledMM",),
        wrong_kernels=("MarlinFP8",), kernel_proves_activations=True, min_capability=(8, 9),
    ),
    "fp8-block": VllmWeights(
        "bf16", f.FP8_BLOCK, "fp8", "fp8", load_args=("--quantization", "fp8_per_block"),
        kernels=("BlockScaled",), wrong_kernels=("MarlinFP8",), kernel_proves_activations=True, min_capability=(8, 9),
        note="Hopper takes DeepGEMM, which compiles its kernels for minutes at a host's first start; an engine option "
        "env.VLLM_USE_DEEP_GEMM: '0' takes CUTLASS, slower than BF16 at load",
    ),
    "w4a8-fp8": VllmWeights(
        "ct-w4a8-fp8", f.W4A8_FP8_CUTLASS, "int4", "fp8", kernels=("CutlassW4A8",), kernel_proves_activations=True,
        min_capability=(9, 0), max_capability=(9, 0), note="the CUTLASS W4A8 kernel is Hopper's alone",
    ),
    "w4a8-int8": VllmWeights(
        "gptq-int4-g128", f.INT4_G128, "int4", "int8", args=("--linear-backend", "marlin"),
        env=(("VLLM_MARLIN_INPUT_DTYPE", "int8"),), kernels=("Marlin",), min_capability=(8, 0),
        note="Marlin's INT8-activation path; without --linear-backend marlin, Hopper picks Machete",
    ),
}  # fmt: skip


def vllm(weights: str, kv: str = "bf16") -> EngineFlags:
    """Flags for one weight scheme with one KV cache type on vLLM."""
    w, k = VLLM_WEIGHTS[weights], VLLM_KV[kv]
    low = max((c for c in (w.min_capability, k.min_capability) if c), default=None)
    notes = [note for note in (w.note, k.note) if note]
    return EngineFlags(
        checkpoint=w.checkpoint,
        layout=w.layout,
        kv=k.form,
        weight_types=_SIXTEEN if w.weight_type in _SIXTEEN else (w.weight_type,),
        activation_types=_SIXTEEN if w.activation_type in _SIXTEEN else (w.activation_type,),
        kv_types=k.types,
        args=("--dtype", w.dtype, *w.args, *k.args),
        load_args=w.load_args,
        env=dict(w.env),
        kernels=w.kernels,
        kernel_shows=("weights", "activations") if w.kernel_proves_activations else ("weights",),
        wrong_kernels=w.wrong_kernels,
        min_capability=low,
        max_capability=w.max_capability,
        needs=w.needs,
        note="; ".join(notes) or None,
    )


@dataclass(frozen=True)
class GgufWeights:
    """A GGUF of one weight type: checkpoint kind, layouts in memory of either reader, words an engine may report."""

    checkpoint: str
    file: tuple[WeightLayout, ...]
    openvino: tuple[WeightLayout, ...]
    types: tuple[str, ...]


GGUF = {
    "f16": GgufWeights("gguf-f16", (f.GGUF_F16,), (f.GGUF_F16,), ("f16", "bf16", "f32")),
    "int8": GgufWeights("gguf-q8_0", (f.GGUF_Q8_0,), (f.OPENVINO_Q8_0,), ("int8",)),
    "int4": GgufWeights(
        "gguf-q4_0",
        (f.GGUF_Q4_0_HEAD_Q8_0, f.GGUF_Q4_0, f.GGUF_Q4_0_PURE),
        (f.OPENVINO_Q4_0_HEAD_Q8_0, f.OPENVINO_Q4_0),
        ("int4",),
    ),
}


def openvino(weights: str, activation: str = "f16", kv: str = "f16") -> EngineFlags:
    """Flags for OpenVINO on a CPU: a GGUF of the weights' type, dynamic activation quantization, KV cache type.

    ``DYNAMIC_QUANTIZATION_GROUP_SIZE`` 0 turns activation quantization off; 32 is Q8_0's and Q4_0's own group.
    """
    w, k = GGUF[weights], OPENVINO_KV[kv]
    group = "32" if activation == "int8" else "0"
    properties: Mapping[str, str] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group, **dict(k.properties)}
    return EngineFlags(
        checkpoint=w.checkpoint,
        layout=w.openvino[0],
        other_layouts=w.openvino[1:],
        kv=k.form,
        weight_types=w.types,
        activation_types=("int8",) if activation == "int8" else ("f16", "bf16", "f32"),
        kv_types=("f16", "bf16", "f32") if kv == "f16" else k.types,
        properties=properties,
    )


def llamacpp(weights: str, kv: str = "f16") -> EngineFlags:
    """Flags for llama.cpp: a GGUF of the weights' type and the KV cache types."""
    w, k = GGUF[weights], LLAMACPP_KV[kv]
    return EngineFlags(
        checkpoint=w.checkpoint,
        layout=w.file[0],
        other_layouts=w.file[1:],
        kv=k.form,
        weight_types=w.types,
        activation_types=("int8", "f16", "bf16", "f32"),
        kv_types=k.types,
        args=k.args,
        note="its kernels quantize activations to INT8 in blocks of 32" if weights != "f16" else None,
    )


def endpoint(weight_type: str, activation_type: str, kv: KVFormat, layout: WeightLayout) -> EngineFlags:
    """An endpoint takes every method on the word of whoever runs it: nothing can be set there."""
    sixteen = (*_SIXTEEN, "f32")
    return EngineFlags(
        checkpoint="remote",
        layout=layout,
        kv=kv,
        weight_types=sixteen if weight_type in sixteen else (weight_type,),
        activation_types=sixteen if activation_type in sixteen else (activation_type,),
        kv_types=sixteen if kv.type in sixteen else (kv.type,),
        note="attached to, not started: the method is what its operator says it is",
    )
