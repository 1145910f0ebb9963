"""react-agent: the server's own agent, with its own tools, behind both formats."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen_agent import Agent, Limits, tool
from qwen_agent.errors import Busy, InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk
from qwen_agent.server import chat, responses
from qwen_agent.server.engine import AGENT, Engine
from qwen_agent.server.errors import ApiError
from qwen_agent.server.response_store import ResponseStore
from qwen_agent.server.wire_chat import ChatRequest
from qwen_agent.server.wire_responses import ResponsesRequest
from qwen_agent.types import Prompt

Scripted = Callable[..., Any]

CALL = ' I add.\nAction: add\nAction Input: {"a": 1, "b": 2}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: It is 3."


@tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def ask(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": AGENT, "messages": [{"role": "user", "content": "1+2?"}]} | fields)


def engine(agent: Agent) -> Engine:
    return Engine(agent.runtime, agent=agent)


def completed(agent: Agent, **fields: Any) -> dict[str, Any]:
    return asyncio.run(chat.complete(ask(**fields), engine(agent)))


def test_the_answer_is_the_content_and_the_steps_are_the_reasoning(scripted: Scripted) -> None:
    whole = completed(Agent(scripted(CALL, ANSWER), [add]))
    (choice,) = whole["choices"]
    assert choice["message"]["content"] == "It is 3."
    assert choice["message"]["reasoning_content"] == (
        'I add.\nAction: add\nAction Input: {"a": 1, "b": 2}\nObservation: 3\nI now know the final answer.'
    )
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_usage_is_that_of_the_whole_run(scripted: Scripted) -> None:
    runtime = scripted(CALL, ANSWER)
    usage = completed(Agent(runtime, [add]))["usage"]
    assert usage["prompt_tokens"] == sum(len(prompt.split()) for prompt in runtime.prompts)
    assert usage["completion_tokens"] > 9


def test_steps_are_streamed_as_they_happen(scripted: Scripted) -> None:
    agent = Agent(scripted(CALL, ANSWER), [add])

    async def deltas() -> list[dict[str, Any]]:
        return [chunk["choices"][0]["delta"] async for chunk in chat.stream(ask(), engine(agent))]

    told = asyncio.run(deltas())
    assert told[0] == {"role": "assistant"}
    assert len([delta for delta in told if "reasoning_content" in delta]) > 10
    assert "".join(delta.get("content", "") for delta in told) == "It is 3."
    assert len([delta for delta in told if "content" in delta]) > 3


def test_it_answers_in_the_other_format_too(scripted: Scripted) -> None:
    body = ResponsesRequest.model_validate({"model": AGENT, "input": "1+2?"})
    runtime = scripted(CALL, ANSWER, ANSWER)
    store = ResponseStore()
    first = asyncio.run(responses.complete(body, engine(Agent(runtime, [add])), store))
    assert [item["type"] for item in first["output"]] == ["reasoning", "message"]
    again = body.model_copy(update={"previous_response_id": first["id"], "input": "Sure?"})
    asyncio.run(responses.complete(again, engine(Agent(runtime, [add])), store))
    assert "Final Answer: It is 3.\nuser\nSure?" in runtime.prompts[2]


def test_earlier_messages_are_history_and_a_system_text_replaces_its_own(scripted: Scripted) -> None:
    runtime = scripted("so", "so")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    completed(Agent(runtime, system="Own."), messages=messages)
    completed(Agent(runtime, system="Own."))
    assert runtime.prompts[0] == "system\nBe brief.\nuser\na\nassistant\nb\nuser\nc\nassistant\n"
    assert runtime.prompts[1].startswith("system\nOwn.\n")


def test_settings_of_the_request_hold(scripted: Scripted) -> None:
    runtime = scripted(ANSWER)
    agent = Agent(runtime, [add], generation=GenerationConfig(77, 0.3), limits=Limits(tokens=50))
    completed(agent, temperature=0.9, seed=4, max_tokens=20)
    (config,) = runtime.configs
    assert (config.temperature, config.seed, config.max_new_tokens) == (0.9, 4, 20)


def test_its_token_limit_ends_it_with_an_answer(scripted: Scripted) -> None:
    runtime = scripted(CALL, " It is 3, I think.")
    (choice,) = completed(Agent(runtime, [add]), max_tokens=3)["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "It is 3, I think.")


def test_stop_strings_end_the_answer(scripted: Scripted) -> None:
    (choice,) = completed(Agent(scripted(CALL, ANSWER), [add]), stop=["is", "add"])["choices"]
    assert choice["message"]["content"].strip() == "It"


def test_an_answer_without_a_marker_is_told_once(scripted: Scripted) -> None:
    (choice,) = completed(Agent(scripted("It is so."), [add]))["choices"]
    assert choice["message"]["content"] == "It is so."


def test_what_needs_a_person_is_refused_unless_the_server_says_otherwise(scripted: Scripted) -> None:
    asking = replace(add, approval="ask")
    (choice,) = completed(Agent(scripted(CALL, ANSWER), [asking]))["choices"]
    assert "Observation: Error: the user does not allow this call" in choice["message"]["reasoning_content"]
    allowed = Agent(scripted(CALL, ANSWER), [asking], approve=lambda call: True)
    assert "Observation: 3" in completed(allowed)["choices"][0]["message"]["reasoning_content"]


FUNCTION = {"name": "mine", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"tools": [{"type": "function", "function": FUNCTION}]}, "tools is not supported: react-agent calls its own"),
        ({"functions": [FUNCTION]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "is not a question"),
        ({"messages": [{"role": "user", "content": ""}]}, "the question is empty"),
    ],
)
def test_what_it_cannot_be_asked_is_an_error(scripted: Scripted, fields: Any, problem: str) -> None:
    with pytest.raises((InputError, ApiError), match=problem):
        completed(Agent(scripted("x"), [add]), **fields)


class Full:
    name, window = "full", 1000

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        raise Busy(3)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return []

    def count_tokens(self, prompt: Prompt) -> int:
        return 1


def test_a_busy_runtime_is_told_before_the_first_chunk() -> None:
    async def first() -> Any:
        return await anext(chat.stream(ask(), engine(Agent(Full(), [add]))))

    with pytest.raises(Busy):
        asyncio.run(first())


def test_a_run_that_was_begun_waits_for_a_place(scripted: Scripted) -> None:
    runtime = scripted(CALL, ANSWER)
    told, places = runtime.stream, [True, False, True]

    def stream(prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        if not places.pop(0):
            raise Busy(3)
        return told(prompt, config)

    runtime.stream = stream
    assert completed(Agent(runtime, [add]))["choices"][0]["message"]["content"] == "It is 3."
    assert places == []


def test_a_client_that_leaves_ends_the_run_and_its_tool(scripted: Scripted) -> None:
    begun, stopped = threading.Event(), threading.Event()

    @tool
    def wait() -> str:
        """Waits."""
        from qwen_agent.tools.base import cancelled

        begun.set()
        while not cancelled():
            time.sleep(0.005)
        stopped.set()
        return ""

    agent = Agent(scripted("so\nAction: wait\nAction Input: {}\nObservation:", ANSWER), [wait])

    async def read() -> None:
        async with aclosing(chat.stream(ask(), engine(agent))) as told:
            async for _ in told:
                pass

    async def leave() -> None:
        reading = asyncio.create_task(read())
        assert await asyncio.to_thread(begun.wait, 10)
        reading.cancel()
        await asyncio.wait([reading])

    asyncio.run(leave())
    assert stopped.wait(5)
    assert len(agent.runtime.prompts) == 1
