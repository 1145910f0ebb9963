"""One row of activations times a 4-bit matrix: the products of ``gemv`` for GPTQ weights, packed anew at load.

A weight in 4 bits leaves about five instructions of time at full memory bandwidth on an H100, and converting each one
to float32 by itself takes fifteen. So the codes are laid out for the conversion: an int32 word holds eight codes of
one row, code i in bits 4i .. 4i+3, standing for column 128 b + 16 i + j of block b = word // 16, j = word % 16. Then
``(word >> 4p) & 0x000F000F`` is the pair (i = p, i = p + 4), and or-ing 0x6400 makes it two float16 numbers 1024 + q,
exactly (Kim et al., arXiv 2211.10017, section 3.3): two instructions for two weights. The products of four words, 16
in each half, are summed in float16, everything after that in float32: the error is a fraction of bfloat16's.

So that 16 products of a code (at most 8) cannot overflow, x enters as x / 128 in float16: right for |x| <= 65504, which
is clamped where such an x is stored. Neighbouring j are neighbouring columns, so x is read in vectors too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.gemv import Norm, Tile, added_rows, silu, store_rows
from qwen_agent.llm.kernels.launch import depend, release, with_pdl

BLOCK = 128  # columns that share a run of 16 words
GROUPS = (32, 64)  # group sizes below 128 that the kernels know; every multiple of 128 too
_SCALE = tl.constexpr(0.0078125)  # x / 128

_DECODE = """
{
.reg .b32 w0, w1, w2, w3, high, magic, centre, sixteenth, shift;
mov.b32 magic, 0x64006400;
mov.b32 centre, 0x64086408;
mov.b32 sixteenth, 0x2C002C00;
mov.b32 shift, 0xD480D480;
shr.u32 high, $Q, 8;
lop3.b32 w0, $Q, 0x000F000F, magic, 0xEA;
lop3.b32 w1, $Q, 0x00F000F0, magic, 0xEA;
lop3.b32 w2, high, 0x000F000F, magic, 0xEA;
lop3.b32 w3, high, 0x00F000F0, magic, 0xEA;
sub.rn.f16x2 w0, w0, centre;
fma.rn.f16x2 w1, w1, sixteenth, shift;
sub.rn.f16x2 w2, w2, centre;
fma.rn.f16x2 w3, w3, sixteenth, shift;
mul.rn.f16x2 w0, w0, $X0;
fma.rn.f16x2 w0, w1, $X1, w0;
"""
_JOIN = """fma.rn.f16x2 w0, w2, $X2, w0;
fma.rn.f16x2 w0, w3, $X3, w0;
"""
_APART = """mul.rn.f16x2 w2, w2, $X2;
fma.rn.f16x2 w2, w3, $X3, w2;
"""


def _asm(body: str, outputs: int) -> tl.constexpr:
    """The text with its operands numbered: ``outputs`` results, then Q, X0 .. X3."""
    text = _DECODE + body
    for number, name in enumerate(("$Q", "$X0", "$X1", "$X2", "$X3"), start=outputs):
        text = text.replace(name, f"${number}")
    return tl.constexpr(text + "}")


_ASM = _asm(_JOIN + "mov.b32 $0, w0;\n", 1)  # one sum of pairs
_ASM_APART = _asm(_APART + "mov.b32 $0, w0;\nmov.b32 $1, w2;\n", 2)  # codes 0, 1 (and 4, 5), then 2, 3 (and 6, 7)
_HALVES = tl.constexpr("{ .reg .b16 lo, hi; mov.b32 {lo, hi}, $2; cvt.f32.f16 $0, lo; cvt.f32.f16 $1, hi; }")


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """A 4-bit matrix W[n, k] = scales[n, g] * (q[n, k] - 8) + offsets[n, g], g = k // group, in the kernels' layout.

    words int32 [N, 16 * ceil(K / 128)]; scales float16 [N, ceil(K / group)]; offsets the same or None where every
    zero point is 8; rows and columns are N and K.
    """

    words: Tensor
    scales: Tensor
    offsets: Tensor | None
    columns: int
    group: int

    @property
    def rows(self) -> int:
        return self.words.shape[0]

    @property
    def parts(self) -> int:
        """Groups within a block of 128 columns."""
        return max(BLOCK // self.group, 1)

    @property
    def nbytes(self) -> int:
        tensors = (self.words, self.scales, self.offsets)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def fits(columns: int, group: int) -> bool:
    """True if the kernels know this group size."""
    return group in GROUPS or group % BLOCK == 0 or group >= columns


def pack_int4(q: Tensor, scales: Tensor, zeros: Tensor) -> PackedInt4:
    """q uint8 [N, K] in 0..15, scales [N, G], zeros [N, G] (integers) -> the layout above, on q's device."""
    rows, columns = q.shape
    group = columns // scales.shape[1] if scales.shape[1] > 1 else -(-columns // BLOCK) * BLOCK
    if not fits(columns, group):
        raise ValueError(f"group size {group} has no 4-bit kernel: only {GROUPS} and multiples of {BLOCK} have")
    blocks = -(-columns // BLOCK)
    padded = F.pad(q, (0, blocks * BLOCK - columns), value=8).view(rows, blocks, 8, 16).to(torch.int32)
    words = torch.zeros((rows, blocks, 16), dtype=torch.int32, device=q.device)
    for i in range(8):
        words |= padded[:, :, i] << (4 * i)
    shift = 8.0 - zeros.float()
    offsets = (shift * scales.float()).half().contiguous() if bool(shift.any()) else None
    return PackedInt4(words.view(rows, -1), scales.half().contiguous(), offsets, columns, group)


def unpack_int4(packed: PackedInt4) -> Tensor:
    """The matrix itself, float32 [N, K]."""
    words = packed.words.view(packed.rows, -1, 1, 16)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device).view(1, 1, 8, 1)
    codes = ((words >> shifts) & 15).reshape(packed.rows, -1)[:, : packed.columns].float() - 8
    group = torch.arange(packed.columns, device=words.device) // packed.group
    weight = codes * packed.scales.float()[:, group]
    return weight if packed.offsets is None else weight + packed.offsets.float()[:, group]


@triton.jit
def _words(matrix, row, word, N: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
           WHOLE: tl.constexpr):  # fmt: skip
    """A tile [ROWS, SPAN, 4] of words at (row, word); WHOLE: it lies inside, else beyond the edges it is zero."""
    r = row + tl.arange(0, ROWS)
    w = word + tl.arange(0, SPAN)[:, None] * 4 + tl.arange(0, 4)[None, :]
    pointers = matrix + r[:, None, None].to(tl.int64) * WORDS + w[None, :, :]
    if WHOLE and N % ROWS == 0:
        return tl.load(pointers, eviction_policy="evict_first")
    inside = (r < N)[:, None, None] & (w < WORDS)[None, :, :]
    return tl.load(pointers, mask=inside, other=0, eviction_policy="evict_first")


@triton.jit
def _plane(x, word, i: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, WHOLE: tl.constexpr):
    """x for code i of the words of a tile: float32 [1, SPAN, 4]; zero beyond the edge unless WHOLE."""
    w = word + tl.arange(0, SPAN)[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    k = (w // 16) * 128 + i * 16 + w % 16
    if WHOLE:
        return tl.load(x + k, eviction_policy="evict_last").to(tl.float32)
    return tl.load(x + k, mask=k < K, other=0.0, eviction_policy="evict_last").to(tl.float32)


@triton.jit
def _planes(x, word, K: tl.constexpr, SPAN: tl.constexpr, WHOLE: tl.constexpr):
    return (
        _plane(x, word, 0, K, SPAN, WHOLE),
        _plane(x, word, 1, K, SPAN, WHOLE),
        _plane(x, word, 2, K, SPAN, WHOLE),
        _plane(x, word, 3, K, SPAN, WHOLE),
        _plane(x, word, 4, K, SPAN, WHOLE),
        _plane(x, word, 5, K, SPAN, WHOLE),
        _plane(x, word, 6, K, SPAN, WHOLE),
        _plane(x, word, 7, K, SPAN, WHOLE),
    )


@triton.jit
def _times(a, b):
    return (
        a[0] * b[0],
        a[1] * b[1],
        a[2] * b[2],
        a[3] * b[3],
        a[4] * b[4],
        a[5] * b[5],
        a[6] * b[6],
        a[7] * b[7],
    )


@triton.jit
def _scaled(a, factor):
    return _times(a, (factor, factor, factor, factor, factor, factor, factor, factor))


@triton.jit
def _power(a):
    """The sum of squares of planes."""
    return tl.sum(
        a[0] * a[0] + a[1] * a[1] + a[2] * a[2] + a[3] * a[3] + a[4] * a[4] + a[5] * a[5] + a[6] * a[6] + a[7] * a[7]
    )


@triton.jit
def _packed(planes, ASM: tl.constexpr):
    """Planes as the kernel multiplies them: pairs of float16, or as they are."""
    if ASM:
        return (
            _pair(planes[0], planes[4]),
            _pair(planes[1], planes[5]),
            _pair(planes[2], planes[6]),
            _pair(planes[3], planes[7]),
        )
    else:
        return planes


@triton.jit
def _pair(low, high):
    """Two float32 tensors -> int32 words of two float16."""
    return tl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], tl.int32, True, 1)


@triton.jit
def _halves(pairs):
    """Two float32 tensors from words of two float16."""
    return tl.inline_asm_elementwise(_HALVES, "=f,=f,r", [pairs], (tl.float32, tl.float32), True, 1)


@triton.jit
def _add_pairs(a, b):
    return tl.inline_asm_elementwise("add.rn.f16x2 $0, $1, $2;", "=r,r,r", [a, b], tl.int32, True, 1)


@triton.jit
def _code(q, i: tl.constexpr):
    return ((q >> (4 * i)) & 15).to(tl.float32) - 8.0


@triton.jit
def _of_group(table, row, word, part: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
              ROWS: tl.constexpr, SPAN: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """Scales or offsets [ROWS, SPAN] of the groups that part ``part`` of the words of a tile belongs to."""
    COUNT: tl.constexpr = (K + GROUP - 1) // GROUP
    r = row + tl.arange(0, ROWS)
    g = (word + tl.arange(0, SPAN) * 4) // 16 * 128 // GROUP + part
    pointers = table + r[:, None] * COUNT + g[None, :]
    if WHOLE and N % ROWS == 0:
        return tl.load(pointers).to(tl.float32)
    return tl.load(pointers, mask=(r < N)[:, None] & (g < COUNT)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _dots(q, x, PARTS: tl.constexpr, ASM: tl.constexpr):
    """Codes times x, summed over the four words of a thread and over each part's codes: PARTS x [ROWS, SPAN]."""
    if ASM:
        if PARTS <= 2:
            d = tl.inline_asm_elementwise(_ASM, "=r,r,r,r,r,r", [q, x[0], x[1], x[2], x[3]], tl.int32, True, 1)
            low, high = _halves(tl.reduce(d, 2, _add_pairs))
            if PARTS == 1:
                return (low + high,)
            else:
                return low, high
        else:
            d, e = tl.inline_asm_elementwise(
                _ASM_APART, "=r,=r,r,r,r,r,r", [q, x[0], x[1], x[2], x[3]], (tl.int32, tl.int32), True, 1
            )
            a, c = _halves(tl.reduce(d, 2, _add_pairs))
            b, f = _halves(tl.reduce(e, 2, _add_pairs))
            return a, b, c, f
    else:
        a = _code(q, 0) * x[0] + _code(q, 1) * x[1]
        b = _code(q, 2) * x[2] + _code(q, 3) * x[3]
        c = _code(q, 4) * x[4] + _code(q, 5) * x[5]
        d = _code(q, 6) * x[6] + _code(q, 7) * x[7]
        if PARTS == 1:
            return (tl.sum(a + b + c + d, axis=2),)
        elif PARTS == 2:
            return tl.sum(a + b, axis=2), tl.sum(c + d, axis=2)
        else:
            return tl.sum(a, axis=2), tl.sum(b, axis=2), tl.sum(c, axis=2), tl.sum(d, axis=2)


@triton.jit
def _part_sums(planes, PARTS: tl.constexpr):
    """x summed over the codes of each part and the four words of a thread: PARTS x [1, SPAN]."""
    a = tl.sum(planes[0] + planes[1], axis=2)
    b = tl.sum(planes[2] + planes[3], axis=2)
    c = tl.sum(planes[4] + planes[5], axis=2)
    d = tl.sum(planes[6] + planes[7], axis=2)
    if PARTS == 1:
        return (a + b + c + d,)
    elif PARTS == 2:
        return a + b, c + d
    else:
        return a, b, c, d


@triton.jit
def _product(q, x, part_sums, scales, offsets, row, word, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
             ROWS: tl.constexpr, SPAN: tl.constexpr, OFFSETS: tl.constexpr, ASM: tl.constexpr,
             WHOLE: tl.constexpr):  # fmt: skip
    """A tile of words times packed x: float32 [ROWS, SPAN], scaled group by group."""
    PARTS: tl.constexpr = 1 if GROUP >= 128 else 128 // GROUP
    dots = _dots(q, x, PARTS, ASM)
    total = dots[0] * _of_group(scales, row, word, 0, N, K, GROUP, ROWS, SPAN, WHOLE)
    for part in tl.static_range(1, PARTS):
        total += dots[part] * _of_group(scales, row, word, part, N, K, GROUP, ROWS, SPAN, WHOLE)
    if OFFSETS:
        for part in tl.static_range(PARTS):
            total += part_sums[part] * _of_group(offsets, row, word, part, N, K, GROUP, ROWS, SPAN, WHOLE)
    return total


@triton.jit
def _short_rows(
    x,
    norm,
    matrix,
    scales,
    offsets,
    bias,
    y,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    NORM: tl.constexpr,
    OFFSETS: tl.constexpr,
    AFTER: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rows that the threads of a program span at once: x is normalised as a whole before it is multiplied."""
    release(PDL)
    WORDS: tl.constexpr = (K + 127) // 128 * 16
    PARTS: tl.constexpr = 1 if GROUP >= 128 else 128 // GROUP
    WHOLE: tl.constexpr = SPAN * 4 == WORDS and SPAN * 32 == K
    PAIR: tl.constexpr = AFTER == "swiglu"  # gate and up: two halves of the matrix for the same x
    ALL: tl.constexpr = 2 * N if PAIR else N
    row = tl.program_id(0) * ROWS
    tile = _words(matrix, row, 0, ALL, WORDS, ROWS, SPAN, WHOLE)
    second = tile
    if PAIR:
        second = _words(matrix, row + N, 0, ALL, WORDS, ROWS, SPAN, WHOLE)
    depend(PDL)
    r = row + tl.arange(0, ROWS)
    added = added_rows(r, bias, y, N, AFTER)
    planes = _planes(x, 0, K, SPAN, WHOLE)
    factor = 1.0
    if NORM:
        weights = _planes(norm, 0, K, SPAN, WHOLE)
        factor = tl.rsqrt(_power(planes) / K + eps)
        planes = _times(planes, weights)
    planes = _scaled(planes, factor * _SCALE)
    packed = _packed(planes, ASM)
    part_sums = _part_sums(planes, PARTS)
    sums = _product(tile, packed, part_sums, scales, offsets, row, 0, ALL, K, GROUP, ROWS, SPAN, OFFSETS, ASM, WHOLE)
    result = tl.sum(sums, axis=1) / _SCALE
    if PAIR:
        sums = _product(
            second, packed, part_sums, scales, offsets, row + N, 0, ALL, K, GROUP, ROWS, SPAN, OFFSETS, ASM, WHOLE
        )
        result = silu(result) * (tl.sum(sums, axis=1) / _SCALE)
    store_rows(result + added, r, y, N)


@triton.jit
def _long_rows(
    x,
    matrix,
    scales,
    offsets,
    bias,
    y,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    OFFSETS: tl.constexpr,
    AFTER: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Longer rows, step by step; without a norm, which would need all of x before the first product."""
    release(PDL)
    WORDS: tl.constexpr = (K + 127) // 128 * 16
    PARTS: tl.constexpr = 1 if GROUP >= 128 else 128 // GROUP
    STEP: tl.constexpr = SPAN * 4
    WHOLE: tl.constexpr = WORDS % STEP == 0 and K % 128 == 0
    row = tl.program_id(0) * ROWS
    tile = _words(matrix, row, 0, N, WORDS, ROWS, SPAN, WHOLE)
    depend(PDL)
    r = row + tl.arange(0, ROWS)
    added = added_rows(r, bias, y, N, AFTER)
    sums = tl.zeros((ROWS, SPAN), tl.float32)
    for word in range(0, WORDS, STEP):
        here = tile
        tile = _words(matrix, row, word + STEP, N, WORDS, ROWS, SPAN, False)
        planes = _scaled(_planes(x, word, K, SPAN, WHOLE), _SCALE)
        packed = _packed(planes, ASM)
        part_sums = _part_sums(planes, PARTS)
        sums += _product(
            here, packed, part_sums, scales, offsets, row, word, N, K, GROUP, ROWS, SPAN, OFFSETS, ASM, WHOLE
        )
    store_rows(tl.sum(sums, axis=1) / _SCALE + added, r, y, N)


def gemv_int4(
    x: Tensor,
    matrix: PackedInt4,
    y: Tensor,
    tile: Tile,
    *,
    norm: Norm | None = None,
    bias: Tensor | None = None,
    after: str = "",
    pdl: bool = False,
) -> None:
    """y = W x as in ``gemv``, with W in 4 bits; x is float32 (with ``norm``) or float16.

    A norm or SwiGLU needs a tile whose threads, 32 columns each, span a row.
    """
    rows = matrix.rows // 2 if after == "swiglu" else matrix.rows
    tiles = triton.cdiv(rows, tile.rows)
    shared = {
        "N": rows,
        "K": matrix.columns,
        "GROUP": min(matrix.group, -(-matrix.columns // BLOCK) * BLOCK),
        "ROWS": tile.rows,
        "SPAN": tile.threads,
        "OFFSETS": matrix.offsets is not None,
        "AFTER": after,
        "ASM": matrix.words.is_cuda,
        "PDL": pdl,
        "num_warps": tile.warps,
    } | with_pdl(pdl)
    weights = (matrix.words, matrix.scales, matrix.offsets, bias, y)
    if tile.threads * 32 >= matrix.columns:
        _short_rows[(tiles,)](
            *(x, norm.weight if norm else None, *weights, norm.eps if norm else 0.0),
            NORM=norm is not None,
            **shared,
        )
    elif norm is None and after != "swiglu":
        _long_rows[(tiles,)](x, *weights, **shared)
    else:
        raise ValueError(f"{tile.threads} threads do not span rows of {matrix.columns}, which a norm or SwiGLU needs")
