"""Attention for several new tokens on top of a cached prefix: flash attention that reads the cache where it lies.

The new keys and values are in the cache already (rotary.rotate_and_store). How long the prefix is comes from device
memory; ``pages``, ``place`` and the 8-bit format are described in rotary.py. With few tokens there are too few tiles
to fill a GPU, so the keys of a tile are shared out to several programs and a second kernel joins their results, in
fixed order.

Shapes: T new tokens, N heads, KV heads of keys and values, D head size, a multiple of 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.decode_attention import LOWEST, load_tile, share
from qwen_agent.llm.kernels.launch import depend, release, with_pdl
from qwen_agent.llm.kernels.rotary import CACHE_TYPES, page

_PROGRAMS = 256  # as many as an H100 runs at once, about: fewer tiles than that are split
_MOST_SPLITS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """How the work for T new tokens is cut up and compiled."""

    block_m: int  # new tokens per program
    block_n: int  # cached tokens per step of its loop
    splits: int  # programs that share the keys of one tile
    warps: int
    stages: int


def plan(rows: int, heads: int, dtype: torch.dtype) -> Plan:
    """The plan for ``rows`` new tokens of ``heads`` heads; ``dtype`` is that of the queries."""
    block_m = 16 if rows <= 16 else 64 if rows <= 256 else 128
    if dtype == torch.float32:  # without tensor cores registers are the limit
        block_m = 16
    tiles = triton.cdiv(rows, block_m) * heads
    splits = min(_MOST_SPLITS, triton.next_power_of_2(max(1, _PROGRAMS // tiles)))
    if dtype == torch.float32:
        return Plan(block_m, 32, splits, warps=8, stages=2)
    return Plan(block_m, 64, splits, warps=8 if block_m == 128 else 4, stages=3)


def new_scratch(rows: int, heads: int, head_dim: int, device: torch.device | str) -> Tensor:
    """Partial results (float32) of ``suffix_attention`` for up to ``rows`` new tokens of any float type."""
    most = max(scratch_size(count, heads, head_dim) for count in range(1, rows + 1))
    return torch.zeros(most, dtype=torch.float32, device=device)


def scratch_size(rows: int, heads: int, head_dim: int) -> int:
    """Numbers of scratch that ``rows`` new tokens need."""
    splits = max(plan(rows, heads, dtype).splits for dtype in (torch.bfloat16, torch.float32))
    return rows * splits * heads * (head_dim + 2) if splits > 1 else 0


@triton.jit
def _step(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    m,
    mass,
    acc,
    start,
    stop,
    limit,
    score_scale,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    QUANT: tl.constexpr,
    ALL: tl.constexpr,
):
    """Go on with an online softmax over tokens start .. stop. ALL: every row sees them all, in whole blocks.

    ``limit`` [BLOCK_M] is the last token that a row sees; m, mass [BLOCK_M] and acc [BLOCK_M, WIDTH] are the running
    maximum, sum of weights and weighted sum of values.
    """
    d = tl.arange(0, WIDTH)
    n = tl.arange(0, BLOCK_N)
    if QUANT:
        # Too narrow to be loaded ahead by the pipeline, so one step ahead by hand.
        k_scale = tl.load(key_scales + start + n, mask=start + n < stop, other=0.0)
        v_scale = tl.load(value_scales + start + n, mask=start + n < stop, other=0.0)
    for at in tl.range(start, stop, BLOCK_N, num_stages=STAGES):
        token = at + n
        k = load_tile(keys, token, d, stop, DIM, WIDTH, ALL)
        v = load_tile(values, token, d, stop, DIM, WIDTH, ALL)
        score = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * score_scale  # [BLOCK_M, BLOCK_N]
        if QUANT:
            score = score * k_scale.to(tl.float32)[None, :]
        seen = (token[None, :] <= limit[:, None]) & (token < stop)[None, :]
        if not ALL:
            score = tl.where(seen, score, LOWEST)
        m_new = tl.maximum(m, tl.max(score, 1))
        weight = tl.exp2(score - m_new[:, None])
        if not ALL:
            weight = tl.where(seen, weight, 0.0)
        fade = tl.exp2(m - m_new)
        mass = mass * fade + tl.sum(weight, 1)
        m = m_new
        if QUANT:
            weight = weight * v_scale.to(tl.float32)[None, :]
            ahead = token + BLOCK_N
            k_scale = tl.load(key_scales + ahead, mask=ahead < stop, other=0.0)
            v_scale = tl.load(value_scales + ahead, mask=ahead < stop, other=0.0)
        acc = tl.dot(weight.to(q.dtype), v.to(q.dtype), acc * fade[:, None], input_precision="ieee")
    return m, mass, acc


@triton.jit(do_not_specialize=["layer", "layers", "rows"])
def _kernel(
    q,
    pages,
    place,
    out,
    partials,
    layer,
    layers,
    rows,
    score_scale,  # log2(e) / sqrt(D): the softmax is taken to base 2
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # D, up to a power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    CACHE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: BLOCK_M new tokens of one query head, one share of the tokens they see."""
    release(PDL)
    depend(PDL)
    QUANT: tl.constexpr = tl.int8 == CACHE
    head = tl.program_id(0)
    # The last tiles see the most tokens, so they start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    split = tl.program_id(2)
    position = tl.load(place).to(tl.int32)
    count = tl.minimum(tl.load(place + 1).to(tl.int32), rows)
    capacity = tl.load(place + 2).to(tl.int32)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (d < DIM)[None, :]
    at = (row.to(tl.int64)[:, None] * HEADS + head) * DIM + d[None, :]
    if tile * BLOCK_M >= count:
        if split == 0:
            tl.store(out + at, tl.zeros([BLOCK_M, WIDTH], out.dtype.element_ty), mask=inside)
        return
    total = position + tl.minimum(tile * BLOCK_M + BLOCK_M, count)
    span = share(total, SPLITS, BLOCK_N)
    start = split * span
    if start >= total:
        return
    stop = tl.minimum(start + span, total)
    # Rows beyond the count see what the last real row sees: what lies further on in the cache may not be finite.
    limit = position + tl.minimum(row, count - 1)
    # Up to here every row of the tile sees every token.
    whole = tl.minimum(position + tile * BLOCK_M + 1, stop)
    whole = start + tl.maximum(whole - start, 0) // BLOCK_N * BLOCK_N

    base = (head // (HEADS // KV_HEADS)).to(tl.int64) * capacity
    keys = page(pages, 0, layers, layer, CACHE) + base * DIM
    values = page(pages, 1, layers, layer, CACHE) + base * DIM
    key_scales = page(pages, 2, layers, layer, tl.float16) + base
    value_scales = page(pages, 3, layers, layer, tl.float16) + base
    query = tl.load(q + at, mask=inside, other=0.0)
    m = tl.full([BLOCK_M], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    m, mass, acc = _step(
        query,
        keys,
        values,
        key_scales,
        value_scales,
        m,
        mass,
        acc,
        start,
        whole,
        limit,
        score_scale,
        DIM,
        WIDTH,
        BLOCK_N,
        STAGES,
        QUANT,
        True,
    )
    m, mass, acc = _step(
        query,
        keys,
        values,
        key_scales,
        value_scales,
        m,
        mass,
        acc,
        whole,
        stop,
        limit,
        score_scale,
        DIM,
        WIDTH,
        BLOCK_N,
        STAGES,
        QUANT,
        False,
    )
    if SPLITS == 1:
        tl.store(out + at, (acc / mass[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        to = split.to(tl.int64) * rows * HEADS + row * HEADS + head
        size = rows.to(tl.int64) * HEADS * SPLITS
        tl.store(partials + to[:, None] * DIM + d[None, :], acc, mask=inside)
        tl.store(partials + size * DIM + to, m, mask=row < rows)
        tl.store(partials + size * (DIM + 1) + to, mass, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _combine(
    place,
    out,
    partials,
    rows,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: one new token of one head."""
    release(PDL)
    depend(PDL)
    head = tl.program_id(0)
    row = tl.program_id(1)
    position = tl.load(place).to(tl.int32)
    count = tl.minimum(tl.load(place + 1).to(tl.int32), rows)
    first = row // BLOCK_M * BLOCK_M
    if first >= count:
        return
    total = position + tl.minimum(first + BLOCK_M, count)
    split = tl.arange(0, SPLITS)
    there = split < tl.cdiv(total, share(total, SPLITS, BLOCK_N))
    at = split.to(tl.int64) * rows * HEADS + row * HEADS + head
    size = rows.to(tl.int64) * HEADS * SPLITS
    d = tl.arange(0, WIDTH)
    inside = d < DIM
    m = tl.load(partials + size * DIM + at, mask=there, other=LOWEST)
    mass = tl.load(partials + size * (DIM + 1) + at, mask=there, other=0.0)
    acc = tl.load(partials + at[:, None] * DIM + d[None, :], mask=there[:, None] & inside[None, :], other=0.0)
    factor = tl.exp2(m - tl.max(m, 0))
    merged = tl.sum(acc * factor[:, None], 0) / tl.sum(mass * factor, 0)
    tl.store(out + (row.to(tl.int64) * HEADS + head) * DIM + d, merged.to(out.dtype.element_ty), mask=inside)


def suffix_attention(
    q: Tensor,
    pages: Tensor,
    layer: int,
    place: Tensor,
    out: Tensor,
    scratch: Tensor,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    cache_dtype: torch.dtype,
    pdl: bool = False,
) -> Tensor:
    """Attention of rotated queries ``q`` [T, N, D] over the cache of ``layer`` -> ``out`` [T, N, D] of the same type.

    Row t sees tokens 0 .. place[0] + t, which must be stored already. Scale 1/sqrt(D). Rows from place[1] on are
    finite and otherwise unspecified. Products are taken in the type of q (bfloat16, float16 or float32) and summed in
    float32. ``scratch`` is from ``new_scratch`` for at least T rows. ``pdl`` lets the kernels start before the ones
    before them end (Hopper on).
    """
    rows = q.shape[0]
    chosen = plan(rows, heads, q.dtype)
    needed = rows * chosen.splits * heads * (head_dim + 2)
    if chosen.splits > 1 and scratch.numel() < needed:
        raise ValueError(f"scratch of {scratch.numel()} numbers is too small for {rows} tokens: they need {needed}")
    width = triton.next_power_of_2(head_dim)
    extra = with_pdl(pdl)
    kernel = _kernel[(heads, triton.cdiv(rows, chosen.block_m), chosen.splits)]
    kernel(
        q,
        pages,
        place,
        out,
        scratch,
        layer,
        pages.shape[1],
        rows,
        math.log2(math.e) / math.sqrt(head_dim),
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=head_dim,
        WIDTH=width,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        SPLITS=chosen.splits,
        STAGES=chosen.stages,
        CACHE=CACHE_TYPES[cache_dtype],
        PDL=pdl,
        num_warps=chosen.warps,
        **extra,
    )
    if chosen.splits > 1:
        combine = _combine[(heads, rows)]
        combine(
            place,
            out,
            scratch,
            rows,
            HEADS=heads,
            DIM=head_dim,
            WIDTH=width,
            BLOCK_M=chosen.block_m,
            BLOCK_N=chosen.block_n,
            SPLITS=chosen.splits,
            PDL=pdl,
            num_warps=2,
            **extra,
        )
    return out


def reference_suffix_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    start: int,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """What ``suffix_attention`` computes, in float64: q [T, N, D] from position ``start`` -> [T, N, D].

    keys, values [KV, capacity, D] hold the new tokens already; int8 with scales float16 [KV, capacity].
    """
    rows, heads, dim = q.shape
    total = start + rows
    wide_keys, wide_values = keys[:, :total].double(), values[:, :total].double()
    if key_scales is not None and value_scales is not None:
        wide_keys = wide_keys * key_scales[:, :total].double()[..., None]
        wide_values = wide_values * value_scales[:, :total].double()[..., None]
    groups = heads // keys.shape[0]
    wide_keys, wide_values = (x.repeat_interleave(groups, dim=0) for x in (wide_keys, wide_values))
    scores = torch.einsum("tnd,nsd->nts", q.double(), wide_keys) / math.sqrt(dim)
    positions = torch.arange(total, device=q.device)
    hidden = positions[None, :] > positions[start:, None]  # [T, S]
    return torch.einsum("nts,nsd->tnd", scores.masked_fill(hidden, -math.inf).softmax(-1), wide_values)
