"""Several new tokens at once: a prompt, or what a ReAct step adds to one.

Products go to the dense library, which is at home with many rows; what stands between them is fused. Up to
``CAPTURED`` tokens the launches would take longer than the work, so they are captured as graphs, one for each of a
few lengths; a shorter text is padded, and the padding is neither stored nor looked at by real tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import ModelConfig
from qwen_agent.llm.cuda.products import LayerWeights, Weights
from qwen_agent.llm.cuda.state import State
from qwen_agent.llm.kernels.fused_norm import add_rms_norm, rms_norm
from qwen_agent.llm.kernels.fused_swiglu import swiglu
from qwen_agent.llm.kernels.gemv import Norm
from qwen_agent.llm.kernels.prefill_attention import prefill_attention
from qwen_agent.llm.kernels.rotary import rotate_and_store
from qwen_agent.llm.kernels.suffix_attention import new_scratch, scratch_size, suffix_attention

BUCKETS = (16, 32, 64, 128, 256, 512)  # lengths that are captured
CAPTURED = BUCKETS[-1]


class Rows:
    """The forward pass of T tokens over the cache that ``state`` points to."""

    def __init__(self, config: ModelConfig, weights: Weights, state: State, cache_dtype: torch.dtype) -> None:
        device = weights.table.device
        self._config, self._weights, self._state, self._cache_dtype = config, weights, state, cache_dtype
        self._scratch = new_scratch(CAPTURED, config.heads, config.head_dim, device)

    def run(self, ids: Tensor, whole: KVCache | None = None) -> Tensor:
        """ids [T] -> the residual stream [T, H] after the last layer, before the final norm.

        The new keys and values are stored. ``whole`` is the cache if these are the first tokens in it: attention
        then needs only them, and a library does it.
        """
        residual = F.embedding(ids, self._weights.table)
        delta: Tensor | None = None
        for i, layer in enumerate(self._weights.layers):
            residual, x = _add_and_norm(residual, delta, layer.attention_norm)
            attended = self._attention(i, layer, layer.qkv.many(x), whole)
            residual, x = _add_and_norm(residual, layer.out.many(attended), layer.mlp_norm)
            delta = layer.down.many(swiglu(layer.gate_up.many(x)))
        assert delta is not None
        return residual + delta

    def _attention(self, i: int, layer: LayerWeights, qkv: Tensor, whole: KVCache | None) -> Tensor:
        config, state = self._config, self._state
        tokens = qkv.shape[0]
        shape: dict[str, Any] = {"heads": config.heads, "kv_heads": config.kv_heads, "head_dim": config.head_dim}
        q = qkv.new_empty((tokens, config.heads, config.head_dim))
        rotate_and_store(
            *(qkv, state.pages, i, state.place, state.inverse, q),
            **shape,
            cache_dtype=self._cache_dtype,
            logn_length=config.train_length if config.logn else 0,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=config.norm_eps,
        )
        if whole is not None and whole.keys[i].dtype == q.dtype:
            return prefill_attention(q, whole.keys[i][0, :, :tokens], whole.values[i][0, :, :tokens])
        out = torch.empty_like(q)
        scratch = self._room(tokens)
        suffix_attention(*(q, state.pages, i, state.place, out, scratch), **shape, cache_dtype=self._cache_dtype)
        return out.view(tokens, -1)

    def _room(self, tokens: int) -> Tensor:
        """Scratch for so many tokens; that of captured lengths stays."""
        size = scratch_size(tokens, self._config.heads, self._config.head_dim)
        return self._scratch if size <= self._scratch.numel() else self._scratch.new_empty(size)


def _add_and_norm(residual: Tensor, delta: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """The residual stream with ``delta`` added, and that normalised."""
    if delta is None:
        return residual, rms_norm(residual, norm.weight, norm.eps)
    return add_rms_norm(residual, delta, norm.weight, norm.eps)
