"""From logits to the next token: small functions, composed once per request into one sampler.

Order as in Hugging Face's generate, which Qwen's published settings were chosen for: repetition penalty, mask,
temperature, top-k, top-p, draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from qwen_agent.llm.config import GenerationConfig

Warp = Callable[[Tensor], Tensor]  # logits [V] -> logits [V]
Sampler = Callable[[Tensor, Sequence[int], bytes | None], int]


def build_sampler(config: GenerationConfig, vocabulary: int, device: torch.device) -> Sampler:
    """A function (logits [V] float32, ids so far, bitmask of allowed ids or None) -> next id.

    Ids from ``vocabulary`` up are padding rows of the embedding and are never chosen. In the bitmask, id i is bit
    i % 8 (from the lowest) of byte i // 8. With a seed the draws are reproducible on one device.
    """
    warps = _warps(config)
    generator = torch.Generator(device=device)
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)

    def sample(logits: Tensor, ids: Sequence[int], allowed: bytes | None) -> int:
        logits = logits[:vocabulary]
        if config.repetition_penalty != 1.0:
            logits = penalize_repetition(logits, ids, config.repetition_penalty)
        if allowed is not None:
            logits = keep_only(logits, allowed)
        if config.temperature == 0.0:
            return int(logits.argmax())
        for warp in warps:
            logits = warp(logits)
        return int(torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator))

    return sample


def _warps(config: GenerationConfig) -> list[Warp]:
    warps: list[Warp] = []
    if config.temperature not in (0.0, 1.0):
        warps.append(lambda logits: logits / config.temperature)
    if config.top_k:
        warps.append(lambda logits: keep_top_k(logits, config.top_k))
    if config.top_p < 1.0:
        warps.append(lambda logits: keep_top_p(logits, config.top_p))
    return warps


def penalize_repetition(logits: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of seen ids by ``penalty`` (arXiv 1909.05858, section 4.1)."""
    seen = torch.tensor(sorted({i for i in ids if i < logits.shape[0]}), dtype=torch.int64, device=logits.device)
    values = logits[seen]
    return logits.index_copy(0, seen, torch.where(values > 0, values / penalty, values * penalty))


def keep_only(logits: Tensor, allowed: bytes) -> Tensor:
    """Everything whose bit is not set becomes impossible."""
    bits = np.unpackbits(np.frombuffer(allowed, np.uint8), count=logits.shape[0], bitorder="little")
    forbidden = torch.from_numpy(bits ^ 1).view(torch.bool)
    return logits.masked_fill(forbidden.to(logits.device), -torch.inf)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Everything below the k-th largest logit becomes impossible."""
    threshold = torch.topk(logits, min(k, logits.shape[0])).values[-1]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches p (arXiv 1904.09751, section 3.1)."""
    ordered, order = torch.sort(logits, descending=True)
    before = torch.softmax(ordered, dim=-1).cumsum(dim=-1).roll(1)
    before[0] = 0.0  # the likeliest token always stays
    return logits.index_fill(0, order[before >= p], -torch.inf)
