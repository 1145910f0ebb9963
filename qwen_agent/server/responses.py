"""/v1/responses: a request -> a response, or the events of its making."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

from qwen_agent.dialogue.reply import CallArguments, CallBegun, Thought
from qwen_agent.dialogue.request import make_request
from qwen_agent.dialogue.turns import Assistant, Call, Said
from qwen_agent.server import agent_model, wire
from qwen_agent.server.engine import AGENT, Engine
from qwen_agent.server.parts import Begun, Ended, Part, Spoken, write
from qwen_agent.server.response_store import ResponseStore, Stored
from qwen_agent.server.wire_responses import ResponsesRequest

Status = Literal["completed", "incomplete"]


async def complete(body: ResponsesRequest, engine: Engine, store: ResponseStore) -> dict[str, Any]:
    """The whole response. Raises InputError and ApiError for what cannot be asked, and what the runtime raises."""
    response: dict[str, Any] = {}
    async with aclosing(stream(body, engine, store)) as events:
        async for event in events:
            response = event.get("response", response)
    return response


async def stream(body: ResponsesRequest, engine: Engine, store: ResponseStore) -> AsyncGenerator[dict[str, Any], None]:
    """The events of its making, each with its type. Raises as `complete`; what cannot be asked before the first.

    Closing the iterator stops the generation; nothing is then stored.
    """
    body.check()
    said = body.said(store.said_until(body.previous_response_id))
    response = _response(body, engine)
    making = _Making(response)
    async with aclosing(_parts(body, engine, said)) as parts:
        async for part in parts:
            events = [*making.follow(part)]
            if isinstance(part, Ended) and body.store is not False:
                # Before the last event is out: whoever has read it may go on from here at once.
                store.keep(Stored(response, (*said, making.said)))
            for event in events:
                yield event


def _parts(body: ResponsesRequest, engine: Engine, said: tuple[Said, ...]) -> AsyncGenerator[Part, None]:
    said = (*body.instructed(), *said)
    if body.model == AGENT and engine.agent is not None:
        agent_model.check(tools=bool(body.toolbox()), form=body.form() is not None, logprobs=body.logprobs is not None)
        sampled = body.sampled(engine.agent.generation)
        return agent_model.answer(engine.agent, said, sampled, body.max_output_tokens, ())
    request = make_request(said, body.toolbox(), body.choice(), body.form())
    config = engine.config(body.sampled(engine.defaults), body.max_output_tokens)
    return write(engine.runtime, request, replace(config, logprobs=body.logprobs))


def _response(body: ResponsesRequest, engine: Engine) -> dict[str, Any]:
    """The response before anything was written."""
    sampled = body.sampled(engine.defaults)
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "store": body.store is not False,
        "temperature": sampled.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_told_tool(spec) for spec in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampled.top_p,
        "truncation": "disabled",
        "metadata": body.metadata or {},
    } | ({"user": body.user} if body.user is not None else {})


def _told_tool(spec: dict[str, Any]) -> dict[str, Any]:
    """A tool as it was given, with the fields that OpenAI's schema wants."""
    return {"type": "function", "description": None, "parameters": None, "strict": True} | spec


class _Making:
    """A response that grows, and the events that say how."""

    def __init__(self, response: dict[str, Any]) -> None:
        self._response = response
        self._item: dict[str, Any] | None = None  # that is open: the last of the output
        self._told = 0  # events

    @property
    def said(self) -> Assistant:
        """The output as a message in nobody's format."""
        output = self._response["output"]
        texts = {
            kind: "".join(part["text"] for item in output if item["type"] == kind for part in item["content"])
            for kind in ("message", "reasoning")
        }
        calls = [
            Call(item["call_id"], item["name"], item["arguments"], whole=item["status"] == "completed")
            for item in output
            if item["type"] == "function_call"
        ]
        return Assistant(texts["message"], texts["reasoning"], tuple(calls))

    def follow(self, part: Part) -> Iterator[dict[str, Any]]:
        if isinstance(part, Begun):
            yield self._event("response.created", response=deepcopy(self._response))
            yield self._event("response.in_progress", response=deepcopy(self._response))
        elif isinstance(part, Thought):
            yield from self._text("reasoning", part.text)
        elif isinstance(part, Spoken):
            yield from self._text("message", part.text, wire.told_logprobs(part.logprobs))
        elif isinstance(part, CallBegun):
            yield from self._close("completed")
            yield from self._open(
                {"id": _id("fc"), "type": "function_call", "call_id": part.id, "name": part.name, "arguments": ""}
            )
        elif isinstance(part, CallArguments):
            assert self._item is not None
            self._item["arguments"] += part.text
            yield self._of_item("response.function_call_arguments.delta", delta=part.text)
        else:
            yield from self._end(part)

    def _end(self, ended: Ended) -> Iterator[dict[str, Any]]:
        status: Status = "incomplete" if ended.finish == "length" else "completed"
        yield from self._close(status)
        self._response["status"] = status
        if status == "incomplete":
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self._response["completed_at"] = int(time.time())
        self._response["usage"] = {
            "input_tokens": ended.usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": ended.usage.cached_tokens,
                "cache_write_tokens": ended.usage.prefilled_tokens,
            },
            "output_tokens": ended.usage.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": ended.thought_tokens},
            "total_tokens": ended.usage.prompt_tokens + ended.usage.generated_tokens,
        }
        yield self._event(f"response.{status}", response=deepcopy(self._response))

    # ---- items

    def _text(self, kind: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
        """A piece of a text, in the item of its kind."""
        if self._item is None or self._item["type"] != kind:
            yield from self._close("completed")
            yield from self._open(_empty(kind))
            part = _empty_part(kind)
            assert self._item is not None
            self._item["content"].append(part)
            yield self._of_item("response.content_part.added", content_index=0, part=deepcopy(part))
        assert self._item is not None
        part = self._item["content"][0]
        part["text"] += text
        if kind == "reasoning":
            yield self._of_item("response.reasoning_text.delta", content_index=0, delta=text)
            return
        part["logprobs"] += logprobs or []
        yield self._of_item("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs or [])

    def _open(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._item = item | {"status": "in_progress"}
        self._response["output"].append(self._item)
        yield self._event("response.output_item.added", output_index=self._index, item=deepcopy(self._item))

    def _close(self, status: Status) -> Iterator[dict[str, Any]]:
        """End the item that is open, if one is."""
        item = self._item
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("response.function_call_arguments.done", **told)
        else:
            part = item["content"][0]
            told = {"text": part["text"], "content_index": 0}
            if item["type"] == "message":
                yield self._of_item("response.output_text.done", **told, logprobs=part["logprobs"])
            else:
                yield self._of_item("response.reasoning_text.done", **told)
            yield self._of_item("response.content_part.done", content_index=0, part=deepcopy(part))
        yield self._event("response.output_item.done", output_index=self._index, item=deepcopy(item))
        self._item = None

    # ---- events

    @property
    def _index(self) -> int:
        return len(self._response["output"]) - 1

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        assert self._item is not None
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._told, **fields}
        self._told += 1
        return event


def _empty(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"id": _id("rs"), "type": "reasoning", "summary": [], "content": []}
    return {"id": _id("msg"), "type": "message", "role": "assistant", "content": []}


def _empty_part(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
