"""RMSNorm of many rows, alone or with the residual sum before it, each in one pass over memory.

A program owns a row and holds it in registers, so every element is read once and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.launch import depend, release, with_pdl

WIDEST = 16384  # elements of a row that a program can hold in registers


@triton.jit
def _normalized(x, weight, eps, H: tl.constexpr):
    """x [SIZE] in a model dtype, zero beyond H. Rounded where the plain path rounds: before the weight and after."""
    wide = x.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide) / H + eps)
    return (wide.to(x.dtype).to(tl.float32) * weight.to(tl.float32)).to(x.dtype)


@triton.jit
def _rms_norm(x, weight, y, eps, stride, H: tl.constexpr, SIZE: tl.constexpr, PDL: tl.constexpr):
    release(PDL)
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, SIZE)
    factors = tl.load(weight + c, mask=c < H, other=0.0, eviction_policy="evict_last")
    depend(PDL)
    values = tl.load(x + row * stride + c, mask=c < H, other=0.0)
    tl.store(y + row * H + c, _normalized(values, factors, eps, H), mask=c < H)


@triton.jit
def _add_rms_norm(residual, x, weight, total, y, eps, H: tl.constexpr, SIZE: tl.constexpr, PDL: tl.constexpr):
    release(PDL)
    start = tl.program_id(0).to(tl.int64) * H
    c = tl.arange(0, SIZE)
    factors = tl.load(weight + c, mask=c < H, other=0.0, eviction_policy="evict_last")
    depend(PDL)
    first = tl.load(residual + start + c, mask=c < H, other=0.0)
    second = tl.load(x + start + c, mask=c < H, other=0.0)
    # Rounded before the norm, which must see what the next layer will see.
    values = (first.to(tl.float32) + second.to(tl.float32)).to(first.dtype)
    tl.store(total + start + c, values, mask=c < H)
    tl.store(y + start + c, _normalized(values, factors, eps, H), mask=c < H)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None, pdl: bool = False) -> Tensor:
    """RMSNorm of every row: x [R, H] -> [R, H] (``out`` if given, contiguous, which may be x).

    bfloat16, float16 or float32; weight [H] of the same dtype. Rows of x may lie apart, elements of a row not.
    Rounds like reference.rms_norm: float32 inside, cast, then times the weight.
    """
    rows, size = _checked(x, weight)
    out = torch.empty((rows, size), dtype=x.dtype, device=x.device) if out is None else out
    if rows:
        _rms_norm[(rows,)](x, weight, out, eps, x.stride(0), **_shape(size), PDL=pdl, **with_pdl(pdl))
    return out


def add_rms_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    out: tuple[Tensor, Tensor] | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """(residual + x, RMSNorm of that): residual and x [R, H] contiguous -> two of [R, H].

    The sum is rounded to the dtype before the norm. ``out`` may be (residual, x), to work in place.
    """
    rows, size = _checked(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype or not (residual.is_contiguous() and x.is_contiguous()):
        raise ValueError(
            f"residual and x must be contiguous and alike, not {residual.dtype} {tuple(residual.shape)} and "
            f"{x.dtype} {tuple(x.shape)}"
        )
    total, y = (torch.empty_like(x), torch.empty_like(x)) if out is None else out
    if rows:
        _add_rms_norm[(rows,)](residual, x, weight, total, y, eps, **_shape(size), PDL=pdl, **with_pdl(pdl))
    return total, y


def _checked(x: Tensor, weight: Tensor) -> tuple[int, int]:
    rows, size = x.shape
    if x.stride(1) != 1 and size > 1:
        raise ValueError(f"the elements of a row must lie together, but the strides of x are {x.stride()}")
    if weight.shape != (size,) or weight.dtype != x.dtype or not weight.is_contiguous():
        raise ValueError(f"rows of {x.dtype} [{size}] need such a weight, not {weight.dtype} {tuple(weight.shape)}")
    if size > WIDEST:
        raise ValueError(f"a row of {size} elements does not fit one program; at most {WIDEST} do")
    return rows, size


def _shape(size: int) -> dict[str, int]:
    padded = triton.next_power_of_2(size)
    # 16 elements a thread: two 16-byte loads of a half-precision row in flight.
    return {"H": size, "SIZE": padded, "num_warps": min(16, max(1, padded // 512))}


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """What ``rms_norm`` computes, in float64 without rounding in between."""
    wide = x.double()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


def reference_add_rms_norm(residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What ``add_rms_norm`` computes: the sum rounded to the dtype, its norm in float64."""
    total = residual + x
    return total, reference_rms_norm(total, weight, eps)
