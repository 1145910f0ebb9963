"""4-bit products on the tensor cores (CUDA C++): one to eight rows at the speed of reading the matrix.

Codes are stored in the order in which the lanes of a warp hold the A operand of mma.m16n8k16 (PTX ISA, "Matrix
fragments for mma.m16n8k16"): a block of 16 rows and 128 columns is 2 x 32 lanes x 4 int32 words. Lane 4g + t, word w
of half h holds rows g and g + 8, columns 64h + 32(w // 2) + 8t + 4(w % 2) + 0..3 of the block. Code of row g + 8u at
column e of these four: bits 4p + 16(e % 2), p = u + 2(e // 2), so that pairs decode as in gemv_int4.py. A lane's
columns are neighbours, so activations are read as they stand.

Up to eight rows of x are the eight columns of the B operand: each is computed as if it were alone, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen_agent.llm.kernels.cuda_source import build, has_nvrtc

SOURCE = Path(__file__).with_name("mma_int4.cu")
GROUPS = (32, 64)  # group sizes below 128 that the kernel knows; every multiple of 128 too
TOKENS = 8  # rows of x at a time
MOST_ROWS = 32  # above, writing the matrix out and a dense product take less time (docs/benchmarks.md)
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_AFTER = {"": 0, "bias": 1, "residual": 2, "swiglu": 3}
_WRITE_THREADS = 128


@dataclass(frozen=True, slots=True)
class TiledInt4:
    """A 4-bit matrix W[n, k] = scales[n, g] * (q[n, k] - 8) + offsets[n, g], g = k // group, in lanes' order.

    words int32 [ceil(N / 16), ceil(K / 128), 2, 32, 4]; scales, and offsets or None, float16
    [ceil(N / 16), groups, 16].
    """

    words: Tensor
    scales: Tensor
    offsets: Tensor | None
    rows: int
    columns: int
    group: int

    @property
    def nbytes(self) -> int:
        tensors = (self.words, self.scales, self.offsets)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def defines(self) -> dict[str, int]:
        return {
            "K": self.columns,
            "GROUPS": self.scales.shape[1],
            "PARTS": max(128 // self.group, 1),
            "OFFSETS": int(self.offsets is not None),
        }


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product is cut: warps of a program that share the columns, blocks of 16 rows, blocks requested ahead."""

    warps: int = 4
    blocks: int = 1
    depth: int = 2


def fits(rows: int, columns: int, group: int) -> bool:
    """True if there is a kernel for a matrix of this shape on a device that has the instructions."""
    known = group in GROUPS or group % 128 == 0 or group >= columns
    return known and rows % 32 == 0 and columns % 8 == 0  # 32: gate and up are blocks of 16 each


def available(device: torch.device) -> bool:
    """True if the kernel can be built for this device."""
    return device.type == "cuda" and has_nvrtc() and torch.cuda.get_device_capability(device) >= (8, 0)


def tile_int4(q: Tensor, scales: Tensor, zeros: Tensor) -> TiledInt4:
    """q uint8 [N, K] in 0..15, scales [N, G], zeros [N, G] (integers) -> the layout above, on q's device."""
    rows, columns = q.shape
    group = columns // scales.shape[1] if scales.shape[1] > 1 else -(-columns // 128) * 128
    if not fits(rows, columns, group):
        raise ValueError(f"no tensor-core kernel for a 4-bit matrix [{rows}, {columns}] in groups of {group}")
    padded = F.pad(q, (0, -columns % 128, 0, -rows % 16), value=8)
    # [R, u, g, C, h, w1, t, w0, e1, e0] with row 8u + g, column 64h + 32 w1 + 8t + 4 w0 + 2 e1 + e0
    split = padded.view(padded.shape[0] // 16, 2, 8, padded.shape[1] // 128, 2, 2, 4, 2, 2, 2)
    lanes = split.permute(0, 3, 4, 2, 6, 5, 7, 9, 8, 1)  # [R, C, h, g, t, w1, w0, e0, e1, u]
    words = torch.zeros(lanes.shape[:7], dtype=torch.int32, device=q.device)
    for e0 in range(2):
        for e1 in range(2):
            for u in range(2):
                words |= lanes[..., e0, e1, u].to(torch.int32) << (4 * (u + 2 * e1) + 16 * e0)
    shift = 8.0 - zeros.float()
    offsets = _by_blocks(shift * scales.float()) if bool(shift.any()) else None
    shape = (*words.shape[:3], 32, 4)
    return TiledInt4(words.view(shape), _by_blocks(scales), offsets, rows, columns, group)


def untile_int4(tiled: TiledInt4) -> Tensor:
    """The matrix itself, float32 [N, K], in plain torch: the reference."""
    blocks, columns = tiled.words.shape[:2]
    words = tiled.words.view(blocks, columns, 2, 8, 4, 2, 2, 1, 1, 1)
    e0, e1, u = (torch.arange(2, device=words.device).view(s) for s in ((2, 1, 1), (2, 1), (2,)))
    codes = ((words >> (4 * (u + 2 * e1) + 16 * e0)) & 15).float() - 8  # [R, C, h, g, t, w1, w0, e0, e1, u]
    q = codes.permute(0, 9, 3, 1, 2, 5, 4, 6, 8, 7).reshape(blocks * 16, columns * 128)
    group = torch.arange(tiled.columns, device=words.device) // tiled.group
    weight = q[:, : tiled.columns] * _by_rows(tiled.scales)[:, group]
    if tiled.offsets is not None:
        weight = weight + _by_rows(tiled.offsets)[:, group]
    return weight[: tiled.rows]


def _by_blocks(table: Tensor) -> Tensor:
    """[N, G] -> float16 [ceil(N / 16), G, 16]."""
    padded = F.pad(table.half(), (0, 0, 0, -table.shape[0] % 16))
    return padded.view(-1, 16, table.shape[1]).transpose(1, 2).contiguous()


def _by_rows(table: Tensor) -> Tensor:
    return table.transpose(1, 2).reshape(-1, table.shape[1]).float()


def mma_int4(
    x: Tensor,
    matrix: TiledInt4,
    y: Tensor,
    cut: Cut,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    after: str = "",
    pdl: bool = False,
) -> None:
    """y = W x as in ``gemv``: x float32 [K] with ``norm``, else float16 [T, K] with T 1 or 8; y [T, N]."""
    swiglu = after == "swiglu"
    rows = matrix.rows // 2 if swiglu else matrix.rows
    tokens = 1 if norm is not None else x.numel() // matrix.columns
    blocks = 2 if swiglu else cut.blocks
    weights = next((w.dtype for w in (norm, bias) if w is not None), torch.float32)
    defines = matrix.defines() | {
        "ROWS": rows,
        "TOKENS": tokens,
        "BLOCKS": blocks,
        "WARPS": cut.warps,
        "DEPTH": cut.depth,
        "NORM": int(norm is not None),
        "AFTER": _AFTER[after],
        "WEIGHT": _KINDS[weights],
        "OUT": _KINDS[y.dtype],
        "PDL": int(pdl),
    }
    kernel = build(SOURCE, "mma_int4", cut.warps * 32, tuple(defines.items()), x.device.index)
    programs = rows // 16 if swiglu else -(-rows // (16 * blocks))
    arguments = (x, norm, matrix.words, matrix.scales, matrix.offsets, bias, y, float(eps))
    kernel(programs, arguments, pdl=pdl)


def write_out_tiled(matrix: TiledInt4, out: Tensor) -> Tensor:
    """The matrix in ``out``'s dtype (float16 or bfloat16): fills and returns a view [N, K] of ``out``."""
    view = out.view(-1)[: matrix.rows * matrix.columns].view(matrix.rows, matrix.columns)
    unused = {"TOKENS": 1, "BLOCKS": 1, "WARPS": 4, "DEPTH": 1, "NORM": 0, "AFTER": 0, "WEIGHT": 0, "PDL": 0}
    defines = matrix.defines() | unused | {"ROWS": matrix.rows, "OUT": _KINDS[out.dtype], "WRITE_OUT": 1}
    kernel = build(SOURCE, "write_out_int4", _WRITE_THREADS, tuple(defines.items()), out.device.index)
    tiles = matrix.words.shape[0] * matrix.words.shape[1]
    kernel(-(-tiles // 4), (matrix.words, matrix.scales, matrix.offsets, view), pdl=False)
    return view


def rows_of_eight(x: Tensor, matrix: TiledInt4, bias: Tensor | None, cut: Cut) -> Tensor:
    """x [T, K] -> x W^T + bias [T, N] in x's dtype, eight rows at a time; each row as if it were alone."""
    tokens = x.shape[0]
    padded = F.pad(x, (0, 0, 0, -tokens % TOKENS)).half()
    y = torch.empty((padded.shape[0], matrix.rows), dtype=x.dtype, device=x.device)
    for start in range(0, tokens, TOKENS):
        some = slice(start, start + TOKENS)
        mma_int4(padded[some], matrix, y[some], cut, bias=bias, after="" if bias is None else "bias")
    return y[:tokens]


class TiledMatMul:
    """x [..., K] -> x W^T [..., N] for codes q uint8 [N, K], scales and zeros [N, K/G]; holds them in lanes' order."""

    def __init__(self, q: Tensor, scales: Tensor, zeros: Tensor) -> None:
        self.tiled = tile_int4(q, scales, zeros)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return self.rows(rows, None, None).view(*x.shape[:-1], self.tiled.rows)

    def rows(self, x: Tensor, bias: Tensor | None, room: Tensor | None) -> Tensor:
        """x [T, K] -> x W^T + bias [T, N]; many rows write the matrix out, into ``room`` if given."""
        if x.shape[0] <= MOST_ROWS:
            return rows_of_eight(x, self.tiled, bias, cut_for(self.tiled.rows, self.tiled.columns))
        if room is None:
            room = torch.empty(self.tiled.rows * self.tiled.columns, dtype=x.dtype, device=x.device)
        return F.linear(x, write_out_tiled(self.tiled, room), bias)


def cut_for(rows: int, columns: int) -> Cut:
    """What was fastest on an H100 (docs/benchmarks.md)."""
    return Cut(warps=8, blocks=2 if rows > 8192 else 1, depth=1)
