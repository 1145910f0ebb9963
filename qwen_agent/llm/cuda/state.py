"""Where a step stands, on the device: a graph is captured once and reads from here what changes from token to token."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import ModelConfig
from qwen_agent.llm.rope import inverse_frequencies

_PLACE, _FOLLOWING, _TOKEN = slice(0, 3), slice(3, 4), slice(4, 5)


class State:
    """The position of the next token, the token itself, and the KV cache to work on."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self.numbers = torch.zeros(8, dtype=torch.int64, device=device)
        self.place = self.numbers[_PLACE]  # position of the first new token, new tokens, capacity of the cache
        self.following = self.numbers[_FOLLOWING]  # position of the token that a step begins with
        self.token = self.numbers[_TOKEN]
        self.pages = torch.zeros((4, config.layers), dtype=torch.int64, device=device)
        self.inverse = torch.zeros(config.head_dim // 2, dtype=torch.float32, device=device)
        self.stamp = 0  # grows whenever the state is set to stand somewhere else
        self._pages: list[list[int]] | None = None
        self._alpha: float | None = None

    def stand(self, cache: KVCache, position: int, count: int, token: int | None = None) -> None:
        """``count`` new tokens begin at ``position`` of ``cache``; a step begins with ``token``.

        Without ``token`` the one that was chosen last on the device stays.
        """
        self.stamp += 1
        numbers = [position, count, cache.capacity, position]
        if token is not None:
            numbers.append(token)
        self.numbers[: len(numbers)].copy_(sent(torch.tensor(numbers, dtype=torch.int64), self._device))
        pages = cache.addresses()
        if pages != self._pages:
            self.pages.copy_(sent(torch.tensor(pages, dtype=torch.int64), self._device))
            self._pages = pages
        if cache.alpha != self._alpha:
            self.inverse.copy_(inverse_frequencies(self._config, cache.alpha, self._device))
            self._alpha = cache.alpha


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """On its way to the device, from pinned memory: the host does not wait."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers
