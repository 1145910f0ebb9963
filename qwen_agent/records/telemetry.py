"""A run as OpenTelemetry spans, by the semantic conventions for generative AI.

    invoke_agent                          the run
    ├── chat {model}                      one generation
    └── execute_tool {tool}               one call

Promises
- Nothing leaves the process unless the user has configured an exporter for the tracer provider.
- No content (questions, thoughts, arguments, observations, answers) is in a span unless ``contents`` is True.

Not promised
- A span of ours is not the current span while the model or a tool works, so spans that a tool starts itself are not its
  children.
- The conventions are still in development; the names here are those of 2026.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from qwen_agent.errors import MissingDependency
from qwen_agent.llm.runtime import text_of
from qwen_agent.records.log import Log
from qwen_agent.types import (
    AgentResult,
    Approved,
    Compacted,
    Event,
    Finished,
    LimitReached,
    ModelWrote,
    RunStarted,
    ToolFinished,
    Weighed,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

_SECOND = 1_000_000_000  # nanoseconds
_PROVIDER = "qwen_agent"
_REQUEST = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed"}


def export(
    log: Log | Iterable[Event], tracer_provider: TracerProvider | None = None, *, contents: bool = False
) -> None:
    """Send a log's run, or a finished run's events, as spans; a log's spans have the times of its run.

    ``tracer_provider`` None is the global one. Raises MissingDependency without opentelemetry.
    """
    trace = _opentelemetry()
    tracer = trace.get_tracer("qwen_agent", tracer_provider=tracer_provider)
    began = int(datetime.fromisoformat(log.header.time).timestamp() * _SECOND) if isinstance(log, Log) else None
    spans = _Spans(tracer, contents, began)
    for event in log.events if isinstance(log, Log) else log:
        spans.see(event)
    spans.end()


def traced(events: Iterable[Event], tracer: Tracer | None = None, *, contents: bool = False) -> Iterator[Event]:
    """The same events, while they happen; each span is ended with the event that ends it.

    ``tracer`` None is one of the global provider. Raises MissingDependency without opentelemetry.
    """
    tracer = tracer or _opentelemetry().get_tracer("qwen_agent")
    return _traced(events, _Spans(tracer, contents, None))


def _traced(events: Iterable[Event], spans: _Spans) -> Iterator[Event]:
    try:
        for event in events:
            spans.see(event)
            yield event
    except Exception as error:
        spans.fail(type(error).__name__)
        raise
    finally:
        spans.end()
        close = getattr(events, "close", None)
        if close is not None:
            close()


def _opentelemetry() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:
        raise MissingDependency("opentelemetry-sdk", "otel") from None
    return trace


class _Spans:
    """Turns events into spans. Times are the run's own (`elapsed`), from when it began."""

    def __init__(self, tracer: Tracer, contents: bool, began: int | None) -> None:
        self._tracer = tracer
        self._contents = contents
        self._began = began
        self._run: Span | None = None
        self._last = 0.0  # seconds, of the last event that has a time
        self._model = ""
        self._request: dict[str, Any] = {}
        self._calls = itertools.count(1)

    def see(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._start(event)
            case ModelWrote():
                self._generation(event)
            case ToolFinished():
                self._call(event)
            case Weighed(confidence) if confidence is not None:
                self._mark("confidence", {"answer": confidence.answer, **_flat("tool", confidence.tools)})
            case Approved(granted):
                self._mark("approval", {"granted": granted})
            case Compacted(steps, tokens):
                self._mark("compaction", {"steps": list(steps), "tokens": tokens})
            case LimitReached(reason):
                self._mark("limit", {"reason": reason.value})
            case Finished(result):
                self._finish(result)

    def fail(self, kind: str) -> None:
        """The run raised an error."""
        if self._run is not None:
            _mark_failed(self._run, kind)

    def end(self) -> None:
        """Close the run's span, if it is still open."""
        if self._run is not None:
            self._run.end(end_time=self._at(self._last))
            self._run = None

    # ---- spans

    def _start(self, started: RunStarted) -> None:
        self._began = self._began or time.time_ns()
        described = started.agent
        self._model = described["model"]
        generation = described["generation"]
        self._request = {
            f"gen_ai.request.{name}": generation[key] for name, key in _REQUEST.items() if generation[key] is not None
        }
        self._request |= {
            "gen_ai.request.model": self._model,
            "gen_ai.request.max_tokens": generation["max_new_tokens"],
            "gen_ai.provider.name": _PROVIDER,
        }
        self._run = self._span("invoke_agent", 0.0, self._request)
        if self._contents:
            self._run.set_attribute("gen_ai.system_instructions", _parts(described["system"]))
            self._run.set_attribute("gen_ai.input.messages", _message("user", started.question))

    def _generation(self, wrote: ModelWrote) -> None:
        usage = wrote.usage
        span = self._span(
            "chat",
            self._last,
            {
                **self._request,
                "gen_ai.response.model": self._model,
                "gen_ai.response.finish_reasons": [wrote.finish],
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.usage.output_tokens": usage.generated_tokens,
            },
            self._model,
        )
        if self._contents:
            text = text_of(wrote.output)
            span.set_attribute("gen_ai.output.messages", _message("assistant", text, wrote.finish))
        self._close(span, wrote.elapsed)

    def _call(self, finished: ToolFinished) -> None:
        call, result = finished.call, finished.result
        attributes = {
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": f"call_{next(self._calls)}",
        }
        started = max(finished.elapsed - result.seconds, self._last)
        span = self._span("execute_tool", started, attributes, call.name)
        if self._contents:
            arguments = call.raw if call.arguments is None else json.dumps(dict(call.arguments), ensure_ascii=False)
            span.set_attribute("gen_ai.tool.call.arguments", arguments)
            span.set_attribute("gen_ai.tool.call.result", result.content)
        if not result.ok:
            _mark_failed(span, "tool_error")
        self._close(span, finished.elapsed)

    def _finish(self, result: AgentResult) -> None:
        if self._run is None:
            return
        usage = result.usage
        self._run.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        self._run.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        self._run.set_attribute("gen_ai.usage.output_tokens", usage.generated_tokens)
        self._run.set_attribute("gen_ai.response.finish_reasons", [result.stop_reason.value])
        if self._contents:
            self._run.set_attribute(
                "gen_ai.output.messages", _message("assistant", result.answer, result.stop_reason.value)
            )
        self.end()

    def _mark(self, name: str, attributes: Mapping[str, Any]) -> None:
        if self._run is not None:
            named = {f"qwen_agent.{name}.{key}": value for key, value in attributes.items()}
            self._run.add_event(f"qwen_agent.{name}", named, timestamp=self._at(self._last))

    def _span(self, operation: str, start: float, attributes: Mapping[str, Any], about: str = "") -> Span:
        from opentelemetry.trace import SpanKind, set_span_in_context

        return self._tracer.start_span(
            f"{operation} {about}".strip(),
            context=set_span_in_context(self._run) if self._run is not None else None,
            # The model runs in this very process.
            kind=SpanKind.INTERNAL,
            attributes={"gen_ai.operation.name": operation, **attributes},
            start_time=self._at(start),
        )

    def _close(self, span: Span, elapsed: float) -> None:
        self._last = max(self._last, elapsed)
        span.end(end_time=self._at(self._last))

    def _at(self, elapsed: float) -> int:
        assert self._began is not None
        return self._began + int(elapsed * _SECOND)


def _mark_failed(span: Span, kind: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _flat(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}.{key}": value for key, value in values.items()}


def _parts(text: str) -> str:
    return json.dumps([{"type": "text", "content": text}], ensure_ascii=False)


def _message(role: str, text: str, finish: str | None = None) -> str:
    message: dict[str, Any] = {"role": role, "parts": [{"type": "text", "content": text}]}
    if finish is not None:
        message["finish_reason"] = finish
    return json.dumps([message], ensure_ascii=False)
