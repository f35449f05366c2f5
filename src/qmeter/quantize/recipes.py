"""How each catalogued method's checkpoint is made: number formats, the transform before and the rounding algorithm."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qmeter.catalog import Method, method
from qmeter.errors import MethodUnsupported

RECIPE_VERSION = 1
"""Raised when a recipe changes so that it makes other weights; part of every cached checkpoint's name."""

GROUPS = (128, 64, 32)
"""Group sizes tried, largest first; vLLM's INT4 kernels take 128, 64 and 32."""


@dataclass(frozen=True)
class Recipe:
    """What llm-compressor, or bitsandbytes, is told.

    Attributes:
        transform: ``smoothquant``, ``awq`` or none, applied before rounding.
        algorithm: ``gptq`` (error-compensating, Hessian from calibration), ``rtn`` (round to nearest) or
            ``bitsandbytes`` (LLM.int8(), by that library).
        weights, activations: arguments of compressed-tensors' ``QuantizationArgs``; group size filled in later.
        calibrated: whether calibration text matters.
        note: where it differs from the method's first publication.
    """

    algorithm: str
    weights: dict[str, Any]
    activations: dict[str, Any] | None = None
    transform: str | None = None
    calibrated: bool = True
    note: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def _weights(bits: int, kind: str, strategy: str, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": symmetric, "dynamic": False, **more}


def _a_token(kind: str) -> dict[str, Any]:
    return {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}


_INT4 = _weights(4, "int", "group")
_FP8_TENSOR = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}

RECIPES: dict[str, Recipe] = {
    "rtn-w4a16": Recipe("rtn", _INT4, calibrated=False),
    "gptq-w4a16": Recipe("gptq", _INT4, note="written as compressed-tensors, not in AutoGPTQ's layout"),
    "gptq-w8a16": Recipe("gptq", _weights(8, "int", "group"), note="written as compressed-tensors"),
    "awq-w4a16": Recipe("rtn", _weights(4, "int", "group", symmetric=False), transform="awq",
                        note="written as compressed-tensors, not in AutoAWQ's layout"),
    "smoothquant-w8a8": Recipe("gptq", _weights(8, "int", "channel"), _a_token("int"), transform="smoothquant",
                               note="SmoothQuant scales, then GPTQ rounding; activations a token, dynamic"),
    "fp8": Recipe("rtn", _weights(8, "float", "channel"), _a_token("float"), calibrated=False),
    "fp8-static": Recipe("rtn", _FP8_TENSOR, _FP8_TENSOR),
    "w4a8-fp8": Recipe("gptq", _INT4, _a_token("float")),
    "w4a8-int8": Recipe("gptq", _INT4, _a_token("int"), note="written as compressed-tensors"),
    "llm-int8": Recipe("bitsandbytes", _weights(8, "int", "channel"), _a_token("int"), calibrated=False,
                       note="columns with activations beyond 6 stay in 16 bits"),
}  # fmt: skip
"""Method → recipe. Methods that only add a KV-cache type take the checkpoint of the method without it."""

_SAME = {"smoothquant-w8a8-kv8": "smoothquant-w8a8", "awq-w4a16-kv8": "awq-w4a16", "w4a8-fp8-kv8": "w4a8-fp8",
         "w4a8kv4": "w4a8-int8", "fp8-kv8": "fp8"}  # fmt: skip


def recipe(name: str) -> tuple[Method, Recipe]:
    """The catalogued method and how its checkpoint is made.

    Raises:
        UnknownName: no such method.
        MethodUnsupported: it needs no checkpoint of its own, or this qMeter cannot make it.
    """
    known = method(name)
    key = _SAME.get(known.name, known.name)
    if key in RECIPES:
        return known, RECIPES[key]
    made_elsewhere = {"gguf": "`qmeter run` makes GGUF variants itself", "bitsandbytes": "vLLM makes it while loading"}
    hint = made_elsewhere.get(known.format, f"nothing to make: see `qmeter methods`; can make: {', '.join(RECIPES)}")
    raise MethodUnsupported(f"there is no checkpoint to make for {known.name}", stage="quantize", hint=hint)


def group_size(widths: list[int], wanted: int | None) -> int:
    """The largest group size that divides every linear layer's input width.

    Raises:
        MethodUnsupported: none does, or not the one asked for.
    """
    for size in (wanted,) if wanted else GROUPS:
        if all(width % size == 0 for width in widths):
            return size
    raise MethodUnsupported(
        f"no group size in {(wanted,) if wanted else GROUPS} divides the widths {sorted(set(widths))}",
        stage="quantize", hint="choose a method without groups (fp8, smoothquant-w8a8) or another group size",
    )  # fmt: skip
