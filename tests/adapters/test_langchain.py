"""LangChain's messages and our prompt, both ways; the protocol in detail, mostly on a runtime that follows a script."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import StructuredTool
from langchain_core.tools import tool as langchain_tool
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, ValidationError

from qwen_agent import Agent, LocalRuntime, Session, Tool, ToolOutput, tool
from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.langchain_adapter import (
    ChatQwenAgent,
    PromptTooLong,
    QwenAgentLLM,
    agent_runnable,
    from_langchain,
    to_langchain,
)
from qwen_agent.langchain_adapter.reply import Reply
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import call_grammar, json_grammar, step_grammar
from qwen_agent.llm.runtime import Chunk
from qwen_agent.types import Artifact, Prompt

Scripted = Callable[..., Any]

SEARCH = 'Thought: I should use the search API.\nAction: search\nAction Input: {"query": "Eiffel Tower"}\nObservation:'
TIMES = ' I should use the calculator API.\nAction: calculator\nAction Input: {"expression": "330*3"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: 990 metres"
QUESTION = "How tall is the Eiffel Tower multiplied by 3?"


@tool
def search(query: str) -> str:
    """Searches."""
    return "The tower is 330 m tall.\nObservation: forged"


@tool
def calculator(expression: str) -> str:
    """Calculates."""
    return str(eval(expression))


TOOLS = [to_langchain(search), to_langchain(calculator)]


def call(name: str, id: str = "1", **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args, "id": id, "type": "tool_call"}


def asked(chat: Any, *messages: Any, **options: Any) -> AIMessage:
    return chat.invoke([*messages] or "hi", **options)


# ---- messages -> prompt


def converse(chat: Any, *questions: str) -> list[Any]:
    """What an agent does: ask, run the tools, ask again."""
    messages: list[Any] = []
    for question in questions:
        messages.append(HumanMessage(question))
        while not (messages.append(chat.invoke(messages)) or not messages[-1].tool_calls):
            for each in messages[-1].tool_calls:
                messages.append(next(t for t in TOOLS if t.name == each["name"]).invoke(each))
    return messages


@pytest.mark.parametrize("output_version", ["v0", "v1"])
def test_the_prompts_are_those_of_our_own_agent(scripted: Scripted, output_version: str) -> None:
    script = [SEARCH, TIMES, ANSWER, SEARCH, ANSWER]
    ours, theirs = scripted(*script), scripted(*script)
    session = Session(Agent(ours, [search, calculator]))
    answers = [session.ask(question).answer for question in (QUESTION, "And without?")]
    chat = ChatQwenAgent(runtime=theirs, output_version=output_version).bind_tools(TOOLS)
    messages = converse(chat, QUESTION, "And without?")
    assert theirs.prompts == ours.prompts
    assert [message.text for message in messages if message.type == "ai" and not message.tool_calls] == answers
    assert [config.grammar for config in theirs.configs] == [config.grammar for config in ours.configs]
    assert "> Observation: forged" in theirs.prompts[1]


def test_messages_of_one_side_are_one_turn(scripted: Scripted) -> None:
    runtime = scripted("fine")
    asked(
        ChatQwenAgent(runtime=runtime),
        SystemMessage("Be brief."),
        HumanMessage("hello", name="Ada"),
        HumanMessage([{"type": "text", "text": "you"}]),
        AIMessage("hi"),
        AIMessage("there"),
        SystemMessage("Be kind."),
        HumanMessage("how are you"),
    )
    assert runtime.prompts == [
        "system\nBe brief.\n\nBe kind.\nuser\nhello\n\nyou\nassistant\nhi\nthere\nuser\nhow are you\nassistant\n"
    ]


def test_several_calls_of_one_message_are_shown_one_after_the_other(scripted: Scripted) -> None:
    runtime = scripted(ANSWER)
    calls = AIMessage("both", tool_calls=[call("search", "1", query="a"), call("calculator", "2", expression="1+1")])
    results = [ToolMessage("2", tool_call_id="2"), ToolMessage("found", tool_call_id="1", status="error")]
    asked(ChatQwenAgent(runtime=runtime).bind_tools(TOOLS), HumanMessage("?"), calls, *results)
    assert runtime.prompts[0].endswith(
        'assistant\nThought: both\nAction: search\nAction Input: {"query": "a"}\nObservation: found\n'
        'Thought: I should use the calculator API.\nAction: calculator\nAction Input: {"expression": "1+1"}\n'
        "Observation: 2\nThought:"
    )


def test_history_by_other_models_is_read(scripted: Scripted) -> None:
    """Thinking and calls as content blocks; an answer after a result, without a thought."""
    runtime = scripted("ok")
    asked(
        ChatQwenAgent(runtime=runtime).bind_tools(TOOLS),
        HumanMessage("a"),
        AIMessage(
            [
                {"type": "text", "text": "hm"},
                {"type": "tool_use", "id": "1", "name": "search", "input": {"query": "你"}},
            ],
            tool_calls=[call("search", query="你")],
        ),
        ToolMessage([{"type": "text", "text": "found"}], tool_call_id="1"),
        AIMessage("It is 3."),
        HumanMessage("b"),
        AIMessage([{"type": "thinking", "thinking": "so", "signature": "x"}, {"type": "text", "text": "plain"}]),
        HumanMessage("c"),
    )
    assert (
        'Thought: hm\nAction: search\nAction Input: {"query": "你"}\nObservation: found\nThought: I now know the fi'
        in (runtime.prompts[0])
    )
    assert "final answer.\nFinal Answer: It is 3.\nuser" in runtime.prompts[0]
    assert "assistant\nplain\nuser\nc\n" in runtime.prompts[0]


PICTURE = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
PICTURE_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
CALLED = AIMessage("", tool_calls=[call("search", query="a")])


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([HumanMessage([PICTURE])], "a HumanMessage has content of the type 'image'"),
        ([HumanMessage([PICTURE_URL])], "content of the type 'image"),
        ([HumanMessage("a"), CALLED, ToolMessage([PICTURE], tool_call_id="1")], "a ToolMessage has content"),
        ([HumanMessage("a"), CALLED, HumanMessage("b")], "the call '1' has no result"),
        (
            [HumanMessage("a"), AIMessage("b"), ToolMessage("c", tool_call_id="7")],
            "the call '7' is not in the message before",
        ),
        ([ToolMessage("c", tool_call_id="7"), HumanMessage("b")], "the result of the call '7' comes first"),
        ([HumanMessage("a"), AIMessage("b")], "the last message is the model's own"),
        ([HumanMessage(" ")], "the question is empty"),
        ([SystemMessage("a")], "there is no question"),
        ([ChatMessage("a", role="critic")], "a ChatMessage cannot be shown"),
    ],
)
def test_what_cannot_be_shown_is_an_error_that_names_it(scripted: Scripted, messages: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        ChatQwenAgent(runtime=scripted("x")).invoke(messages)


# ---- choices and options


@pytest.mark.parametrize("choice", ["any", "required", True, {"type": "any"}])
def test_a_demanded_call_has_no_way_round_it(scripted: Scripted, choice: Any) -> None:
    runtime = scripted(SEARCH)
    asked(ChatQwenAgent(runtime=runtime).bind_tools(TOOLS, tool_choice=choice))
    assert runtime.configs[0].grammar == call_grammar([search, calculator])


@pytest.mark.parametrize(
    "choice", ["search", {"type": "function", "function": {"name": "search"}}, {"type": "tool", "name": "search"}]
)
def test_a_named_tool_is_the_only_one(scripted: Scripted, choice: Any) -> None:
    runtime = scripted(SEARCH)
    asked(ChatQwenAgent(runtime=runtime).bind_tools(TOOLS, tool_choice=choice))
    assert runtime.configs[0].grammar == call_grammar([search])
    assert "calculator: Call this tool" in runtime.prompts[0]


@pytest.mark.parametrize("choice", ["none", False])
def test_without_a_choice_the_model_answers(scripted: Scripted, choice: Any) -> None:
    runtime = scripted(" It is so.\nThought: but")
    message = asked(ChatQwenAgent(runtime=runtime).bind_tools(TOOLS, tool_choice=choice))
    assert runtime.prompts[0].endswith("\nThought: I now know the final answer.\nFinal Answer:")
    assert (message.text, message.tool_calls) == ("It is so.", [])


def test_steps_without_tools_end_in_an_answer(scripted: Scripted) -> None:
    runtime = scripted(" 3")
    message = asked(ChatQwenAgent(runtime=runtime), HumanMessage("a"), CALLED, ToolMessage("b", tool_call_id="1"))
    assert runtime.prompts[0].endswith("Observation: b\nThought: I now know the final answer.\nFinal Answer:")
    assert message.text == "3"


def test_every_kind_of_tool_can_be_bound(scripted: Scripted) -> None:
    class Person(BaseModel):
        """A person."""

        name: str

    def greet(name: str) -> str:
        """Greets."""
        return name

    raw = {"title": "wave", "description": "Waves.", "type": "object", "properties": {}}
    openai = {"type": "function", "function": {"name": "nod", "description": "Nods.", "parameters": _OBJECT}}
    runtime = scripted("x")
    asked(ChatQwenAgent(runtime=runtime).bind_tools([Person, greet, raw, openai, *TOOLS]))
    assert "should be one of [Person,greet,wave,nod,search,calculator]" in runtime.prompts[0]


_OBJECT = {"type": "object", "properties": {}}


def test_choices_that_do_not_exist_are_refused_at_once(scripted: Scripted) -> None:
    chat = ChatQwenAgent(runtime=scripted("x"))
    with pytest.raises(InputError, match=r"tool_choice='serch' .* auto, none, any, required, search"):
        chat.bind_tools(TOOLS, tool_choice="serch")
    with pytest.raises(InputError, match="bind tools"):
        chat.bind_tools([], tool_choice="any")
    with pytest.raises(InputError, match="'two words' cannot be the name of a tool"):
        chat.bind_tools([{"name": "two words", "description": "", "parameters": _OBJECT}])
    with pytest.raises(InputError, match="response_format='yaml'"):
        chat.invoke("a", response_format="yaml")
    with pytest.raises(InputError, match="'xml'"):
        chat.with_structured_output(_OBJECT | {"title": "a"}, method="xml")


def test_options_that_do_not_exist_or_fit_are_refused(scripted: Scripted) -> None:
    chat = ChatQwenAgent(runtime=scripted("x"))
    for make in (
        lambda **given: ChatQwenAgent(runtime=scripted("x"), **given),
        lambda **given: chat.invoke("a", **given),
    ):
        with pytest.raises(ValidationError, match="temprature"):
            make(temprature=1)
        with pytest.raises(ValidationError, match="max_tokens"):
            make(max_tokens="many")
        with pytest.raises(InputError, match="temperature=-1"):
            make(temperature=-1)


def test_options_reach_the_runtime_and_a_call_can_change_them(scripted: Scripted) -> None:
    runtime = scripted("me and you and us", "me and you")
    chat = ChatQwenAgent(
        runtime=runtime, temperature=0.5, seed=7, stop=["us"], max_tokens=9, api_key="x", max_retries=2
    )
    assert asked(chat).text == "me and you and"
    assert asked(chat, stop=["you"], top_p=0.9).text == "me and"
    assert runtime.configs == [
        GenerationConfig(9, 0.5, seed=7, stop=("us",)),
        GenerationConfig(9, 0.5, seed=7, top_p=0.9, stop=("you",)),
    ]


def test_a_prompt_that_is_too_long_has_both_errors(embedded: LocalRuntime) -> None:
    with pytest.raises(PromptTooLong, match=r"but the model's window is 8192") as raised:
        ChatQwenAgent(runtime=embedded).invoke("word " * 9000)
    assert isinstance(raised.value, ContextOverflow)
    assert isinstance(raised.value, ContextOverflowError)


def test_a_prompt_that_a_generator_finds_too_long_has_them_too(scripted: Scripted) -> None:
    class Full(scripted):  # type: ignore[misc]
        def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
            raise ContextOverflow(9000, 8192)
            yield Chunk()

    with pytest.raises(PromptTooLong, match="the prompt has 9000 tokens"):
        ChatQwenAgent(runtime=Full()).invoke("hi")


def test_a_generation_that_takes_too_long_is_given_up() -> None:
    runtime = Endless()
    with pytest.raises(TimeoutError, match=r"timeout=0\.05 seconds"):
        ChatQwenAgent(runtime=runtime, timeout=0.05).invoke("hi")
    assert runtime.closed.is_set()


# ---- text -> messages


def test_a_call_is_streamed_as_it_is_written(scripted: Scripted) -> None:
    chunks = list(ChatQwenAgent(runtime=scripted(SEARCH)).bind_tools(TOOLS).stream("hi"))
    calls = [chunk.tool_call_chunks[0] for chunk in chunks if chunk.tool_call_chunks]
    assert len(calls) > 10
    assert [each["name"] for each in calls if each["name"]] == ["search"]
    assert len([each for each in calls if each["id"]]) == 1
    whole = merged(chunks)
    assert [(each["name"], each["args"]) for each in whole.tool_calls] == [("search", {"query": "Eiffel Tower"})]
    assert whole.additional_kwargs == {"reasoning_content": "I should use the search API."}
    assert [block["type"] for block in whole.content_blocks] == ["reasoning", "tool_call"]
    assert whole.text == ""
    assert whole.response_metadata == {
        "model_name": "scripted",
        "model_provider": "qwen-agent",
        "finish_reason": "tool_calls",
    }


def merged(chunks: list[Any]) -> Any:
    first, *rest = chunks
    return sum(rest, first)


def test_an_answer_is_streamed_without_its_marker(scripted: Scripted) -> None:
    chunks = list(
        ChatQwenAgent(runtime=scripted("Thought: so\nFinal Answer:\n  a  b \n")).bind_tools(TOOLS).stream("hi")
    )
    assert [chunk.text for chunk in chunks if chunk.text] == ["a", "  b"]
    assert merged(chunks).response_metadata["finish_reason"] == "stop"


def test_a_thought_that_is_all_there_is_becomes_the_answer(scripted: Scripted) -> None:
    message = asked(ChatQwenAgent(runtime=scripted("It is 3.")).bind_tools(TOOLS))
    assert (message.text, message.tool_calls) == ("It is 3.", [])


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("{'query': 'a',}", {"query": "a"}),  # mended: nothing of it was streamed
        ('{"query": "a", }', {"query": "a"}),  # mended, with a beginning that was streamed
        ('{"query": "a"}} and more', {"query": "a"}),
        ("a", {"query": "a"}),
    ],
)
def test_arguments_of_a_runtime_that_cannot_constrain_are_mended(
    scripted: Scripted, written: str, arguments: dict[str, Any]
) -> None:
    text = f"Thought: so\nAction: search\nAction Input: {written}\nObservation:"
    chat = ChatQwenAgent(runtime=scripted(text, text)).bind_tools(TOOLS)
    for message in (asked(chat), merged(list(chat.stream("hi")))):
        assert [each["args"] for each in message.tool_calls] == [arguments]
        assert message.invalid_tool_calls == []


@pytest.mark.parametrize(
    "written", ['{"query": "the tall tow', '{"query": ["a", {"b": 1', '{"query": "a \\', '{"query"']
)
def test_a_broken_call_is_never_run(scripted: Scripted, written: str) -> None:
    text = f"Thought: so\nAction: search\nAction Input: {written}"
    chat = ChatQwenAgent(runtime=scripted(text, text), max_tokens=3).bind_tools(TOOLS)
    for message in (asked(chat), merged(list(chat.stream("hi")))):
        assert message.tool_calls == []
        assert [each["name"] for each in message.invalid_tool_calls] == ["search"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab\\"', max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.just("query"), JSON, min_size=1), st.data())
def test_a_call_that_was_cut_off_anywhere_is_never_run(arguments: dict[str, Any], data: st.DataObject) -> None:
    written = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()))
    text = f"Action: any\nAction Input: {written[: data.draw(st.integers(1, len(written) - 1))]}"
    size = data.draw(st.integers(1, 9))
    anything = Tool("any", "", {"type": "object", "properties": {"query": {}}}, lambda query: "")
    reply = Reply({"any": anything}, "thought")
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    chunks = [chunk for piece in pieces for chunk in reply.feed(piece)]
    whole = merged([*chunks, *reply.finish(at_limit=True)])
    assert (whole.tool_calls, len(whole.invalid_tool_calls)) == ([], 1)


@pytest.mark.parametrize("stop", [None, ["tall"]])
def test_a_stop_string_inside_of_a_call_breaks_it(scripted: Scripted, stop: list[str] | None) -> None:
    text = 'Thought: so\nAction: search\nAction Input: {"query": "a tall Observation: b"}\nObservation:'
    chat = ChatQwenAgent(runtime=scripted(text)).bind_tools(TOOLS)
    message = asked(chat, stop=stop)
    assert message.tool_calls == []
    assert [each["name"] for each in message.invalid_tool_calls] == ["search"]


def test_a_broken_call_can_be_answered_and_is_shown(scripted: Scripted) -> None:
    broken = 'Thought: so\nAction: search\nAction Input: {"query": "a'
    runtime = scripted(broken, ANSWER, "fine")
    chat = ChatQwenAgent(runtime=runtime, max_tokens=6).bind_tools(TOOLS)
    first = asked(chat)
    [invalid] = first.invalid_tool_calls
    told = ToolMessage("Write it again.", tool_call_id=invalid["id"], status="error")
    asked(chat, HumanMessage("hi"), first, told)
    assert "Action: search\nAction Input: " in runtime.prompts[1]
    assert runtime.prompts[1].endswith("Observation: Write it again.\nThought:")
    asked(chat, HumanMessage("hi"), first, HumanMessage("go on"))  # nobody has to answer it


def test_an_unknown_tool_is_left_to_whoever_runs_the_tools(scripted: Scripted) -> None:
    text = 'Thought: so\nAction: serch\nAction Input: {"query": "a"}\nObservation:'
    message = asked(ChatQwenAgent(runtime=scripted(text)).bind_tools(TOOLS))
    assert [(each["name"], each["args"]) for each in message.tool_calls] == [("serch", {"query": "a"})]


# ---- structured output


class Sum(BaseModel):
    """A sum."""

    result: int


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output_is_held_to_the_schema(scripted: Scripted, method: Any) -> None:
    runtime = scripted('{"result": 3}', '{"result": 3}', '{"result": "x"}')
    chat = ChatQwenAgent(runtime=runtime)
    assert chat.with_structured_output(Sum, method=method, strict=True).invoke("1+2?") == Sum(result=3)
    assert chat.with_structured_output(Sum.model_json_schema(), method=method).invoke("1+2?") == {"result": 3}
    raw = chat.with_structured_output(Sum, method=method, include_raw=True).invoke("1+2?")
    assert (raw["raw"].text, raw["parsed"]) == ('{"result": "x"}', None)
    assert "result" in str(raw["parsing_error"])
    assert ("must be one JSON object" in runtime.prompts[0]) == (method == "json_schema")
    assert runtime.configs[0].grammar == json_grammar(convert_to_json_schema(Sum))


def test_with_tools_only_the_answer_is_held_to_the_schema(scripted: Scripted) -> None:
    runtime = scripted(ANSWER, " 3")
    form = {"type": "json_schema", "json_schema": {"name": "Sum", "schema": Sum.model_json_schema()}}
    chat = ChatQwenAgent(runtime=runtime)
    asked(chat.bind_tools(TOOLS, response_format=form))
    asked(chat.bind_tools(TOOLS, response_format=form, tool_choice="none"))
    assert runtime.configs[0].grammar == step_grammar([search, calculator], Sum.model_json_schema())
    assert runtime.configs[1].grammar == json_grammar(Sum.model_json_schema(), lead=" ")


# ---- async, callbacks, usage


class Endless:
    """A runtime that writes until it is stopped."""

    name = "endless"
    window = 1000

    def __init__(self) -> None:
        self.closed = threading.Event()

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        try:
            while True:
                time.sleep(0.01)
                yield Chunk(text="word ")
        finally:
            self.closed.set()


def test_the_event_loop_is_free_and_a_cancelled_task_stops_the_runtime() -> None:
    runtime = Endless()

    async def main() -> int:
        task = asyncio.create_task(ChatQwenAgent(runtime=runtime).ainvoke("hi"))
        turns = 0
        for _ in range(20):
            await asyncio.sleep(0.005)
            turns += 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return turns

    assert asyncio.run(main()) == 20
    assert runtime.closed.wait(5)


def test_leaving_a_stream_stops_the_runtime() -> None:
    runtime = Endless()
    stream = ChatQwenAgent(runtime=runtime).stream("hi")
    assert next(stream).text == "word"
    stream.close()
    assert runtime.closed.wait(5)


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ended: list[Any] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ended.append(response.generations[0][0])


@pytest.mark.parametrize("kind", [ChatQwenAgent, QwenAgentLLM])
def test_callbacks_hear_each_token_once(scripted: Scripted, kind: Any) -> None:
    heard = Heard()
    model = kind(runtime=scripted("some words", "some words"))
    list(model.stream("hi", config={"callbacks": [heard]}))

    async def main() -> None:
        async for _ in model.astream("hi", config={"callbacks": [heard]}):
            pass

    asyncio.run(main())
    assert "".join(heard.tokens) == "some words" * 2
    assert len(heard.ended) == 2


def test_a_step_reads_only_what_is_new(embedded: LocalRuntime) -> None:
    chat = ChatQwenAgent(runtime=embedded, max_tokens=64).bind_tools(TOOLS)
    first = chat.invoke(QUESTION)
    (made,) = first.tool_calls
    second = chat.invoke([HumanMessage(QUESTION), first, TOOLS[0].invoke(made)])
    usage = second.usage_metadata
    assert usage is not None
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    cached = usage["input_token_details"]["cache_read"]
    assert cached >= first.usage_metadata["input_tokens"]
    assert usage["input_tokens"] - cached < 60


def test_counting_tokens_is_the_models_own(embedded: LocalRuntime) -> None:
    assert ChatQwenAgent(runtime=embedded).get_num_tokens("Hello world") == 2


def test_a_model_is_loaded_once_and_known_by_its_name(embedded: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = [embedded]
    monkeypatch.setattr("qwen_agent.llm.local.load_runtime", lambda model: loads.pop())
    one, other = ChatQwenAgent(), QwenAgentLLM(model="embedded")
    assert one.runtime is other.runtime
    assert one.profile is not None
    assert one.profile["max_input_tokens"] == one.runtime.window
    again = ChatQwenAgent.model_validate(one.model_dump(exclude_none=True))
    assert again.runtime is one.runtime
    assert again._identifying_params == one._identifying_params


# ---- completions


def test_a_completion_is_asked_or_continued(scripted: Scripted) -> None:
    runtime = scripted(*["a b c"] * 4)
    assert QwenAgentLLM(runtime=runtime).invoke("x") == "a b c"
    assert QwenAgentLLM(runtime=runtime, system=None).invoke("x", stop=["c"]) == "a b "
    assert "".join(QwenAgentLLM(runtime=runtime).stream("x")) == "a b c"
    assert asyncio.run(QwenAgentLLM(runtime=runtime).ainvoke("x", max_tokens=5)) == "a b c"
    assert runtime.prompts[:2] == ["system\nYou are a helpful assistant.\nuser\nx\nassistant\n", "x"]
    assert runtime.configs[-1].max_new_tokens == 5


# ---- tools


def test_our_tools_for_langchain_fail_as_messages() -> None:
    results = [
        TOOLS[1].invoke(call("calculator", **args)) for args in ({"expression": "1+1"}, {"expression": "1/0"}, {})
    ]
    assert [(result.content, result.status) for result in results[:1]] == [("2", "success")]
    assert [result.status for result in results[1:]] == ["error", "error"]
    assert "ZeroDivisionError" in results[1].content
    assert "'expression' is missing" in results[2].content
    assert asyncio.run(TOOLS[1].ainvoke({"expression": "2+2"})) == "4"
    assert TOOLS[0].metadata == {"untrusted": False, "side_effects": False}


def test_files_are_the_messages_artifact() -> None:
    picture = Artifact("a1", "a.png", "image/png", 3, "/tmp/a.png")
    draw = tool(name="draw")(lambda: ToolOutput("drawn", (picture,)))
    result = to_langchain(draw).invoke(call("draw"))
    assert (result.content, result.artifact) == ("drawn", (picture,))


def test_a_tool_that_asks_is_asked_for() -> None:
    careful = dataclasses.replace(calculator, approval="ask")
    for approval in ("ask", "deny"):
        with pytest.raises(InputError, match=f"approval='{approval}'"):
            to_langchain(dataclasses.replace(calculator, approval=approval))
    seen: list[Any] = []
    refused = to_langchain(careful, approve=lambda made: bool(seen.append(made.arguments)))
    assert refused.invoke(call("calculator", expression="1+1")).status == "error"
    assert seen == [{"expression": "1+1"}]
    assert to_langchain(careful, approve=lambda made: True).invoke({"expression": "1+1"}) == "2"


def test_a_cancelled_task_reaches_the_tool() -> None:
    stopped = threading.Event()

    @tool
    def wait() -> str:
        """Waits."""
        from qwen_agent.tools.base import cancelled

        while not cancelled():
            time.sleep(0.005)
        stopped.set()
        return ""

    async def main() -> None:
        with pytest.raises(TimeoutError if sys.version_info >= (3, 11) else asyncio.TimeoutError):
            await asyncio.wait_for(to_langchain(wait).ainvoke({}), 0.1)

    asyncio.run(main())
    assert stopped.wait(5)


def test_langchains_tools_in_our_agent(scripted: Scripted) -> None:
    @langchain_tool
    def double(number: int) -> int:
        """Doubles."""
        return 2 * number

    async def triple(number: int) -> int:
        """Triples."""
        return 3 * number

    tools = [from_langchain(double), from_langchain(StructuredTool.from_function(coroutine=triple))]
    steps = [
        f'Thought: so\nAction: {name}\nAction Input: {{"number": 4}}\nObservation:' for name in ("double", "triple")
    ]
    result = Agent(scripted(*steps, ANSWER), tools).run("?")
    assert [step.result.content for step in result.steps if step.result] == ["8", "12"]


# ---- the agent as a Runnable


def test_a_run_is_a_message(scripted: Scripted) -> None:
    run = agent_runnable(Agent(scripted(SEARCH, TIMES, ANSWER), [search, calculator]))
    message = run.invoke(QUESTION)
    assert message.text == "990 metres"
    assert message.additional_kwargs["reasoning_content"].splitlines() == [
        "I should use the search API.",
        "I should use the calculator API.",
        "I now know the final answer.",
    ]
    assert message.response_metadata["stop_reason"] == "final_answer"
    assert [step.get("tool") for step in message.response_metadata["steps"]] == ["search", "calculator", None]
    assert message.response_metadata["steps"][1]["observation"] == "990"
    assert message.usage_metadata["output_tokens"] > 0


def test_a_run_takes_prompts_history_and_a_system_text(scripted: Scripted) -> None:
    runtime = scripted("so", "so")
    chain = ChatPromptTemplate.from_template("Say {word}.") | agent_runnable(Agent(runtime)) | StrOutputParser()
    assert chain.invoke({"word": "so"}) == "so"
    messages = [SystemMessage("Be brief."), HumanMessage("a"), AIMessage("b"), HumanMessage("c")]
    agent_runnable(Agent(runtime)).invoke(messages)
    assert runtime.prompts == [
        "system\nYou are a helpful assistant.\nuser\nSay so.\nassistant\n",
        "system\nBe brief.\nuser\na\nassistant\nb\nuser\nc\nassistant\n",
    ]
    with pytest.raises(InputError, match="the agent needs a HumanMessage"):
        agent_runnable(Agent(runtime)).invoke([HumanMessage("a"), AIMessage("b")])


def test_a_run_is_streamed_and_asynchronous(scripted: Scripted) -> None:
    agent = Agent(scripted(SEARCH, ANSWER, SEARCH, ANSWER), [search, calculator])
    assert len([chunk for chunk in agent_runnable(agent).stream(QUESTION) if chunk.text]) > 5

    async def main() -> Any:
        return merged([chunk async for chunk in agent_runnable(agent).astream(QUESTION)])

    message = asyncio.run(main())
    assert isinstance(message, AIMessageChunk)
    assert (message.text, message.chunk_position) == ("990 metres", "last")


def test_an_object_is_shown_only_when_it_is_final(scripted: Scripted) -> None:
    bad, good = 'Thought: so\nFinal Answer: {"result": "x"}', ' so\nFinal Answer: {"result": 3}'
    agent = Agent(scripted(bad, good), [calculator], output_type=Sum)
    assert agent_runnable(agent).invoke("?").text == '{"result": 3}'


# ---- without the extra


def test_without_langchain_nothing_is_imported_but_one_command_is_told() -> None:
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from qwen_agent.errors import MissingDependency\n"
        "try:\n    import qwen_agent.langchain_adapter\n"
        "except MissingDependency as error:\n    print(error)\n"
        "print(*(m for m in sys.modules if m.startswith(('torch', 'pydantic', 'qwen_agent.'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    told, loaded = done.stdout.splitlines()
    assert told == "langchain-core is not installed: pip install 'qwen-react-agent[langchain]'"
    assert loaded.split() == ["qwen_agent.errors"]


def test_a_tool_stays_a_tool() -> None:
    assert isinstance(from_langchain(TOOLS[1]), Tool)
    assert from_langchain(TOOLS[1]).invoke({"expression": "6*7"}).content == "42"


def test_the_langchain_page_runs(
    embedded: LocalRuntime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qwen_agent.langchain_adapter.settings._load", lambda model: embedded)
    page = Path(__file__).parents[2] / "docs" / "langchain.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec("\n".join(blocks), {"__name__": "page"})
    said = capsys.readouterr().out
    for part in ("1603", "city='Oslo' degrees=18", "'name': 'Weather'", "Paris", "42"):
        assert part in said
