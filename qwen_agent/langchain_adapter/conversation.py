"""LangChain's messages -> messages in nobody's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from qwen_agent.dialogue.turns import Assistant, Call, Result, Said, System, User
from qwen_agent.errors import InputError

# Blocks that repeat what is read from elsewhere in the message: thoughts and calls.
_READ_ELSEWHERE = (
    *("reasoning", "thinking", "function_call"),
    *("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use"),
)


def said(messages: Sequence[BaseMessage]) -> list[Said]:
    """What each message says. Raises InputError for messages that cannot be shown to the model."""
    return [_said(message) for message in messages]


def text_in(message: BaseMessage) -> str:
    """The text of a message. Raises InputError for content that is not text."""
    parts: list[str] = []
    for block in message.content_blocks:
        inner: Any = block.get("value", block) if block["type"] == "non_standard" else block
        kind = inner.get("type", block["type"])
        if kind in ("text", "text-plain"):
            parts.append(str(inner.get("text", "")))
        elif kind not in _READ_ELSEWHERE:
            raise InputError(
                f"a {type(message).__name__} has content of the type {kind!r}, but the model reads text only: "
                f"put it into words, or give a tool that does"
            )
    return "".join(parts)


def _said(message: BaseMessage) -> Said:
    if isinstance(message, SystemMessage):
        return System(text_in(message))
    if isinstance(message, HumanMessage):
        return User(text_in(message))
    if isinstance(message, ToolMessage):
        return Result(message.tool_call_id, text_in(message))
    if isinstance(message, AIMessage):
        thought = "".join(str(block.get("reasoning", "")) for block in message.content_blocks).strip()
        return Assistant(text_in(message), thought, _calls(message))
    raise InputError(f"a {type(message).__name__} cannot be shown to the model: use system, human, ai and tool")


def _calls(message: AIMessage) -> tuple[Call, ...]:
    """The message's calls, the invalid ones last, their arguments as the text they are."""
    read = [
        Call(str(call["id"]), call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls
    ]
    unread = [
        Call(str(call["id"]), call["name"] or "", call["args"] or "", whole=False)
        for call in message.invalid_tool_calls
    ]
    return (*read, *unread)
