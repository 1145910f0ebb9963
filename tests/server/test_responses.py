"""/v1/responses: what a request asks, the events of its making, and going on from a response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen_agent.dialogue.turns import User
from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import json_grammar
from qwen_agent.server import responses
from qwen_agent.server.engine import Engine
from qwen_agent.server.errors import ApiError
from qwen_agent.server.response_store import ResponseStore, Stored
from qwen_agent.server.wire_responses import ResponsesRequest

Scripted = Callable[..., Any]

PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOL = {"type": "function", "name": "search", "description": "Searches.", "parameters": PARAMETERS}
CALL = 'Thought: so\nAction: search\nAction Input: {"query": "tea"}\nObservation:'
CUT = 'Thought: so\nAction: search\nAction Input: {"query": "te'
ANSWER = " I now know the final answer.\nFinal Answer: 990 metres"


def ask(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest.model_validate({"model": "m", "input": "hi"} | fields)


def made(runtime: Any, into: ResponseStore | None = None, **fields: Any) -> dict[str, Any]:
    return asyncio.run(responses.complete(ask(**fields), Engine(runtime), into or ResponseStore()))


def events(runtime: Any, **fields: Any) -> list[dict[str, Any]]:
    async def all_of_them() -> list[dict[str, Any]]:
        told = responses.stream(ask(**fields), Engine(runtime), ResponseStore())
        return [event async for event in told]

    return asyncio.run(all_of_them())


def kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


# ---- whole and streamed

TEXT = ("response.output_item.added", "response.content_part.added")
ENDS = ("response.content_part.done", "response.output_item.done")


def test_events_come_in_their_order(scripted: Scripted) -> None:
    told = events(scripted(CALL), tools=[TOOL])
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"] for event in told if not event["type"].endswith(".delta")] == [
        *("response.created", "response.in_progress"),
        *(*TEXT, "response.reasoning_text.done", *ENDS),
        *("response.output_item.added", "response.function_call_arguments.done", "response.output_item.done"),
        "response.completed",
    ]
    assert len({event["response"]["id"] for event in told if "response" in event}) == 1
    deltas = [event for event in told if event["type"] == "response.function_call_arguments.delta"]
    assert json.loads("".join(event["delta"] for event in deltas)) == {"query": "tea"}
    assert {event["output_index"] for event in deltas} == {1}
    assert told[0]["response"]["output"] == []
    assert told[0]["response"]["status"] == "in_progress"
    ended = {event["output_index"]: event["item"] for event in told if event["type"] == "response.output_item.done"}
    assert list(ended.values()) == told[-1]["response"]["output"]


def test_an_answer_is_streamed_as_it_is_written(scripted: Scripted) -> None:
    told = events(scripted("a few words"))
    deltas = [event["delta"] for event in told if event["type"] == "response.output_text.delta"]
    assert len(deltas) > 3
    (done,) = [event for event in told if event["type"] == "response.output_text.done"]
    assert "".join(deltas) == done["text"] == "a few words"
    (message,) = told[-1]["response"]["output"]
    assert message | {"id": ""} == {
        "id": "",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "a few words", "annotations": [], "logprobs": []}],
    }
    (added,) = [event["part"] for event in told if event["type"] == "response.content_part.added"]
    assert added["text"] == ""


@pytest.mark.parametrize(
    ("written", "fields", "status", "output"),
    [
        ("Hello.", {}, "completed", ["message"]),
        (ANSWER, {"tools": [TOOL]}, "completed", ["reasoning", "message"]),
        (ANSWER, {"tools": [TOOL], "tool_choice": "none"}, "completed", ["message"]),
        (CALL, {"tools": [TOOL]}, "completed", ["reasoning", "function_call"]),
        (CALL, {"tools": [TOOL], "tool_choice": "required"}, "completed", ["reasoning", "function_call"]),
        (CALL, {"tools": [TOOL], "tool_choice": {"type": "function", "name": "search"}}, "completed", None),
        ("a b c", {"max_output_tokens": 3}, "incomplete", ["message"]),
        (CUT, {"tools": [TOOL], "max_output_tokens": 8}, "incomplete", ["reasoning", "function_call"]),
        ("", {}, "completed", []),
    ],
)
def test_status_and_output(scripted: Scripted, written: str, fields: Any, status: str, output: Any) -> None:
    response = made(scripted(written), **fields)
    last = events(scripted(written), **fields)[-1]
    assert last["type"] == f"response.{status}"
    assert response["status"] == last["response"]["status"] == status
    assert kinds(response) == kinds(last["response"]) == (["reasoning", "function_call"] if output is None else output)
    assert [item["status"] for item in response["output"]][:-1] == ["completed"] * (len(response["output"]) - 1)
    assert (response["incomplete_details"] == {"reason": "max_output_tokens"}) == (status == "incomplete")
    if response["output"]:
        assert response["output"][-1]["status"] == status


def test_what_was_asked_is_told(scripted: Scripted) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object", "properties": {"a": {}}}, "strict": True}
    runtime = scripted('{"a": 1}')
    response = made(runtime, text={"format": form}, instructions="Be brief.", metadata={"k": "v"}, top_p=0.5, user="u")
    for name, value in {"instructions": "Be brief.", "metadata": {"k": "v"}, "top_p": 0.5, "user": "u"}.items():
        assert response[name] == value
    assert response["text"] == {"format": form}
    assert runtime.configs[0].grammar == json_grammar(form["schema"])
    assert runtime.prompts[0].startswith("system\nBe brief.\nThe Final Answer must be one JSON object")
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": usage["input_tokens"]}


def test_settings_reach_the_runtime(scripted: Scripted) -> None:
    runtime = scripted("x", "x")
    included = ["message.output_text.logprobs"]
    made(runtime, temperature=0.5, top_k=3, seed=1, max_output_tokens=7, include=included, top_logprobs=2)
    made(runtime, top_logprobs=2)
    assert runtime.configs == [
        GenerationConfig(7, 0.5, 3, seed=1, logprobs=2),
        GenerationConfig(runtime.window),
    ]


# ---- items


def test_items_are_messages_calls_and_results(scripted: Scripted) -> None:
    runtime = scripted(ANSWER)
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "both"}]},
        {"type": "function_call", "call_id": "1", "name": "search", "arguments": '{"query": "a"}'},
        {"type": "function_call", "call_id": "2", "name": "search", "arguments": '{"query": "b"}'},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
    ]
    made(runtime, input=items, tools=[TOOL])
    assert runtime.prompts[0].endswith(
        'Thought: both\nAction: search\nAction Input: {"query": "a"}\nObservation: one\n'
        'Thought: I should use the search API.\nAction: search\nAction Input: {"query": "b"}\n'
        "Observation: two\nThought:"
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"input": ""}, "the question is empty"),
        ({"input": [{"type": "item_reference"}]}, r"input\[0\] is of the type 'item_reference'"),
        ({"input": [{"type": "message", "content": "a"}]}, r"input\[0\] needs 'role'"),
        ({"input": [{"content": "a"}]}, r"input\[0\] is of the type None"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "a part of the type 'input_image'"),
        ({"input": [{"type": "function_call", "name": "a"}]}, r"input\[0\] needs 'call_id'"),
        ({"input": [{"type": "function_call_output", "call_id": "7", "output": ""}]}, "'7' comes first"),
        ({"tools": [{"type": "web_search"}]}, "a tool of the type 'web_search'"),
        ({"background": True}, "background is not supported"),
        ({"conversation": "conv_1"}, "conversation is not supported"),
        ({"prompt": {"id": "p"}}, "prompt is not supported"),
        ({"text": {"format": {"type": "grammar"}}}, "format 'grammar' is not known"),
        ({"previous_response_id": "resp_x"}, "'resp_x' not found"),
    ],
)
def test_what_cannot_be_asked_is_an_error_that_names_it(scripted: Scripted, fields: Any, problem: str) -> None:
    with pytest.raises((InputError, ApiError), match=problem):
        made(scripted("x"), **fields)


# ---- going on


def test_a_response_goes_on_from_another(scripted: Scripted) -> None:
    runtime, store = scripted(CALL, ANSWER, "again"), ResponseStore()
    first = made(runtime, store, input="How tall?", instructions="Be brief.", tools=[TOOL])
    result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "330"}
    second = made(runtime, store, input=[result], tools=[TOOL], previous_response_id=first["id"])
    made(runtime, store, input="Sure?", previous_response_id=second["id"])
    assert 'Thought: so\nAction: search\nAction Input: {"query": "tea"}\nObservation: 330\n' in runtime.prompts[1]
    assert "Be brief." in runtime.prompts[0]
    assert "Be brief." not in runtime.prompts[1]  # instructions hold for one response
    assert "Final Answer: 990 metres\nuser\nSure?" in runtime.prompts[2]
    assert second["previous_response_id"] == first["id"]


def test_the_same_conversation_sent_in_full_is_the_same_prompt(scripted: Scripted) -> None:
    runtime, store = scripted(CALL, ANSWER, ANSWER), ResponseStore()
    first = made(runtime, store, input="How tall?", tools=[TOOL])
    result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "330"}
    made(runtime, store, input=[result], tools=[TOOL], previous_response_id=first["id"])
    whole = [{"role": "user", "content": "How tall?"}, *first["output"], result]
    made(runtime, store, input=whole, tools=[TOOL])
    assert runtime.prompts[1] == runtime.prompts[2]


def test_it_is_stored_before_its_last_event_unless_it_must_not_be(scripted: Scripted) -> None:
    store = ResponseStore()

    async def read_to_the_last() -> None:
        async for event in responses.stream(ask(), Engine(scripted("x")), store):
            if event["type"] == "response.completed":
                assert store.get(event["response"]["id"]) == event["response"]

    asyncio.run(read_to_the_last())
    kept = made(scripted("x"), store, store=False)
    with pytest.raises(ApiError) as raised:
        store.get(kept["id"])
    assert (raised.value.status, raised.value.code) == (404, "response_not_found")


def test_a_response_can_be_forgotten(scripted: Scripted) -> None:
    store = ResponseStore()
    made_id = made(scripted("x"), store)["id"]
    assert store.delete(made_id) == {"id": made_id, "object": "response", "deleted": True}
    with pytest.raises(ApiError):
        store.delete(made_id)
    with pytest.raises(ApiError, match="not found") as raised:
        made(scripted("x"), store, previous_response_id=made_id)
    assert (raised.value.status, raised.value.param) == (400, "previous_response_id")


def test_the_store_has_a_bound_in_number_and_size() -> None:
    few = ResponseStore(responses=2)
    for name in "abc":
        few.keep(Stored({"id": name}, (User("x"),)))
    few.said_until("b")  # what is gone on from stays
    few.keep(Stored({"id": "d"}, ()))
    assert [name for name in "abcd" if _has(few, name)] == ["b", "d"]
    small = ResponseStore(size=3000)
    for name in "abc":
        small.keep(Stored({"id": name}, (User("x" * 1000),)))
    assert [name for name in "abc" if _has(small, name)] == ["b", "c"]
    small.keep(Stored({"id": "big"}, (User("x" * 5000),)))
    assert not any(_has(small, name) for name in ("b", "c", "big"))


def _has(store: ResponseStore, key: str) -> bool:
    try:
        return bool(store.get(key))
    except ApiError:
        return False
