"""SwiGLU of many rows in one pass over memory: silu(gate) * up (arXiv 2002.05202)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.launch import depend, release, with_pdl

_SIZE = 1024  # elements of a row per program: with 4 warps, one 16-byte load of gate and of up per thread


@triton.jit
def _swiglu(gate_up, y, width, SIZE: tl.constexpr, PDL: tl.constexpr):
    release(PDL)
    depend(PDL)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    start = gate_up + row * 2 * width
    gate = tl.load(start + c, mask=c < width, other=0.0)
    up = tl.load(start + width + c, mask=c < width, other=0.0)
    wide = gate.to(tl.float32)
    # Rounded in between, as by a silu that stores its result.
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
    tl.store(y + row * width + c, product, mask=c < width)


def swiglu(gate_up: Tensor, *, out: Tensor | None = None, pdl: bool = False) -> Tensor:
    """silu(gate) * up: gate_up [R, 2F], each row holding gate then up -> [R, F] (``out`` if given, contiguous).

    bfloat16, float16 or float32, rounded like reference.swiglu: after silu and after the product.
    """
    rows, both = gate_up.shape
    if both % 2 or not gate_up.is_contiguous():
        raise ValueError(f"gate_up must be contiguous [R, 2F], not {tuple(gate_up.shape)} with {gate_up.stride()}")
    width = both // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    if out.numel():
        grid = (rows, triton.cdiv(width, _SIZE))
        _swiglu[grid](gate_up, out, width, SIZE=_SIZE, PDL=pdl, num_warps=4, **with_pdl(pdl))
    return out


def reference_swiglu(gate_up: Tensor) -> Tensor:
    """What ``swiglu`` computes, in float64 without rounding in between."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return F.silu(gate) * up
