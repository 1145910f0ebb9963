"""Attention over a whole prompt against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from qwen_agent.llm.kernels import reference
from qwen_agent.llm.kernels.prefill_attention import prefill_attention, prefill_attention_name

GPU = torch.cuda.is_available()
SHAPES = [(8, 8, 64), (8, 2, 128), (32, 8, 128)] if GPU else [(4, 4, 16), (4, 2, 32), (6, 1, 48)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", (2, 129, 2048) if GPU else (1, 2, 37))
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_output_matches_the_reference(
    heads: int, kv_heads: int, dim: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    q = (torch.randn(tokens, heads, dim, device=device) * 2).to(dtype)
    # Keys and values are the beginning of a cache, whose rest must not be looked at.
    cache = (torch.randn(2, kv_heads, tokens + 5, dim, device=device) * 2).to(dtype)
    cache[:, :, tokens:] = torch.nan
    k, v = cache[:, :, :tokens]
    out = prefill_attention(q, k, v)
    assert out.shape == (tokens, heads * dim)
    assert out.dtype == dtype
    wide = (t.double()[None] for t in (q.transpose(0, 1), k, v))
    want = reference.attention(*wide, None, causal=True)[0].transpose(0, 1).reshape(tokens, -1)
    assert (out.double() - want).norm() / want.norm() < TOLERANCE[dtype]


def test_a_token_sees_none_that_come_later(device: torch.device) -> None:
    dtype = torch.float16 if GPU else torch.float32
    q, k, v = (torch.randn(20, 4, 64, device=device).to(dtype) for _ in range(3))
    k, v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
    out = prefill_attention(q, k, v)
    k[:, 11:], v[:, 11:] = torch.randn(2, 4, 9, 64, device=device).to(dtype)
    again = prefill_attention(q, k, v)
    torch.testing.assert_close(again[:11], out[:11])
    assert not torch.allclose(again[11:], out[11:], atol=1e-2)


def test_the_library_has_a_name() -> None:
    assert prefill_attention_name()
