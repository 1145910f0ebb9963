"""The format of /v1/responses: a request whose input is a text or a list of items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwen_agent.dialogue.request import AnswerForm, Choice
from qwen_agent.dialogue.turns import Assistant, Call, Result, Said, System, User
from qwen_agent.errors import InputError
from qwen_agent.server import wire
from qwen_agent.server.wire import Content, Part, Sampling
from qwen_agent.tools.base import Tool

LOGPROBS = "message.output_text.logprobs"


class Item(BaseModel):
    """An item of the input. What of it is read depends on its type; one without a type is a message."""

    model_config = ConfigDict(extra="ignore")

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content = None
    summary: list[Part] | None = None


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    format: dict[str, Any] | None = None


class ResponsesRequest(Sampling):
    """A request for one response. Fields that are not here are taken and left alone (docs/server_api.md)."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=wire.MAX_MESSAGES)]
    instructions: str | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=wire.MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: TextOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=wire.MAX_TOP_LOGPROBS)] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None

    def check(self) -> None:
        """Raise ApiError for what would change the answer and cannot be done."""
        if self.background:
            raise wire.refuse("background", "a response is made while its client waits; stream it")
        if self.conversation is not None:
            raise wire.refuse("conversation", "go on from previous_response_id, or send the earlier items")
        if self.prompt is not None:
            raise wire.refuse("prompt", "there are no stored prompts; send the text")

    @property
    def logprobs(self) -> int | None:
        """How many alternatives of each token are wanted; None: no log-probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    def toolbox(self) -> dict[str, Tool]:
        return wire.toolbox(self.tools or ())

    def choice(self) -> Choice:
        return wire.choice_of(self.tool_choice)

    def form(self) -> AnswerForm | None:
        return wire.form_of(self.text.format if self.text else None)

    def said(self, before: Sequence[Said] = ()) -> tuple[Said, ...]:
        """What was said ``before``, and the input, in nobody's format. Raises InputError, naming the item."""
        if isinstance(self.input, str):
            return (*before, User(self.input))
        return tuple(_said(self.input, before))

    def instructed(self) -> tuple[Said, ...]:
        """The instructions, which hold for this response only."""
        return (System(self.instructions),) if self.instructions else ()


def _said(items: Iterable[Item], before: Sequence[Said]) -> list[Said]:
    """Calls that follow each other are of one message, and what was thought is of the message after it."""
    said = [*before]
    thought = ""
    for at, item in enumerate(items):
        where = f"input[{at}]"
        kind = item.type or ("message" if item.role else None)
        if kind == "reasoning":
            thought = (wire.text_in(item.content, where) or wire.text_in(item.summary, where)).strip()
        elif kind == "function_call":
            call = Call(_given(item.call_id, where, "call_id"), _given(item.name, where, "name"), item.arguments or "")
            last = said[-1] if said else None
            if isinstance(last, Assistant) and not thought and len(said) > len(before):
                said[-1] = replace(last, calls=(*last.calls, call))
            else:
                said.append(Assistant("", thought, (call,)))
            thought = ""
        elif kind == "function_call_output":
            said.append(Result(_given(item.call_id, where, "call_id"), wire.text_in(item.output, where)))
        elif kind == "message":
            said.append(_message(item, where, thought))
            thought = ""
        else:
            raise InputError(
                f"{where} is of the type {kind!r}, which cannot be used: "
                f"give messages, function_call, function_call_output and reasoning"
            )
    return said


def _message(item: Item, where: str, thought: str) -> Said:
    text = wire.text_in(item.content, where)
    role = _given(item.role, where, "role")
    if role == "user":
        return User(text)
    return Assistant(text, thought) if role == "assistant" else System(text)


def _given(value: str | None, where: str, name: str) -> str:
    if not value:
        raise InputError(f"{where} needs {name!r}")
    return value
