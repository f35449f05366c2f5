"""Integer and 8-bit-float quantizers and the bit layouts that GPTQ, AWQ and compressed-tensors files use (torch)."""

from __future__ import annotations

from typing import Any, TypeAlias

Tensor: TypeAlias = Any
"""A ``torch.Tensor``; torch is no dependency of the core."""

FP8_MAX = 448.0
"""Largest finite float8_e4m3fn."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs AWQ stores in nibble i of an int32 (AutoAWQ's "gemm" layout)."""


def symmetric_int(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Round to nearest, one scale for each ``group`` inputs of a row (-1: the whole row).

    Returns:
        values int32 ``[N, K]`` in ``-2**(bits-1) .. 2**(bits-1)-1``; scales float32 ``[N, K/group]``.
    """
    rows, cols = weight.shape
    size = cols if group < 0 else group
    grouped = weight.float().reshape(rows, cols // size, size)
    top = 2 ** (bits - 1) - 1
    scale = (grouped.abs().amax(dim=-1, keepdim=True) / top).clamp_min(1e-8)
    values = (grouped / scale).round_().clamp_(-top - 1, top)
    return values.int().reshape(rows, cols), scale.squeeze(-1)


def asymmetric_int(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest between each group's least and greatest weight.

    Returns:
        values int32 ``[N, K]`` in ``0 .. 2**bits-1``; scales float32 and zero points int32, ``[N, K/group]``.
    """
    rows, cols = weight.shape
    grouped = weight.float().reshape(rows, cols // group, group)
    low, high = grouped.aminmax(dim=-1, keepdim=True)
    top = 2**bits - 1
    scale = ((high.clamp_min(0) - low.clamp_max(0)) / top).clamp_min(1e-8)
    zero = (-low.clamp_max(0) / scale).round_().clamp_(0, top)
    values = (grouped / scale + zero).round_().clamp_(0, top)
    return values.int().reshape(rows, cols), scale.squeeze(-1), zero.int().squeeze(-1)


def float8(weight: Tensor, scale: Tensor) -> Tensor:
    """``weight / scale`` in float8_e4m3fn, saturating."""
    import torch

    return (weight.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def float8_block(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """One scale for each ``block`` x ``block`` square; edges may be short.

    Returns:
        values float8_e4m3fn ``[N, K]``; scales float32 ``[ceil(N/block), ceil(K/block)]``.
    """
    import torch
    from torch.nn.functional import pad

    rows, cols = weight.shape
    padded = pad(weight.float(), (0, -cols % block, 0, -rows % block))
    tiles = padded.reshape(padded.shape[0] // block, block, padded.shape[1] // block, block)
    scale = (tiles.abs().amax(dim=(1, 3), keepdim=True) / FP8_MAX).clamp_min(1e-12)
    values = (tiles / scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return values.reshape(padded.shape)[:rows, :cols].contiguous(), scale.reshape(scale.shape[0], scale.shape[2])


def pack_columns(values: Tensor, bits: int) -> Tensor:
    """Pack neighbours of a row into int32, the first in the lowest bits: ``[R, C]`` to ``[R, C*bits/32]``."""
    per = 32 // bits
    lanes = values.reshape(values.shape[0], -1, per)
    packed = lanes[..., 0].clone()
    for lane in range(1, per):
        packed |= lanes[..., lane] << (bits * lane)
    return packed


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """Pack neighbours of a column into int32, the first in the lowest bits: ``[R, C]`` to ``[R*bits/32, C]``."""
    per = 32 // bits
    lanes = values.reshape(-1, per, values.shape[1])
    packed = lanes[:, 0].clone()
    for lane in range(1, per):
        packed |= lanes[:, lane] << (bits * lane)
    return packed


def pack_awq(values: Tensor) -> Tensor:
    """Pack eight neighbouring columns of 4 bits into int32 in AWQ's order: ``[R, C]`` to ``[R, C/8]``."""
    import torch

    order = torch.tensor(AWQ_ORDER, device=values.device)
    return pack_columns(values.reshape(values.shape[0], -1, 8)[:, :, order].reshape(values.shape), 4)
