"""Where a replay parts from its log, in words and with the two texts side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen_agent.types import Control, Fact, Prompt

_BEFORE, _AFTER = 30, 70  # characters shown round the place where two texts part


@dataclass(frozen=True, slots=True)
class DriftEntry:
    """One place where a replay parts from its log. ``step`` counts from 1."""

    what: str
    expected: str
    found: str
    step: int

    def __str__(self) -> str:
        return f"step {self.step}, {self.what}:\n  the log: {self.expected}\n  the replay: {self.found}"


def pair(expected: str, found: str) -> tuple[str, str]:
    return first_difference(expected, found) or (brief(expected), brief(found))


def first_difference(expected: str, found: str) -> tuple[str, str] | None:
    """Both texts round the place where they part; None if the second is the beginning of the first."""
    at = next((at for at, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(expected))
    if at >= len(found):
        return None
    cut = slice(max(at - _BEFORE, 0), at + _AFTER)
    return repr(expected[cut]), repr(found[cut])


def shown(prompt: Prompt) -> str:
    return "".join(segment.name if isinstance(segment, Control) else segment.content for segment in prompt)


def title(fact: Fact) -> str:
    return f"{type(fact).__name__} ({fact.about})"


def brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:197]}..."
