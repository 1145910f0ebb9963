"""The whole agent as a Runnable."""

from __future__ import annotations

import functools
import operator
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessageChunk, BaseMessage, SystemMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableGenerator

from qwen_agent.dialogue.reply import Trimmed
from qwen_agent.dialogue.turns import conversation, history
from qwen_agent.errors import InputError
from qwen_agent.langchain_adapter.conversation import said
from qwen_agent.langchain_adapter.reply import thinking
from qwen_agent.langchain_adapter.settings import PROVIDER, usage_metadata
from qwen_agent.react import Agent
from qwen_agent.types import AgentResult, Delta, Event, Finished, Message, Step, StepFinished


def agent_runnable(agent: Agent) -> Runnable[Any, Any]:
    """A run of our agent as a Runnable: text, a prompt or messages in, an AIMessage with the answer out.

    The agent calls its own tools; the message's ``response_metadata`` has the ``stop_reason`` and the ``steps``, its
    reasoning the thoughts. Earlier messages are history; system messages replace the agent's. Raises as `Agent.run`.
    """

    def transform(inputs: Iterator[Any]) -> Iterator[AIMessageChunk]:
        run, question, earlier = _asked(agent, [*inputs])
        message = _Message(run)
        for event in run.stream(question, earlier):
            yield from message.follow(event)

    async def atransform(inputs: AsyncIterator[Any]) -> AsyncIterator[AIMessageChunk]:
        run, question, earlier = _asked(agent, [given async for given in inputs])
        message = _Message(run)
        async for event in run.astream(question, earlier):
            for chunk in message.follow(event):
                yield chunk

    return RunnableGenerator(transform, atransform, name=PROVIDER)


def _asked(agent: Agent, pieces: list[Any]) -> tuple[Agent, str, list[Message]]:
    given = functools.reduce(operator.add, pieces)
    messages = given.to_messages() if isinstance(given, PromptValue) else given
    messages = convert_to_messages([messages] if isinstance(messages, (str, BaseMessage)) else messages)
    system, turns = conversation(said(messages))
    if turns[-1].said:
        raise InputError("the last message is not a question: the agent needs a HumanMessage there")
    own = replace(agent, system=system) if any(isinstance(each, SystemMessage) for each in messages) else agent
    return own, turns[-1].asked, history(turns[:-1])


class _Message:
    """The events of a run as chunks of one message."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._thought, self._answer = Trimmed(), Trimmed()
        self._between = ""  # what separates the next thought from the last
        self._answered = False

    def follow(self, event: Event) -> Iterator[AIMessageChunk]:
        # An object as the answer may be sent back, so it is shown only when it is final.
        if isinstance(event, Delta) and event.part == "final_answer" and self._agent.output_type is None:
            if answer := self._answer.feed(event.text):
                self._answered = True
                yield AIMessageChunk(content=answer)
        elif isinstance(event, Delta) and event.part == "thought":
            if thought := self._thought.feed(event.text):
                yield thinking(self._between + thought)
                self._between = ""
        elif isinstance(event, StepFinished):
            self._thought, self._between = Trimmed(), "\n"
        elif isinstance(event, Finished):
            yield self._end(event.result)

    def _end(self, result: AgentResult) -> AIMessageChunk:
        return AIMessageChunk(
            content="" if self._answered else result.answer,
            usage_metadata=usage_metadata(result.usage),
            response_metadata={
                "model_name": self._agent.runtime.name,
                "model_provider": PROVIDER,
                "stop_reason": result.stop_reason.value,
                "steps": [_told(step) for step in result.steps],
            },
            chunk_position="last",
        )


def _told(step: Step) -> dict[str, Any]:
    told: dict[str, Any] = {"thought": step.thought}
    if step.call is not None:
        told |= {"tool": step.call.name, "arguments": step.call.arguments}
    if step.result is not None:
        told |= {"observation": step.result.content, "ok": step.result.ok}
    return told
