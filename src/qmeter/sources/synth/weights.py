"""The stream of tensors that makes a synthetic checkpoint: same shape, kind, seed and device type, same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from qmeter.catalog.shape import ModelShape
from qmeter.errors import MethodUnsupported
from qmeter.sources.synth.formats import Format
from qmeter.sources.synth.packing import Tensor

EMBEDDING_STD = 0.02
"""Of embeddings and the output projection, as Llama is initialised."""


def tensors(shape: ModelShape, form: Format, seed: int, device: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, by its name in the file, in the model's order.

    A projection is Gaussian with standard deviation ``inputs**-0.5``, which keeps the size of activations from layer
    to layer, and is then quantized by ``form``. Each tensor has its own generator, seeded with its name: a rank that
    needs some tensors only gets the same ones. Generators of CPU and CUDA give different numbers.
    """
    check_shape(shape, form)
    yield "model.embed_tokens.weight", _dense(shape.vocab, shape.hidden, EMBEDDING_STD, "embed", seed, device)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", _ones(shape.hidden, device)
        for linear in shape.linears():
            name = f"{prefix}.{linear.name}"
            weight = gaussian((linear.outputs, linear.inputs), linear.inputs**-0.5, name, seed, device)
            for suffix, tensor in form.store(weight).items():
                yield f"{name}.{suffix}", tensor
            if linear.bias:
                bias = gaussian((linear.outputs,), EMBEDDING_STD, f"{name}.bias", seed, device)
                yield f"{name}.bias", _bf16(bias)
    yield "model.norm.weight", _ones(shape.hidden, device)
    if not shape.tied_embeddings:
        yield "lm_head.weight", _dense(shape.vocab, shape.hidden, shape.hidden**-0.5, "head", seed, device)


def check_shape(shape: ModelShape, form: Format) -> None:
    """Refuse a shape whose projections the format cannot hold.

    Raises:
        MethodUnsupported: a projection's sizes are no multiples of the format's group or packing.
    """
    for linear in shape.linears():
        if linear.inputs % form.multiple or linear.outputs % min(form.multiple, 32):
            raise MethodUnsupported(
                f"{form.kind} needs sizes that are multiples of {form.multiple}; {shape.name} {linear.name} is "
                f"{linear.outputs} x {linear.inputs}",
                hint="take a method with a smaller group or one scale a channel",
                stage="source",
            )


def gaussian(size: tuple[int, ...], std: float, name: str, seed: int, device: str) -> Tensor:
    """float32 Gaussian numbers of the generator that belongs to ``name`` and ``seed``."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big"))
    return torch.randn(size, generator=generator, device=device, dtype=torch.float32).mul_(std)


def _dense(rows: int, cols: int, std: float, name: str, seed: int, device: str) -> Tensor:
    return _bf16(gaussian((rows, cols), std, name, seed, device))


def _bf16(tensor: Tensor) -> Tensor:
    import torch

    return tensor.to(torch.bfloat16)


def _ones(length: int, device: str) -> Tensor:
    import torch

    return torch.ones(length, device=device, dtype=torch.bfloat16)
