"""What the model writes -> the parts of one message, as it is written."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic_core import from_json

from qwen_agent.arguments import read_arguments
from qwen_agent.loop.calls import read_call
from qwen_agent.parser import Parsed, Part, StepParser
from qwen_agent.tools.base import Tool
from qwen_agent.types import Delta


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the message's thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of the message's answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The message calls a tool; pieces of the arguments follow."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments. All of them together are one JSON object."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBroken:
    """Comes last, for a call that must not be run: it was cut off, or cannot be read.

    ``sent`` is what was handed on of its arguments ("": nothing, not even a CallBegun), ``raw`` what was written.
    """

    id: str
    name: str
    sent: str
    raw: str
    problem: str


Piece = Thought | Answer | CallBegun | CallArguments | CallBroken


class Reply:
    """One message: feed it text and get pieces; `finish` gives the last of them.

    Thought and answer come without the whitespace round them. A call's arguments are handed on while they are strict
    JSON; what has to be mended is held back to the end.
    """

    def __init__(self, tools: Mapping[str, Tool], first: Part) -> None:
        self._tools = tools
        self._parser = StepParser(first)
        self._thought, self._answer = Trimmed(), Trimmed()
        self._name = self._input = self._sent = ""
        self._id = f"call_{uuid.uuid4().hex}"
        self._begun = False

    def feed(self, text: str) -> Iterator[Piece]:
        for delta in self._parser.feed(text) if text else ():
            yield from self._show(delta)

    def finish(self, *, at_limit: bool = False, at_stop: bool = False) -> Iterator[Piece]:
        """The end, and whether a token limit or a stop string brought it: a stop string may stand inside of a call."""
        deltas, parsed = self._parser.finish()
        for delta in deltas:
            yield from self._show(delta)
        if parsed.action is not None:
            at_stop = at_stop or parsed.invented > 0
            yield from self._end_call(parsed, at_limit or (at_stop and not parsed.kept.endswith("\n")))
        elif not parsed.answer and parsed.thought and not at_limit:  # it answered without saying so
            yield Answer(parsed.thought)

    def _show(self, delta: Delta) -> Iterator[Piece]:
        if delta.part == "thought" and (thought := self._thought.feed(delta.text)):
            yield Thought(thought)
        elif delta.part == "final_answer" and (answer := self._answer.feed(delta.text)):
            yield Answer(answer)
        elif delta.part == "action":
            self._name += delta.text
        elif delta.part == "action_input":
            self._input = (self._input + delta.text).lstrip()
            sure = self._input.rstrip(", \n")
            if len(sure) > len(self._sent) and self._name.strip() in self._tools and _begins_an_object(self._input):
                yield from self._call(self._name.strip(), sure[len(self._sent) :])

    def _end_call(self, parsed: Parsed, cut_off: bool) -> Iterator[Piece]:
        call = read_call(parsed, self._tools, cut_off)
        arguments = call.arguments
        if call.name not in self._tools and not cut_off:  # whoever runs the tools tells the model so
            arguments = read_arguments(call.raw, {}).values or {}
        if arguments is not None and self._sent and not call.repairs:
            return
        whole = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        if arguments is None or not whole.startswith(self._sent):
            problem = call.problem or "its beginning does not fit what it was mended to"
            yield CallBroken(self._id, call.name, self._sent, call.raw, problem)
        else:
            yield from self._call(call.name, whole[len(self._sent) :])

    def _call(self, name: str, arguments: str) -> Iterator[Piece]:
        if not self._begun:
            yield CallBegun(self._id, name)
        self._begun = True
        self._sent += arguments
        yield CallArguments(arguments)


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
