"""Relative probabilities of choices from log-probabilities of their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Ids = Sequence[int]


def probabilities(tails: Sequence[Ids], score: Callable[[Sequence[Ids]], list[float]]) -> tuple[float, ...]:
    """The probability of each choice, relative to the others.

    A choice counts only as far as the token that tells it from all others, as in LocalRuntime.
    """
    logs = score([tail[: _told_apart(tail, [other for other in tails if other is not tail])] for tail in tails])
    most = max(logs)
    weights = [math.exp(log - most) for log in logs]
    return tuple(weight / sum(weights) for weight in weights)


def _told_apart(tail: Ids, others: Sequence[Ids]) -> int:
    """How many tokens of a choice it takes to tell it from the others."""
    return min(max((_common(tail, other) for other in others), default=0) + 1, len(tail))


def _common(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
