"""The operations of the decoder in plain torch: the truth that every faster kernel is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension (arXiv 1910.07467): float32 inside, cast back, then times the weight.

    The order matters in half precision: Qwen multiplies by the weight after the cast.
    """
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2F] holding gate then up -> silu(gate) * up [..., F] (arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention with grouped heads, scale 1/sqrt(head_dim).

    q [B, H, T, D], k and v [B, KV, S, D] with H a multiple of KV -> [B, H, T, D]. ``mask`` is boolean (True: may
    see), broadcastable to [B, H, T, S]; ``causal`` means T == S and a lower-triangular mask.
    """
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    if length == 1 and mask is None:
        # One query: the heads that share a KV head become the rows of one small product, and K is read once.
        out = F.scaled_dot_product_attention(q.view(batch, k.shape[1], groups, dim), k, v)
        return out.reshape(batch, heads, 1, dim)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
