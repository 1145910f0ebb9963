"""Prefill and decode: token ids in, token ids out, one at a time, over a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import ModelConfig


class Decoder(Protocol):
    """What generation needs of a model: Model has it, and so has CudaModel."""

    config: ModelConfig
    chunk: int  # tokens per forward pass while reading: bounds memory, and is how soon a cancel is seen

    @property
    def device(self) -> torch.device: ...

    def new_cache(self, prompt_length: int) -> KVCache: ...

    def hidden(self, ids: Tensor, cache: KVCache) -> Tensor: ...

    def last_logits(self, ids: Tensor, cache: KVCache) -> Tensor: ...

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor: ...


def prefill(model: Decoder, ids: Sequence[int], cache: KVCache) -> Iterator[tuple[int, Tensor | None]]:
    """Read ids (at least one) on top of the cache, in pieces.

    Yields (tokens read so far, None) after each piece but the last, then (len(ids), logits [V] after the last id).
    """
    for start in range(0, len(ids), model.chunk):
        piece = torch.tensor([ids[start : start + model.chunk]], dtype=torch.int64, device=model.device)
        end = start + piece.shape[1]
        if end < len(ids):
            model.hidden(piece, cache)
            yield end, None
        else:
            yield end, model.last_logits(piece, cache)[0]


def decode(
    model: Decoder, logits: Tensor, cache: KVCache, choose: Callable[[Tensor], list[int]], limit: int
) -> Iterator[int]:
    """Yield up to ``limit`` token ids. ``choose`` picks from logits [V]; no token ends the generation.

    When ``choose`` knows what must follow its choice it returns that too, and all of it is read in one pass. Tokens
    enter the cache only when more are asked for: the last ones yielded are not in it.
    """
    while limit > 0:
        tokens = choose(logits)[:limit]
        if not tokens:
            return
        yield from tokens
        limit -= len(tokens)
        if limit:
            step = torch.tensor([tokens], dtype=torch.int64, device=model.device)
            logits = model.last_logits(step, cache)[0]
