from __future__ import annotations

import math

import pytest
import torch

from qwen_agent.llm.kernels.rotary import (
    logn_factor,
    reference_int8,
    reference_rotate,
    rotate_and_store,
)

GPU = torch.cuda.is_available()
HEADS, DIM = (32, 128) if GPU else (2, 32)
ROWS = (1, 17, 2048) if GPU else (1, 17)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def inverse(dim, alpha=1.0):
    """Rotary frequencies, stretched by a dynamic-NTK alpha."""
    base = 10000.0 * alpha ** (dim / (dim - 2))
    return 1.0 / base ** (torch.arange(0, dim, 2) / dim)


def error(out, want):
    return ((out.double() - want).norm() / want.norm()).item()


def run(cache, qkv, start, count, *, heads=HEADS, alpha=1.0, **options):
    """(q_out, reference q, k, v) of one call; the cache is changed."""
    kv_heads, _, dim = cache.keys.shape
    frequencies = inverse(dim, alpha).to(qkv.device)
    q_out = torch.full((len(qkv), heads, dim), torch.nan, dtype=qkv.dtype, device=qkv.device)
    shape = {"heads": heads, "kv_heads": kv_heads}
    rotate_and_store(
        qkv, cache.pages, cache.layer, cache.place(start, count), frequencies, q_out,
        **shape, head_dim=dim, cache_dtype=cache.keys.dtype, **options,
    )  # fmt: skip
    return q_out, *reference_rotate(qkv, start, frequencies, **shape, **options)


def random_qkv(rows, kv_heads, device, dtype=torch.float32, heads=HEADS, dim=DIM):
    return (torch.randn(rows, (heads + 2 * kv_heads) * dim, device=device) * 2).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("start", (0, 63, 5000) if GPU else (0, 63))
def test_rotated_queries_and_stored_rows_match_the_reference(new_cache, device, dtype, rows, start):
    kv_heads = HEADS // 2
    cache = new_cache(kv_heads, start + rows + 3, DIM, dtype)
    before = [t.clone() for t in cache.tensors]
    q_out, q, k, v = run(cache, random_qkv(rows, kv_heads, device, dtype), start, rows)
    end = start + rows
    assert error(q_out, q) < TOLERANCE[dtype]
    assert error(cache.keys[:, start:end].transpose(0, 1), k) < TOLERANCE[dtype]
    assert torch.equal(cache.values[:, start:end].transpose(0, 1).double(), v)
    for now, then in zip(cache.tensors, before, strict=True):
        assert torch.equal(now[:, :start], then[:, :start])
        assert torch.equal(now[:, end:], then[:, end:])


def test_a_wide_activation_may_fill_a_narrow_cache(new_cache, device):
    cache = new_cache(HEADS, 8, DIM, torch.bfloat16)
    q_out, q, k, _ = run(cache, random_qkv(4, HEADS, device), 2, 4)
    assert error(q_out, q) < 1e-5
    assert error(cache.keys[:, 2:6].transpose(0, 1), k) < 1e-2


def test_eight_bit_rows_are_codes_and_scales(new_cache, device):
    cache = new_cache(HEADS, 30, DIM, torch.int8)
    before = [t.clone() for t in cache.tensors]
    _, _, k, v = run(cache, random_qkv(18, HEADS, device), 7, 18)
    for codes, scales, want in ((cache.keys, cache.key_scales, k), (cache.values, cache.value_scales, v)):
        want_codes, want_scales = reference_int8(want)
        got_codes, got_scales = codes[:, 7:25].transpose(0, 1), scales[:, 7:25].transpose(0, 1)
        torch.testing.assert_close(got_scales, want_scales, rtol=2**-10, atol=0)
        difference = (got_codes.int() - want_codes.int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.01  # where float32 and float64 fall on either side of a half
        assert error(got_codes.double() * got_scales.double()[..., None], want) < 1e-2
    for now, then in zip(cache.tensors, before, strict=True):
        assert torch.equal(now[:, :7], then[:, :7])
        assert torch.equal(now[:, 25:], then[:, 25:])


def test_eight_bit_row_of_zeros_is_zero(new_cache, device):
    cache = new_cache(1, 4, DIM, torch.int8)
    run(cache, torch.zeros(1, (HEADS + 2) * DIM, device=device), 1, 1)
    assert not cache.values[:, 1].any()
    assert not cache.value_scales[:, 1].any()


def test_norm_per_head(new_cache, device):
    cache = new_cache(1, 9, DIM, torch.float32)
    weights = {name: torch.rand(DIM, device=device) + 0.5 for name in ("q_norm", "k_norm")}
    q_out, q, k, _ = run(cache, random_qkv(5, 1, device), 3, 5, eps=1e-3, **weights)
    assert error(q_out, q) < 1e-5
    assert error(cache.keys[:, 3:8].transpose(0, 1), k) < 1e-5


def test_logn_scales_queries_beyond_the_training_length(new_cache, device):
    cache = new_cache(1, 40, DIM, torch.float32)
    q_out, q, k, _ = run(cache, random_qkv(8, 1, device), 28, 8, logn_length=32)
    assert error(q_out, q) < 1e-5
    assert error(cache.keys[:, 28:36].transpose(0, 1), k) < 1e-5
    plain, *_ = run(cache, random_qkv(8, 1, device), 28, 8)
    assert plain.isfinite().all()
    assert logn_factor(32) * math.log(36) > 1


def test_far_positions_under_ntk(new_cache, device):
    """The angle reaches tens of thousands of radians."""
    cache = new_cache(1, 32100, DIM, torch.float32)
    q_out, q, k, _ = run(cache, random_qkv(3, 1, device), 32090, 3, alpha=7.0)
    assert error(q_out, q) < 1e-5
    assert error(cache.keys[:, 32090:32093].transpose(0, 1), k) < 1e-5


@pytest.mark.parametrize("dtype", (torch.float32, torch.int8))
def test_rows_beyond_the_count_or_the_capacity_are_not_stored(new_cache, device, dtype):
    cache = new_cache(2, 20, DIM, dtype)
    before = [t.clone() for t in cache.tensors]
    q_out, q, *_ = run(cache, random_qkv(6, 2, device), 9, 4)
    assert q_out.isfinite().all()
    assert error(q_out[:4], q[:4]) < 1e-5
    for now, then in zip(cache.tensors, before, strict=True):
        assert torch.equal(now[:, 13:], then[:, 13:])
    before = [t.clone() for t in cache.tensors]
    run(cache, random_qkv(6, 2, device), 18, 6)  # two fit; a third would be the next head's first
    for now, then in zip(cache.tensors, before, strict=True):
        assert torch.equal(now[:, :18], then[:, :18])


def test_head_size_that_is_no_power_of_two(new_cache, device):
    cache = new_cache(1, 9, 48, torch.float32)
    weights = {name: torch.rand(48, device=device) + 0.5 for name in ("q_norm", "k_norm")}
    q_out, q, k, v = run(cache, random_qkv(5, 1, device, dim=48), 3, 5, **weights)
    assert error(q_out, q) < 1e-5
    assert error(cache.keys[:, 3:8].transpose(0, 1), k) < 1e-5
    assert error(cache.values[:, 3:8].transpose(0, 1), v) < 1e-5
