"""The long-context maths in one place: rotary embedding, dynamic NTK, LogN.

Every function takes the true position of a token (0-based, padding not counted), so batches, left padding and
continuation on top of a cache need no special case.

Sources: RoFormer (arXiv 2104.09864, section 3.2.2, half-split layout as in GPT-NeoX); dynamic NTK and LogN as in
Qwen's technical report (arXiv 2309.16609, section 2.3.2) and its released code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qwen_agent.llm.config import ModelConfig


def ntk_alpha(length: int, train_length: int) -> float:
    """Stretch factor for a prompt of ``length`` tokens: 1 up to the training length, then 3, 7, 15 ...

    It is chosen once, when the prompt is read, and stays what it was while decoding.
    """
    if length <= train_length:
        return 1.0
    return max(2.0 ** math.ceil(math.log2(length / train_length) + 1) - 1, 1.0)


def request_alpha(config: ModelConfig, length: int) -> float:
    """The NTK alpha of a request whose prompt has ``length`` tokens (always 1 if the model does not use NTK)."""
    return ntk_alpha(length, config.train_length) if config.dynamic_ntk else 1.0


def rotary_tables(config: ModelConfig, positions: Tensor, alpha: Tensor | float) -> tuple[Tensor, Tensor]:
    """cos and sin for ``positions`` [..., T] (int64) -> two float32 tensors [..., T, head_dim].

    ``alpha`` is one number, or a tensor [..., 1] with one value per row. The angle is computed in float32, as
    the reference does.
    """
    inverse = inverse_frequencies(config, alpha, positions.device)  # [D/2] or [..., 1, D/2]
    angles = positions[..., None].float() * inverse  # [..., T, D/2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def inverse_frequencies(config: ModelConfig, alpha: Tensor | float, device: torch.device) -> Tensor:
    """Radians per token of each pair of dimensions: float32 [D/2]; for alpha [..., 1] one row each, [..., 1, D/2]."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)  # [D/2]
    exponent = config.head_dim / (config.head_dim - 2)
    if isinstance(alpha, Tensor):
        base = config.rope_base * alpha.double() ** exponent  # [..., 1]
        return 1.0 / (base.float()[..., None] ** (half / config.head_dim))
    return 1.0 / (config.rope_base * alpha**exponent) ** (half / config.head_dim)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., T, D] by tables broadcastable to it; computed in float32, returned in x's dtype."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def logn_scale(config: ModelConfig, positions: Tensor) -> Tensor:
    """LogN factor for queries at ``positions`` [..., T] -> float32 [..., T]; 1 up to the training length.

    log(p + 1) / log(train_length), so that the entropy of attention stays level as the context grows.
    """
    factor = torch.log((positions + 1).float()) / math.log(config.train_length)
    return torch.where(positions + 1 > config.train_length, factor, torch.ones_like(factor))
