"""Causal attention over a whole prompt, by the best library there is: FlashAttention where it is installed, else
PyTorch's own cuDNN or flash kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# In order of speed on an H100 (docs/benchmarks.md); the last two take any dtype and head size.
_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def prefill_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [T, N, D], k and v [KV, T, D] of the same tokens -> [T, N * D]: token t sees 0 .. t. Scale 1/sqrt(D)."""
    tokens, heads, dim = q.shape
    flash = _flash_attention()
    if flash is not None and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        out = flash(q[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], causal=True)[0]
        return out.reshape(tokens, heads * dim)
    grouped = heads != k.shape[0]
    with sdpa_kernel(_BACKENDS, set_priority=True):
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k[None], v[None], is_causal=True, enable_gqa=grouped
        )
    return out[0].transpose(0, 1).reshape(tokens, heads * dim)


def prefill_attention_name() -> str:
    """Which library ``prefill_attention`` asks first, for reports."""
    return "flash-attn" if _flash_attention() is not None else "PyTorch SDPA (cuDNN, then flash)"


@functools.cache
def _flash_attention() -> Callable[..., Any] | None:
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func  # type: ignore[no-any-return]
