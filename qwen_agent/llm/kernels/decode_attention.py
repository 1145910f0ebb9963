"""Attention for one new token in one launch: head norm, rotary embedding, LogN, cache write, split-KV attention.

The cached tokens of a head are shared out to SPLITS programs (flash decoding); the last of a head to finish puts the
partial results together, in fixed order. ``pages``, ``place``, ``inverse`` and the 8-bit format are described in
rotary.py. Shapes: N heads, KV heads of keys and values, D head size, a multiple of 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen_agent.llm.kernels.launch import depend, release, with_pdl
from qwen_agent.llm.kernels.rotary import (
    CACHE_TYPES,
    int8_codes,
    int8_scale,
    logn_factor,
    page,
    reference_int8,
    reference_rotate,
    sine_cosine,
)

SPLITS = 16  # programs per head; 32 heads are 512 programs, four for each multiprocessor of an H100
_WARPS = 4
_STAGES = 4  # with 32 tokens of 128 bfloat16 per step, four programs fit into a multiprocessor's shared memory

LOWEST = tl.constexpr(-1e30)  # below any score, and finite: its difference with itself is not NaN


@dataclass(frozen=True, slots=True)
class Scratch:
    """Working memory of ``decode_attention``; calls that run one after another may share it."""

    partials: Tensor  # float32 [N * SPLITS * (D + 2)]: weighted sums of values, then maxima, then sums of weights
    counters: Tensor  # int32 [N]: programs of a head that are done; 0 between calls


def new_scratch(heads: int, head_dim: int, device: torch.device | str) -> Scratch:
    """Scratch for ``heads`` query heads of ``head_dim`` dimensions."""
    partials = torch.zeros(heads * SPLITS * (head_dim + 2), dtype=torch.float32, device=device)
    return Scratch(partials, torch.zeros(heads, dtype=torch.int32, device=device))


@triton.jit
def share(tokens, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many of ``tokens`` each of SPLITS programs takes: a multiple of BLOCK, so that later ones may have none."""
    return tl.cdiv(tl.cdiv(tokens, SPLITS), BLOCK) * BLOCK


@triton.jit
def load_tile(base, token, d, stop, DIM: tl.constexpr, WIDTH: tl.constexpr, ALL: tl.constexpr):
    """Rows ``token`` [BLOCK] of one head [., D] -> [BLOCK, WIDTH]; 0 from ``stop`` on (unless ALL) and from D on."""
    at = base + (token[:, None] * DIM + d[None, :])
    if WIDTH == DIM:
        tile = tl.load(at) if ALL else tl.load(at, mask=(token < stop)[:, None], other=0)
    elif ALL:
        tile = tl.load(at, mask=(d < DIM)[None, :], other=0)
    else:
        tile = tl.load(at, mask=(token < stop)[:, None] & (d < DIM)[None, :], other=0)
    return tile


@triton.jit
def _turned(own, other, weight, d, inside, sine, cosine, eps, DIM: tl.constexpr, NORM: tl.constexpr):
    """One head ``own`` [WIDTH], ``other`` half a head further: normalised with ``weight`` [D] if NORM, then rotated."""
    if NORM:
        factor = tl.rsqrt(tl.sum(own * own, 0) / DIM + eps)
        own = own * factor * tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
        other = other * factor * tl.load(weight + (d + DIM // 2) % DIM, mask=inside, other=0.0).to(tl.float32)
    return own * cosine + tl.where(d < DIM // 2, -other, other) * sine


@triton.jit
def _kept(x, base, scale_at, d, inside, writes, CACHE: tl.constexpr):
    """x [WIDTH] as the cache holds it, read back as float32; stored at base (and scale_at) if ``writes``."""
    if tl.int8 == CACHE:
        scale = int8_scale(tl.max(tl.abs(x), 0))
        codes = int8_codes(x, tl.zeros_like(x) + scale.to(tl.float32))
        tl.store(base + d, codes.to(tl.int8), mask=inside & writes)
        tl.store(scale_at, scale, mask=writes)
        kept = codes * scale.to(tl.float32)
    else:
        rounded = x.to(CACHE)
        tl.store(base + d, rounded, mask=inside & writes)
        kept = rounded.to(tl.float32)
    return kept


@triton.jit
def _merged(partials, head, active, d, inside, HEADS: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr):
    """The first ``active`` partial results of a head as one, float32 [WIDTH]."""
    split = tl.arange(0, SPLITS)
    there = split < active
    at = head * SPLITS + split
    # Past the first-level cache, which other multiprocessors' stores do not reach.
    m = tl.load(partials + HEADS * SPLITS * DIM + at, mask=there, other=LOWEST, cache_modifier=".cg")
    mass = tl.load(partials + HEADS * SPLITS * (DIM + 1) + at, mask=there, other=0.0, cache_modifier=".cg")
    mask = there[:, None] & inside[None, :]
    acc = tl.load(partials + at[:, None] * DIM + d[None, :], mask=mask, other=0.0, cache_modifier=".cg")
    factor = tl.exp2(m - tl.max(m, 0))
    return tl.sum(acc * factor[:, None], 0) / tl.sum(mass * factor, 0)


@triton.jit(do_not_specialize=["layer", "layers", "logn_length"])
def _kernel(
    qkv,
    pages,
    place,
    inverse,
    q_weight,
    k_weight,
    out,
    partials,
    counters,
    layer,
    layers,
    logn_length,
    logn_factor,
    eps,
    query_scale,  # log2(e) / sqrt(D): the softmax is taken to base 2
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # D, up to a power of two
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    CACHE: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: one query head, one share of its tokens. The program whose share ends with the new token adds it."""
    QUANT: tl.constexpr = tl.int8 == CACHE
    release(PDL)
    # Only the host changes these, between steps.
    keys = page(pages, 0, layers, layer, CACHE)
    values = page(pages, 1, layers, layer, CACHE)
    key_scales = page(pages, 2, layers, layer, tl.float16)
    value_scales = page(pages, 3, layers, layer, tl.float16)
    capacity = tl.load(place + 2).to(tl.int32)
    d = tl.arange(0, WIDTH)
    inside = d < DIM
    frequency = tl.load(inverse + d % (DIM // 2), mask=inside, other=0.0)
    depend(PDL)
    head = tl.program_id(0)
    split = tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    position = tl.load(place).to(tl.int32)
    length = position + 1
    span = share(length, SPLITS, BLOCK)
    start = split * span
    stop = tl.minimum(start + span, position)
    # A program without a share goes on with an empty loop: an exit here would hold every load below back until
    # ``place`` is there, and they are what a short context waits for.
    base = kv_head.to(tl.int64) * capacity
    keys += base * DIM
    values += base * DIM
    key_scales += base
    value_scales += base
    partner = (d + DIM // 2) % DIM
    row = tl.arange(0, BLOCK)
    if QUANT:
        # Too narrow to be loaded ahead by the pipeline, so one step ahead by hand.
        k_scale = tl.load(key_scales + start + row, mask=start + row < stop, other=0.0)
        v_scale = tl.load(value_scales + start + row, mask=start + row < stop, other=0.0)
    q = qkv + head * DIM
    k = qkv + (HEADS + kv_head) * DIM
    v = qkv + (HEADS + KV_HEADS + kv_head) * DIM
    q_own = tl.load(q + d, mask=inside, other=0.0)
    q_other = tl.load(q + partner, mask=inside, other=0.0)
    # For the new row, needed after the loop only.
    k_own = tl.load(k + d, mask=inside, other=0.0)
    k_other = tl.load(k + partner, mask=inside, other=0.0)
    v_new = tl.load(v + d, mask=inside, other=0.0)
    sine, cosine = sine_cosine(position.to(tl.float32) * frequency)
    query = _turned(q_own, q_other, q_weight, d, inside, sine, cosine, eps, DIM, NORM) * query_scale
    if (logn_length > 0) & (length > logn_length):
        query = query * (tl.log(length.to(tl.float32)) * logn_factor)

    # One softmax per row of the tile, joined after the loop: no exchange between warps within it.
    m = tl.full([BLOCK], LOWEST, tl.float32)  # running maxima
    mass = tl.zeros([BLOCK], tl.float32)  # sums of weights
    acc = tl.zeros([BLOCK, WIDTH], tl.float32)  # weighted sums of values
    for at in tl.range(start, stop, BLOCK, num_stages=STAGES):
        token = at + row
        k_tile = load_tile(keys, token, d, stop, DIM, WIDTH, False)
        v_tile = load_tile(values, token, d, stop, DIM, WIDTH, False)
        score = tl.sum(k_tile.to(tl.float32) * query[None, :], 1)
        if QUANT:
            score = score * k_scale.to(tl.float32)
        score = tl.where(token < stop, score, LOWEST)
        m_new = tl.maximum(m, score)
        fade = tl.exp2(m - m_new)
        weight = tl.where(token < stop, tl.exp2(score - m_new), 0.0)
        mass = mass * fade + weight
        m = m_new
        if QUANT:
            weight = weight * v_scale.to(tl.float32)
            ahead = token + BLOCK
            k_scale = tl.load(key_scales + ahead, mask=ahead < stop, other=0.0)
            v_scale = tl.load(value_scales + ahead, mask=ahead < stop, other=0.0)
        acc = acc * fade[:, None] + weight[:, None] * v_tile.to(tl.float32)
    top = tl.max(m, 0)
    factor = tl.exp2(m - top)
    total = tl.sum(mass * factor, 0)
    mixed = tl.sum(acc * factor[:, None], 0)

    if (start <= position) & (position < start + span):
        # Every head of a group works the new row out for itself, so none has to wait for the one that stores it.
        writes = (head % (HEADS // KV_HEADS) == 0) & (position < capacity)
        new = _turned(k_own, k_other, k_weight, d, inside, sine, cosine, eps, DIM, NORM)
        new = _kept(new, keys + position * DIM, key_scales + position, d, inside, writes, CACHE)
        score_new = tl.sum(query * new, 0)
        new = _kept(v_new, values + position * DIM, value_scales + position, d, inside, writes, CACHE)
        top_new = tl.maximum(top, score_new)
        fade_all = tl.exp2(top - top_new)
        weight_new = tl.exp2(score_new - top_new)
        top = top_new
        total = total * fade_all + weight_new
        mixed = mixed * fade_all + weight_new * new

    active = tl.cdiv(length, span)
    if split < active:
        if active == 1:
            tl.store(out + head * DIM + d, (mixed / total).to(out.dtype.element_ty), mask=inside)
        else:
            at = head * SPLITS + split
            tl.store(partials + at * DIM + d, mixed, mask=inside)
            tl.store(partials + HEADS * SPLITS * DIM + at, top)
            tl.store(partials + HEADS * SPLITS * (DIM + 1) + at, total)
            tl.debug_barrier()  # all threads have stored before one of them releases
            arrived = tl.atomic_add(counters + head, 1, sem="acq_rel", scope="gpu")
            if arrived == active - 1:
                tl.debug_barrier()
                merged = _merged(partials, head, active, d, inside, HEADS, DIM, SPLITS)
                tl.store(out + head * DIM + d, merged.to(out.dtype.element_ty), mask=inside)
                tl.store(counters + head, 0)


def decode_attention(
    qkv: Tensor,
    pages: Tensor,
    layer: int,
    place: Tensor,
    inverse: Tensor,
    out: Tensor,
    scratch: Scratch,
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
    """Attention of the token at position place[0] over all tokens up to itself -> ``out`` [N * D], any float type.

    ``qkv`` float32 [(N + 2 KV) * D] holds q, k, v of the new token with the bias added. Its rotated k and its v are
    stored in the cache of ``layer`` and used as rounded there. ``q_norm``, ``k_norm`` [D] are the weights of the norm
    per head (both or neither). ``logn_length`` is the length beyond which LogN scales q; 0 is off. place[1] is not
    read. All maths in float32; the same input gives the same bits. ``pdl`` lets the kernel start before the one before
    it ends (Hopper on); ``pages``, ``inverse`` and place[2] must then be older than that one.
    """
    width = triton.next_power_of_2(head_dim)
    kernel = _kernel[(heads, SPLITS)]
    kernel(
        qkv,
        pages,
        place,
        inverse,
        q_norm,
        k_norm,
        out,
        scratch.partials,
        scratch.counters,
        layer,
        pages.shape[1],
        logn_length,
        logn_factor(logn_length),
        eps,
        math.log2(math.e) / math.sqrt(head_dim),
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=head_dim,
        WIDTH=width,
        BLOCK=block_tokens(width, cache_dtype),
        SPLITS=SPLITS,
        STAGES=_STAGES,
        CACHE=CACHE_TYPES[cache_dtype],
        NORM=q_norm is not None,
        PDL=pdl,
        num_warps=_WARPS,
        **with_pdl(pdl),
    )
    return out


def block_tokens(width: int, cache_dtype: torch.dtype) -> int:
    """Tokens per step of the loop, so that registers (4096 sums) and shared memory (8 KiB of keys) stay bounded."""
    return max(8, min(64, 4096 // width, 8192 // (width * cache_dtype.itemsize)))


def reference_decode_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    position: int,
    inverse: Tensor,
    *,
    heads: int,
    kv_heads: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    logn_length: int = 0,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """What ``decode_attention`` computes, in float64 -> [N * D].

    keys, values [KV, capacity, D] are the cache before the call and stay as they are; int8 with scales float16
    [KV, capacity]. The new row is rounded to their type.
    """
    q, k, v = reference_rotate(
        qkv[None],
        position,
        inverse,
        heads=heads,
        kv_heads=kv_heads,
        logn_length=logn_length,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
    )
    rows = []
    for held, scales, new in ((keys, key_scales, k[0]), (values, value_scales, v[0])):
        past = held[:, :position].double()
        if scales is None:
            kept = new.to(held.dtype).double()
        else:
            past = past * scales[:, :position].double()[..., None]
            codes, scale = reference_int8(new)
            kept = codes.double() * scale.double()[:, None]
        rows.append(torch.cat((past, kept[:, None]), dim=1))  # [KV, position + 1, D]
    all_keys, all_values = (row.repeat_interleave(heads // kv_heads, dim=0) for row in rows)
    scores = torch.einsum("nd,nsd->ns", q[0], all_keys) / math.sqrt(q.shape[-1])
    return torch.einsum("ns,nsd->nd", scores.softmax(-1), all_values).reshape(-1)
