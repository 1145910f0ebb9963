"""The decoder of Qwen 1, 1.5, 2, 2.5 and 3, in plain PyTorch.

One class serves the three families: Qwen 1 is multi-head with QKV bias, dynamic NTK and LogN; Qwen 2 adds grouped
KV heads and perhaps tied embeddings; Qwen 3 drops the bias and normalises q and k per head. Checkpoints differ only
in names and in how matrices are split, which is settled in weights.py: here q, k, v are one matrix, gate and up
another.

Shapes: B batch, T new tokens, S tokens in all (cached and new), H hidden, N heads, KV heads of keys and values,
D head size, F feed-forward width, V rows of the embedding.

Not here: sampling, stopping, tokenizers, batches that mix lengths within one cache, training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwen_agent.llm import kernels
from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import ModelConfig
from qwen_agent.llm.rope import logn_scale, request_alpha, rotary_tables, rotate


@dataclass(frozen=True, slots=True)
class Context:
    """What every layer needs to know about the tokens of one forward pass."""

    cos: Tensor  # [1 or B, T, 1, D]
    sin: Tensor  # [1 or B, T, 1, D]
    query_scale: Tensor | None  # LogN, [1 or B, 1, T, 1]
    mask: Tensor | None  # boolean, [1 or B, 1, T, S]
    causal: bool  # T == S and nothing but the triangle is masked


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        width = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.qkv: nn.Module = nn.Linear(config.hidden, width, bias=config.qkv_bias)
        self.out: nn.Module = nn.Linear(config.heads * config.head_dim, config.hidden, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, context: Context, cache: KVCache | None) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, self.heads + 2 * self.kv_heads, self.head_dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)  # [B, T, N+KV, D], [B, T, KV, D]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((self.heads, self.kv_heads), dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        qk = rotate(qk, context.cos, context.sin).transpose(1, 2)  # [B, N+KV, T, D]
        q, k = qk.split((self.heads, self.kv_heads), dim=1)
        v = v.transpose(1, 2)
        if context.query_scale is not None:
            q = q * context.query_scale.to(q.dtype)
        if cache is not None:
            k, v = cache.write(self.layer, k, v)  # [B, KV, S, D]
        out = kernels.attention(q, k, v, context.mask, context.causal)
        return self.out(out.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up: nn.Module = nn.Linear(config.hidden, 2 * config.ffn, bias=False)
        self.down: nn.Module = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(kernels.swiglu(self.gate_up(x)))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), context, cache)
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """The decoder. It holds weights only: whatever belongs to a request is in its KVCache."""

    chunk = 512  # tokens that a runtime reads per forward pass: a second on a slow CPU

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Module = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head: nn.Module = nn.Linear(config.hidden, config.vocab, bias=False)

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: KVCache | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] for ids [B, T] (int64), in the model's dtype.

        With a ``cache`` the ids continue the tokens it holds, under the NTK alpha it carries. Without one the whole
        text is ids, and alpha follows from its length. ``attention_mask`` [B, T] (1 or True: a real token) is for
        padded batches without a cache: positions, alpha and LogN then count real tokens only, row by row.
        """
        return self.head(self.hidden(ids, cache, attention_mask))

    @torch.inference_mode()
    def last_logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits [B, V] (float32) after the last of ids [B, T]; the head runs for that position alone."""
        return self.head(self.hidden(ids, cache)[:, -1]).float()

    @torch.inference_mode()
    def hidden(self, ids: Tensor, cache: KVCache | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """Normalised hidden states [B, T, H]; arguments as in ``forward``."""
        if cache is not None:
            if attention_mask is not None:
                raise ValueError("attention_mask is for batches without a cache; rows of a cache have equal length")
            cache.reserve(cache.length + ids.shape[1])
        context = self._context(ids, cache, attention_mask)
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, context, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def new_cache(self, prompt_length: int, batch: int = 1) -> KVCache:
        """An empty cache for a request whose prompt has ``prompt_length`` tokens; that fixes its NTK alpha."""
        alpha = request_alpha(self.config, prompt_length)
        return KVCache(
            self.config, alpha=alpha, batch=batch, capacity=prompt_length, device=self.device, dtype=self.dtype
        )

    def _context(self, ids: Tensor, cache: KVCache | None, attention_mask: Tensor | None) -> Context:
        length = ids.shape[1]
        start = cache.length if cache is not None else 0
        alpha: Tensor | float
        if attention_mask is None:
            positions = torch.arange(start, start + length, device=ids.device)[None]  # [1, T]
            alpha = cache.alpha if cache is not None else request_alpha(self.config, length)
            mask = _offset_mask(positions, start + length) if start and length > 1 else None
        else:
            real = attention_mask.to(device=ids.device, dtype=torch.bool)  # [B, T]
            positions = (real.cumsum(dim=1) - 1).clamp(min=0)  # [B, T]
            lengths = real.sum(dim=1).tolist()
            alpha = torch.tensor([[request_alpha(self.config, n)] for n in lengths], device=ids.device)  # [B, 1]
            mask = _padding_mask(real)
        cos, sin = rotary_tables(self.config, positions, alpha)
        scale = None
        if self.config.logn and start + length > self.config.train_length:
            scale = logn_scale(self.config, positions)[:, None, :, None]
        return Context(cos[:, :, None], sin[:, :, None], scale, mask, causal=mask is None and length > 1)


def _offset_mask(positions: Tensor, total: int) -> Tensor:
    """Several new tokens on top of a cache: each sees the cache and the new tokens up to itself. [1, 1, T, S]"""
    keys = torch.arange(total, device=positions.device)
    return (keys[None, :] <= positions[0, :, None])[None, None]


def _padding_mask(real: Tensor) -> Tensor:
    """Causal, real keys only. A padded query may see itself, so that its softmax is not empty. [B, 1, T, T]"""
    length = real.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | itself)[:, None]
