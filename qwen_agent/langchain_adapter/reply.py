"""What the model writes -> chunks of an AIMessage, as it is written."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.utils.json import parse_partial_json
from pydantic_core import from_json

from qwen_agent.arguments import read_arguments
from qwen_agent.loop.calls import read_call
from qwen_agent.parser import Parsed, Part, StepParser
from qwen_agent.tools.base import Tool
from qwen_agent.types import Delta

# Where a call stands among the blocks of a message: LangChain merges blocks of one index, and the thought has 0.
_CALL = 1


class Trimmed:
    """Text in pieces, without the whitespace round the whole."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""  # whitespace that is in the middle if anything follows

    def feed(self, text: str) -> str:
        text = self._held + text if self._begun else text.lstrip()
        shown = text.rstrip()
        self._begun = self._begun or bool(shown)
        self._held = text[len(shown) :]
        return shown


class Reply:
    """One message: feed it text and get chunks; `finish` gives the last of them.

    A call's arguments are handed on while they are strict JSON; what has to be mended is held back to the end.
    """

    def __init__(self, tools: Mapping[str, Tool], first: Part) -> None:
        self.called = False
        self._tools = tools
        self._parser = StepParser(first)
        self._thought, self._answer = Trimmed(), Trimmed()
        self._name = self._input = self._sent = ""
        self._id = f"call_{uuid.uuid4().hex}"

    def feed(self, text: str) -> Iterator[AIMessageChunk]:
        for delta in self._parser.feed(text) if text else ():
            yield from self._show(delta)

    def finish(self, *, at_limit: bool = False, at_stop: bool = False) -> Iterator[AIMessageChunk]:
        """The end, and whether a token limit or a stop string brought it: a stop string may stand inside of a call."""
        deltas, parsed = self._parser.finish()
        for delta in deltas:
            yield from self._show(delta)
        if parsed.action is not None:
            at_stop = at_stop or parsed.invented > 0
            yield from self._end_call(parsed, at_limit or (at_stop and not parsed.kept.endswith("\n")))
        elif not parsed.answer and parsed.thought:  # it answered without saying so
            yield AIMessageChunk(content=parsed.thought)

    def _show(self, delta: Delta) -> Iterator[AIMessageChunk]:
        if delta.part == "thought" and (thought := self._thought.feed(delta.text)):
            yield thinking(thought)
        elif delta.part == "final_answer" and (answer := self._answer.feed(delta.text)):
            yield AIMessageChunk(content=answer)
        elif delta.part == "action":
            self._name += delta.text
        elif delta.part == "action_input":
            self._input = (self._input + delta.text).lstrip()
            sure = self._input.rstrip(", \n")
            if len(sure) > len(self._sent) and self._name.strip() in self._tools and _begins_an_object(self._input):
                yield self._call(self._name.strip(), sure[len(self._sent) :])

    def _end_call(self, parsed: Parsed, cut_off: bool) -> Iterator[AIMessageChunk]:
        call = read_call(parsed, self._tools, cut_off)
        arguments = call.arguments
        if call.name not in self._tools:  # whoever runs the tools tells the model so
            arguments = read_arguments(call.raw, {}).values or {}
        if arguments is not None and self._sent and not call.repairs:
            return
        whole = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        fits = arguments is not None and whole.startswith(self._sent)
        yield self._call(call.name, whole[len(self._sent) :] if fits else _broken(self._sent, call.raw))

    def _call(self, name: str, arguments: str) -> AIMessageChunk:
        """A piece of the call; name and id come with the first."""
        begun, self.called = self.called, True
        self._sent += arguments
        told = (None, None) if begun else (name, self._id)
        chunk = tool_call_chunk(name=told[0], id=told[1], args=arguments, index=_CALL)
        return AIMessageChunk(content="", tool_call_chunks=[chunk])


def thinking(text: str) -> AIMessageChunk:
    """A piece of a thought."""
    return AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})


def _begins_an_object(text: str) -> bool:
    """True if the text of one object in strict JSON may go on like this."""
    try:
        begun = isinstance(from_json(text, allow_partial="trailing-strings", allow_inf_nan=False), dict)
    except ValueError:
        return False
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
    except ValueError:  # it is not complete yet
        return begun
    return begun and not text[end:].strip()


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
