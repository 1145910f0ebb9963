"""What the model writes -> chunks of an AIMessage, as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.utils.json import parse_partial_json

from qwen_agent.dialogue import reply
from qwen_agent.dialogue.reply import Answer, CallArguments, CallBegun, CallBroken, Piece, Thought
from qwen_agent.parser import Part
from qwen_agent.tools.base import Tool

# Where a call stands among the blocks of a message: LangChain merges blocks of one index, and the thought has 0.
_CALL = 1


class Reply:
    """`qwen_agent.dialogue.reply.Reply` in LangChain's chunks. A call that must not be run is an invalid one."""

    def __init__(self, tools: Mapping[str, Tool], first: Part) -> None:
        self.called = False
        self._reply = reply.Reply(tools, first)

    def feed(self, text: str) -> Iterator[AIMessageChunk]:
        yield from map(self._chunk, self._reply.feed(text))

    def finish(self, *, at_limit: bool = False, at_stop: bool = False) -> Iterator[AIMessageChunk]:
        """The end, and whether a token limit or a stop string brought it."""
        yield from map(self._chunk, self._reply.finish(at_limit=at_limit, at_stop=at_stop))

    def _chunk(self, piece: Piece) -> AIMessageChunk:
        if isinstance(piece, Thought):
            return thinking(piece.text)
        if isinstance(piece, Answer):
            return AIMessageChunk(content=piece.text)
        self.called = True
        return AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(**_of_call(piece), index=_CALL)])


def thinking(text: str) -> AIMessageChunk:
    """A piece of a thought."""
    return AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})


def _of_call(piece: CallBegun | CallArguments | CallBroken) -> dict[str, str | None]:
    if isinstance(piece, CallBegun):
        return {"name": piece.name, "id": piece.id, "args": ""}
    if isinstance(piece, CallArguments):
        return {"name": None, "id": None, "args": piece.text}
    told: dict[str, str | None] = {"name": None, "id": None} if piece.sent else {"name": piece.name, "id": piece.id}
    return told | {"args": _broken(piece.sent, piece.raw)}


def _broken(sent: str, raw: str) -> str:
    """The end of a call that must not be run: LangChain, which completes what is missing, is to give it up too.

    What was sent is the beginning of an object, so one of the brackets is wrong there; the blank ends an escape.
    """
    if not sent:
        return f"unreadable: {raw}"
    return next(end for end in (" ]", " }", ' "]', ' "}') if not _guessed(sent + end))


def _guessed(text: str) -> bool:
    try:
        return isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False
