"""The KV cache by itself: growth, and keys and values kept in 8 bits."""

from __future__ import annotations

import torch

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import ModelConfig

CONFIG = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab=11,
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=16,
    ffn=8,
    norm_eps=1e-6,
    rope_base=10000.0,
    train_length=64,
    window=64,
    qkv_bias=True,
    qk_norm=False,
    tied=False,
)


def rows(tokens: int) -> torch.Tensor:
    return torch.randn((1, CONFIG.kv_heads, tokens, CONFIG.head_dim))


def test_eight_bits_keep_each_row_within_half_a_step_of_its_own_scale() -> None:
    cache = KVCache(CONFIG, dtype=torch.int8)
    k, v = rows(5) * 3, rows(5) * torch.logspace(-3, 2, 5)[:, None]
    k[0, 0, 2] = 0.0  # a row of zeros has no scale
    keys, values = cache.write(0, k, v)
    for kept, given in ((keys, k), (values, v)):
        step = given.abs().amax(-1, keepdim=True) / 127
        # Half a step of rounding, and what float16 takes off the scale.
        assert bool(((kept - given).abs() <= step * (0.5 + 127 * 2**-10) + 1e-6).all())
    assert cache.keys[0].dtype == torch.int8 and cache.key_scales[0].dtype == torch.float16


def test_tokens_written_in_pieces_are_those_written_at_once() -> None:
    k, v = rows(6), rows(6)
    for dtype in (torch.float32, torch.int8):
        whole, pieces = KVCache(CONFIG, dtype=dtype), KVCache(CONFIG, dtype=dtype)
        at_once = whole.write(1, k, v)
        for part in (slice(0, 4), slice(4, 6)):
            in_pieces = pieces.write(1, k[:, :, part], v[:, :, part])
            pieces.advance(part.stop - part.start)
        assert torch.equal(at_once[0], in_pieces[0]) and torch.equal(at_once[1], in_pieces[1])


def test_growth_keeps_everything_even_what_does_not_count_yet() -> None:
    cache = KVCache(CONFIG, dtype=torch.int8, capacity=256)
    k, v = rows(256), rows(256)
    before = cache.write(0, k, v)  # written, but not advanced
    cache.reserve(257)
    assert cache.capacity > 256
    cache.advance(256)
    after = cache.write(0, rows(1), rows(1))
    assert torch.equal(after[0][:, :, :256], before[0]) and torch.equal(after[1][:, :, :256], before[1])


def test_addresses_are_those_of_the_tensors() -> None:
    plain, eight = KVCache(CONFIG), KVCache(CONFIG, dtype=torch.int8)
    assert plain.addresses()[1] == [t.data_ptr() for t in plain.values]
    assert plain.addresses()[2:] == [[0, 0], [0, 0]]
    assert eight.addresses()[3] == [t.data_ptr() for t in eight.value_scales]
