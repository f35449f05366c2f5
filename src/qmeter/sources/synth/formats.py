"""Checkpoint formats: how one projection is stored, and the ``quantization_config`` that says so.

Each row is what the method's own tool writes (AutoGPTQ, AutoAWQ, llm-compressor, the FP8-block exporters), so that an
engine's ordinary loader reads it. Names are the catalog's checkpoint kinds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qmeter.catalog.shape import ModelShape
from qmeter.errors import SourceError
from qmeter.registry import nearest
from qmeter.sources.synth import packing
from qmeter.sources.synth.packing import Tensor

INPUT_AMAX = 8.0
"""Largest input that a static activation scale covers; inputs of a normalised Gaussian model stay below it."""
Quantizer = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Format:
    """One checkpoint kind.

    Attributes:
        kind: the catalog's name.
        store: a projection's weight ``[N, K]`` to its tensors by name suffix.
        config: the model's ``quantization_config``, ``None`` for an unquantized checkpoint.
        multiple: what N and K must be multiples of.
    """

    kind: str
    store: Quantizer
    config: Callable[[ModelShape], dict[str, Any] | None]
    multiple: int = 1


def checkpoint_format(kind: str) -> Format:
    """The format of a catalogued checkpoint kind.

    Raises:
        SourceError: this kind cannot be synthesised; the hint names the ones that can.
    """
    base = kind.removesuffix("-calibrated")
    if base in FORMATS:
        return FORMATS[base]
    for pattern, build in FAMILIES:
        if match := re.fullmatch(pattern, base):
            return build(base, *(int(g) if g else 0 for g in match.groups()))
    close = nearest(kind, FORMATS)
    raise SourceError(
        f"no synthetic checkpoint of kind {kind!r}",
        hint=f"nearest: {', '.join(close)}" if close else f"kinds: {', '.join(FORMATS)}, gptq-int<bits>-g<group>",
    )


def _bf16(weight: Tensor) -> dict[str, Tensor]:
    import torch

    return {"weight": weight.to(torch.bfloat16)}


def _f16(weight: Tensor) -> dict[str, Tensor]:
    import torch

    return {"weight": weight.to(torch.float16)}


def _gptq(bits: int, group: int) -> Quantizer:
    def store(weight: Tensor) -> dict[str, Tensor]:
        import torch

        values, scales = packing.symmetric_int(weight, bits, group)
        rows, cols = weight.shape
        half = 2 ** (bits - 1)
        zeros = torch.full((cols // group, rows), half - 1, dtype=torch.int32, device=weight.device)
        return {
            "qweight": packing.pack_rows((values + half).t().contiguous(), bits),
            "qzeros": packing.pack_columns(zeros, bits),  # the v1 file format stores the zero point less one
            "scales": scales.t().contiguous().to(torch.bfloat16),
            "g_idx": torch.arange(cols, dtype=torch.int32, device=weight.device) // group,
        }

    return store


def _gptq_config(bits: int, group: int) -> Callable[[ModelShape], dict[str, Any]]:
    def config(shape: ModelShape) -> dict[str, Any]:
        return {
            "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True,
            "lm_head": False, "checkpoint_format": "gptq",
            # vLLM lists the quantized layers from the safetensors' headers; where there are none, from this.
            "modules_in_block_to_quantize": [[linear.name for linear in shape.linears()]],
        }  # fmt: skip

    return config


def _awq(group: int) -> Quantizer:
    def store(weight: Tensor) -> dict[str, Tensor]:
        import torch

        values, scales, zeros = packing.asymmetric_int(weight, 4, group)
        return {
            "qweight": packing.pack_awq(values.t().contiguous()),
            "qzeros": packing.pack_awq(zeros.t().contiguous()),
            "scales": scales.t().contiguous().to(torch.bfloat16),
        }

    return store


def _awq_config(group: int) -> Callable[[ModelShape], dict[str, Any]]:
    return lambda shape: {
        "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": None,
    }  # fmt: skip


def _packed(bits: int, group: int) -> Quantizer:
    """compressed-tensors ``pack-quantized``."""

    def store(weight: Tensor) -> dict[str, Tensor]:
        import torch

        values, scales = packing.symmetric_int(weight, bits, group)
        return {
            "weight_packed": packing.pack_columns(values + 2 ** (bits - 1), bits),
            "weight_scale": scales.to(torch.bfloat16),
            "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
        }

    return store


def _int8(weight: Tensor) -> dict[str, Tensor]:
    """compressed-tensors ``int-quantized``, one scale a channel."""
    import torch

    values, scales = packing.symmetric_int(weight, 8, -1)
    return {"weight": values.to(torch.int8), "weight_scale": scales}


def _fp8_channel(weight: Tensor) -> dict[str, Tensor]:
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / packing.FP8_MAX).clamp_min(1e-12)
    return {"weight": packing.float8(weight, scale), "weight_scale": scale}


def _fp8_tensor(weight: Tensor) -> dict[str, Tensor]:
    scale = (weight.float().abs().amax() / packing.FP8_MAX).clamp_min(1e-12).reshape(1)
    return {"weight": packing.float8(weight, scale), "weight_scale": scale}


def _static(store: Quantizer, top: float) -> Quantizer:
    """``store`` plus the static scale of its inputs."""

    def with_input(weight: Tensor) -> dict[str, Tensor]:
        import torch

        scale = torch.tensor([INPUT_AMAX / top], dtype=torch.float32, device=weight.device)
        return {**store(weight), "input_scale": scale}

    return with_input


def _fp8_block(weight: Tensor) -> dict[str, Tensor]:
    values, scales = packing.float8_block(weight, 128)
    return {"weight": values, "weight_scale_inv": scales}


def _args(bits: int, kind: str, strategy: str, *, group: int | None = None, dynamic: bool = False) -> dict[str, Any]:
    """One ``QuantizationArgs`` of compressed-tensors."""
    return {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": True,
            "dynamic": dynamic, "observer": None if dynamic else "minmax"}  # fmt: skip


def _compressed(
    layout: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None
) -> Callable[[ModelShape], dict[str, Any]]:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": dict(inputs) if inputs else None,
             "output_activations": None}  # fmt: skip
    return lambda shape: {
        "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
        "global_compression_ratio": None, "ignore": ["lm_head"], "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
    }  # fmt: skip


_FP8_BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_TOKEN_INT8 = _args(8, "int", "token", dynamic=True)
_TOKEN_FP8 = _args(8, "float", "token", dynamic=True)


def _gptq_format(kind: str, bits: int, group: int) -> Format:
    return Format(kind, _gptq(bits, group), _gptq_config(bits, group), max(group, 32 // bits))


def _awq_format(kind: str, group: int) -> Format:
    return Format(kind, _awq(group), _awq_config(group), max(group, 8))


def _packed_format(kind: str, bits: int, group: int) -> Format:
    weights = _args(bits, "int", "group", group=group) if group else _args(bits, "int", "channel")
    config = _compressed("pack-quantized", weights, None)
    return Format(kind, _packed(bits, group or -1), config, max(group, 32 // bits))


FORMATS: dict[str, Format] = {
    f.kind: f
    for f in (
        Format("bf16", _bf16, lambda shape: None),
        Format("f16", _f16, lambda shape: None),
        _gptq_format("gptq-int4-g128", 4, 128),
        _gptq_format("gptq-int8-g128", 8, 128),
        _awq_format("awq-int4-g128", 128),
        _packed_format("rtn-int4-g128", 4, 128),
        _packed_format("rtn-int8", 8, 0),
        Format("ct-int8-w8a8", _int8, _compressed("int-quantized", _args(8, "int", "channel"), _TOKEN_INT8)),
        Format(
            "ct-int8-static",
            _static(_int8, 127.0),
            _compressed("int-quantized", _args(8, "int", "channel"), _args(8, "int", "tensor")),
        ),
        Format(
            "ct-fp8-dynamic", _fp8_channel, _compressed("float-quantized", _args(8, "float", "channel"), _TOKEN_FP8)
        ),
        Format(
            "ct-fp8-static",
            _static(_fp8_tensor, packing.FP8_MAX),
            _compressed("float-quantized", _args(8, "float", "tensor"), _args(8, "float", "tensor")),
        ),
        Format(
            "fp8-block",
            _fp8_block,
            lambda shape: {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
            },
        ),
        Format(
            "ct-w4a8-fp8",
            _packed(4, 128),
            _compressed("pack-quantized", _args(4, "int", "group", group=128), _TOKEN_FP8),
            128,
        ),
    )
}
"""Kind → format; families below add other bits and groups."""

FAMILIES: tuple[tuple[str, Callable[..., Format]], ...] = (
    (r"gptq-int(4|8)-g(\d+)", _gptq_format),
    (r"awq-int4-g(\d+)", _awq_format),
    (r"rtn-int(4|8)-g(\d+)", _packed_format),
)
