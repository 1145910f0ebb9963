"""The values that travel round the loop: plain, frozen, compared by content.

Nothing here imports anything but the standard library, so every layer may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal


class Role(str, Enum):
    """Who speaks. An enum, because a free role string with a newline in it could forge a turn."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. An assistant turn holds its whole ReAct text, observations included."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by its surface form (``<|im_start|>``). The only way a prompt can hold one."""

    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary text. It is always encoded as ordinary text, whatever it looks like."""

    content: str


@dataclass(frozen=True, slots=True)
class Generated:
    """Text a model wrote, with the very token ids it wrote, so that nothing re-encodes it."""

    content: str
    token_ids: tuple[int, ...]


Segment = Control | Text | Generated
Prompt = tuple[Segment, ...]

IM_START = Control("<|im_start|>")
IM_END = Control("<|im_end|>")
END_OF_TEXT = Control("<|endoftext|>")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model asked for.

    ``arguments`` is None when ``raw`` (the text after ``Action Input:``) could not be read as arguments;
    ``problem`` then says why in one sentence, and ``repairs`` lists what had to be mended to read it.
    """

    name: str
    arguments: Mapping[str, Any] | None
    raw: str
    problem: str = ""
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came back from a tool: the text the model will read.

    ``ok`` is False when the tool failed, timed out or was called wrongly; ``dropped_chars`` counts what the
    length limit cut out of the middle; ``seconds`` is wall-clock time.
    """

    content: str
    ok: bool = True
    dropped_chars: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and seconds of one or more model calls.

    ``prompt_tokens`` counts the whole prompts, ``cached_tokens`` the part of them that was already in the KV
    cache; the difference, ``prefilled_tokens``, is what the model really had to read.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prefilled_tokens(self) -> int:
        return self.prompt_tokens - self.cached_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.generated_tokens + other.generated_tokens,
            self.prefill_seconds + other.prefill_seconds,
            self.decode_seconds + other.decode_seconds,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One way round the loop: a thought, perhaps a call, and what the tool really returned.

    ``discarded`` is text the model wrote after its action (an invented observation, a second action): it was
    cut, never believed, and is kept here only so that it can be counted.
    """

    thought: str
    call: ToolCall | None = None
    result: ToolResult | None = None
    discarded: str = ""
    usage: Usage = field(default_factory=Usage)


class StopReason(str, Enum):
    """Why a run ended. Only FINAL_ANSWER means that the model ended it by itself with an answer."""

    FINAL_ANSWER = "final_answer"
    MAX_STEPS = "max_steps"
    MAX_TOKENS = "max_tokens"
    CONTEXT_FULL = "context_full"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The end of a run. ``transcript`` is the assistant's whole turn, ready to be used as history."""

    answer: str
    steps: tuple[Step, ...]
    stop_reason: StopReason
    usage: Usage
    transcript: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """The model is reading the prompt: ``done`` of ``total`` tokens are in the KV cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of text as it is written, with the part of the step it belongs to."""

    part: Literal["thought", "action", "action_input", "final_answer"]
    text: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A call was read and is about to run."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A call has an observation."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True)
class StepFinished:
    """One way round the loop is complete."""

    step: Step


@dataclass(frozen=True, slots=True)
class Finished:
    """Always the last event of a run."""

    result: AgentResult


Event = Reading | Delta | ToolStarted | ToolFinished | StepFinished | Finished
