"""smolagents on our runtime: a `Model` for its agents, and our tools as its tools.

A ToolCallingAgent's step is written as ReAct, the form that Qwen models learnt, and held to a grammar: a thought, then
one of the tools' names, then JSON that fits that tool's inputs, or a final answer. So a call is valid by construction,
there is one call a step, and the final answer is free text. Everything else (a CodeAgent's code, plans, summaries) is
plain chat; ``response_format`` holds the output to a JSON Schema.

Not promised
- Pictures in messages: a runtime reads text only, and says so.
- Where a runtime cannot constrain, a call is read as well as it can be; what is wrong with it smolagents finds out.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.hf_agent_adapter import called_by_code
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar, call_grammar, json_grammar, step_grammar
from qwen_agent.llm.runtime import Chunk, Runtime, text_of
from qwen_agent.loop.calls import Approve, read_call
from qwen_agent.parser import StepParser
from qwen_agent.prompt import DEFAULT_SYSTEM, awaits_thought, build, observation
from qwen_agent.tools.base import Tool
from qwen_agent.tools.plugins import from_smolagents
from qwen_agent.types import IM_END, IM_START, Message, Prompt, Role, Text

try:
    import smolagents
    from smolagents import models
except ModuleNotFoundError as error:
    if error.name != "smolagents":  # it is installed, and lacks something itself
        raise
    raise MissingDependency("smolagents", "smolagents") from None

FINAL_ANSWER = "final_answer"

_NOT_GIVEN = {"stop", "grammar", "choices", "logprobs", "prompt_logprobs"}
_GIVEN = {field.name for field in dataclasses.fields(GenerationConfig)} - _NOT_GIVEN
_KINDS = ("string", "boolean", "integer", "number", "array", "object", "null")
_OBSERVED = "Observation:\n"  # what smolagents puts before a result


class QwenModel(models.Model):  # type: ignore[misc]
    """A smolagents `Model` over a runtime: ``QwenModel()``, ``QwenModel("Qwen/Qwen2.5-7B-Instruct")``.

    ``model_id`` is what `load_runtime` takes; with a ``runtime`` nothing is loaded. ``generation`` are fields of
    `GenerationConfig` (``max_new_tokens``, also as ``max_tokens``, ``temperature``, ``seed`` ...), and may be given
    anew with each call. An agent that has this model can be saved and loaded: the class is in smolagents' registry.

    Raises InputError for an unknown field, ModelError for a model that cannot be loaded.
    """

    def __init__(self, model_id: str = "embedded", *, runtime: Runtime | None = None, **generation: Any) -> None:
        super().__init__(model_id=runtime.name if runtime else model_id, **generation)
        self.generation = _config(GenerationConfig(), generation)
        if runtime is None:
            from qwen_agent.llm.local import load_runtime  # loads torch

            runtime = load_runtime(model_id)
        self.runtime = runtime

    def generate(
        self,
        messages: Sequence[models.ChatMessage | dict[str, Any]],
        stop_sequences: Sequence[str] | None = None,
        response_format: Mapping[str, Any] | None = None,
        tools_to_call_from: Sequence[Any] | None = None,
        **generation: Any,
    ) -> models.ChatMessage:
        """One message. With tools it has at most one call; it has none if the output was cut off before its end.

        Raises InputError for what cannot be used, ContextOverflow if the messages do not fit the model's window.
        """
        request = self._request(messages, stop_sequences, response_format, tools_to_call_from, generation)
        *_, last = self.runtime.stream(request.prompt, request.config)
        text = text_of(last.output)
        call = request.call(text, last)
        return models.ChatMessage(
            role=models.MessageRole.ASSISTANT,
            content=text,
            tool_calls=[_tool_call(*call)] if call else None,
            token_usage=_usage(last),
        )

    def generate_stream(
        self,
        messages: Sequence[models.ChatMessage | dict[str, Any]],
        stop_sequences: Sequence[str] | None = None,
        response_format: Mapping[str, Any] | None = None,
        tools_to_call_from: Sequence[Any] | None = None,
        **generation: Any,
    ) -> Iterator[models.ChatMessageStreamDelta]:
        """The same in pieces: text as it is written, then the call and the token counts. No stop string is shown."""
        request = self._request(messages, stop_sequences, response_format, tools_to_call_from, generation)
        last = Chunk()
        for last in self.runtime.stream(request.prompt, request.config):
            if last.text:
                yield models.ChatMessageStreamDelta(content=last.text)
        call = request.call(text_of(last.output), last)
        yield models.ChatMessageStreamDelta(
            tool_calls=[_tool_call_delta(*call)] if call else None, token_usage=_usage(last)
        )

    def parse_tool_calls(self, message: models.ChatMessage) -> models.ChatMessage:
        """Called where a message has no call, though there should be one. Raises ValueError for the model to read."""
        if not message.tool_calls:
            raise ValueError(
                "the output ended before a tool was called with arguments that can be read: "
                "think in fewer words, then write the whole call"
            )
        return super().parse_tool_calls(message)

    def _request(
        self,
        messages: Sequence[models.ChatMessage | dict[str, Any]],
        stops: Sequence[str] | None,
        response_format: Mapping[str, Any] | None,
        offered: Sequence[Any] | None,
        generation: Mapping[str, Any],
    ) -> _Request:
        conversation = _Conversation.of(messages)
        config = dataclasses.replace(_config(self.generation, generation), stop=tuple(stops or ()))
        if not offered:
            return _Request(conversation.chat(), dataclasses.replace(config, grammar=_format(response_format)))
        if response_format is not None:
            raise InputError("response_format cannot be used together with tools: a step is a call or an answer")
        ends = any(_takes_the_answer(tool) for tool in offered)
        tools = {t.name: t for t in (from_smolagents(each) for each in offered if not _takes_the_answer(each))}
        if not tools:
            return _Request(conversation.chat(), config, {}, ends)
        held_to = step_grammar if ends else call_grammar  # without an answer to give, a step is a call
        config = dataclasses.replace(config, grammar=held_to(tools.values()))
        return _Request(conversation.react(list(tools.values())), config, tools, ends)


models.MODEL_REGISTRY["QwenModel"] = QwenModel


def to_smolagents(tool: Tool, approve: Approve | None = None) -> smolagents.Tool:
    """One of our tools for smolagents' agents, with its checks, time limit and size limit.

    A failed call raises ToolError, which smolagents shows to the model. An agent that has it cannot be saved, since
    smolagents saves the source code of tools. Raises InputError for a name that is no Python identifier, and for a tool
    that nobody may call or that asks a person first, unless ``approve`` says how to ask.
    """
    called_by_code.check_approval(tool, approve)
    if not tool.name.isidentifier():
        raise InputError(f"{tool.name!r} is no Python identifier, as the names of smolagents' tools are: rename it")
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", ())
    inputs = {name: _input(name, schema, name in required) for name, schema in properties.items()}

    def forward(self: smolagents.Tool, *args: Any, **arguments: Any) -> str:
        return called_by_code.call(tool, args, arguments, approve)

    def to_dict(self: smolagents.Tool) -> dict[str, Any]:
        raise InputError(
            f"{tool.name} cannot be saved: smolagents saves source code, and this tool is made of an object"
        )

    members = {
        "name": tool.name,
        "description": tool.description,
        "inputs": inputs,
        "output_type": "string",
        "skip_forward_signature_validation": True,
        "forward": forward,
        "to_dict": to_dict,
    }
    made: smolagents.Tool = type(f"{tool.name.title().replace('_', '')}Tool", (smolagents.Tool,), members)()
    return made


# ---- what is asked of the runtime -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Request:
    """``tools`` are those that a step may call; with ``ends`` its answer is a call of final_answer."""

    prompt: Prompt
    config: GenerationConfig
    tools: Mapping[str, Tool] = dataclasses.field(default_factory=dict)
    ends: bool = False

    def call(self, text: str, last: Chunk) -> tuple[str, Any] | None:
        """The call in an output: a name, and arguments. None for one whose arguments cannot be read.

        A name that is no tool's stands, with its arguments as text: smolagents says what tools there are. Arguments of
        a tool must not be text, since smolagents hands text to a tool's first input.
        """
        if not self.tools:
            return (FINAL_ANSWER, {"answer": text.strip()}) if self.ends else None
        parser = StepParser()
        parser.feed(text)
        _, parsed = parser.finish()
        if parsed.answer and FINAL_ANSWER in self.tools:  # the parser takes a call of that name for an answer
            parsed = dataclasses.replace(parsed, action=FINAL_ANSWER, action_input=parsed.answer)
        if parsed.action is not None:
            inside = last.stop is not None and not text.endswith("\n")  # a stop string may stand inside of a call
            call = read_call(parsed, self.tools, last.finish == "length" or inside)
            if call.name not in self.tools:
                return call.name, call.raw
            return None if call.arguments is None else (call.name, dict(call.arguments))
        answer = parsed.answer or ("" if last.finish == "length" else parsed.thought)
        return (FINAL_ANSWER, {"answer": answer}) if answer and self.ends else None


def _config(config: GenerationConfig, changes: Mapping[str, Any]) -> GenerationConfig:
    named = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in changes.items()}
    if len(named) < len(changes):
        raise InputError("max_tokens is another name of max_new_tokens: give one of them")
    if unknown := set(named) - _GIVEN:
        raise InputError(f"{sorted(unknown)[0]!r} is not known: give {', '.join(sorted(_GIVEN))}")
    return dataclasses.replace(config, **named)


def _format(response_format: Mapping[str, Any] | None) -> Grammar | None:
    """The grammar of OpenAI's ``response_format``."""
    kind = (response_format or {"type": "text"}).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return json_grammar({"type": "object"})
    if kind != "json_schema" or response_format is None:
        raise InputError(f"response_format {kind!r} is not known: use 'text', 'json_object' or 'json_schema'")
    return json_grammar(response_format["json_schema"]["schema"])


def _takes_the_answer(tool: Any) -> bool:
    """Whether this is the tool that ends a run, with one input of any type, as smolagents' own has it."""
    inputs = getattr(tool, "inputs", {})
    return (
        getattr(tool, "name", "") == FINAL_ANSWER
        and [entry.get("type") for entry in inputs.values()] in (["any"], ["string"])
        and list(inputs) == ["answer"]
    )


# ---- messages -> prompts --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Conversation:
    """smolagents' messages: the system's text, and who said what after that, in smolagents' five roles."""

    system: str
    turns: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, messages: Iterable[models.ChatMessage | dict[str, Any]]) -> _Conversation:
        said = [_said(message) for message in messages]
        system = "\n".join(text for role, text in said if role == "system")
        return cls(system or DEFAULT_SYSTEM, tuple(turn for turn in said if turn[0] != "system"))

    def chat(self) -> Prompt:
        """As ChatML, with the assistant's turn left open; what one side says in several messages is one turn."""
        merged: list[tuple[str, str]] = [("system", self.system)]
        for role, text in self.turns:
            side = "assistant" if role in ("assistant", "tool-call") else "user"
            if merged[-1][0] == side:
                merged[-1] = side, f"{merged[-1][1]}\n{text}"
            else:
                merged.append((side, text))
        closed = [part for side, text in merged for part in (IM_START, Text(f"{side}\n{text}"), IM_END, Text("\n"))]
        return (*closed, IM_START, Text("assistant\n"))

    def react(self, tools: Sequence[Tool]) -> Prompt:
        """As Qwen's ReAct: a task and all steps that followed are one user turn and one assistant turn."""
        rounds: list[tuple[str, str]] = []
        for role, text in self.turns:
            question, steps = rounds[-1] if rounds else ("", "")
            if role != "user":
                rounds[-1:] = [(question, _continued(steps, role, text))]
            elif rounds and not steps:
                rounds[-1] = f"{question}\n{text}", ""
            else:
                rounds.append((text, ""))
        *earlier, (question, steps) = rounds or [("", "")]
        history = [
            message
            for asked, answered in earlier
            for message in (Message(Role.USER, asked), Message(Role.ASSISTANT, answered))
        ]
        prompt = build(question, tools=tools, history=history, system=self.system)
        return (*prompt, Text(steps)) if steps else prompt


def _said(message: models.ChatMessage | dict[str, Any]) -> tuple[str, str]:
    role, content = (
        (message.get("role"), message.get("content")) if isinstance(message, dict) else (message.role, message.content)
    )
    parts = [{"type": "text", "text": content or ""}] if not isinstance(content, list) else content
    if any(part.get("type") != "text" for part in parts):
        raise InputError("this model reads text only: leave the pictures out, or give a tool that describes them")
    return models.MessageRole(role).value, "\n".join(part["text"] for part in parts)


def _continued(steps: str, role: str, text: str) -> str:
    """The assistant's turn, with one more message of a step."""
    if role == "tool-response":
        break_ = "" if not steps or steps.endswith("\n") else "\n"
        return steps + break_ + text_of(observation(text.removeprefix(_OBSERVED)))
    if role == "tool-call":  # smolagents' words for the call, which the text already has if our model wrote it
        written = "Action Input:" in steps.rpartition("\nObservation:")[2] or f"'{FINAL_ANSWER}'" in text
        return steps if written else f"{steps}\n{text}\n"
    return f"{steps} {text.lstrip()}" if awaits_thought(steps) else f"{steps}{text}"


# ---- outputs -> smolagents' values ----------------------------------------------------------------------------------


def _tool_call(name: str, arguments: Any) -> models.ChatMessageToolCall:
    function = models.ChatMessageToolCallFunction(name=name, arguments=arguments)
    return models.ChatMessageToolCall(id=_new_id(), type="function", function=function)


def _tool_call_delta(name: str, arguments: Any) -> models.ChatMessageToolCallStreamDelta:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = models.ChatMessageToolCallFunction(name=name, arguments=written)
    return models.ChatMessageToolCallStreamDelta(index=0, id=_new_id(), type="function", function=function)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:16]}"


def _usage(last: Chunk) -> models.TokenUsage:
    return models.TokenUsage(input_tokens=last.usage.prompt_tokens, output_tokens=last.usage.generated_tokens)


def _input(name: str, schema: Mapping[str, Any], required: bool) -> dict[str, Any]:
    kind = schema.get("type")
    known = kind if kind in _KINDS or (isinstance(kind, list) and set(kind) <= set(_KINDS)) else "any"
    entry = {"type": known, "description": schema.get("description") or name}
    return entry if required else entry | {"nullable": True}
