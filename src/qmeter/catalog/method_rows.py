"""The quantization methods: one row each. A new method is one row here."""

from __future__ import annotations

from collections.abc import Mapping

from qmeter.catalog import formats as f
from qmeter.catalog.engine_flags import endpoint, llamacpp, openvino, vllm
from qmeter.catalog.layout import KVFormat, WeightLayout
from qmeter.catalog.scheme import EngineFlags, Method, MethodClass, Paper

GPTQ = Paper("GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", "2210.17323")
AWQ = Paper("AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", "2306.00978")
QLORA = Paper("QLoRA: Efficient Finetuning of Quantized LLMs", "2305.14314")
LLM_INT8 = Paper("LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", "2208.07339")
SMOOTHQUANT = Paper("SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
                    "2211.10438")  # fmt: skip
FP8 = Paper("FP8 Formats for Deep Learning", "2209.05433")
FP8_BLOCK = Paper("DeepSeek-V3 Technical Report", "2412.19437")
QOQ = Paper("QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving", "2405.04532")
ZEROQUANT_FP = Paper(
    "ZeroQuant-FP: A Leap Forward in LLMs Post-Training W4A8 Quantization Using Floating-Point Formats", "2307.09782"
)
KIVI = Paper("KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", "2402.02750")
ROTATION = Paper("QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", "2404.00456")
ZEROQUANT = Paper("ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers",
                  "2206.01861")  # fmt: skip
GGUF = Paper("GGUF block formats of llama.cpp (ggml-common.h)")

BITS = {"bf16": 16, "f16": 16, "int8": 8, "fp8": 8, "int4": 4, "nf4": 4}


def _method(
    name: str,
    title: str,
    kind: MethodClass,
    types: tuple[str, str, str],
    *,
    layout: WeightLayout = f.PLAIN,
    kv: KVFormat = f.KV_BF16,
    group: int | None = None,
    symmetric: bool | None = None,
    calibration: bool = False,
    form: str = "safetensors",
    paper: Paper | None = None,
    engines: Mapping[str, EngineFlags],
    note: str | None = None,
    aliases: tuple[str, ...] = (),
) -> Method:
    weight, activation, kv_type = types
    remote = endpoint(weight, activation, kv, layout)
    return Method(
        name=name, title=title, kind=kind, weight_type=weight, activation_type=activation, kv_type=kv_type,
        weight_bits=BITS[weight], activation_bits=BITS[activation], kv_bits=BITS[kv_type], group_size=group,
        symmetric=symmetric, calibration=calibration, format=form, layout=layout, kv=kv, paper=paper,
        engines={**engines, "endpoint": remote}, note=note, aliases=aliases,
    )  # fmt: skip


_UNQUANTIZED = (
    _method("bf16", "BF16, unquantized", MethodClass.NONE, ("bf16", "bf16", "bf16"), engines={"vllm": vllm("bf16")},
            aliases=("bfloat16",)),
    _method("f16", "F16, unquantized", MethodClass.NONE, ("f16", "f16", "f16"), kv=f.KV_F16,
            engines={"openvino": openvino("f16"), "llamacpp": llamacpp("f16"), "vllm": vllm("f16")},
            note="OpenVINO computes in the CPU's own 16- or 32-bit type (INFERENCE_PRECISION_HINT in the record)",
            aliases=("fp16", "float16")),
)  # fmt: skip

_WEIGHT_ONLY = (
    _method("rtn-w4a16", "Round to nearest, INT4 weights", MethodClass.WEIGHT_ONLY, ("int4", "bf16", "bf16"),
            layout=f.INT4_G128, group=128, symmetric=True, form="compressed-tensors", paper=ZEROQUANT,
            engines={"vllm": vllm("rtn-int4")}),
    _method("gptq-w4a16", "GPTQ, INT4 weights", MethodClass.WEIGHT_ONLY, ("int4", "bf16", "bf16"),
            layout=f.GPTQ_INT4_FILE, group=128, symmetric=True, calibration=True, form="gptq", paper=GPTQ,
            engines={"vllm": vllm("gptq-int4")}, aliases=("gptq",)),
    _method("awq-w4a16", "AWQ, INT4 weights", MethodClass.WEIGHT_ONLY, ("int4", "bf16", "bf16"),
            layout=f.AWQ_INT4, group=128, symmetric=False, calibration=True, form="awq", paper=AWQ,
            engines={"vllm": vllm("awq-int4")}, aliases=("awq",)),
    _method("gptq-w8a16", "GPTQ, INT8 weights", MethodClass.WEIGHT_ONLY, ("int8", "bf16", "bf16"),
            layout=f.GPTQ_INT8_FILE, group=128, symmetric=True, calibration=True, form="gptq", paper=GPTQ,
            engines={"vllm": vllm("gptq-int8")}),
    _method("nf4", "4-bit NormalFloat (bitsandbytes)", MethodClass.WEIGHT_ONLY, ("nf4", "bf16", "bf16"),
            layout=f.NF4, group=64, symmetric=True, form="bitsandbytes", paper=QLORA, engines={"vllm": vllm("nf4")}),
    _method("llm-int8", "LLM.int8() (bitsandbytes)", MethodClass.WEIGHT_ONLY, ("int8", "int8", "bf16"),
            layout=f.BNB_INT8, group=-1, symmetric=True, form="bitsandbytes", paper=LLM_INT8,
            engines={"vllm": vllm("llm-int8")},
            note="mixed decomposition: outlier activations (above 6.0) stay at 16 bits, the others run in INT8"),
    _method("gguf-q8_0", "GGUF Q8_0", MethodClass.WEIGHT_ONLY, ("int8", "f16", "f16"), layout=f.GGUF_Q8_0,
            kv=f.KV_F16, group=32, symmetric=True, form="gguf", paper=GGUF,
            engines={"llamacpp": llamacpp("int8"), "openvino": openvino("int8")}),
    _method("gguf-q4_0", "GGUF Q4_0", MethodClass.WEIGHT_ONLY, ("int4", "f16", "f16"), layout=f.GGUF_Q4_0,
            kv=f.KV_F16, group=32, symmetric=True, form="gguf", paper=GGUF,
            engines={"llamacpp": llamacpp("int4"), "openvino": openvino("int4")}),
    _method("w8a16", "INT8 weights, 16-bit activations", MethodClass.WEIGHT_ONLY, ("int8", "f16", "f16"),
            layout=f.GGUF_Q8_0, kv=f.KV_F16, group=32, symmetric=True, form="gguf", paper=ZEROQUANT,
            engines={"openvino": openvino("int8")}),
    _method("w4a16", "INT4 weights, 16-bit activations", MethodClass.WEIGHT_ONLY, ("int4", "f16", "f16"),
            layout=f.GGUF_Q4_0, kv=f.KV_F16, group=32, symmetric=True, form="gguf", paper=ZEROQUANT,
            engines={"openvino": openvino("int4")}),
)  # fmt: skip

_WEIGHT_ACTIVATION = (
    _method("smoothquant-w8a8", "SmoothQuant, INT8 weights and activations", MethodClass.WEIGHT_ACTIVATION,
            ("int8", "int8", "bf16"), layout=f.INT8_CHANNEL, group=-1, symmetric=True, calibration=True,
            form="compressed-tensors", paper=SMOOTHQUANT, engines={"vllm": vllm("int8-w8a8")},
            note="activations a token, dynamic", aliases=("smoothquant",)),
    _method("fp8", "FP8 weights and activations, a channel and a token", MethodClass.WEIGHT_ACTIVATION,
            ("fp8", "fp8", "bf16"), layout=f.FP8_CHANNEL, group=-1, symmetric=True, form="safetensors", paper=FP8,
            engines={"vllm": vllm("fp8")}, aliases=("fp8-dynamic",)),
    _method("fp8-static", "FP8 weights and activations, a tensor, static", MethodClass.WEIGHT_ACTIVATION,
            ("fp8", "fp8", "bf16"), layout=f.FP8_TENSOR, group=0, symmetric=True, calibration=True,
            form="compressed-tensors", paper=FP8, engines={"vllm": vllm("fp8-static")}),
    _method("fp8-block", "FP8 weights in 128x128 blocks, activations in groups of 128",
            MethodClass.WEIGHT_ACTIVATION, ("fp8", "fp8", "bf16"), layout=f.FP8_BLOCK, group=128, symmetric=True,
            form="safetensors", paper=FP8_BLOCK, engines={"vllm": vllm("fp8-block")}),
    _method("w4a8-fp8", "INT4 weights, FP8 activations", MethodClass.WEIGHT_ACTIVATION, ("int4", "fp8", "bf16"),
            layout=f.INT4_G128, group=128, symmetric=True, calibration=True, form="compressed-tensors",
            paper=ZEROQUANT_FP, engines={"vllm": vllm("w4a8-fp8")}),
    _method("w4a8-int8", "INT4 weights, INT8 activations", MethodClass.WEIGHT_ACTIVATION, ("int4", "int8", "bf16"),
            layout=f.GPTQ_INT4_FILE, group=128, symmetric=True, calibration=True, form="gptq", paper=QOQ,
            engines={"vllm": vllm("w4a8-int8")}),
    _method("w8a8", "INT8 weights and activations, groups of 32", MethodClass.WEIGHT_ACTIVATION,
            ("int8", "int8", "f16"), layout=f.GGUF_Q8_0, kv=f.KV_F16, group=32, symmetric=True, form="gguf",
            paper=ZEROQUANT, engines={"openvino": openvino("int8", "int8")}, note="activations dynamic"),
    _method("w4a8", "INT4 weights, INT8 activations, groups of 32", MethodClass.WEIGHT_ACTIVATION,
            ("int4", "int8", "f16"), layout=f.GGUF_Q4_0, kv=f.KV_F16, group=32, symmetric=True, form="gguf",
            paper=ZEROQUANT, engines={"openvino": openvino("int4", "int8")}, note="activations dynamic"),
)  # fmt: skip

_KV_CACHE = (
    _method("kv-fp8", "FP8 KV cache", MethodClass.KV_CACHE, ("bf16", "bf16", "fp8"), kv=f.KV_FP8, paper=FP8,
            engines={"vllm": vllm("bf16", "fp8")}),
    _method("kv-int8", "INT8 KV cache, a token and head", MethodClass.KV_CACHE, ("bf16", "bf16", "int8"),
            kv=f.KV_INT8_TOKEN_HEAD, paper=KIVI, engines={"vllm": vllm("bf16", "int8")}),
    _method("kv-int4", "INT4 KV cache, a token and head", MethodClass.KV_CACHE, ("bf16", "bf16", "int4"),
            kv=f.KV_INT4_TOKEN_HEAD, paper=ROTATION, engines={"vllm": vllm("bf16", "int4")},
            note="vLLM rotates heads before it quantizes them"),
    _method("kv8", "INT8 KV cache, F16 weights", MethodClass.KV_CACHE, ("f16", "f16", "int8"), kv=f.KV_Q8_0,
            paper=KIVI, engines={"openvino": openvino("f16", kv="int8"), "llamacpp": llamacpp("f16", "int8")}),
    _method("kv4", "INT4 KV cache, F16 weights", MethodClass.KV_CACHE, ("f16", "f16", "int4"), kv=f.KV_Q4_0,
            paper=KIVI, engines={"openvino": openvino("f16", kv="int4"), "llamacpp": llamacpp("f16", "int4")}),
)  # fmt: skip

_COMBINED = (
    _method("fp8-kv8", "FP8 weights and activations, FP8 KV cache", MethodClass.COMBINED, ("fp8", "fp8", "fp8"),
            layout=f.FP8_CHANNEL, kv=f.KV_FP8, group=-1, symmetric=True, paper=FP8,
            engines={"vllm": vllm("fp8", "fp8")}),
    _method("smoothquant-w8a8-kv8", "SmoothQuant W8A8, INT8 KV cache", MethodClass.COMBINED,
            ("int8", "int8", "int8"), layout=f.INT8_CHANNEL, kv=f.KV_INT8_TOKEN_HEAD, group=-1, symmetric=True,
            calibration=True, form="compressed-tensors", paper=SMOOTHQUANT,
            engines={"vllm": vllm("int8-w8a8", "int8")}),
    _method("awq-w4a16-kv8", "AWQ INT4 weights, FP8 KV cache", MethodClass.COMBINED, ("int4", "bf16", "fp8"),
            layout=f.AWQ_INT4, kv=f.KV_FP8, group=128, symmetric=False, calibration=True, form="awq", paper=AWQ,
            engines={"vllm": vllm("awq-int4", "fp8")}),
    _method("w4a8-fp8-kv8", "INT4 weights, FP8 activations, FP8 KV cache", MethodClass.COMBINED,
            ("int4", "fp8", "fp8"), layout=f.INT4_G128, kv=f.KV_FP8, group=128, symmetric=True, calibration=True,
            form="compressed-tensors", paper=ZEROQUANT_FP, engines={"vllm": vllm("w4a8-fp8", "fp8")}),
    _method("w4a8kv4", "W4A8KV4, as in QoQ", MethodClass.COMBINED, ("int4", "int8", "int4"), layout=f.INT4_G128,
            kv=f.KV_INT4_TOKEN_HEAD, group=128, symmetric=True, calibration=True, form="gptq", paper=QOQ,
            engines={"vllm": vllm("w4a8-int8", "int4"), "openvino": openvino("int4", "int8", "int4")},
            note="QoQ's number types, not its kernels: vLLM runs it on Marlin, OpenVINO from Q4_0 in groups of 32",
            aliases=("qoq", "qserve")),
    _method("w8a8-kv8", "INT8 weights, activations and KV cache", MethodClass.COMBINED, ("int8", "int8", "int8"),
            layout=f.GGUF_Q8_0, kv=f.KV_Q8_0, group=32, symmetric=True, form="gguf", paper=ZEROQUANT,
            engines={"openvino": openvino("int8", "int8", "int8")}),
)  # fmt: skip

METHODS: tuple[Method, ...] = (*_UNQUANTIZED, *_WEIGHT_ONLY, *_WEIGHT_ACTIVATION, *_KV_CACHE, *_COMBINED)
"""Every method, grouped by what it quantizes."""
