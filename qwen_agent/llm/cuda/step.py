"""One new token: from its id to the logits of the next, five kernels a layer.

embed                                   h = table[token], float32
norm + qkv product + bias               -> q, k, v float32
rotary, LogN, cache write, attention    -> one row
out product + residual                  h += ...
norm + gate and up product + SwiGLU     -> one row
down product + residual                 h += ...
norm + head                             -> logits float32
"""

from __future__ import annotations

import torch

from qwen_agent.llm.config import ModelConfig
from qwen_agent.llm.cuda.products import Weights
from qwen_agent.llm.cuda.state import State
from qwen_agent.llm.kernels.decode_attention import decode_attention, new_scratch
from qwen_agent.llm.kernels.gemv import embed


class Step:
    """The kernels of a decode step over fixed buffers; ``run`` launches them, and a graph may capture that."""

    def __init__(
        self, config: ModelConfig, weights: Weights, state: State, cache_dtype: torch.dtype, pdl: bool
    ) -> None:
        device = weights.table.device
        self._config, self._weights, self._state, self._cache_dtype = config, weights, state, cache_dtype
        self._pdl = pdl

        def room(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        layer = weights.layers[0]
        self.hidden = room(config.hidden)
        self.logits = room(config.vocab)
        self._qkv = room((config.heads + 2 * config.kv_heads) * config.head_dim)
        self._attended = room(config.heads * config.head_dim, layer.out.takes)
        self._act = room(config.ffn, layer.down.takes)
        self._scratch = new_scratch(config.heads, config.head_dim, device)

    def run(self) -> None:
        """Read the state's token at its position; leaves the logits of what follows in ``logits``."""
        state, pdl = self._state, self._pdl
        embed(state.token, self._weights.table, self.hidden, state.place, state.following, pdl=pdl)
        for i in range(self._config.layers):
            self._layer(i)
        self.head()

    def head(self) -> None:
        """``logits`` from ``hidden``."""
        weights = self._weights
        weights.head.one(self.hidden, self.logits, norm=weights.norm, pdl=self._pdl)

    def _layer(self, i: int) -> None:
        layer, config, state, pdl = self._weights.layers[i], self._config, self._state, self._pdl
        h = self.hidden
        layer.qkv.one(h, self._qkv, norm=layer.attention_norm, pdl=pdl)
        decode_attention(
            *(self._qkv, state.pages, i, state.place, state.inverse, self._attended, self._scratch),
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            cache_dtype=self._cache_dtype,
            logn_length=config.train_length if config.logn else 0,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=config.norm_eps,
            pdl=pdl,
        )
        layer.out.one(self._attended, h, after="residual", pdl=pdl)
        layer.gate_up.one(h, self._act, norm=layer.mlp_norm, after="swiglu", pdl=pdl)
        layer.down.one(self._act, h, after="residual", pdl=pdl)
