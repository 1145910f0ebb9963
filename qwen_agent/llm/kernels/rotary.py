"""Between the QKV product and attention, for several new tokens: head norm, rotary embedding, LogN, cache write.

Everything that changes from call to call is read from device memory, so that a captured graph can be replayed:

- ``place`` int64 [3]: tokens in the cache (the position of the first new token), how many of the T rows are real
  tokens, capacity of the cache in tokens;
- ``pages`` int64 [4, layers]: the addresses of keys, values, key scales and value scales of each layer. Keys and
  values are [KV, capacity, D], contiguous, 16-byte aligned; scales float16 [KV, capacity], or 0 if there are none;
- ``inverse`` float32 [D/2]: the rotary frequencies of the request, NTK included.

An 8-bit cache holds round(x / scale) per token and head, scale = max|x| / 127 in float16, round half to even.

Shapes: T new tokens, N heads, KV heads of keys and values, D head size, a multiple of 16.

The helpers for kernels that are shared with attention are here too.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.launch import depend, release, with_pdl

ROWS = 16  # tokens per program
CACHE_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32, torch.int8: tl.int8}


@triton.jit
def page(pages, which, layers, layer, TYPE: tl.constexpr):
    """Pointer to the keys (0), values (1), key scales (2) or value scales (3) of a layer."""
    address = tl.multiple_of(tl.load(pages + which * layers + layer), 16)
    # An address out of memory has no known alignment; without the hint loads are not 16 bytes wide.
    return tl.multiple_of(address.to(tl.pointer_type(TYPE), bitcast=False), 16)


@triton.jit
def sine_cosine(angle):
    """Sine and cosine of float32 angles of either sign, to float32 accuracy up to 100 000 radians.

    Quarter turns are taken off first (Cody and Waite: pi / 2 in three parts, of which the first two times a whole
    number below 2^16 are exact), then the polynomials of the Cephes library. The sine that Triton offers keeps tables
    in local memory for angles beyond that; the hardware's is exact near zero only.
    """
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = angle - quarters * 1.5703125
    x = x - quarters * 0.0004825592041015625
    x = x - quarters * 1.267590794995e-06
    z = x * x
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * x + x
    cosine = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    quadrant = quarters.to(tl.int32) & 3
    swapped = (quadrant & 1) == 1
    turned_sine = tl.where(swapped, cosine, sine)
    turned_cosine = tl.where(swapped, sine, cosine)
    turned_sine = tl.where(quadrant >= 2, -turned_sine, turned_sine)
    turned_cosine = tl.where((quadrant == 1) | (quadrant == 2), -turned_cosine, turned_cosine)
    return turned_sine, turned_cosine


@triton.jit
def int8_scale(largest):
    """Float16 scale of rows whose largest magnitude is ``largest`` (float32)."""
    return tl.div_rn(largest, tl.full(largest.shape, 127.0, tl.float32)).to(tl.float16)


@triton.jit
def int8_codes(x, scale):
    """round(x / scale) in -127..127, as float32; ``scale`` float32, as wide as x; a scale of 0 gives 0."""
    codes = tl.div_rn(x, tl.where(scale > 0, scale, 1.0))
    codes = tl.minimum(tl.maximum(codes, -127.0), 127.0)
    # Beyond 2^23 float32 holds whole numbers only: adding and taking off rounds half to even.
    return tl.where(scale > 0, (codes + 12582912.0) - 12582912.0, 0.0)


@triton.jit
def _store(first, second, base, scales, token, half, mask, DIM: tl.constexpr, QUANT: tl.constexpr):
    """Both halves of rows [R, D/2] into one head of the cache, at ``token`` [R] where ``mask`` [R, D/2] says so."""
    at = token[:, None] * DIM + half[None, :]
    if QUANT:
        scale = int8_scale(tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1)))
        wide = tl.broadcast_to(scale.to(tl.float32)[:, None], first.shape)
        tl.store(base + at, int8_codes(first, wide).to(tl.int8), mask=mask)
        tl.store(base + at + DIM // 2, int8_codes(second, wide).to(tl.int8), mask=mask)
        tl.store(scales + token, scale, mask=tl.max(mask.to(tl.int32), 1) > 0)
    else:
        tl.store(base + at, first.to(base.dtype.element_ty), mask=mask)
        tl.store(base + at + DIM // 2, second.to(base.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["layer", "layers", "rows", "logn_length"])
def _kernel(
    qkv,
    pages,
    place,
    inverse,
    q_weight,
    k_weight,
    q_out,
    layer,
    layers,
    rows,
    logn_length,
    logn_factor,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,  # D/2, up to a power of two
    ROWS: tl.constexpr,
    CACHE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: one head of q, k or v, ROWS tokens. The halves of a head are apart, as rotation pairs them."""
    release(PDL)
    depend(PDL)
    QUANT: tl.constexpr = tl.int8 == CACHE
    slot = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    half = tl.arange(0, HALF)
    start = tl.load(place).to(tl.int32)
    count = tl.load(place + 1).to(tl.int32)
    capacity = tl.load(place + 2).to(tl.int32)
    inside = half < DIM // 2
    loaded = (row < rows)[:, None] & inside[None, :]
    token = start + row
    stored = (row < count) & (row < rows) & (token < capacity)
    written = stored[:, None] & inside[None, :]

    at = row.to(tl.int64)[:, None] * ((HEADS + 2 * KV_HEADS) * DIM) + slot * DIM + half[None, :]
    first = tl.load(qkv + at, mask=loaded, other=0.0).to(tl.float32)
    second = tl.load(qkv + at + DIM // 2, mask=loaded, other=0.0).to(tl.float32)
    if slot < HEADS + KV_HEADS:
        if NORM:
            weight = q_weight
            if slot >= HEADS:
                weight = k_weight
            square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
            factor = tl.rsqrt(square / DIM + eps)[:, None]
            first = first * factor * tl.load(weight + half, mask=inside, other=0.0).to(tl.float32)[None, :]
            second = second * factor * tl.load(weight + DIM // 2 + half, mask=inside, other=0.0).to(tl.float32)[None, :]
        frequency = tl.load(inverse + half, mask=inside, other=0.0)
        sine, cosine = sine_cosine(token.to(tl.float32)[:, None] * frequency[None, :])
        turned = first * cosine - second * sine
        second = second * cosine + first * sine
        first = turned
        if slot < HEADS:
            grown = tl.log((token + 1).to(tl.float32)) * logn_factor
            grown = tl.where((logn_length > 0) & (token + 1 > logn_length), grown, 1.0)[:, None]
            to = row.to(tl.int64)[:, None] * (HEADS * DIM) + slot * DIM + half[None, :]
            tl.store(q_out + to, (first * grown).to(q_out.dtype.element_ty), mask=loaded)
            tl.store(q_out + to + DIM // 2, (second * grown).to(q_out.dtype.element_ty), mask=loaded)
        else:
            head = (slot - HEADS).to(tl.int64) * capacity
            keys = page(pages, 0, layers, layer, CACHE) + head * DIM
            scales = page(pages, 2, layers, layer, tl.float16) + head
            _store(first, second, keys, scales, token, half, written, DIM, QUANT)
    else:
        head = (slot - HEADS - KV_HEADS).to(tl.int64) * capacity
        values = page(pages, 1, layers, layer, CACHE) + head * DIM
        scales = page(pages, 3, layers, layer, tl.float16) + head
        _store(first, second, values, scales, token, half, written, DIM, QUANT)


def rotate_and_store(
    qkv: Tensor,
    pages: Tensor,
    layer: int,
    place: Tensor,
    inverse: Tensor,
    q_out: Tensor,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    cache_dtype: torch.dtype,
    logn_length: int = 0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    pdl: bool = False,
) -> Tensor:
    """Fill ``q_out`` [T, N, D] with rotated queries and the cache of ``layer`` with rotated keys and with values.

    ``qkv`` [T, (N + 2 KV) * D], bfloat16, float16 or float32, contiguous, holds q, k, v with the bias added. ``q_norm``
    and ``k_norm`` [D] are the weights of the norm per head (both or neither). Queries beyond ``logn_length`` tokens
    are scaled by LogN; 0 is off. Rows from place[1] on, and tokens beyond the capacity, are not stored; their queries
    are finite. All maths in float32. ``pdl`` lets the kernel start before the one before it ends (Hopper on).
    """
    rows = qkv.shape[0]
    kernel = _kernel[(heads + 2 * kv_heads, triton.cdiv(rows, ROWS))]
    kernel(
        qkv,
        pages,
        place,
        inverse,
        q_norm,
        k_norm,
        q_out,
        layer,
        pages.shape[1],
        rows,
        logn_length,
        logn_factor(logn_length),
        eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        ROWS=ROWS,
        CACHE=CACHE_TYPES[cache_dtype],
        NORM=q_norm is not None,
        PDL=pdl,
        num_warps=4,
        **with_pdl(pdl),
    )
    return q_out


def logn_factor(length: int) -> float:
    """1 / log(length): times log(position + 1) it is the LogN scale; 0 where LogN is off."""
    return 1.0 / math.log(length) if length > 1 else 0.0


def reference_rotate(
    qkv: Tensor,
    start: int,
    inverse: Tensor,
    *,
    heads: int,
    kv_heads: int,
    logn_length: int = 0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``rotate_and_store`` computes, in float64: q [T, N, D], k [T, KV, D], v [T, KV, D] of tokens from ``start``.

    The angle alone is float32, as that rounding is part of the model.
    """
    rows = qkv.double().view(qkv.shape[0], heads + 2 * kv_heads, -1)
    q, k, v = rows.split((heads, kv_heads, kv_heads), dim=1)
    if q_norm is not None and k_norm is not None:
        q = q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + eps) * q_norm.double()
        k = k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + eps) * k_norm.double()
    positions = torch.arange(start, start + len(rows), device=qkv.device)  # [T]
    angle = (positions.float()[:, None] * inverse.float())[:, None].double()  # [T, 1, D/2]
    grown = torch.log((positions + 1).double()) * logn_factor(logn_length)
    beyond = (positions + 1 > logn_length) & (logn_length > 0)
    scale = torch.where(beyond, grown, torch.ones_like(grown))[:, None, None]
    return _turned(q, angle) * scale, _turned(k, angle), v


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    sine, cosine = angle.sin(), angle.cos()
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def reference_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] -> codes int8 [..., D] and scales float16 [...], as an 8-bit cache holds them."""
    scale = (x.abs().amax(-1) / 127).half()
    wide = scale.to(x.dtype)[..., None]
    codes = torch.where(wide > 0, x / torch.where(wide > 0, wide, 1.0), 0.0)
    return codes.round().clamp(-127, 127).to(torch.int8), scale
