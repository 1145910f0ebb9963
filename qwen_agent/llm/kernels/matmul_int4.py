"""A 4-bit matrix times a few rows, or written out in 16 bits for many.

Up to a few dozen rows the time is still that of reading the matrix, so codes are converted in registers and go
straight to the tensor cores. Above that, writing the matrix out once and leaving the product to the dense library
costs less than converting every tile again for every block of rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.gemv_int4 import BLOCK, PackedInt4, pack_int4
from qwen_agent.llm.kernels.launch import depend, release, with_pdl

MOST_ROWS = 64  # of x that ``matmul_int4`` takes; see docs/benchmarks.md for where writing out overtakes it


@triton.jit
def _codes(words, i: tl.constexpr, dtype: tl.constexpr):
    """Code i of each word, minus 8."""
    code = (words >> (4 * i)) & 15
    if dtype == tl.float16:
        # 0x6400 | q are the bits of the float16 1024 + q.
        return (code | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - 1032.0
    return (code - 8).to(dtype)


@triton.jit
def _matmul_int4(x, matrix, scales, offsets, bias, y, T, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
                 ROWS: tl.constexpr, TOKENS: tl.constexpr, OFFSETS: tl.constexpr,
                 BIAS: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    release(PDL)
    depend(PDL)
    WORDS: tl.constexpr = (K + 127) // 128 * 16
    COUNT: tl.constexpr = (K + GROUP - 1) // GROUP
    PARTS: tl.constexpr = 1 if GROUP >= 128 else 128 // GROUP
    EACH: tl.constexpr = 8 // PARTS  # codes of a word that share a group
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    j = tl.arange(0, 16)
    dtype: tl.constexpr = tl.float32 if WIDE else tl.float16
    sums = tl.zeros((ROWS, TOKENS), tl.float32)
    for block in range(0, (K + 127) // 128):
        words = tl.load(
            matrix + r[:, None].to(tl.int64) * WORDS + (block * 16 + j)[None, :], mask=(r < N)[:, None], other=0
        )
        for part in tl.static_range(PARTS):
            product = tl.zeros((ROWS, TOKENS), tl.float32)
            total = tl.zeros((TOKENS,), tl.float32)
            for i in tl.static_range(part * EACH, part * EACH + EACH):
                k = block * 128 + i * 16 + j
                rows = tl.load(
                    x + t[None, :].to(tl.int64) * K + k[:, None], mask=(t < T)[None, :] & (k < K)[:, None], other=0.0
                ).to(dtype)
                product = tl.dot(_codes(words, i, dtype), rows, acc=product, input_precision="ieee")
                if OFFSETS:
                    total += tl.sum(rows.to(tl.float32), axis=0)
            g = block * 128 // GROUP + part
            at = r * COUNT + g
            known = (r < N) & (g < COUNT)
            sums += product * tl.load(scales + at, mask=known, other=0.0).to(tl.float32)[:, None]
            if OFFSETS:
                sums += tl.load(offsets + at, mask=known, other=0.0).to(tl.float32)[:, None] * total[None, :]
    if BIAS:
        sums += tl.load(bias + r, mask=r < N, other=0.0).to(tl.float32)[:, None]
    tl.store(y + t[None, :].to(tl.int64) * N + r[:, None], sums.to(y.dtype.element_ty),
             mask=(r < N)[:, None] & (t < T)[None, :])  # fmt: skip


def matmul_int4(x: Tensor, matrix: PackedInt4, bias: Tensor | None = None, *, pdl: bool = False) -> Tensor:
    """x [T, K] (float16 or bfloat16; float32 is computed in float32) -> x W^T + bias [T, N] in x's dtype.

    16-bit inputs are multiplied in float16 and summed in float32: x beyond 65504 would overflow.
    """
    tokens, columns = x.shape
    y = torch.empty((tokens, matrix.rows), dtype=x.dtype, device=x.device)
    rows = 32 if matrix.rows <= 8192 else 64
    block = max(16, triton.next_power_of_2(min(tokens, 64)))
    grid = (triton.cdiv(matrix.rows, rows), triton.cdiv(tokens, block))
    _matmul_int4[grid](
        *(x, matrix.words, matrix.scales, matrix.offsets, bias, y, tokens),
        N=matrix.rows,
        K=columns,
        GROUP=min(matrix.group, -(-columns // BLOCK) * BLOCK),
        ROWS=rows,
        TOKENS=block,
        OFFSETS=matrix.offsets is not None,
        BIAS=bias is not None,
        WIDE=x.dtype == torch.float32,
        PDL=pdl,
        num_warps=4,
        num_stages=3,
        **with_pdl(pdl),
    )
    return y


@triton.jit
def _write_out(matrix, scales, offsets, out, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
               ROWS: tl.constexpr, SPAN: tl.constexpr, OFFSETS: tl.constexpr):  # fmt: skip
    WORDS: tl.constexpr = (K + 127) // 128 * 16
    COUNT: tl.constexpr = (K + GROUP - 1) // GROUP
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    w = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside = (r < N)[:, None] & (w < WORDS)[None, :]
    words = tl.load(matrix + r[:, None].to(tl.int64) * WORDS + w[None, :], mask=inside, other=0)
    PARTS: tl.constexpr = 1 if GROUP >= 128 else 128 // GROUP
    for part in tl.static_range(PARTS):
        g = w // 16 * 128 // GROUP + part
        at = r[:, None] * COUNT + g[None, :]
        known = (r < N)[:, None] & (g < COUNT)[None, :]
        scale = tl.load(scales + at, mask=known, other=0.0).to(tl.float32)
        offset = tl.zeros_like(scale)
        if OFFSETS:
            offset = tl.load(offsets + at, mask=known, other=0.0).to(tl.float32)
        for i in tl.static_range(part * (8 // PARTS), (part + 1) * (8 // PARTS)):
            k = (w // 16) * 128 + i * 16 + w % 16
            weight = _codes(words, i, tl.float32) * scale + offset
            mask = (r < N)[:, None] & (k < K)[None, :]
            tl.store(out + r[:, None].to(tl.int64) * K + k[None, :], weight.to(out.dtype.element_ty), mask=mask)


def write_out_int4(matrix: PackedInt4, out: Tensor) -> Tensor:
    """The matrix in ``out``'s dtype: fills and returns ``out``, a contiguous tensor of at least N * K elements,
    viewed as [N, K]."""
    rows, columns = matrix.rows, matrix.columns
    view = out.view(-1)[: rows * columns].view(rows, columns)
    span = 64
    grid = (triton.cdiv(rows, 16), triton.cdiv(matrix.words.shape[1], span))
    _write_out[grid](
        *(matrix.words, matrix.scales, matrix.offsets, view),
        N=rows,
        K=columns,
        GROUP=min(matrix.group, -(-columns // BLOCK) * BLOCK),
        ROWS=16,
        SPAN=span,
        OFFSETS=matrix.offsets is not None,
        num_warps=4,
    )
    return view


class Int4MatMul:
    """x [..., K] -> x W^T [..., N] for codes q uint8 [N, K], scales and zeros [N, K/G]; holds them packed."""

    def __init__(self, q: Tensor, scales: Tensor, zeros: Tensor) -> None:
        self.packed = pack_int4(q, scales, zeros)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return self.rows(rows, None, None).view(*x.shape[:-1], self.packed.rows)

    def rows(self, x: Tensor, bias: Tensor | None, room: Tensor | None) -> Tensor:
        """x [T, K] -> x W^T + bias [T, N]; many rows write the matrix out, into ``room`` if given."""
        if x.shape[0] <= MOST_ROWS:
            return matmul_int4(x, self.packed, bias)
        if room is None:
            room = torch.empty(self.packed.rows * self.packed.columns, dtype=x.dtype, device=x.device)
        return F.linear(x, write_out_int4(self.packed, room), bias)
