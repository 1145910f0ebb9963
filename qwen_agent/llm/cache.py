"""The KV cache: grows in place, can be cut back to a prefix, and carries the NTK alpha it was filled under."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_agent.llm.config import ModelConfig

_BLOCK = 256  # tokens; capacity grows to a multiple of this, at least by half


class KVCache:
    """Rotated keys and values of ``length`` tokens for ``batch`` rows of equal length.

    keys[layer], values[layer]: [batch, kv_heads, capacity, head_dim]. ``alpha`` belongs to the request: keys
    rotated under one alpha never mix with keys under another. With ``dtype`` int8 each row of head_dim numbers is
    stored as codes times a float16 scale, key_scales[layer] and value_scales[layer] [batch, kv_heads, capacity].
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
        scaled = config.layers if dtype == torch.int8 else 0
        self.key_scales = [torch.empty(shape[:3], device=device, dtype=torch.float16) for _ in range(scaled)]
        self.value_scales = [torch.empty(shape[:3], device=device, dtype=torch.float16) for _ in range(scaled)]

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all; what is stored stays."""
        if length <= self.capacity:
            return
        capacity = _rounded(max(length, self.capacity + self.capacity // 2))
        for tensors in (self.keys, self.values, self.key_scales, self.value_scales):
            for layer, tensor in enumerate(tensors):  # one by one, so that no two whole caches exist at a time
                tensors[layer] = _grown(tensor, capacity)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [batch, kv_heads, T, head_dim] after the ``length`` tokens held; return all keys and values.

        The new tokens count only after ``advance``: a forward pass that is interrupted leaves the cache as it was.
        """
        end = self.length + k.shape[2]
        if self.key_scales:
            keys = _write_codes(self.keys[layer], self.key_scales[layer], k, self.length)
            return keys, _write_codes(self.values[layer], self.value_scales[layer], v, self.length)
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def addresses(self) -> list[list[int]]:
        """Where keys, values, key scales and value scales of each layer are in memory (0: there are none)."""
        tables = (self.keys, self.values, self.key_scales, self.value_scales)
        return [[t.data_ptr() for t in table] or [0] * len(self.keys) for table in tables]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def copy(self, length: int, capacity: int) -> KVCache:
        """A cache of its own with the first ``length`` tokens, and room for ``capacity`` in all."""
        new = object.__new__(KVCache)
        new.alpha, new.length = self.alpha, length
        room = _rounded(max(length, capacity))
        new.keys, new.values, new.key_scales, new.value_scales = (
            [_copied(tensor, length, room) for tensor in tensors]
            for tensors in (self.keys, self.values, self.key_scales, self.value_scales)
        )
        return new

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length


def _rounded(capacity: int) -> int:
    return -(-capacity // _BLOCK) * _BLOCK


def _write_codes(codes: Tensor, scales: Tensor, x: Tensor, start: int) -> Tensor:
    """Store x [..., T, D] as int8 codes and scales from token ``start`` on; everything up to its end, in x's dtype."""
    end = start + x.shape[2]
    scale = (x.float().abs().amax(dim=-1) / 127).half()
    steps = torch.where(scale > 0, scale, torch.ones_like(scale)).float()[..., None]
    codes[:, :, start:end] = torch.where(scale[..., None] > 0, (x.float() / steps).round().clamp(-127, 127), 0.0)
    scales[:, :, start:end] = scale
    return (codes[:, :, :end].float() * scales[:, :, :end].float()[..., None]).to(x.dtype)


def _copied(old: Tensor, length: int, capacity: int) -> Tensor:
    new = old.new_empty((*old.shape[:2], capacity, *old.shape[3:]))
    new[:, :, :length] = old[:, :, :length]
    return new


def _grown(old: Tensor, capacity: int) -> Tensor:
    """All of it, since a step that is under way may have written beyond the length."""
    new = old.new_empty((*old.shape[:2], capacity, *old.shape[3:]))
    new[:, :, : old.shape[2]] = old
    return new
