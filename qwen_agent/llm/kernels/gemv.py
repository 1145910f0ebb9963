"""One row of activations times a dense matrix, with what stands before and after it in a decoder fused in.

At batch 1 a product reads its matrix once and does two operations per weight, so its time is the time to read the
matrix. Everything else must hide behind that: the norm before it is applied as x is loaded, the bias, the residual
sum or SwiGLU as the result is stored. Programs own a few rows of the matrix each; their first tile of weights is
requested before the kernel waits for the one before it (programmatic dependent launch), because weights are constant.

The norm costs no pass of its own: y = W (x * w) / rms(x), and every program sees all of x on its way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.launch import depend, release, with_pdl

_UNROLLED = 8  # steps along a row that are unrolled; longer rows are looped over, which needs fewer registers


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product is cut: rows of the matrix per program, threads along a row, warps."""

    rows: int
    threads: int = 128
    warps: int = 4


@dataclass(frozen=True, slots=True)
class Norm:
    """The RMSNorm in front of a product: weight [H] in the model's dtype."""

    weight: Tensor
    eps: float


@triton.jit
def _rows(matrix, row, k, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, VEC: tl.constexpr,
          WHOLE: tl.constexpr):  # fmt: skip
    """A tile [ROWS, SPAN, VEC] of the matrix at (row, k); WHOLE: it lies inside, else beyond the edges it is zero."""
    r = row + tl.arange(0, ROWS)
    c = k + tl.arange(0, SPAN)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    pointers = matrix + r[:, None, None].to(tl.int64) * K + c[None, :, :]
    if WHOLE and N % ROWS == 0:
        return tl.load(pointers, eviction_policy="evict_first")
    inside = (r < N)[:, None, None] & (c < K)[None, :, :]
    return tl.load(pointers, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _entries(x, k, K: tl.constexpr, SPAN: tl.constexpr, VEC: tl.constexpr, WHOLE: tl.constexpr):
    """x from k on as float32 [SPAN, VEC]; zero beyond the edge unless WHOLE."""
    c = k + tl.arange(0, SPAN)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    if WHOLE:
        return tl.load(x + c, eviction_policy="evict_last").to(tl.float32)
    return tl.load(x + c, mask=c < K, other=0.0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def _gemv(
    x,
    norm,
    matrix,
    bias,
    y,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    VEC: tl.constexpr,
    NORM: tl.constexpr,
    AFTER: tl.constexpr,
    UNROLLED: tl.constexpr,
    PDL: tl.constexpr,
):
    release(PDL)
    row = tl.program_id(0) * ROWS
    STEP: tl.constexpr = SPAN * VEC
    PAIR: tl.constexpr = AFTER == "swiglu"  # gate and up: two halves of the matrix for the same x
    upper = matrix + tl.cast(N, tl.int64) * K
    tile = _rows(matrix, row, 0, N, K, ROWS, SPAN, VEC, STEP <= K)
    second = tile
    if PAIR:
        second = _rows(upper, row, 0, N, K, ROWS, SPAN, VEC, STEP <= K)
    depend(PDL)
    added = added_rows(row + tl.arange(0, ROWS), bias, y, N, AFTER)
    sums = tl.zeros((ROWS, SPAN), tl.float32)
    sums2 = tl.zeros((ROWS, SPAN), tl.float32)
    power = tl.zeros((SPAN,), tl.float32)
    if UNROLLED:
        for k in tl.static_range(0, K, STEP):
            here, here2 = tile, second
            if k + STEP < K:
                tile = _rows(matrix, row, k + STEP, N, K, ROWS, SPAN, VEC, k + 2 * STEP <= K)
                if PAIR:
                    second = _rows(upper, row, k + STEP, N, K, ROWS, SPAN, VEC, k + 2 * STEP <= K)
            values = _entries(x, k, K, SPAN, VEC, k + STEP <= K)
            if NORM:
                power += tl.sum(values * values, axis=1)
                values = values * _entries(norm, k, K, SPAN, VEC, k + STEP <= K)
            sums += tl.sum(here.to(tl.float32) * values[None, :, :], axis=2)
            if PAIR:
                sums2 += tl.sum(here2.to(tl.float32) * values[None, :, :], axis=2)
    else:
        for k in range(0, K, STEP):
            here, here2 = tile, second
            tile = _rows(matrix, row, k + STEP, N, K, ROWS, SPAN, VEC, False)
            if PAIR:
                second = _rows(upper, row, k + STEP, N, K, ROWS, SPAN, VEC, False)
            values = _entries(x, k, K, SPAN, VEC, K % STEP == 0)
            if NORM:
                power += tl.sum(values * values, axis=1)
                values = values * _entries(norm, k, K, SPAN, VEC, K % STEP == 0)
            sums += tl.sum(here.to(tl.float32) * values[None, :, :], axis=2)
            if PAIR:
                sums2 += tl.sum(here2.to(tl.float32) * values[None, :, :], axis=2)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(power) / K + eps)
    result = tl.sum(sums, axis=1) * factor
    if PAIR:
        result = silu(result) * (tl.sum(sums2, axis=1) * factor)
    store_rows(result + added, row + tl.arange(0, ROWS), y, N)


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def added_rows(r, bias, y, N: tl.constexpr, AFTER: tl.constexpr):
    """What is added to rows r < N of a product: float32 like r. Asked for early, as it is needed last."""
    added = tl.zeros(r.shape, tl.float32)
    if AFTER == "bias":
        added = tl.load(bias + r, mask=r < N, other=0.0).to(tl.float32)
    if AFTER == "residual":
        added = tl.load(y + r, mask=r < N, other=0.0)
    return added


@triton.jit
def store_rows(result, r, y, N: tl.constexpr):
    """The end of a product: result float32 for rows r < N."""
    if y.dtype.element_ty == tl.float16:
        result = tl.minimum(tl.maximum(result, -65504.0), 65504.0)
    tl.store(y + r, result.to(y.dtype.element_ty), mask=r < N)


def gemv(
    x: Tensor,
    matrix: Tensor,
    y: Tensor,
    tile: Tile,
    *,
    norm: Norm | None = None,
    bias: Tensor | None = None,
    after: str = "",
    pdl: bool = False,
) -> None:
    """y = matrix @ x with norm, bias, residual or SwiGLU fused; writes y in place.

    x [K] (float32 or the model's dtype); matrix [N, K]. ``after``: "" stores y [N]; "bias" adds ``bias`` [N] first;
    "residual" adds the product to y [N] float32; "swiglu" takes matrix [2F, K] holding gate then up and stores
    silu(gate) * up in y [F]. Products are summed in float32 in an order that does not change from run to run.
    """
    rows, columns = matrix.shape
    rows = rows // 2 if after == "swiglu" else rows
    vec = 16 // matrix.element_size()
    _gemv[(triton.cdiv(rows, tile.rows),)](
        x,
        norm.weight if norm else None,
        matrix,
        bias,
        y,
        norm.eps if norm else 0.0,
        N=rows,
        K=columns,
        ROWS=tile.rows,
        SPAN=tile.threads,
        VEC=vec,
        NORM=norm is not None,
        AFTER=after,
        UNROLLED=columns <= _UNROLLED * tile.threads * vec,
        PDL=pdl,
        num_warps=tile.warps,
        **with_pdl(pdl),
    )


def reference_gemv(
    x: Tensor,
    matrix: Tensor,
    y: Tensor,
    *,
    norm: Norm | None = None,
    bias: Tensor | None = None,
    after: str = "",
) -> Tensor:
    """What ``gemv`` stores in y, in float64."""
    wide = x.double()
    if norm is not None:
        wide = wide * torch.rsqrt(wide.pow(2).mean() + norm.eps) * norm.weight.double()
    product = matrix.double() @ wide
    if after == "swiglu":
        gate, up = product.chunk(2)
        return F.silu(gate) * up
    if after == "residual":
        return y.double() + product
    return product + bias.double() if bias is not None and after == "bias" else product


@triton.jit
def _embed(token, table, h, place, following, H: tl.constexpr, SIZE: tl.constexpr, PDL: tl.constexpr):
    release(PDL)
    depend(PDL)
    position = tl.load(following)
    tl.store(place, position)
    tl.store(following, position + 1)
    c = tl.arange(0, SIZE)
    tl.store(h + c, tl.load(table + tl.load(token) * H + c, mask=c < H).to(tl.float32), mask=c < H)


def embed(token: Tensor, table: Tensor, h: Tensor, place: Tensor, following: Tensor, *, pdl: bool = False) -> None:
    """Begin a step: h = table[token] as float32; place[0] = following, following += 1.

    token int64 [1]; table [V, H]; place int64 [3] (its first entry is where this token stands in the cache);
    following int64 [1]. The position advances here, on the device, so that steps may be queued ahead.
    """
    size = table.shape[1]
    _embed[(1,)](
        *(token, table, h, place, following),
        H=size,
        SIZE=triton.next_power_of_2(size),
        PDL=pdl,
        num_warps=8,
        **with_pdl(pdl),
    )


@triton.jit
def _pick_row(rows, place, h, H: tl.constexpr, SIZE: tl.constexpr):
    row = tl.load(place + 1) - 1
    c = tl.arange(0, SIZE)
    tl.store(h + c, tl.load(rows + row * H + c, mask=c < H).to(tl.float32), mask=c < H)


def pick_row(rows: Tensor, place: Tensor, h: Tensor) -> None:
    """The last real row of a padded text as the residual stream of one token: h = rows[place[1] - 1], float32."""
    size = rows.shape[1]
    _pick_row[(1,)](rows, place, h, H=size, SIZE=triton.next_power_of_2(size), num_warps=8)
