"""/v1/chat/completions: a request -> a chat.completion, or its chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_agent.dialogue.reply import CallArguments, CallBegun, Thought
from qwen_agent.dialogue.request import make_request
from qwen_agent.server import agent_model, wire
from qwen_agent.server.engine import AGENT, Engine
from qwen_agent.server.parts import Begun, Ended, Part, Spoken, write, write_nothing
from qwen_agent.server.wire_chat import ChatRequest
from qwen_agent.types import Usage


async def complete(body: ChatRequest, engine: Engine) -> dict[str, Any]:
    """The whole completion. Raises InputError for what cannot be asked, and what the runtime raises."""
    told = _Told(body)
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    call: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] = []
    ended = Ended("stop", Usage())
    async with aclosing(_parts(body, engine)) as parts:
        async for part in parts:
            if isinstance(part, Spoken):
                message["content"] = (message["content"] or "") + part.text
                logprobs += wire.told_logprobs(part.logprobs)
            elif isinstance(part, Thought):
                message["reasoning_content"] = message.get("reasoning_content", "") + part.text
            elif isinstance(part, CallBegun):
                call = {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
            elif isinstance(part, CallArguments) and call is not None:
                call["function"]["arguments"] += part.text
            elif isinstance(part, Ended):
                ended = part
    if call is not None:
        message |= {"function_call": call["function"]} if body.legacy else {"tool_calls": [call]}
    elif message["content"] is None:
        message["content"] = ""
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": logprobs, "refusal": None} if body.logprobs else None,
        "finish_reason": told.finish(ended),
    }
    return told.head("chat.completion") | {"choices": [choice], "usage": usage(ended)}


async def stream(body: ChatRequest, engine: Engine) -> AsyncGenerator[dict[str, Any], None]:
    """The completion in chunks. Raises as `complete`; what cannot be asked before the first chunk.

    Closing the iterator stops the generation. Name, id and role come once: clients join what they are sent.
    """
    told = _Told(body)
    head = told.head("chat.completion.chunk")
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    if with_usage:
        head["usage"] = None
    async with aclosing(_parts(body, engine)) as parts:
        async for part in parts:
            if not isinstance(part, Ended):
                told_logprobs = wire.told_logprobs(part.logprobs) if isinstance(part, Spoken) else []
                yield head | {"choices": [_streamed(told.delta(part), logprobs=told_logprobs)]}
                continue
            yield head | {"choices": [_streamed({}, finish=told.finish(part))]}
            if with_usage:
                yield head | {"choices": [], "usage": usage(part)}


def usage(ended: Ended) -> dict[str, Any]:
    """Token counts as OpenAI has them."""
    counts: dict[str, Any] = {
        "prompt_tokens": ended.usage.prompt_tokens,
        "completion_tokens": ended.usage.generated_tokens,
        "total_tokens": ended.usage.prompt_tokens + ended.usage.generated_tokens,
        "completion_tokens_details": {"reasoning_tokens": ended.thought_tokens},
    }
    if ended.counted:
        counts["prompt_tokens_details"] = {"cached_tokens": ended.usage.cached_tokens}
    return counts


def _parts(body: ChatRequest, engine: Engine) -> AsyncGenerator[Part, None]:
    """The message that is asked for, as it is written. Raises InputError for what cannot be asked."""
    body.check()
    stops = wire.stops_of(body.stop)
    if body.model == AGENT and engine.agent is not None:
        agent_model.check(tools=bool(body.toolbox()), form=body.form() is not None, logprobs=bool(body.logprobs))
        return agent_model.answer(engine.agent, body.said(), body.sampled(engine.agent.generation), body.limit, stops)
    request = make_request(body.said(), body.toolbox(), body.choice(), body.form())
    if body.limit == 0:
        return write_nothing(engine.runtime, request)
    config = engine.config(body.sampled(engine.defaults), body.limit)
    if body.logprobs:
        config = replace(config, logprobs=body.top_logprobs or 0)
    return write(engine.runtime, request, config, stops)


@dataclass(slots=True)
class _Told:
    """What every chunk of one completion says."""

    body: ChatRequest
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def delta(self, part: Part) -> dict[str, Any]:
        """A part as the change of a message that it is."""
        if isinstance(part, Begun):
            return {"role": "assistant"}
        if isinstance(part, Thought):
            return {"reasoning_content": part.text}
        if isinstance(part, Spoken):
            return {"content": part.text}
        if isinstance(part, CallBegun):
            function = {"name": part.name, "arguments": ""}
            if self.body.legacy:
                return {"function_call": function}
            return {"tool_calls": [{"index": 0, "id": part.id, "type": "function", "function": function}]}
        assert isinstance(part, CallArguments)
        if self.body.legacy:
            return {"function_call": {"arguments": part.text}}
        return {"tool_calls": [{"index": 0, "function": {"arguments": part.text}}]}

    def finish(self, ended: Ended) -> str:
        """OpenAI's finish_reason. A call of the one function that was named is no decision: it ends with "stop"."""
        if ended.finish != "call":
            return ended.finish
        choice = self.body.choice()
        if choice.mode == "required" and len(choice.among or ()) == 1:
            return "stop"
        return "function_call" if self.body.legacy else "tool_calls"


def _streamed(
    delta: dict[str, Any], *, finish: str | None = None, logprobs: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    told = {"content": logprobs, "refusal": None} if logprobs else None
    return {"index": 0, "delta": delta, "logprobs": told, "finish_reason": finish}
