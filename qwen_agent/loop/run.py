"""One run so far, as the loop needs it: the prompt as it grows, the steps, what was spent and what was called."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from qwen_agent.errors import Drift
from qwen_agent.limits import Limits
from qwen_agent.tools.base import Tool
from qwen_agent.types import (
    AgentResult,
    Confidence,
    Control,
    Fact,
    Finished,
    LimitReached,
    Prompt,
    Step,
    StopReason,
    ToolCall,
    ToolFinished,
    ToolResult,
    Usage,
    Weighed,
)

F = TypeVar("F", bound=Fact)
Cancelled = Callable[[], bool]


class Past(Protocol):
    """What is known of a run before it is run: nothing, or the facts of its log."""

    def take(self, kind: type[F], about: str) -> F | None:
        """The next fact, if it is of this kind. None if it is of another kind, or if there is none.

        ``about`` is what the fact must be about if the run repeats itself: a prompt's digest, a call.
        """
        ...

    @property
    def goes_on(self) -> bool:
        """True while facts are left: what the clock says now does not count yet."""
        ...

    def must_have_ended(self, about: str) -> None:
        """Called before something new is asked of the model, a tool or a person: no fact may be left."""
        ...


class Nothing:
    """The past of a new run."""

    goes_on = False

    def take(self, kind: type[F], about: str) -> F | None:
        return None

    def must_have_ended(self, about: str) -> None:
        return None


class Recorded:
    """The past of a run that has a log. Raises Drift where the run does not repeat it."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._facts = deque(usable(list(facts)))

    @property
    def goes_on(self) -> bool:
        return bool(self._facts)

    def take(self, kind: type[F], about: str) -> F | None:
        fact = self._facts[0] if self._facts else None
        if not isinstance(fact, kind):
            return None
        self._facts.popleft()
        if fact.about != about:
            raise Drift(f"{kind.__name__} of the log is about {_short(fact.about)}, but the run is at {_short(about)}")
        return fact

    def must_have_ended(self, about: str) -> None:
        if self._facts:
            kind = type(self._facts[0]).__name__
            raise Drift(f"the log goes on with {kind}, but the run wants something else at {_short(about)}")


def usable(facts: Sequence[Fact]) -> list[Fact]:
    """Without what was weighed for a step that the clock then broke off: no such step is begun again."""
    pairs = itertools.zip_longest(facts, facts[1:])
    return [one for one, after in pairs if not (isinstance(one, Weighed) and isinstance(after, LimitReached))]


@dataclass(slots=True)
class Turn:
    """What one step put into the prompt. ``tokens`` is of both parts, ``observed_tokens`` of the observation alone."""

    written: Prompt
    observed: Prompt
    result: ToolResult
    tokens: int
    observed_tokens: int
    is_stub: bool = False


class Run:
    """Grows while a run goes on; belongs to one thread at a time."""

    def __init__(self, opened: Prompt, window: int, limits: Limits, past: Past, cancelled: Cancelled) -> None:
        self.window = window
        self.limits = limits
        self.past = past
        self.tokens = 0  # of the prompt
        self.turns: list[Turn] = []
        self.steps: list[Step] = []
        self.usage = Usage()
        self.tool_calls = 0
        self.answers_sent_back = 0
        self.confidence: Confidence | None = None  # of the step that is being written
        self.decided: str | None = None  # what was made of it: the tool choice for this step
        self.reader: Tool | None = None  # reads stubs again; there once there are any
        self._asked: dict[str, int] = {}
        self._answered: dict[str, ToolResult] = {}
        self._opened = opened
        self._tail: Prompt = ()
        self._segments = [*opened]
        self._digest = _digest(opened)
        self._began = time.monotonic()
        self._asks_cancelled = cancelled
        self._cancelled = False

    # ---- the clock

    @property
    def cancelled(self) -> bool:
        self._cancelled = self._cancelled or self._asks_cancelled()
        return self._cancelled

    @property
    def elapsed(self) -> float:
        """Seconds since the run began; for a resumed run, the time it was away does not count."""
        return time.monotonic() - self._began

    def was_at(self, elapsed: float) -> None:
        """A fact of the past happened this late in the run."""
        self._began = min(self._began, time.monotonic() - elapsed)

    @property
    def expired(self) -> bool:
        return self.limits.seconds is not None and self.elapsed >= self.limits.seconds

    @property
    def seconds_left(self) -> float:
        return float("inf") if self.limits.seconds is None else max(self.limits.seconds - self.elapsed, 0.001)

    # ---- the prompt

    @property
    def prompt(self) -> Prompt:
        return tuple(self._segments)

    @property
    def digest(self) -> str:
        """Names the prompt: equal digests, equal prompts."""
        return self._digest.hexdigest()

    @property
    def written(self) -> Prompt:
        """The assistant's turn so far."""
        return tuple(self._segments[len(self._opened) :])

    def append(self, turn: Turn) -> None:
        """Add a finished step to the prompt. What was added after the last step before becomes its beginning."""
        self.turns.append(replace(turn, written=self._tail + turn.written))
        self._tail = ()
        self.tokens += turn.tokens
        self._extend((*turn.written, *turn.observed))

    def end_with(self, segments: Prompt, tokens: int) -> None:
        """Add text after the last step: the model's own, or the words that make it answer."""
        self._tail += segments
        self.tokens += tokens
        self._extend(segments)

    def replace_observations(self, stubs: Mapping[int, Prompt], tokens: int) -> None:
        """Put stubs in place of some steps' observations; the prompt then has ``tokens``."""
        for at, stub in stubs.items():
            turn = self.turns[at]
            turn.observed, turn.is_stub = stub, True
        self.tokens = tokens
        self._segments, self._digest = [*self._opened], _digest(self._opened)
        for turn in self.turns:
            self._extend((*turn.written, *turn.observed))
        self._extend(self._tail)

    def ends_with(self) -> str:
        """The text at the end of the prompt, "" after a control token."""
        last = self._segments[-1]
        return "" if isinstance(last, Control) else last.content

    def _extend(self, segments: Prompt) -> None:
        self._segments += segments
        self._digest.update(_bytes(segments))

    # ---- calls

    def times_asked(self, key: str) -> int:
        """Count one more request for this call; how often it was asked for before."""
        before = self._asked.get(key, 0)
        self._asked[key] = before + 1
        return before

    def earlier_result(self, key: str) -> ToolResult | None:
        return self._answered.get(key)

    def remember(self, finished: ToolFinished) -> None:
        self._answered[finished.about] = finished.result

    # ---- the end

    def finish(self, answer: str, reason: StopReason, output: Any = None) -> Finished:
        written = self.written
        transcript = "".join(segment.content for segment in written if not isinstance(segment, Control))
        return Finished(AgentResult(answer, tuple(self.steps), reason, self.usage, transcript, written, output))


def call_key(call: ToolCall) -> str:
    """A call in canonical form: the tool, and the arguments with sorted keys (or the text that could not be read)."""
    if call.arguments is None:
        return f"{call.name} {call.raw}"
    return f"{call.name} {json.dumps(call.arguments, sort_keys=True, ensure_ascii=False, default=str)}"


def _short(about: str) -> str:
    return repr(about if len(about) <= 80 else about[:77] + "...")


def _digest(prompt: Prompt) -> hashlib.blake2b:
    return hashlib.blake2b(_bytes(prompt), digest_size=8)


def _bytes(segments: Prompt) -> bytes:
    # How text is cut into segments does not matter; that a control token is not text does.
    pieces = (
        b"\0" + segment.name.encode() + b"\0"
        if isinstance(segment, Control)
        else segment.content.encode("utf-8", "surrogatepass")
        for segment in segments
    )
    return b"".join(pieces)
