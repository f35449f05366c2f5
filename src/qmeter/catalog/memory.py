"""Does it fit: weights, KV cache and an estimate of the rest on the fullest device, before anything is started.

The result is an estimate for dry runs and plans; the engine's own KV-block count, measured, replaces it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from qmeter.catalog.hardware import Device
from qmeter.catalog.layout import WeightLayout
from qmeter.catalog.scheme import Method
from qmeter.catalog.shape import ModelShape
from qmeter.spec.study import Parallelism

GIB = 2**30
ONE_DEVICE = Parallelism()
MEMORY_FRACTION = 0.92
"""Share of a GPU that the engine may take where the study does not say (vLLM 0.25's default)."""
CONTEXT_BYTES = {"gpu": int(0.6 * GIB), "cpu": int(0.4 * GIB)}
"""CUDA context and libraries of one process (GPU), the engine process without weights (CPU). Estimates."""
GRAPH_BYTES = {"gpu": int(0.6 * GIB), "cpu": 0}
"""CUDA graphs of the decode batch sizes. Estimate."""
COMMUNICATION_BYTES = int(0.4 * GIB)
"""NCCL buffers of each device where there are several. Estimate."""


@dataclass(frozen=True)
class MemoryFit:
    """What one device of the fullest pipeline stage must hold, and whether it can. All but ``kv_tokens`` in bytes.

    Attributes:
        fits: ``None`` where the device's memory is not known; ``reason`` says why in every case.
        available_bytes: memory the engine may use on a device.
        weights_bytes, overhead_bytes: on a device; overhead (context, activations, graphs, NCCL) is an estimate.
        kv_needed_bytes: for the sequences asked, on a device.
        kv_tokens: tokens of KV cache that would fit in what is left, of one replica; ``None`` if memory is not known.
        warnings: what the engine may refuse all the same.
    """

    fits: bool | None
    reason: str
    available_bytes: int | None
    weights_bytes: int
    overhead_bytes: int
    kv_needed_bytes: int
    kv_tokens: int | None
    warnings: tuple[str, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """Everything that one device must hold."""
        return self.weights_bytes + self.overhead_bytes + self.kv_needed_bytes


def memory_fit(
    shape: ModelShape,
    method: Method,
    device: Device,
    *,
    engine: str | None = None,
    parallelism: Parallelism = ONE_DEVICE,
    sequences: int = 1,
    sequence_tokens: int = 2048,
    token_budget: int = 8192,
    memory_fraction: float = MEMORY_FRACTION,
    memory_bytes: int | None = None,
) -> MemoryFit:
    """Whether ``shape`` under ``method`` fits ``device`` with room for ``sequences`` of ``sequence_tokens`` each.

    Args:
        engine: whose weight and KV layout to count; ``None``: the format's own.
        parallelism: degrees; each data-parallel replica holds everything, so ``dp`` changes nothing.
        sequences, sequence_tokens: what one replica must hold in KV cache at once, at the least.
        token_budget: most tokens in one step; sizes the activations.
        memory_fraction: share of the device's memory the engine may take.
        memory_bytes: the device's memory where it is known better than the catalog knows it (a host's RAM).
    """
    split = parallelism
    flags = method.engines.get(engine) if engine else None
    layout, kv = (flags.layout, flags.kv) if flags else (method.layout, method.kv)
    weights = _stage_weight_bytes(shape, layout, split)
    overhead = _overhead_bytes(shape, device, split, token_budget, sequences)
    kv_token = _stage_kv_bytes_per_token(shape, kv.vector_bytes(shape.head_dim), split)
    kv_needed = int(kv_token * sequences * min(sequence_tokens, shape.max_positions))
    memory = memory_bytes or device.memory_bytes
    warnings = _warnings(shape, layout.linear.group, split)
    if memory is None:
        why = device.unknown.get("memory_bytes", "the catalog does not know it")
        return MemoryFit(None, f"memory of {device.name}: {why}", None, weights, overhead, kv_needed, None, warnings)
    available = int(memory * memory_fraction)
    room = available - weights - overhead
    refusal = _refusal(shape, split)
    fits = refusal is None and room >= kv_needed
    reason = refusal or _reason(fits, available, weights, overhead, kv_needed, device)
    kv_tokens = max(0, int(room / kv_token))
    return MemoryFit(fits, reason, available, weights, overhead, kv_needed, kv_tokens, warnings)


def _stage_weight_bytes(shape: ModelShape, layout: WeightLayout, split: Parallelism) -> int:
    """Weights on one device of the fullest stage; layers split as evenly as can be, norms on every device."""
    linear = sum(layout.linear.tensor_bytes(i.outputs, i.inputs) for i in shape.linears())
    vectors = layout.vector.tensor_bytes(1, shape.vector_params) // shape.layers
    stage_layers = -(-shape.layers // split.pp)
    ends = [layout.embedding.tensor_bytes(shape.vocab, shape.hidden)]
    if shape.tied_embeddings:
        tied = (layout.tied_embedding or layout.embedding).tensor_bytes(shape.vocab, shape.hidden)
        ends = [tied * layout.tied_copies]
    else:
        ends.append(layout.head.tensor_bytes(shape.vocab, shape.hidden))
    held = sum(ends) if split.pp == 1 else max(ends)
    return -(-(stage_layers * linear + held) // split.tp) + stage_layers * vectors


def _stage_kv_bytes_per_token(shape: ModelShape, vector_bytes: float, split: Parallelism) -> float:
    """KV bytes a token on one device; KV heads are repeated where there are more devices than heads."""
    heads = max(1, -(-shape.kv_heads // split.tp))
    return 2 * -(-shape.layers // split.pp) * heads * vector_bytes


def _overhead_bytes(shape: ModelShape, device: Device, split: Parallelism, token_budget: int, sequences: int) -> int:
    """Context, graphs, NCCL, and the peak of activations (MLP's two halves and residuals) and FP32 logits."""
    activations = 2 * token_budget * (2 * shape.intermediate // split.tp + 4 * shape.hidden)
    logits = 4 * max(sequences, 1) * shape.vocab
    several = COMMUNICATION_BYTES if split.tp * split.pp > 1 else 0
    return CONTEXT_BYTES[device.kind] + GRAPH_BYTES[device.kind] + several + activations + logits


def _refusal(shape: ModelShape, split: Parallelism) -> str | None:
    if shape.heads % split.tp:
        return f"tp={split.tp} does not divide the {shape.heads} attention heads of {shape.name}"
    if split.pp > shape.layers:
        return f"pp={split.pp} is more than the {shape.layers} layers of {shape.name}"
    if shape.kv_heads % split.tp and split.tp % shape.kv_heads:
        return f"tp={split.tp} neither divides nor is a multiple of the {shape.kv_heads} KV heads of {shape.name}"
    return None


def _warnings(shape: ModelShape, group: int, split: Parallelism) -> tuple[str, ...]:
    if group <= 0:
        return ()
    parts = {"intermediate": shape.intermediate, "attention output": shape.heads * shape.head_dim}
    return tuple(
        f"{name} size {size} over tp={split.tp} is no multiple of the weight group ({group}): engines refuse it"
        for name, size in parts.items()
        if split.tp > 1 and (size // split.tp) % group
    )


def _reason(fits: bool, available: int, weights: int, overhead: int, kv: int, device: Device) -> str:
    parts = f"weights {_gib(weights)} + overhead about {_gib(overhead)} + KV {_gib(kv)}"
    return f"{parts} {'fit' if fits else 'exceed'} the {_gib(available)} the engine may use of each {device.name}"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
