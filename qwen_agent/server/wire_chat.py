"""The format of /v1/chat/completions: a request, and the parts of its responses.

Both dialects: tools with tool_calls, and the functions with function_call that came before them, which is also what
Qwen's own server of 2023 spoke.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwen_agent.dialogue.request import AnswerForm, Choice
from qwen_agent.dialogue.turns import Assistant, Call, Result, Said, System, User
from qwen_agent.errors import InputError
from qwen_agent.server import wire
from qwen_agent.server.wire import Content, Number, Sampling, Stop
from qwen_agent.tools.base import Tool


class FunctionCall(BaseModel):
    """A call: a name, and arguments as the text of a JSON object."""

    model_config = ConfigDict(extra="ignore")

    name: str
    arguments: str = "{}"


class ToolCall(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """A message of any role. ``reasoning_content`` (or ``reasoning``) is the thought of an assistant's message."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class ChatRequest(Sampling):
    """A request for one message. Fields that are not here are taken and left alone (docs/server_api.md)."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=wire.MAX_MESSAGES)
    tools: Annotated[list[dict[str, Any]], Field(max_length=wire.MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: Annotated[list[dict[str, Any]], Field(max_length=wire.MAX_TOOLS)] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=wire.MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=wire.MAX_TOP_LOGPROBS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    logit_bias: dict[str, Number] | None = None
    modalities: list[str] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None

    @property
    def legacy(self) -> bool:
        """Whether calls are told in the words of ``functions``."""
        return self.functions is not None and not self.tools

    @property
    def limit(self) -> int | None:
        """The most tokens that may be written; None: as many as the window holds."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check(self) -> None:
        """Raise ApiError for what would change the answer and cannot be done."""
        if self.n not in (None, 1):
            raise wire.refuse(f"n={self.n}", "one choice is made per request, so send the request n times")
        if any((self.logit_bias or {}).values()):
            raise wire.refuse("logit_bias", "leave it out")
        if set(self.modalities or ()) - {"text"}:
            raise wire.refuse(f"modalities={self.modalities}", "the model writes text only")
        if self.top_logprobs and not self.logprobs:
            raise InputError(f"top_logprobs={self.top_logprobs} needs logprobs=true")

    def toolbox(self) -> dict[str, Tool]:
        """The client's tools."""
        return wire.toolbox([*(self.functions or ()), *(self.tools or ())])

    def choice(self) -> Choice:
        """``tool_choice``, or ``function_call`` of the older dialect."""
        asked = self.tool_choice if self.tool_choice is not None else self.function_call
        if asked == "required" and self.tool_choice is None:
            raise InputError("function_call='required' cannot be used: give 'none', 'auto' or {\"name\": ...}")
        return wire.choice_of(asked)

    def form(self) -> AnswerForm | None:
        return wire.form_of(self.response_format)

    def said(self) -> list[Said]:
        """The messages in nobody's format. Raises InputError, naming the message."""
        said = [*_said(self.messages)]
        if all(isinstance(message, System) for message in said):  # instructions alone: the last of them is asked
            return [*said[:-1], User(said[-1].text)]
        return said


def _said(messages: Sequence[ChatMessage]) -> Iterator[Said]:
    """Calls of the older dialect have no ids: a result answers the call before it."""
    called = ""
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        text = wire.text_in(message.content, where)
        if message.role in ("system", "developer"):
            yield System(text)
        elif message.role == "user":
            yield User(text)
        elif message.role == "tool":
            if not message.tool_call_id:
                raise InputError(f"{where} has the role 'tool' but no tool_call_id: say which call it answers")
            yield Result(message.tool_call_id, text)
        elif message.role == "function":
            if not called:
                raise InputError(f"{where} has the role 'function', but no message with a function_call is before it")
            yield Result(called, text)
            called = ""
        else:
            called = f"messages[{at}].function_call" if message.function_call else ""
            yield _by_assistant(message, text, called)


def _by_assistant(message: ChatMessage, text: str, key: str) -> Assistant:
    calls = [Call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    if message.function_call is not None:
        # Qwen's server of 2023 told the thought as the content, marker and all.
        text = text.removeprefix("Thought:").strip()
        calls.append(Call(key, message.function_call.name, message.function_call.arguments))
    thought = (message.reasoning_content or message.reasoning or "").strip()
    return Assistant(text or message.refusal or "", thought, tuple(calls))
