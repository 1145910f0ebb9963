"""The seam between the agent and whatever generates text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.types import Control, Prompt, Usage

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was: natural logarithms, of the model's own distribution.

    That is the softmax of its logits as they are, in float32: before temperature, top-k, top-p, the repetition penalty
    and a grammar. ``text`` are the token's bytes, which may be part of a character; a control token's surface form
    stands for it, though it is never part of a text. ``top`` are the likeliest (token, text, logprob), best first.
    """

    token: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """One beat of a generation: while the prompt is read, for every token, and at the end.

    ``text`` is safe to show (often "" while something is held back). ``read`` is (done, total) prompt tokens while
    the prompt is read. ``weights`` comes once, after that, if the config has ``choices``: the probability of each,
    relative to the others, with the usage so far. The last chunk has a ``finish``: "stop" (a stop id or string) or
    "length" (the token limit or the end of the window), with ``output``: the whole text before the stop, as the
    tokens that were written. ``logprobs``, if asked for, are those of the tokens whose text is shown up to here and
    was not before: all of them together are the tokens in ``output``. While the prompt is read they are, if asked
    for, those of the tokens read, from the second of the prompt on.
    """

    text: str = ""
    read: tuple[int, int] | None = None
    weights: tuple[float, ...] | None = None
    finish: FinishReason | None = None
    stop: str | None = None
    output: Prompt = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage = field(default_factory=Usage)


class Runtime(Protocol):
    """Anything that continues a prompt. Close the iterator to cancel; the runtime stays usable."""

    name: str
    """What the model is called, for logs and traces."""
    window: int
    """The most tokens that prompt and output may have together."""

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Generate. Raises ContextOverflow if the prompt leaves no room for one token."""
        ...

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        """Log-probability (natural, summed over tokens) of each choice as a continuation of the prompt."""
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens the prompt has."""
        ...


def text_of(prompt: Prompt) -> str:
    """The text and generated segments of a prompt as one string; control tokens have none."""
    return "".join(segment.content for segment in prompt if not isinstance(segment, Control))
