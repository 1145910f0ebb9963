"""/v1/chat/completions: what a request asks, and what is told of it, whole and in chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

pytest.importorskip("fastapi")

from pydantic import ValidationError

from qwen_agent import LocalRuntime
from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import call_grammar, json_grammar, step_grammar
from qwen_agent.llm.runtime import Chunk, TokenLogprob
from qwen_agent.server import chat
from qwen_agent.server.engine import Engine
from qwen_agent.server.errors import ApiError
from qwen_agent.server.wire_chat import ChatRequest
from qwen_agent.types import Prompt, Text, Usage

Scripted = Callable[..., Any]

PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
FUNCTION = {"name": "search", "description": "Searches.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
OTHER = {"type": "function", "function": FUNCTION | {"name": "look"}}
NAMED = {"type": "function", "function": {"name": "search"}}
CALL = 'Thought: so\nAction: search\nAction Input: {"query": "Eiffel 塔"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: 990 metres"
CUT = 'Thought: so\nAction: search\nAction Input: {"query": "the tall'


def ask(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields)


def completed(runtime: Any, **fields: Any) -> dict[str, Any]:
    return asyncio.run(chat.complete(ask(**fields), Engine(runtime)))


def chunks(runtime: Any, **fields: Any) -> list[dict[str, Any]]:
    async def all_of_them() -> list[dict[str, Any]]:
        return [chunk async for chunk in chat.stream(ask(stream=True, **fields), Engine(runtime))]

    return asyncio.run(all_of_them())


def choice_of(completion: dict[str, Any]) -> dict[str, Any]:
    (choice,) = completion["choices"]
    return choice


def joined(told: list[dict[str, Any]]) -> dict[str, Any]:
    """The message, put together as OpenAI's clients do: strings are joined, wherever they stand."""
    message: dict[str, Any] = {}
    for chunk in told:
        for choice in chunk["choices"]:
            _join(message, choice["delta"])
    return message


def _join(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for key, value in piece.items():
        if key == "tool_calls":
            calls = whole.setdefault(key, [])
            for each in value:
                if each["index"] == len(calls):
                    calls.append({})
                _join(calls[each["index"]], {k: v for k, v in each.items() if k != "index"})
        elif isinstance(value, dict):
            _join(whole.setdefault(key, {}), value)
        else:
            whole[key] = whole.get(key, "") + value


# ---- whole and streamed


@pytest.mark.parametrize(
    ("written", "fields", "finish", "arguments"),
    [
        ("Hello.", {}, "stop", None),
        (ANSWER, {"tools": [TOOL]}, "stop", None),
        (ANSWER, {"tools": [TOOL], "tool_choice": "none"}, "stop", None),
        (CALL, {"tools": [TOOL]}, "tool_calls", {"query": "Eiffel 塔"}),
        (CALL, {"tools": [TOOL], "tool_choice": "auto"}, "tool_calls", {"query": "Eiffel 塔"}),
        (CALL, {"tools": [TOOL], "tool_choice": "required"}, "tool_calls", {"query": "Eiffel 塔"}),
        (CALL, {"tools": [TOOL], "tool_choice": NAMED}, "stop", {"query": "Eiffel 塔"}),
        (CALL, {"functions": [FUNCTION]}, "function_call", {"query": "Eiffel 塔"}),
        (CALL, {"functions": [FUNCTION], "function_call": "auto"}, "function_call", {"query": "Eiffel 塔"}),
        (CALL, {"functions": [FUNCTION], "function_call": {"name": "search"}}, "stop", {"query": "Eiffel 塔"}),
        ("a b c", {"max_tokens": 3}, "length", None),
        (ANSWER, {"tools": [TOOL], "max_completion_tokens": 8}, "length", None),
        (CUT, {"tools": [TOOL], "max_tokens": 9}, "length", '{"query": "the tall'),
        (CUT, {"functions": [FUNCTION], "max_tokens": 9}, "length", '{"query": "the tall'),
    ],
)
def test_finish_reasons_and_calls(
    scripted: Scripted, written: str, fields: dict[str, Any], finish: str, arguments: Any
) -> None:
    whole = choice_of(completed(scripted(written), **fields))
    told = chunks(scripted(written), **fields)
    message, pieces = whole["message"], joined(told)
    assert whole["finish_reason"] == finish
    assert [c["choices"][0]["finish_reason"] for c in told] == [None] * (len(told) - 1) + [finish]
    for each in (message, pieces):
        assert each["role"] == "assistant"
        legacy = "functions" in fields
        calls = (
            [each["function_call"]] if "function_call" in each else [c["function"] for c in each.get("tool_calls", [])]
        )
        assert ("function_call" in each) == (legacy and arguments is not None)
        if arguments is None:
            assert calls == []
        elif isinstance(arguments, str):
            assert [call["arguments"] for call in calls] == [arguments]
        else:
            assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("search", arguments)]
    assert (message["content"] or "") == pieces.get("content", "")
    assert message.get("reasoning_content") == pieces.get("reasoning_content")
    assert (message["content"] is None) == (arguments is not None)


def test_name_id_and_role_come_once_and_arguments_in_pieces(scripted: Scripted) -> None:
    told = chunks(scripted(CALL), tools=[TOOL])
    assert told[0]["choices"][0]["delta"] == {"role": "assistant"}
    deltas = [c["choices"][0]["delta"]["tool_calls"][0] for c in told if "tool_calls" in c["choices"][0]["delta"]]
    assert set(deltas[0]) == {"index", "id", "type", "function"}
    assert deltas[0]["function"] == {"name": "search", "arguments": ""}
    assert len(deltas) > 10
    assert all(set(delta) == {"index", "function"} and set(delta["function"]) == {"arguments"} for delta in deltas[1:])
    assert len({chunk["id"] for chunk in told}) == 1


def test_the_thought_is_told_beside_the_answer(scripted: Scripted) -> None:
    message = choice_of(completed(scripted(ANSWER), tools=[TOOL]))["message"]
    assert (message["content"], message["reasoning_content"]) == ("990 metres", "I now know the final answer.")
    assert "reasoning_content" not in choice_of(completed(scripted("Hello.")))["message"]


def test_usage_comes_last_and_only_if_it_was_asked_for(scripted: Scripted) -> None:
    told = chunks(scripted("one two"), stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1]["choices"] == []
    assert told[-1]["usage"] == completed(scripted("one two"))["usage"]
    assert told[-1]["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "completion_tokens_details": {"reasoning_tokens": 0},
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert not any("usage" in chunk for chunk in chunks(scripted("one two")))


def test_thoughts_are_counted(scripted: Scripted) -> None:
    usage = completed(scripted(ANSWER), tools=[TOOL])["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 6}


# ---- stop strings


@pytest.mark.parametrize("stop", ["metr", ["x", "metr"]])
def test_stop_strings_end_the_answer(scripted: Scripted, stop: Any) -> None:
    """Without tools the runtime stops by itself; with tools only the answer is looked at."""
    plain = scripted("990 metres")
    assert choice_of(completed(plain, stop=stop))["message"]["content"] == "990"
    assert plain.configs[0].stop == (("metr",) if isinstance(stop, str) else ("x", "metr"))
    runtime = scripted(ANSWER, ANSWER)
    whole = completed(runtime, stop=stop, tools=[TOOL])
    assert choice_of(whole)["message"]["content"] == "990"
    assert choice_of(whole)["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] > 0
    assert "prompt_tokens_details" not in whole["usage"]  # nobody counted what was in the cache
    told = chunks(runtime, stop=stop, tools=[TOOL])
    assert joined(told)["content"] == "990"
    assert runtime.closed == 2


def test_a_stop_string_does_not_end_a_thought_or_a_call(scripted: Scripted) -> None:
    message = choice_of(completed(scripted(CALL), stop=["\n", "so", "Eiffel"], tools=[TOOL]))["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"query": "Eiffel 塔"}


def test_the_beginning_of_a_stop_string_is_shown_in_the_end(scripted: Scripted) -> None:
    told = chunks(scripted(ANSWER), stop=["metres!"], tools=[TOOL])
    assert joined(told)["content"] == "990 metres"


# ---- settings


def test_settings_reach_the_runtime(scripted: Scripted) -> None:
    runtime = scripted(*["x"] * 5)
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1, "seed": -5}
    completed(runtime, max_tokens=9, max_completion_tokens=8, **sampling)
    completed(runtime, top_p=0, temperature=1, top_k=-1)
    completed(runtime, logprobs=True, top_logprobs=3)
    completed(runtime, logprobs=True)
    assert runtime.configs == [
        GenerationConfig(8, 0.5, 7, 0.9, 1.1, -5),
        GenerationConfig(runtime.window, 0.0),
        GenerationConfig(runtime.window, logprobs=3),
        GenerationConfig(runtime.window, logprobs=0),
    ]


def test_what_is_not_said_is_as_the_server_was_started(scripted: Scripted) -> None:
    runtime = scripted("x", "x")
    engine = Engine(runtime, GenerationConfig(temperature=0.7, top_k=5, seed=1), max_tokens=99)
    asyncio.run(chat.complete(ask(top_k=6), engine))
    assert runtime.configs == [GenerationConfig(99, 0.7, 6, seed=1)]


def test_no_tokens_at_all_is_a_message_of_none(scripted: Scripted) -> None:
    runtime = scripted()
    whole = completed(runtime, max_tokens=0)
    assert choice_of(whole) | {"logprobs": None} == {
        "index": 0,
        "message": {"role": "assistant", "content": "", "refusal": None},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert whole["usage"]["prompt_tokens"] == 9
    assert joined(chunks(runtime, max_tokens=0)) == {"role": "assistant"}


def test_choices_and_formats_become_grammars(scripted: Scripted) -> None:
    runtime = scripted(*[CALL] * 3, *["{}"] * 2)
    completed(runtime, tools=[TOOL, OTHER])
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "look"}}]}
    completed(runtime, tools=[TOOL, OTHER], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    completed(runtime, tools=[TOOL, OTHER], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [NAMED]})
    completed(runtime, response_format={"type": "json_object"})
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    completed(runtime, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    search, look = ask(tools=[TOOL, OTHER]).toolbox().values()
    assert [config.grammar for config in runtime.configs] == [
        step_grammar([search, look]),
        call_grammar([look]),
        step_grammar([search]),
        json_grammar({"type": "object"}),
        json_grammar(schema),
    ]
    assert "must be one JSON object" in runtime.prompts[4]


# ---- messages


def test_calls_of_the_conversation_are_steps(scripted: Scripted) -> None:
    modern = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "so",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query": "a"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "found"},
    ]
    legacy = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "?"},
        {
            "role": "assistant",
            "content": "Thought: so",
            "function_call": {"name": "search", "arguments": '{"query": "a"}'},
        },
        {"role": "function", "name": "search", "content": "found"},
    ]
    runtime = scripted(ANSWER, ANSWER)
    completed(runtime, messages=modern, tools=[TOOL])
    completed(runtime, messages=legacy, functions=[FUNCTION])
    assert runtime.prompts[0] == runtime.prompts[1]
    assert runtime.prompts[0].endswith(
        'Thought: so\nAction: search\nAction Input: {"query": "a"}\nObservation: found\nThought:'
    )


def test_instructions_alone_are_asked(scripted: Scripted) -> None:
    runtime = scripted("x")
    completed(runtime, messages=[{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}])
    assert runtime.prompts == ["system\na\nuser\nb\nassistant\n"]


def test_functions_in_the_words_of_2023_are_described_in_them(scripted: Scripted) -> None:
    runtime = scripted(ANSWER)
    plugin = {
        "name": "x",
        "name_for_model": "draw",
        "name_for_human": "Painter",
        "description_for_model": "It draws.",
        "parameters": [{"name": "what", "description": "w", "required": True, "schema": {"type": "string"}}],
    }
    human = FUNCTION | {"name_for_human": "Finder"}
    completed(runtime, functions=[plugin, human])
    assert "draw: Call this tool to interact with the Painter API." in runtime.prompts[0]
    assert "search: Call this tool to interact with the Finder API." in runtime.prompts[0]


USER = {"role": "user", "content": "hi"}
CALLED = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "search", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"messages\[0\] has a part of the type"),
        ({"messages": [USER, CALLED]}, "the call '1' has no result"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "1", "content": ""}]}, "the call '1' is not in"),
        ({"messages": [USER, CALLED, {"role": "tool", "content": ""}]}, r"messages\[2\] .* no tool_call_id"),
        (
            {"messages": [USER, {"role": "function", "content": ""}]},
            r"messages\[1\] .* no message with a function_call",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "the last message is the model's own"),
        ({"messages": [{"role": "user", "content": None}]}, "the question is empty"),
        ({"n": 2}, "n=2 is not supported: one choice"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"modalities": ["audio"]}, "the model writes text only"),
        ({"top_logprobs": 2}, "needs logprobs=true"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice='maybe' cannot be used"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice=.* cannot be used"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "names 'x', but the tools"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"type": "web_search"}]}, "a tool of the type 'web_search'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "'a b' cannot be the name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]}, "must be a JSON Schema object"),
        ({"tools": [{"type": "function", "function": 3}]}, "'function' must be an object"),
        ({"functions": [FUNCTION], "function_call": "required"}, "function_call='required'"),
        ({"response_format": {"type": "yaml"}}, "format 'yaml' is not known"),
        ({"response_format": {"type": "json_schema"}}, "a json_schema needs 'schema'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
            "not a valid JSON Schema",
        ),
    ],
)
def test_what_cannot_be_asked_is_an_error_that_names_it(scripted: Scripted, fields: Any, problem: str) -> None:
    for way in (completed, chunks):
        with pytest.raises((InputError, ApiError), match=problem):
            way(scripted("x"), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "critic", "content": "x"}]},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": -1},
        {"max_tokens": -1},
        {"stop": [""]},
        {"stop": ["a"] * 5},
        {"top_logprobs": 21, "logprobs": True},
        {"tools": [TOOL] * 129},
        {"model": ""},
    ],
)
def test_nonsense_is_refused(fields: Any) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        ask(**fields)


def test_what_clients_send_besides_is_left_alone(scripted: Scripted) -> None:
    extra = {"user": "u", "store": True, "service_tier": "auto", "metadata": {"a": "b"}, "parallel_tool_calls": True}
    penalties = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {"5": 0}, "n": 1, "modalities": ["text"]}
    assert choice_of(completed(scripted("x"), **extra, **penalties, unknown=[1]))["message"]["content"] == "x"


# ---- errors and clients that leave


class Failing:
    name, window = "failing", 100

    def __init__(self, error: Exception) -> None:
        self.error = error

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        raise self.error
        yield Chunk()


def test_what_the_runtime_refuses_is_raised_before_the_first_chunk() -> None:
    for way in (completed, chunks):
        with pytest.raises(ContextOverflow):
            way(Failing(ContextOverflow(9, 8)))


def test_leaving_a_stream_stops_the_generation(scripted: Scripted) -> None:
    runtime = scripted("many words " * 100)

    async def leave() -> None:
        async with aclosing(chat.stream(ask(), Engine(runtime))) as told:
            async for _ in told:
                return

    asyncio.run(leave())
    assert runtime.closed == 1


# ---- log-probabilities


class Measured:
    """A runtime of given tokens, whose log-probabilities are their places."""

    name, window = "measured", 100

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        held, shown, text = [], b"", b""
        for at, token in enumerate(self.tokens):
            held.append(TokenLogprob(at, token, -float(at), ((at, token, -float(at)),)[: config.logprobs]))
            text += token
            new = text.decode("utf-8", "ignore").encode()[len(shown) :]
            yield Chunk(new.decode(), logprobs=tuple(held) if new else ())
            shown += new
            held = held if not new else []
        yield Chunk(finish="stop", output=(Text(text.decode()),), usage=Usage(1, 0, len(self.tokens)))

    def count_tokens(self, prompt: Prompt) -> int:
        return 1


@pytest.mark.parametrize(
    ("tokens", "fields", "expected"),
    [
        (["a", " b", "c"], {}, ["a", " b", "c"]),
        (["Thought: so\nFinal", " Answer:", " 1", "\n", "2 3", "\n"], {"tools": [TOOL]}, [" 1", "\n", "2 3"]),
        (["Final Answer: x", "y"], {"tools": [TOOL]}, ["Final Answer: x", "y"]),
        (["Final Answer:", " 12", "3", "4", "5"], {"tools": [TOOL], "stop": ["34"]}, [" 12"]),
        (["It", " is", " 3."], {"tools": [TOOL]}, ["It", " is", " 3."]),
        ([CALL.partition("Observation")[0]], {"tools": [TOOL]}, []),
    ],
)
def test_log_probabilities_are_of_the_tokens_of_the_content(tokens: list[str], fields: Any, expected: Any) -> None:
    runtime = Measured(*(token.encode() for token in tokens))
    told = choice_of(completed(runtime, logprobs=True, top_logprobs=1, **fields))["logprobs"]
    assert [each["token"] for each in told["content"]] == expected
    assert all(each["top_logprobs"][0]["token"] == each["token"] for each in told["content"])
    streamed = chunks(runtime, logprobs=True, **fields)
    pieces = [c["choices"][0]["logprobs"] for c in streamed if c["choices"][0]["logprobs"]]
    assert [each["token"] for piece in pieces for each in piece["content"]] == expected


def test_half_characters_have_their_bytes() -> None:
    (first, second) = choice_of(completed(Measured("塔".encode()[:2], "塔".encode()[2:]), logprobs=True))["logprobs"][
        "content"
    ]
    assert bytes(first["bytes"] + second["bytes"]).decode() == "塔"
    assert first["token"] == "\ufffd"


def test_without_asking_there_are_none(scripted: Scripted) -> None:
    assert choice_of(completed(scripted("x")))["logprobs"] is None


def test_the_embedded_model_calls_and_counts(embedded: LocalRuntime) -> None:
    whole = completed(embedded, messages=[{"role": "user", "content": "Search for tea."}], tools=[TOOL], max_tokens=96)
    assert choice_of(whole)["finish_reason"] == "tool_calls"
    assert "query" in json.loads(choice_of(whole)["message"]["tool_calls"][0]["function"]["arguments"])
    asked = {"messages": [{"role": "user", "content": "Say: hello there"}], "max_tokens": 8, "logprobs": True}
    said = choice_of(completed(embedded, **asked))
    assert "".join(each["token"] for each in said["logprobs"]["content"]) == said["message"]["content"]
