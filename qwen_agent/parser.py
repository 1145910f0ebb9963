"""Model text -> thought, action, action input or final answer. Pure, incremental, and it never raises on any text.

The first action wins. Whatever follows it (an invented observation, a second action, a made-up answer) is kept apart
as ``discarded``: counted, never believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import json5

from qwen_agent.types import Delta

Part = Literal["thought", "action", "action_input", "final_answer"]

# A marker stands at the start of a line, in any case, with an ASCII or a full-width colon.
_PARTS: Mapping[str, Part | None] = {
    "thought": "thought",
    "action": "action",
    "action input": "action_input",
    "final answer": "final_answer",
    "observation": None,
    "question": None,
}
_COLONS = ":\uff1a"
_LONGEST = max(map(len, _PARTS)) + 4  # with some spaces and the colon


@dataclass(frozen=True, slots=True)
class Parsed:
    """One model output, taken apart. ``action`` is None if there is none; then ``answer`` may be.

    ``kept`` is the text up to the end of what is believed; ``discarded`` the rest.
    """

    thought: str
    action: str | None
    action_input: str
    answer: str | None
    kept: str
    discarded: str


class StepParser:
    """Feed text as it comes; get Deltas for display. ``finish`` gives the whole.

    ``first`` is the part that text without a marker belongs to: "thought" in a ReAct turn, "final_answer" in a chat
    without tools.
    """

    def __init__(self, first: Part = "thought") -> None:
        self._part: Part | None = first
        self._texts: dict[Part, str] = {}
        self._line = ""  # the start of a line that may still become a marker
        self._at_line_start = True
        self._markers = first != "final_answer"
        self._kept = ""
        self._discarded = ""
        self._closed = False  # an action input or an answer is over: what follows is not believed

    def feed(self, text: str) -> list[Delta]:
        """Consume text; return what of it can be shown now."""
        deltas: list[Delta] = []
        for piece in text.splitlines(keepends=True):
            deltas += self._feed_piece(piece)
        return _merged(deltas)

    def finish(self) -> tuple[list[Delta], Parsed]:
        """The end of the output: what was still held back, and the step."""
        held, self._line = self._line, ""
        deltas = self._emit(held)
        get = self._texts.get
        action = _clean_name(get("action", "")) if "action" in self._texts else None
        answer = get("final_answer")
        parsed = Parsed(
            thought=get("thought", "").strip(),
            action=action,
            action_input=get("action_input", "").strip(),
            answer=None if answer is None else answer.strip(),
            kept=self._kept,
            discarded=self._discarded,
        )
        return deltas, parsed

    def _feed_piece(self, piece: str) -> list[Delta]:
        """One line or a part of one (a newline is at most at its end)."""
        if self._at_line_start and self._markers:
            self._line += piece
            if _may_become_marker(self._line):
                return []
            piece, self._line = self._line, ""
            marker = _marker(piece)
            if marker is not None:
                name, head, piece = marker
                self._enter(_PARTS[name], head)
        self._at_line_start = piece.endswith("\n")
        return self._emit(piece)

    def _enter(self, part: Part | None, head: str) -> None:
        """A marker: decide whether what follows is believed. ``head`` is the marker's own text."""
        over = {"action_input", "final_answer"} & self._texts.keys()
        repeated = part == "action" and "action" in self._texts
        if self._closed or over or repeated or part is None:
            self._closed = True
            self._discarded += head
            return
        self._part = part
        self._kept += head
        self._texts.setdefault(part, "")

    def _emit(self, text: str) -> list[Delta]:
        if not text:
            return []
        if self._closed or self._part is None:
            self._discarded += text
            return []
        self._kept += text
        self._texts[self._part] = self._texts.get(self._part, "") + text
        return [Delta(self._part, text)]


def _marker(line: str) -> tuple[str, str, str] | None:
    """(name, the marker's text, the rest) if the line begins with a marker."""
    head, rest = _split_at_colon(line)
    if head is None:
        return None
    name = " ".join(head[:-1].lower().split())
    return (name, head, rest) if name in _PARTS else None


def _split_at_colon(line: str) -> tuple[str | None, str]:
    for at, char in enumerate(line[: _LONGEST + 1]):
        if char in _COLONS:
            return line[: at + 1], line[at + 1 :]
    return None, line


def _may_become_marker(line: str) -> bool:
    """True while the line, not yet complete, is the beginning of some marker without its colon."""
    if line.endswith("\n") or len(line) > _LONGEST or _split_at_colon(line)[0] is not None:
        return False
    start = " ".join(line.lower().split())
    return any(name.startswith(start) for name in _PARTS)


def _merged(deltas: list[Delta]) -> list[Delta]:
    merged: list[Delta] = []
    for delta in deltas:
        if merged and merged[-1].part == delta.part:
            merged[-1] = Delta(delta.part, merged[-1].text + delta.text)
        else:
            merged.append(delta)
    return merged


def _clean_name(name: str) -> str:
    return name.strip().strip("`*[]\"' ").removesuffix("()")


# ---- arguments -----------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^```[\w+-]*[ \t]*\n?(.*?)\n?(?:```.*)?$", re.DOTALL)
_MOST_JSON5 = 20_000  # characters; the JSON5 reader is slow, and longer text is not a small slip


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments read from an action input, with what had to be mended; or why they could not be read."""

    values: dict[str, Any] | None
    repairs: tuple[str, ...] = ()
    problem: str = ""


def read_arguments(raw: str, schema: Mapping[str, Any], args_format: Literal["json", "code"] = "json") -> Arguments:
    """The arguments in ``raw`` for a tool with this JSON Schema.

    JSON as it is; else the mildest mending that works: fences, text after the object, JSON5 (single quotes, trailing
    commas), missing closing braces, and, for a tool with one string parameter, the bare text.
    """
    text, repairs = _unfenced(raw.strip())
    only = _only_string(schema)
    if args_format == "code" and only is not None and not text.startswith("{"):
        return Arguments({only: text})
    if not text and not schema.get("required"):
        return Arguments({}, (*repairs, "an empty input was read as no arguments"))
    values, mended = _object(text)
    if values is not None:
        return Arguments(values, repairs + mended)
    if only is not None and text and not text.startswith(("{", "[")):
        return Arguments({only: _unquoted(text)}, (*repairs, f"bare text was read as {only}"))
    return Arguments(None, repairs, _problem(text))


def _unfenced(text: str) -> tuple[str, tuple[str, ...]]:
    match = _FENCE.match(text)
    if match is None:
        return text, ()
    return match[1].strip(), ("a code fence was removed",)


def _only_string(schema: Mapping[str, Any]) -> str | None:
    properties = schema.get("properties", {})
    strings = [name for name, entry in properties.items() if entry.get("type", "string") == "string"]
    required = schema.get("required", [])
    if len(properties) == 1 and strings:
        return str(strings[0])
    return str(required[0]) if len(required) == 1 and required[0] in strings else None


def _object(text: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
        if isinstance(value, dict):
            return value, ("text after the JSON object was dropped",) if text[end:].strip() else ()
    except (ValueError, RecursionError):
        pass
    if not text.startswith("{") or len(text) > _MOST_JSON5:
        return None, ()
    for candidate, repair in _candidates(text):
        value = _json5(candidate)
        if isinstance(value, dict):
            return value, (repair,)
    return None, ()


def _candidates(text: str) -> list[tuple[str, str]]:
    last = text.rfind("}")
    found = [(text, "JSON5 was accepted")]
    if last >= 0:
        found.append((text[: last + 1], "text after the object was dropped"))
    found += [(text + tail, f"a missing {tail} was added") for tail in ("}", '"}', "]}", '"]}', "}}", '"}}')]
    return found


def _json5(text: str) -> Any:
    try:
        return json5.loads(text)
    except (ValueError, RecursionError):
        return None


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" else text


def _problem(text: str) -> str:
    if not text:
        return "the action input is empty; give the arguments as a JSON object"
    start = text if len(text) <= 60 else text[:57] + "..."
    return f"the action input {start!r} is not a JSON object; give the arguments as one"
