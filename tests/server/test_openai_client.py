"""The official ``openai`` client against the server, over a socket, with the embedded model."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

import openai
import uvicorn
from pydantic import BaseModel

from qwen_agent import Agent, LocalRuntime, tool
from qwen_agent.llm.shared import SharedRuntime
from qwen_agent.server.app import create_app
from qwen_agent.server.engine import AGENT, Engine
from qwen_agent.server.settings import Settings

QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Tells the weather of a city.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
FLAT = {"type": "function", **FUNCTION}


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city.

    Args:
        city: the city's name
    """
    return f"It is sunny in {city}, 18 degrees."


class Place(BaseModel):
    """A place."""

    city: str


@pytest.fixture(scope="module")
def address(embedded: LocalRuntime) -> Iterator[str]:
    """A server on a free port of this machine."""
    shared = SharedRuntime(embedded)
    engine = Engine(shared, max_tokens=96, agent=Agent(shared, [get_weather]))
    app = create_app(engine, embedded.tokenizer, Settings(names=("m", "embedded")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    (port,) = {socket.getsockname()[1] for each in server.servers for socket in each.sockets}
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    shared.close()


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


# ---- chat completions


def test_a_message(client: Any) -> None:
    made = client.chat.completions.create(model="m", messages=QUESTION, temperature=0, seed=1)
    (choice,) = made.choices
    assert choice.message.content
    assert choice.finish_reason == "stop"
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    told = list(client.chat.completions.create(model="m", messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == choice.message.content


def test_a_call_and_its_result(client: Any) -> None:
    made = client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL])
    (call,) = made.choices[0].message.tool_calls
    assert made.choices[0].finish_reason == "tool_calls"
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "get_weather",
        {"city": "Oslo"},
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is sunny in Oslo, 18 degrees."}
    answered = client.chat.completions.create(
        model="m", messages=[*QUESTION, made.choices[0].message, result], tools=[TOOL]
    )
    assert "18" in answered.choices[0].message.content
    assert answered.usage.prompt_tokens_details.cached_tokens > 100  # the thought came back with the message


def test_the_stream_helper_puts_a_call_together(client: Any) -> None:
    with client.chat.completions.stream(
        model="m", messages=QUESTION, tools=[TOOL], stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        made = stream.get_final_completion()
    (call,) = made.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    assert made.choices[0].message.role == "assistant"
    assert made.usage.completion_tokens > 10
    assert kinds.count("tool_calls.function.arguments.done") == 1


def test_parsed_answers_and_arguments(client: Any) -> None:
    made = client.chat.completions.parse(model="m", messages=QUESTION, response_format=Place)
    assert isinstance(made.choices[0].message.parsed, Place)
    strict = openai.pydantic_function_tool(Place, name="get_weather")
    made = client.chat.completions.parse(model="m", messages=QUESTION, tools=[strict], tool_choice="required")
    assert made.choices[0].message.tool_calls[0].function.parsed_arguments == Place(city="Oslo")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="m", messages=QUESTION, response_format=Place, max_tokens=1)


def test_log_probabilities(client: Any) -> None:
    made = client.chat.completions.create(model="m", messages=QUESTION, logprobs=True, top_logprobs=2, max_tokens=4)
    (choice,) = made.choices
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 2
        assert token.logprob == max(each.logprob for each in token.top_logprobs)  # greedy


def test_stop_strings_in_streams(client: Any) -> None:
    """What Qwen's server of 2023 refused: stop with stream, functions with stream, and usage."""
    whole = client.chat.completions.create(model="m", messages=QUESTION).choices[0].message.content
    stop = whole.split()[2]
    told = client.chat.completions.create(model="m", messages=QUESTION, stop=[stop], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == whole.partition(stop)[0].rstrip()


def test_functions_in_streams(client: Any) -> None:
    told = list(client.chat.completions.create(model="m", messages=QUESTION, functions=[FUNCTION], stream=True))
    calls = [chunk.choices[0].delta.function_call for chunk in told if chunk.choices[0].delta.function_call]
    assert calls[0].name == "get_weather"
    assert json.loads("".join(call.arguments for call in calls)) == {"city": "Oslo"}
    assert told[-1].choices[0].finish_reason == "function_call"


def test_the_agent_is_a_model(client: Any) -> None:
    told = list(client.chat.completions.create(model=AGENT, messages=QUESTION, stream=True))
    content = "".join(chunk.choices[0].delta.content or "" for chunk in told)
    steps = "".join(getattr(chunk.choices[0].delta, "reasoning_content", "") or "" for chunk in told)
    assert "Observation: It is sunny in Oslo, 18 degrees." in steps
    assert "18" in content
    assert AGENT in [model.id for model in client.models.list()]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"n": 2}, openai.BadRequestError, "n=2 is not supported"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError, "image_url"),
        ({"model": "gpt-9"}, openai.NotFoundError, "gpt-9"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, openai.BadRequestError, "window is 8192"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_of_the_clients_own_kinds(client: Any, fields: Any, kind: Any, said: str, stream: bool) -> None:
    with pytest.raises(kind, match=said) as raised:
        client.chat.completions.create(**{"model": "m", "messages": QUESTION, "stream": stream} | fields)
    assert raised.value.type == "invalid_request_error"


# ---- responses


def test_a_response(client: Any) -> None:
    made = client.responses.create(model="m", input="What is the weather in Oslo?", max_output_tokens=40)
    assert made.output_text
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert client.responses.retrieve(made.id).output_text == made.output_text
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_response_that_calls_and_goes_on(client: Any) -> None:
    made = client.responses.create(model="m", input="What is the weather in Oslo?", tools=[FLAT])
    (call,) = [item for item in made.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Oslo"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny in Oslo, 18 degrees."}
    answered = client.responses.create(model="m", input=[result], tools=[FLAT], previous_response_id=made.id)
    assert "18" in answered.output_text
    whole = client.responses.create(model="m", input=[*QUESTION, *made.output, result], tools=[FLAT], store=False)
    assert whole.output_text == answered.output_text
    with pytest.raises(openai.BadRequestError, match="not found"):
        client.responses.create(model="m", input="Sure?", previous_response_id=whole.id)


def test_the_response_stream_helper(client: Any) -> None:
    with client.responses.stream(model="m", input="What is the weather in Oslo?", tools=[FLAT]) as stream:
        kinds = [event.type for event in stream]
        made = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert [item.type for item in made.output] == ["reasoning", "function_call"]
    parsed = client.responses.parse(model="m", input="What is the weather in Oslo?", text_format=Place)
    assert isinstance(parsed.output_parsed, Place)


def test_the_page_runs(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "server_api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code.replace("http://127.0.0.1:8000", address), {"__name__": "page"})
    called, answered = capsys.readouterr().out.splitlines()
    assert called == "get_weather {'city': 'Oslo'}"
    assert "18" in answered
