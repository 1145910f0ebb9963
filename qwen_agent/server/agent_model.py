"""The server's own agent, with its own tools, as a model: its answer is the content, its steps the reasoning.

Promises
- tools_of_the_client_are_never_run: with tools of its own a request is refused.
- nothing_needs_a_person: a call of a tool that asks first is refused, unless the agent has an ``approve``.
- a_client_that_leaves_ends_the_run: the generation stops, and tools are told so.
- a_run_that_was_begun_is_not_turned_away: only its first step is refused where the runtime is busy; later ones wait.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace

from qwen_agent.dialogue.reply import Thought, Trimmed
from qwen_agent.dialogue.turns import Said, System, conversation, history
from qwen_agent.errors import Busy, InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, Runtime
from qwen_agent.llm.stopping import StopStrings
from qwen_agent.loop.run import Cancelled
from qwen_agent.loop.threads import iterate_in_thread
from qwen_agent.react import Agent
from qwen_agent.server import wire
from qwen_agent.server.parts import Begun, Ended, Part, Spoken
from qwen_agent.types import (
    AgentResult,
    Delta,
    Event,
    Finished,
    Prompt,
    RunStarted,
    StepFinished,
    StopReason,
    ToolCall,
    ToolFinished,
    ToolStarted,
)

_WAIT = 0.2  # seconds before a busy runtime is asked again


def check(*, tools: bool, form: bool, logprobs: bool) -> None:
    """Raise ApiError for what a request may not ask of the agent."""
    if tools:
        raise wire.refuse("tools", "react-agent calls its own; ask the plain model with yours")
    if form:
        raise wire.refuse("response_format", "react-agent answers in words; ask the plain model for an object")
    if logprobs:
        raise wire.refuse("logprobs", "react-agent writes several texts for one answer; leave it out")


async def answer(
    agent: Agent, said: Sequence[Said], generation: GenerationConfig, limit: int | None, stops: Sequence[str]
) -> AsyncGenerator[Part, None]:
    """A run of the agent as one message. Raises InputError for what cannot be asked, as `Agent.stream` does.

    ``limit`` bounds the tokens of the run's steps; the short answer that is then asked for comes on top. System
    messages replace the agent's own.
    """
    system, turns = conversation(said)
    if turns[-1].said:
        raise InputError("the last message is not a question: the agent needs a message of the user there")
    limits = agent.limits if limit is None else replace(agent.limits, tokens=min(limit, agent.limits.tokens))
    agent = replace(
        agent,
        generation=generation,
        limits=limits,
        approve=agent.approve or _refuse,
        system=system if any(isinstance(message, System) for message in said) else agent.system,
    )
    question, earlier = turns[-1].asked, history(turns[:-1])
    message = _Message(stops)

    def start(cancelled: Cancelled) -> Iterator[Event]:
        patient = replace(agent, runtime=_Patient(agent.runtime, cancelled))
        return patient.stream(question, earlier, cancelled)

    events = iterate_in_thread(start)
    async with contextlib.aclosing(events) as source:  # type: ignore[type-var]
        async for event in source:
            for part in message.follow(event):
                yield part


def _refuse(call: ToolCall) -> bool:
    return False


class _Patient:
    """The runtime of one run: where it is busy, all generations but the first wait."""

    def __init__(self, runtime: Runtime, cancelled: Cancelled) -> None:
        self.name, self.window = runtime.name, runtime.window
        self.score, self.count_tokens = runtime.score, runtime.count_tokens
        self._runtime, self._cancelled = runtime, cancelled
        self._begun = False

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        while True:
            try:
                chunks = self._runtime.stream(prompt, config)
            except Busy:
                if not self._begun or self._cancelled():
                    raise
                time.sleep(_WAIT)
            else:
                self._begun = True
                return chunks


class _Message:
    """The events of a run as the parts of one message."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._begun = False
        self._thought, self._answer = Trimmed(), Trimmed()
        self._stops = StopStrings(stops)
        self._answered = False

    def follow(self, event: Event) -> Iterator[Part]:
        if isinstance(event, RunStarted):  # the runtime has not been asked yet, and may be too busy
            return
        if not self._begun:
            self._begun = True
            yield Begun()
        if isinstance(event, Delta) and event.part == "thought":
            if thought := self._thought.feed(event.text):
                yield Thought(thought)
        elif isinstance(event, Delta) and event.part == "final_answer":
            yield from self._say(self._answer.feed(event.text))
        elif isinstance(event, ToolStarted):
            yield Thought(f"\nAction: {event.call.name}\nAction Input: {event.call.raw}\n")
        elif isinstance(event, ToolFinished):
            yield Thought(f"Observation: {event.result.content}\n")
        elif isinstance(event, StepFinished):
            self._thought = Trimmed()
        elif isinstance(event, Finished):
            yield from self._end(event.result)

    def _say(self, text: str) -> Iterator[Part]:
        if shown := self._stops.feed(text):
            self._answered = True
            yield Spoken(shown)

    def _end(self, result: AgentResult) -> Iterator[Part]:
        if not self._answered:
            yield from self._say(result.answer)
        if self._stops.matched is None and (held := self._stops.flush()):
            yield Spoken(held)
        at_limit = result.stop_reason is StopReason.MAX_TOKENS
        yield Ended("length" if at_limit else "stop", result.usage)
