"""LangChain's messages -> the turns of a conversation, the assistant's in the ReAct format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from qwen_agent.errors import InputError
from qwen_agent.llm.runtime import text_of
from qwen_agent.prompt import DEFAULT_SYSTEM, answer_step, awaits_thought, call_step, observation
from qwen_agent.types import Message, Prompt, Role, Text

# Blocks that repeat what is read from elsewhere in the message: thoughts and calls.
_READ_ELSEWHERE = (
    *("reasoning", "thinking", "function_call"),
    *("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use"),
)


@dataclass(slots=True)
class Turn:
    """What the user asked, and the assistant's whole turn: steps with their observations, and the answer."""

    asked: str
    said: Prompt = ()


def conversation(messages: Sequence[BaseMessage]) -> tuple[str, list[Turn]]:
    """The system text, and at least one turn. Messages of one side that follow each other are one turn.

    Raises InputError for messages that cannot be shown, and where calls and results do not match.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message, results in _with_results(messages):
        if isinstance(message, SystemMessage):
            system.append(text_in(message))
        elif isinstance(message, HumanMessage):
            if turns and not turns[-1].said:
                turns[-1].asked += f"\n\n{text_in(message)}"
            else:
                turns.append(Turn(text_in(message)))
        elif isinstance(message, AIMessage):
            turns = turns or [Turn("")]
            turns[-1].said += _as_written(message, results, text_of(turns[-1].said))
        else:
            raise InputError(f"a {type(message).__name__} cannot be shown to the model: use system, human, ai and tool")
    if not turns:
        raise InputError("there is no question: give at least one HumanMessage")
    return "\n\n".join(system) or DEFAULT_SYSTEM, turns


def history(turns: Sequence[Turn]) -> list[Message]:
    """Finished turns, as `qwen_agent.prompt.build` takes them."""
    pairs = [(Message(Role.USER, turn.asked), Message(Role.ASSISTANT, text_of(turn.said), turn.said)) for turn in turns]
    return [message for pair in pairs for message in pair]


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


def _with_results(messages: Sequence[BaseMessage]) -> Iterator[tuple[BaseMessage, dict[str, ToolMessage]]]:
    """Each message with the tools' results that follow it, by call."""
    if messages and isinstance(messages[0], ToolMessage):
        raise InputError(
            f"the result of the call {messages[0].tool_call_id!r} comes first: keep the AIMessage before it"
        )
    for at, message in enumerate(messages):
        if isinstance(message, ToolMessage):
            continue
        following = takewhile(lambda other: isinstance(other, ToolMessage), messages[at + 1 :])
        results = {result.tool_call_id: result for result in following if isinstance(result, ToolMessage)}
        made, broken = _ids(message)
        for odd in (made - set(results)) | (set(results) - made - broken):
            lacks = "has no ToolMessage after it" if odd in made else "is in no AIMessage before its ToolMessage"
            raise InputError(f"the call {odd!r} {lacks}: keep calls and their results together")
        yield message, results


def _ids(message: BaseMessage) -> tuple[set[str], set[str]]:
    """The ids of a message's calls, and of those that could not be read, which nobody has to answer."""
    if not isinstance(message, AIMessage):
        return set(), set()
    return {str(call["id"]) for call in message.tool_calls}, {str(call["id"]) for call in message.invalid_tool_calls}


def _as_written(message: AIMessage, results: Mapping[str, ToolMessage], before: str) -> Prompt:
    """The message as the model would have written it after the text ``before``, with the observations of its calls."""
    thought = "".join(str(block.get("reasoning", "")) for block in message.content_blocks).strip()
    text = text_in(message)
    if not results:
        if thought or awaits_thought(before):
            return answer_step(before, text, thought)
        return (Text(f"\n{text}" if before else text),)
    written: Prompt = ()
    why = "\n".join(part for part in (thought, text) if part)
    for key, name, arguments in _calls(message):
        if key in results:
            written += call_step(text_of(written) or before, name, arguments, why)
            written += observation(text_in(results[key]))
            why = ""
    return written


def _calls(message: AIMessage) -> list[tuple[str, str, str]]:
    """Id, name and arguments of a message's calls, the invalid ones last, their arguments as the text they are."""
    read = [
        (str(call["id"]), call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls
    ]
    unread = [(str(call["id"]), call["name"] or "", call["args"] or "") for call in message.invalid_tool_calls]
    return [*read, *unread]
