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
class Message:
    """One turn of a conversation. An assistant turn holds its whole ReAct text, observations included.

    ``written`` may carry the same text with the token ids that the model wrote, so that the turn is not encoded
    anew and the KV cache of the run that made it stays valid.
    """

    role: Role
    content: str
    written: Prompt = ()


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
class Artifact:
    """A file that a tool made or was given: a picture, a table. The model reads its ``id``, people open its ``path``.

    ``size`` is in bytes; ``width`` and ``height`` are in pixels, 0 for what is not a picture.
    """

    id: str
    name: str
    media_type: str
    size: int
    path: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came back from a tool: the text the model will read, and the files that came with it.

    ``ok`` is False when the tool failed, timed out or was called wrongly; ``dropped_chars`` counts what the
    length limit cut out of the middle; ``seconds`` is wall-clock time.
    """

    content: str
    ok: bool = True
    dropped_chars: int = 0
    seconds: float = 0.0
    artifacts: tuple[Artifact, ...] = ()


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
class Confidence:
    """What the model thought of its choices before it wrote a step: probabilities that sum to 1.

    ``tools`` maps each tool to the probability of calling it; ``answer`` is the probability of answering instead.
    """

    answer: float
    tools: Mapping[str, float]

    @property
    def call(self) -> float:
        """The probability of calling some tool."""
        return 1.0 - self.answer


@dataclass(frozen=True, slots=True)
class Step:
    """One way round the loop: a thought, perhaps a call, and what the tool really returned.

    ``discarded`` is text the model wrote after its action (an invented observation, a second action): it was
    cut, never believed, and is kept here only so that it can be counted; ``invented`` counts the observations in
    it. ``repairs`` says what liberties were taken to read the step. ``confidence`` is None where the runtime
    cannot tell.
    """

    thought: str
    call: ToolCall | None = None
    result: ToolResult | None = None
    discarded: str = ""
    usage: Usage = field(default_factory=Usage)
    confidence: Confidence | None = None
    repairs: tuple[str, ...] = ()
    invented: int = 0


class StopReason(str, Enum):
    """Why a run ended. Only FINAL_ANSWER means that the model ended it by itself with an answer."""

    FINAL_ANSWER = "final_answer"
    MAX_STEPS = "max_steps"
    MAX_TOOL_CALLS = "max_tool_calls"
    MAX_TOKENS = "max_tokens"
    MAX_SECONDS = "max_seconds"
    REPEATED_CALL = "repeated_call"
    CONTEXT_FULL = "context_full"
    INVALID_OUTPUT = "invalid_output"
    CANCELLED = "cancelled"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The end of a run. ``transcript`` is the assistant's whole turn, ready to be used as history.

    ``written`` is the same turn with the token ids the model wrote. ``output`` is the validated object of an agent
    with an ``output_type``; None if there is none.
    """

    answer: str
    steps: tuple[Step, ...]
    stop_reason: StopReason
    usage: Usage
    transcript: str = ""
    written: Prompt = ()
    output: Any = None


# ---- events ---------------------------------------------------------------------------------------------------------
# Notices are for whoever watches. Facts are what came from outside the loop (the model, the tools, the user, the
# clock): a run can be replayed or resumed from its facts alone.


@dataclass(frozen=True, slots=True)
class Reading:
    """Notice: the model is reading the prompt; ``done`` of ``total`` tokens are in the KV cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Notice: a piece of text as it is written, with the part of the step it belongs to."""

    part: Literal["thought", "action", "action_input", "final_answer"]
    text: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """Notice: a call was read and is about to run."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class StepFinished:
    """Notice: one way round the loop is complete."""

    step: Step


@dataclass(frozen=True, slots=True)
class ApprovalNeeded:
    """Notice: the call waits for a person; without someone to ask, the run ends here with StopReason.PAUSED."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Fact: the question, and the agent that was asked (as `Agent.describe` gives it).

    ``about`` is the digest of the prompt, ``tokens`` its length, ``window`` the model's.
    """

    question: str
    history: tuple[Message, ...]
    agent: Mapping[str, Any]
    tokens: int
    window: int
    about: str = ""


@dataclass(frozen=True, slots=True)
class Weighed:
    """Fact: what the model thinks of its choices before a step. ``about`` is the digest of the prompt.

    ``usage`` is what weighing cost where the generation was begun anew for what was then decided; else the
    generation's own usage holds it.
    """

    confidence: Confidence | None
    about: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class ModelWrote:
    """Fact: one whole generation. ``output`` is all text before the stop, as the tokens that were written.

    ``tokens`` counts what of it stays in the prompt; ``elapsed`` is seconds since the run began; ``about`` is the
    digest of the prompt that was continued.
    """

    output: Prompt
    finish: Literal["stop", "length"]
    stop: str | None
    tokens: int
    usage: Usage
    elapsed: float = 0.0
    about: str = ""


@dataclass(frozen=True, slots=True)
class Approved:
    """Fact: a person granted or refused a call. ``about`` is the call in canonical form."""

    granted: bool
    about: str = ""


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """Fact: a call has an observation; ``result.content`` is what the model reads, ``tokens`` how many it takes."""

    call: ToolCall
    result: ToolResult
    tokens: int = 0
    elapsed: float = 0.0
    about: str = ""


@dataclass(frozen=True, slots=True)
class Compacted:
    """Fact: the observations of these steps (counted from 0) became stubs; the prompt now has ``tokens``."""

    steps: tuple[int, ...]
    tokens: int
    about: str = ""


@dataclass(frozen=True, slots=True)
class LimitReached:
    """Fact: no further step is begun; the model is made to answer with what it knows."""

    reason: StopReason
    about: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """Always the last event of a run."""

    result: AgentResult


Notice = Reading | Delta | ToolStarted | StepFinished | ApprovalNeeded
Fact = RunStarted | Weighed | ModelWrote | Approved | ToolFinished | Compacted | LimitReached
Event = Notice | Fact | Finished
