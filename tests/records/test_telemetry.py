"""Spans of a run: their names, their places in time and in the tree, and that nothing is in them by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import StatusCode

from qwen_agent import Agent, GenerationConfig, tool
from qwen_agent.errors import MissingDependency, ToolError
from qwen_agent.limits import Limits
from qwen_agent.records.log import RunLog, read_log
from qwen_agent.records.telemetry import export, traced
from qwen_agent.types import Delta

CALL = 'Thought: secret thought\nAction: height\nAction Input: {"thing": "secret tower"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: secret 330 m"


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    if thing == "nothing":
        raise ToolError("There is no such thing.")
    return f"The {thing} is 330 m tall."


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def agent(scripted: Any, *outputs: str, **options: Any) -> Agent:
    generation = GenerationConfig(temperature=0.5, top_p=0.9, max_new_tokens=100, seed=7)
    return Agent(scripted(*outputs), [height], generation=generation, **options)


@pytest.mark.parametrize("live", [True, False], ids=["live", "log"])
def test_a_run_is_a_tree_of_spans(
    scripted: Any, exporter: InMemorySpanExporter, provider: TracerProvider, tmp_path: Path, live: bool
) -> None:
    events = agent(scripted, CALL, ANSWER).stream("How tall is the secret tower?")
    if live:
        list(traced(events, provider.get_tracer("test")))
    else:
        with RunLog(tmp_path / "run.jsonl") as log:
            list(log.record(events))
        export(read_log(tmp_path / "run.jsonl"), provider)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["chat scripted", "execute_tool height", "chat scripted", "invoke_agent"]
    first, called, second, run = spans
    assert run.parent is None
    assert {span.parent.span_id for span in (first, called, second) if span.parent} == {run.context.span_id}
    times = [time for span in (first, called, second) for time in (span.start_time, span.end_time)]
    assert times == sorted(times)  # type: ignore[type-var]
    assert run.start_time <= times[0]  # type: ignore[operator]
    assert run.end_time >= times[-1]  # type: ignore[operator]
    assert dict(called.attributes or {}) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "height",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call_1",
    }
    assert dict(second.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "qwen_agent",
        "gen_ai.request.model": "scripted",
        "gen_ai.response.model": "scripted",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.seed": 7,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": second.attributes["gen_ai.usage.input_tokens"],  # type: ignore[index]
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 11,
    }
    total = sum(span.attributes["gen_ai.usage.output_tokens"] for span in (first, second))  # type: ignore
    assert run.attributes["gen_ai.usage.output_tokens"] == total  # type: ignore[index]
    assert run.attributes["gen_ai.response.finish_reasons"] == ("final_answer",)  # type: ignore[index]


def test_the_names_are_those_of_the_conventions(
    scripted: Any, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    export(agent(scripted, CALL, ANSWER).stream("q"), provider, contents=True)
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    used = {name for span in exporter.get_finished_spans() for name in span.attributes or {}}
    assert used <= known | {"error.type"}


def test_no_content_is_in_a_span_unless_it_is_asked_for(
    scripted: Any, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    export(agent(scripted, CALL, ANSWER, system="secret system").stream("secret?"), provider)
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())
    exporter.clear()
    export(agent(scripted, CALL, ANSWER, system="secret system").stream("secret?"), provider, contents=True)
    spans = named(exporter)
    told = dict(spans["invoke_agent"].attributes or {})
    assert json.loads(str(told["gen_ai.input.messages"]))[0]["parts"][0]["content"] == "secret?"
    assert "secret 330 m" in str(told["gen_ai.output.messages"])
    assert "secret system" in str(told["gen_ai.system_instructions"])
    called = dict(spans["execute_tool height"].attributes or {})
    assert called["gen_ai.tool.call.arguments"] == '{"thing": "secret tower"}'
    assert called["gen_ai.tool.call.result"] == "The secret tower is 330 m tall."


def test_a_tool_that_fails_is_an_error_and_a_limit_is_none(
    scripted: Any, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    failing = agent(scripted, CALL.replace("secret tower", "nothing"), "330 m", limits=Limits(steps=1))
    export(failing.stream("q"), provider)
    spans = named(exporter)
    assert spans["execute_tool height"].status.status_code is StatusCode.ERROR
    assert spans["execute_tool height"].attributes["error.type"] == "tool_error"  # type: ignore[index]
    run = spans["invoke_agent"]
    assert run.status.status_code is StatusCode.UNSET
    assert [event.name for event in run.events] == ["qwen_agent.limit"]
    assert run.attributes["gen_ai.response.finish_reasons"] == ("max_steps",)  # type: ignore[index]


def test_a_run_that_raises_or_is_left_ends_its_span(
    scripted: Any, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    tracer = provider.get_tracer("test")
    with pytest.raises(IndexError):
        list(traced(agent(scripted).stream("q"), tracer))
    assert named(exporter)["invoke_agent"].attributes["error.type"] == "IndexError"  # type: ignore[index]
    exporter.clear()
    runtime = scripted(CALL, ANSWER)
    events = traced(Agent(runtime, [height]).stream("q"), tracer)
    while not isinstance(next(events), Delta):
        pass
    events.close()  # type: ignore[attr-defined]
    assert "invoke_agent" in named(exporter)
    assert runtime.closed == 1


def test_confidence_is_an_event_of_the_run(
    scripted: Any, exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    export(Agent(scripted(ANSWER, weights=(0.75, 0.25)), [height]).stream("q"), provider)
    [event] = named(exporter)["invoke_agent"].events
    assert dict(event.attributes or {}) == {
        "qwen_agent.confidence.answer": 0.75,
        "qwen_agent.confidence.tool.height": 0.25,
    }


def test_without_a_configured_exporter_nothing_is_sent(scripted: Any) -> None:
    events = list(traced(agent(scripted, CALL, ANSWER).stream("q")))
    assert events
    export(events)


def test_without_opentelemetry_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, scripted: Any) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for use in (export, traced):
        with pytest.raises(MissingDependency, match=r"opentelemetry-sdk is not installed: pip install .*\[otel\]"):
            use(agent(scripted, ANSWER).stream("q"))  # type: ignore[operator]


def test_opentelemetry_is_imported_only_when_it_is_used() -> None:
    code = "import sys, qwen_agent.records.telemetry; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
