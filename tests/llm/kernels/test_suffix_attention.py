from __future__ import annotations

import pytest
import torch

from qwen_agent.llm.kernels import suffix_attention as module
from qwen_agent.llm.kernels.suffix_attention import new_scratch, plan, reference_suffix_attention, suffix_attention

GPU = torch.cuda.is_available()
HEADS, DIM = (32, 128) if GPU else (1, 32)
# (tokens in the cache, new tokens)
CASES = (
    ((0, 2), (0, 2048), (1, 16), (63, 17), (64, 64), (65, 65), (511, 512), (2048, 100), (8191, 4), (8192, 1000))
    if GPU
    else ((0, 2), (63, 5), (64, 16), (130, 67))
)
# Cache and queries; products with an 8-bit cache are taken in the type of the queries.
TYPES = (
    (torch.float32, torch.float32, 1e-5),
    (torch.float16, torch.float16, 2e-3),
    (torch.bfloat16, torch.bfloat16, 1e-2),
    (torch.int8, torch.bfloat16, 1e-2),
    (torch.int8, torch.float32, 1e-5),
)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter takes its time for each."""
    if not GPU:
        monkeypatch.setattr(module, "_MOST_SPLITS", 4)


def error(out, want):
    return ((out.double() - want).norm() / want.norm()).item()


def run(cache, q, start, *, count=None, place=None):
    """(out, reference) for the first ``count`` of the rows of q."""
    count = len(q) if count is None else count
    rows, heads, dim = q.shape
    scratch = new_scratch(rows, heads, dim, q.device).fill_(torch.nan)
    out = torch.full_like(q, torch.nan)
    suffix_attention(
        q, cache.pages, cache.layer, cache.place(start, count) if place is None else place, out, scratch,
        heads=heads, kv_heads=cache.keys.shape[0], head_dim=dim, cache_dtype=cache.keys.dtype,
    )  # fmt: skip
    want = reference_suffix_attention(
        q[:count], cache.keys, cache.values, start, key_scales=cache.key_scales, value_scales=cache.value_scales
    )
    return out, want


def random_queries(rows, device, dtype=torch.float32, heads=HEADS, dim=DIM):
    return (torch.randn(rows, heads, dim, device=device) * 2).to(dtype)


@pytest.mark.parametrize(("cache_dtype", "dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(("start", "rows"), CASES)
def test_output_matches_the_reference(new_cache, device, start, rows, cache_dtype, dtype, tolerance):
    cache = new_cache(HEADS, start + rows + 3, DIM, cache_dtype)
    cache.forget_from(start + rows)
    out, want = run(cache, random_queries(rows, device, dtype), start)
    assert error(out, want) < tolerance


@pytest.mark.parametrize(("cache_dtype", "dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("start", (0, 130))
def test_one_program_per_tile_needs_no_partial_results(
    new_cache, device, monkeypatch, start, cache_dtype, dtype, tolerance
):
    monkeypatch.setattr(module, "_PROGRAMS", 1)
    assert plan(67, HEADS, dtype).splits == 1
    cache = new_cache(HEADS, start + 70, DIM, cache_dtype)
    cache.forget_from(start + 67)
    out, want = run(cache, random_queries(67, device, dtype), start)
    assert error(out, want) < tolerance


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_query_heads_share_a_kv_head(new_cache, device, dtype):
    cache = new_cache(2, 90, DIM, dtype)
    out, want = run(cache, random_queries(8, device, dtype, heads=6), 70)
    assert error(out, want) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(("rows", "count"), ((16, 3), (40, 16), (600, 130)) if GPU else ((16, 3), (40, 16)))
def test_rows_beyond_the_count_stay_finite(new_cache, device, rows, count):
    """Their keys were never stored; the last tiles have no real row at all."""
    cache = new_cache(HEADS, 70 + rows, DIM, torch.float32)
    cache.forget_from(70 + count)
    out, want = run(cache, random_queries(rows, device), 70, count=count)
    assert out.isfinite().all()
    assert error(out[:count], want) < 1e-5


def test_replays_follow_the_place_in_device_memory(new_cache, device):
    cache = new_cache(HEADS, 100, DIM, torch.float32)
    place = cache.place(60, 5)
    for step in range(3):
        out, want = run(cache, random_queries(5, device), 60 + step, place=place)
        assert error(out, want) < 1e-5
        place[0] += 1


def test_the_same_input_gives_the_same_bits(new_cache, device):
    cache = new_cache(HEADS, 150, DIM, torch.bfloat16)
    q = random_queries(6, device, torch.bfloat16)
    assert torch.equal(run(cache, q, 140)[0], run(cache, q, 140)[0])


def test_large_scores_do_not_overflow(new_cache, device):
    cache = new_cache(HEADS, 80, DIM, torch.float32)
    out, want = run(cache, random_queries(4, device) * 1000, 70)
    assert error(out, want) < 1e-2


@pytest.mark.parametrize("cache_dtype", (torch.float32, torch.int8))
def test_head_size_that_is_no_power_of_two(new_cache, device, cache_dtype):
    cache = new_cache(1, 90, 48, cache_dtype)
    out, want = run(cache, random_queries(20, device, heads=2, dim=48), 66)
    assert error(out, want) < 1e-5


def test_scratch_is_enough_for_fewer_rows():
    """The plan changes with the number of rows, and not always to less."""
    for dtype in (torch.float32, torch.bfloat16):
        for most in (1, 17, 64, 300, 1000):
            size = new_scratch(most, 4, 16, "cpu").numel()
            for rows in range(1, most + 1):
                splits = plan(rows, 4, dtype).splits
                assert splits == 1 or rows * splits * 4 * (16 + 2) <= size
