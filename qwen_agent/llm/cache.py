"""The KV cache: grows in place, can be cut back to a prefix, and carries the NTK alpha it was filled under."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_agent.llm.config import ModelConfig

_BLOCK = 256  # tokens; capacity grows to a multiple of this, at least by half


class KVCache:
    """Rotated keys and values of ``length`` tokens for ``batch`` rows of equal length.

    keys[layer], values[layer]: [batch, kv_heads, capacity, head_dim]. ``alpha`` belongs to the request: keys
    rotated under one alpha never mix with keys under another.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        alpha: float = 1.0,
        batch: int = 1,
        capacity: int = _BLOCK,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.alpha = alpha
        self.length = 0
        shape = (batch, config.kv_heads, _rounded(capacity), config.head_dim)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.layers)]

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all; what is stored stays."""
        if length <= self.capacity:
            return
        capacity = _rounded(max(length, self.capacity + self.capacity // 2))
        self.keys = [_grown(t, capacity, self.length) for t in self.keys]
        self.values = [_grown(t, capacity, self.length) for t in self.values]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [batch, kv_heads, T, head_dim] after the ``length`` tokens held; return views of all keys, values.

        The new tokens count only after ``advance``: a forward pass that is interrupted leaves the cache as it was.
        """
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length


def _rounded(capacity: int) -> int:
    return -(-capacity // _BLOCK) * _BLOCK


def _grown(old: Tensor, capacity: int, length: int) -> Tensor:
    new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
    new[:, :, :length] = old[:, :, :length]
    return new
