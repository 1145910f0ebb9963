"""The fused path against the plain model: same logits, whatever the shape, the cache and the way tokens come in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qwen_agent.llm import kernels
from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import ModelConfig
from qwen_agent.llm.cuda.model import CudaModel
from qwen_agent.llm.kernels.gemv_int4 import fits
from qwen_agent.llm.model import Model, RMSNorm
from qwen_agent.llm.quantization import Scheme, dequantize, quantize_round
from qwen_agent.llm.quantized import QuantizedLinear

GPU = torch.cuda.is_available()

QWEN1 = ModelConfig(
    architecture="QWenLMHeadModel",
    vocab=97,
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=16,
    ffn=48,
    norm_eps=1e-6,
    rope_base=10000.0,
    train_length=32,
    window=128,
    qkv_bias=True,
    qk_norm=False,
    tied=False,
    dynamic_ntk=True,
    logn=True,
)
QWEN3 = replace(QWEN1, heads=4, kv_heads=2, qkv_bias=False, qk_norm=True, dynamic_ntk=False, logn=False)
SMALL = QWEN1 if GPU else replace(QWEN1, layers=1, heads=1, kv_heads=1)


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Model:
    generator = torch.Generator().manual_seed(0)
    model = Model(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            mean = 1.0 if isinstance(module, RMSNorm) else 0.0
            value = torch.normal(mean, 0.2, parameter.shape, generator=generator)
            setattr(module, name, nn.Parameter(value.to(device, dtype), requires_grad=False))
    return model.eval()


def far(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def in_four_bits(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, group: int, sym: bool, spread: float = 1.0
) -> tuple[Model, Model]:
    """A model with 4-bit layers, and a dense one of float32 with the same weights."""
    dense, four = (random_model(config, device, dtype) for _ in range(2))
    for name, module in list(four.named_modules()):
        if isinstance(module, nn.Linear) and name != "head":
            weight = quantize_round(module.weight.cpu() * spread, Scheme(4, group, sym))
            weight = replace(
                weight, **{f: getattr(weight, f).to(device) for f in ("qweight", "qzeros", "scales", "g_idx")}
            )
            parent, _, leaf = name.rpartition(".")
            setattr(four.get_submodule(parent), leaf, QuantizedLinear(weight, module.bias, dtype))
            dense.get_submodule(name).weight.data = dequantize(weight, torch.float32)
    return four, dense.float()


# (config, tokens of the prompt, tokens one by one after it); 40 is beyond the training length: NTK and LogN
READINGS = (
    [(config, prompt, 3) for config in (QWEN1, QWEN3) for prompt in (1, 5, 40)]
    if GPU
    else [(SMALL, 1, 1), (SMALL, 40, 1), (replace(QWEN3, heads=2, kv_heads=1), 5, 1)]
)


@pytest.mark.parametrize(("config", "prompt", "steps"), READINGS)
def test_every_way_of_reading_gives_the_logits_of_the_plain_model(
    device: torch.device, config: ModelConfig, prompt: int, steps: int
) -> None:
    model = random_model(config, device, torch.float32)
    fused = CudaModel(model)
    ids = torch.randint(0, config.vocab, (1, prompt + steps + 1), device=device)
    a, b = model.new_cache(prompt), fused.new_cache(prompt)
    assert far(fused.last_logits(ids[:, :prompt], b), model.last_logits(ids[:, :prompt], a)) < 1e-5
    for t in range(prompt, prompt + steps):
        token = ids[:, t : t + 1]
        assert far(fused.last_logits(token, b), model.last_logits(token, a)) < 1e-5
    assert a.length == b.length == prompt + steps
    a.truncate(prompt)
    b.truncate(prompt)
    assert far(fused(ids[:, prompt:], b), model(ids[:, prompt:], a)) < 1e-5


def test_a_text_too_long_to_be_captured_is_read_as_well(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_agent.llm.cuda import model as module
    from qwen_agent.llm.cuda import rows

    monkeypatch.setattr(module, "CAPTURED", 16)
    monkeypatch.setattr(rows, "CAPTURED", 2)  # so that attention over a prefix needs more scratch than is kept
    config = replace(QWEN3, layers=1, heads=2, kv_heads=1)
    model = random_model(config, device, torch.float32)
    fused = CudaModel(model)
    ids = torch.randint(0, config.vocab, (1, 40), device=device)
    a, b = model.new_cache(40), fused.new_cache(40)
    for part in (ids[:, :20], ids[:, 20:]):  # into an empty cache, and on top of one
        assert far(fused.last_logits(part, b), model.last_logits(part, a)) < 1e-5
    a.truncate(20)
    b.truncate(20)
    assert far(fused.hidden(ids[:, 20:], b), model.hidden(ids[:, 20:], a)) < 1e-5


def test_a_cache_of_codes_gives_what_the_plain_model_makes_of_such_a_cache(device: torch.device) -> None:
    config = SMALL
    model = random_model(config, device, torch.float32)
    fused = CudaModel(model, cache_dtype=torch.int8)
    ids = torch.randint(0, config.vocab, (1, 12), device=device)
    a, b = KVCache(config, device=device, dtype=torch.int8), fused.new_cache(12)
    for tokens in (ids[:, :8], ids[:, 8:9], ids[:, 9:12]):
        assert far(fused.last_logits(tokens, b), model.last_logits(tokens, a)) < 1e-3


def test_requests_that_take_turns_do_not_disturb_each_other(device: torch.device) -> None:
    config = SMALL
    model = random_model(config, device, torch.float32)
    fused = CudaModel(model)
    ids = torch.randint(0, config.vocab, (2, 44), device=device)
    prompts = (6, 40)  # of different NTK alpha
    caches = [fused.new_cache(n) for n in prompts]
    plain = [model.new_cache(n) for n in prompts]
    for row, n in enumerate(prompts):
        fused.last_logits(ids[row : row + 1, :n], caches[row])
        model.last_logits(ids[row : row + 1, :n], plain[row])
    for step in range(3 if GPU else 2):
        got = [fused.last_logits(ids[r : r + 1, n + step : n + step + 1], caches[r]) for r, n in enumerate(prompts)]
        for row, n in enumerate(prompts):
            token = ids[row : row + 1, n + step : n + step + 1]
            assert far(got[row], model.last_logits(token, plain[row])) < 1e-5


def test_a_cache_that_grows_keeps_what_it_holds(device: torch.device) -> None:
    config = replace(SMALL, window=400)
    model = random_model(config, device, torch.float32)
    fused = CudaModel(model)
    a, b = model.new_cache(250), fused.new_cache(250)
    assert a.capacity == b.capacity == 256
    for table in ("keys", "values"):  # as if 254 tokens had been read
        for plain, mine in zip(getattr(a, table), getattr(b, table), strict=True):
            mine.copy_(plain.normal_())
    a.advance(254)
    b.advance(254)
    for token in torch.randint(0, config.vocab, (10 if GPU else 3, 1, 1), device=device):
        assert far(fused.last_logits(token, b), model.last_logits(token, a)) < 1e-5
    assert b.capacity > 256


@pytest.mark.parametrize(
    ("group", "sym"), [(128, True), (128, False), (32, True), (32, False)] if GPU else [(128, True), (32, False)]
)
def test_four_bit_weights(device: torch.device, monkeypatch: pytest.MonkeyPatch, group: int, sym: bool) -> None:
    config = replace(QWEN1, hidden=128, ffn=256, heads=4, kv_heads=4, head_dim=32)
    if not GPU:
        config = replace(QWEN1, layers=1, hidden=group, ffn=group, heads=1, kv_heads=1, head_dim=group)
    entry = kernels._Kernel("int4_triton", lambda c, d: fits(c.q.shape[1], c.group), kernels._int4_triton)
    monkeypatch.setattr(kernels, "_QUANTIZED", (entry,))
    four, dense = in_four_bits(config, device, torch.float32, group, sym)
    fused = CudaModel(four)
    assert fused.kernels()["qkv"] == "int4, Triton"
    ids = torch.randint(0, config.vocab, (1, 12), device=device)
    a, b = dense.new_cache(12), fused.new_cache(12)
    for tokens in (ids[:, :8], ids[:, 8:9], ids[:, 9:12]):
        assert far(fused.last_logits(tokens, b), dense.last_logits(tokens, a)) < 5e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA C++ kernels need a GPU")
@pytest.mark.parametrize("group", [128, 64, 32])
@pytest.mark.parametrize("sym", [True, False])
def test_four_bit_weights_on_the_tensor_cores(device: torch.device, group: int, sym: bool) -> None:
    config = replace(QWEN1, hidden=256, ffn=512, heads=4, kv_heads=4, head_dim=64)
    four, dense = in_four_bits(config, device, torch.float16, group, sym, spread=0.3)
    fused = CudaModel(four)
    assert fused.kernels()["qkv"] == "int4, tensor cores"
    ids = torch.randint(0, config.vocab, (1, 80), device=device)
    a, b = dense.new_cache(80), fused.new_cache(80)
    for tokens in (ids[:, :8], ids[:, 8:9], ids[:, 9:12], ids[:, 12:30], ids[:, 30:80]):
        assert far(fused.last_logits(tokens, b), dense.last_logits(tokens, a)) < 1e-2
