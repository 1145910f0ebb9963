"""Quantised products on the CPU through PyTorch's packed 4-bit kernel.

All take and return bfloat16 and accumulate in float32. The kernel computes x @ W.T for W = (q - 8) * scale + offset,
with one bfloat16 scale and offset per group and output row. It is made for few rows of x; many rows are faster by
rebuilding W in bfloat16 once and using the dense product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = (256, 128, 64, 32)  # the group sizes the kernel is compiled for
DENSE_ROWS = 256  # from here on rebuilding W costs less than it saves (docs/benchmarks.md)
MatMul = Callable[[Tensor], Tensor]


def int4_linear(q: Tensor, scales: Tensor, zeros: Tensor) -> MatMul:
    """q uint8 [N, K] in 0..15, scales and zeros [N, K/G] -> a function x [..., K] bf16 -> [..., N] bf16.

    N must be a multiple of 16 and G of 32. Holds the codes twice, 4 bits each: in the kernel's layout and in row order.
    """
    few = _packed(q, scales, zeros)
    many = _dense(q, scales, zeros)

    def matmul(x: Tensor) -> Tensor:
        return many(x) if x.numel() // x.shape[-1] >= DENSE_ROWS else few(x)

    return matmul


def int8_linear(q: Tensor, scales: Tensor, zeros: Tensor) -> MatMul:
    """q uint8 [N, K] in 0..255, scales and zeros [N, K/G] -> a function x [..., K] bf16 -> [..., N] bf16.

    Two 4-bit products, for q = 16 * high + low: W = (high - 8) * 16 scale + (low - 8) * scale + the rest, which goes
    into the low half's zero. On two cores that is twice as fast as PyTorch's own 8-bit kernel.
    """
    high = _packed(q >> 4, 16 * scales.float(), torch.full_like(zeros, 8))
    low = _packed(q & 15, scales, zeros - 128)

    def matmul(x: Tensor) -> Tensor:
        return high(x) + low(x)

    return matmul


def _packed(q: Tensor, scales: Tensor, zeros: Tensor) -> MatMul:
    rows, columns = q.shape
    group = next(g for g in GROUPS if columns // scales.shape[1] % g == 0)  # a longer group is cut into equal parts
    scale, offset = _affine(scales, zeros, columns // group)
    scale_and_offset = torch.stack((scale, offset), dim=-1).transpose(0, 1).contiguous()  # [K/G, N, 2]
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)

    def matmul(x: Tensor) -> Tensor:
        flat = x.reshape(-1, columns)
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, packed, group, scale_and_offset)
        return out.view(*x.shape[:-1], rows)

    return matmul


def _dense(q: Tensor, scales: Tensor, zeros: Tensor) -> MatMul:
    rows, columns = q.shape
    pairs = q[:, 0::2] | (q[:, 1::2] << 4)  # uint8 [N, K/2]
    scale, offset = _affine(scales, zeros, scales.shape[1])

    def matmul(x: Tensor) -> Tensor:
        centred = torch.stack((pairs & 15, pairs >> 4), dim=-1).sub_(8).view(torch.int8)  # q - 8, by wrapping round
        codes = centred.view(rows, scale.shape[1], -1).to(torch.bfloat16)
        weight = torch.addcmul(offset[..., None], codes, scale[..., None])
        return F.linear(x, weight.view(rows, columns))

    return matmul


def _affine(scales: Tensor, zeros: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """scale and offset of (q - 8) * scale + offset, both bfloat16 [N, groups]."""
    offset = (8.0 - zeros.float()) * scales.float()
    each = groups // scales.shape[1]
    return tuple(  # type: ignore[return-value]
        part.to(torch.bfloat16).repeat_interleave(each, dim=1).contiguous() for part in (scales, offset)
    )
