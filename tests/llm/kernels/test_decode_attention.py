from __future__ import annotations

import pytest
import torch

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import ModelConfig
from qwen_agent.llm.kernels import decode_attention as module
from qwen_agent.llm.kernels.decode_attention import (
    block_tokens,
    decode_attention,
    new_scratch,
    reference_decode_attention,
)
from qwen_agent.llm.kernels.rotary import reference_int8, reference_rotate
from qwen_agent.llm.model import Attention, Context
from qwen_agent.llm.rope import logn_scale, rotary_tables

GPU = torch.cuda.is_available()
HEADS, DIM = (32, 128) if GPU else (2, 32)
GROUPED = 8 if GPU else 1
BLOCK = block_tokens(DIM, torch.float32)
# Positions are context lengths less one: 0 is a first token. All but the smallest go to several programs.
POSITIONS = (0, 1, 62, 63, 64, 65, 510, 511, 2047, 8191) if GPU else (0, BLOCK - 1, BLOCK, 2 * BLOCK + 1)
TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
# The new row is rounded from float32 here and from float64 in the reference: seldom, but at times differently.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.int8: 2e-3}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter takes its time for each."""
    if not GPU:
        monkeypatch.setattr(module, "SPLITS", 4)


def inverse(dim, alpha=1.0):
    """Rotary frequencies, stretched by a dynamic-NTK alpha."""
    base = 10000.0 * alpha ** (dim / (dim - 2))
    return 1.0 / base ** (torch.arange(0, dim, 2) / dim)


def error(out, want):
    return ((out.double() - want).norm() / want.norm()).item()


def random_qkv(heads, kv_heads, dim, device):
    return torch.randn((heads + 2 * kv_heads) * dim, device=device) * 2


def fresh_scratch(heads, dim, device):
    scratch = new_scratch(heads, dim, device)
    scratch.partials.fill_(torch.nan)
    return scratch


def run(cache, qkv, position, *, heads=HEADS, alpha=1.0, scratch=None, place=None, out_dtype=torch.float32, **options):
    """(out, reference) of one call; the cache is changed."""
    kv_heads, _, dim = cache.keys.shape
    frequencies = inverse(dim, alpha).to(qkv.device)
    shape = {"heads": heads, "kv_heads": kv_heads}
    want = reference_decode_attention(
        qkv, cache.keys, cache.values, position, frequencies, key_scales=cache.key_scales,
        value_scales=cache.value_scales, **shape, **options,
    )  # fmt: skip
    scratch = fresh_scratch(heads, dim, qkv.device) if scratch is None else scratch
    out = torch.full((heads * dim,), torch.nan, dtype=out_dtype, device=qkv.device)
    decode_attention(
        qkv, cache.pages, cache.layer, cache.place(position, 1) if place is None else place, frequencies, out, scratch,
        **shape, head_dim=dim, cache_dtype=cache.keys.dtype, **options,
    )  # fmt: skip
    assert not scratch.counters.any()
    return out, want


@pytest.mark.parametrize("kv_heads", (HEADS, GROUPED), ids=("multi-head", "grouped"))
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_output_and_stored_row_match_the_reference(new_cache, device, dtype, position, kv_heads):
    cache = new_cache(kv_heads, position + 5, DIM, dtype)
    cache.forget_from(position)
    before = [t.clone() for t in cache.tensors]
    qkv = random_qkv(HEADS, kv_heads, DIM, device)
    out, want = run(cache, qkv, position)
    assert error(out, want) < TOLERANCE[dtype]

    _, k, v = reference_rotate(qkv[None], position, inverse(DIM).to(device), heads=HEADS, kv_heads=kv_heads)
    for held, scales, row in ((cache.keys, cache.key_scales, k[0]), (cache.values, cache.value_scales, v[0])):
        if scales is None:
            assert error(held[:, position], row) < TOLERANCE[dtype]
        else:
            codes, scale = reference_int8(row)
            assert (held[:, position].int() - codes.int()).abs().max() <= 1
            torch.testing.assert_close(scales[:, position], scale, rtol=2**-10, atol=0)
    for now, then in zip(cache.tensors, before, strict=True):
        others = torch.arange(now.shape[1], device=device) != position
        assert torch.equal(now[:, others].nan_to_num(7), then[:, others].nan_to_num(7))


@pytest.mark.parametrize("dtype", (torch.float32, torch.int8))
def test_all_programs_of_a_head_have_work(new_cache, device, dtype):
    """As many blocks as programs, and one token more, which doubles the shares and leaves some programs without."""
    block = block_tokens(64, dtype)
    for position in (module.SPLITS * block - 1, module.SPLITS * block):
        cache = new_cache(1, position + 1, 64, dtype)
        out, want = run(cache, random_qkv(2, 1, 64, device), position, heads=2)
        assert error(out, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int8))
def test_replays_follow_the_place_in_device_memory(new_cache, device, dtype):
    """As a captured graph does it: the same arguments again, with other numbers in ``place``; one set of counters."""
    start = 2 * BLOCK - 2
    cache = new_cache(HEADS // 2, start + 8, DIM, dtype)
    cache.forget_from(start)
    scratch = fresh_scratch(HEADS, DIM, device)
    place = cache.place(start, 1)
    for step in range(4):
        qkv = random_qkv(HEADS, HEADS // 2, DIM, device)
        out, want = run(cache, qkv, start + step, scratch=scratch, place=place)
        assert error(out, want) < TOLERANCE[dtype]
        place[0] += 1
        scratch.partials.fill_(torch.nan)


def test_the_same_input_gives_the_same_bits(new_cache, device):
    position = POSITIONS[-1]
    cache = new_cache(HEADS, position + 1, DIM, torch.bfloat16)
    qkv = random_qkv(HEADS, HEADS, DIM, device)
    outs = [run(cache, qkv, position)[0] for _ in range(2)]
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("position", (0, BLOCK + 3))
def test_norm_per_head(new_cache, device, position):
    cache = new_cache(HEADS // 2, position + 1, DIM, torch.float32)
    weights = {name: torch.rand(DIM, device=device) + 0.5 for name in ("q_norm", "k_norm")}
    out, want = run(cache, random_qkv(HEADS, HEADS // 2, DIM, device), position, eps=1e-3, **weights)
    assert error(out, want) < 1e-5


@pytest.mark.parametrize("position", (30, 31, 32, BLOCK + 40))
def test_logn_beyond_the_training_length(new_cache, device, position):
    cache = new_cache(HEADS, position + 1, DIM, torch.float32)
    out, want = run(cache, random_qkv(HEADS, HEADS, DIM, device), position, logn_length=32)
    assert error(out, want) < 1e-5


def test_ntk_frequencies(new_cache, device):
    cache = new_cache(HEADS, BLOCK + 9, DIM, torch.float32)
    qkv = random_qkv(HEADS, HEADS, DIM, device)
    out, want = run(cache, qkv, BLOCK + 8, alpha=7.0)
    assert error(out, want) < 1e-5
    assert error(run(cache, qkv, BLOCK + 8)[0], want) > 1e-3


def test_head_size_that_is_no_power_of_two(new_cache, device):
    for dtype in (torch.float32, torch.int8):
        cache = new_cache(1, 200, 48, dtype)
        out, want = run(cache, random_qkv(2, 1, 48, device), 190, heads=2)
        assert error(out, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_narrow_output(new_cache, device, dtype):
    for position in (3, 2 * BLOCK):
        cache = new_cache(HEADS, position + 1, DIM, dtype)
        out, want = run(cache, random_qkv(HEADS, HEADS, DIM, device), position, out_dtype=dtype)
        assert error(out, want) < 1e-2


CONFIG = {
    "architecture": "tiny", "vocab": 10, "hidden": 24, "layers": 1, "heads": 4, "ffn": 8, "norm_eps": 1e-6,
    "rope_base": 10000.0, "window": 64, "tied": False, "head_dim": 32,
}  # fmt: skip
FAMILIES = {
    "qwen1": {"kv_heads": 4, "train_length": 16, "qkv_bias": True, "qk_norm": False, "dynamic_ntk": True, "logn": True},
    "qwen2": {"kv_heads": 2, "train_length": 64, "qkv_bias": True, "qk_norm": False},
    "qwen3": {"kv_heads": 1, "train_length": 64, "qkv_bias": False, "qk_norm": True},
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_agrees_with_the_attention_of_the_model(device, family):
    config = ModelConfig(**CONFIG, **FAMILIES[family])
    alpha, position = (3.0 if config.dynamic_ntk else 1.0), 20
    attention = Attention(config, layer=0).to(device)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    attention.out = torch.nn.Identity()
    cache = KVCache(config, alpha=alpha, device=device)
    x = torch.randn(1, position + 1, config.hidden, device=device)

    def forward(start, end):
        positions = torch.arange(start, end, device=device)[None]
        cos, sin = rotary_tables(config, positions, alpha)
        scale = logn_scale(config, positions)[:, None, :, None] if config.logn else None
        context = Context(cos[:, :, None], sin[:, :, None], scale, None, causal=end - start > 1)
        return attention(x[:, start:end], context, cache)

    forward(0, position)
    cache.advance(position)
    tensors = [cache.keys[0][0].clone(), cache.values[0][0].clone()]
    want = forward(position, position + 1).flatten()

    pages = torch.tensor([[t.data_ptr()] for t in tensors] + [[0], [0]], device=device)
    place = torch.tensor([position, 1, cache.capacity], device=device)
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    base = config.rope_base * alpha ** (config.head_dim / (config.head_dim - 2))
    out = torch.full((config.heads * config.head_dim,), torch.nan, device=device)
    norms = {} if attention.q_norm is None else {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight}
    decode_attention(
        attention.qkv(x[:, position]).flatten(), pages, 0, place, 1.0 / base**exponent, out,
        fresh_scratch(config.heads, config.head_dim, device), heads=config.heads, kv_heads=config.kv_heads,
        head_dim=config.head_dim, cache_dtype=torch.float32, logn_length=config.train_length if config.logn else 0,
        eps=config.norm_eps, **norms,
    )  # fmt: skip
    assert error(out, want.double()) < 1e-5
    for tensor, held in zip(tensors, (cache.keys[0][0], cache.values[0][0]), strict=True):
        torch.testing.assert_close(tensor[:, : position + 1], held[:, : position + 1])
