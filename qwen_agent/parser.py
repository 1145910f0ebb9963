"""Model text -> thought, action, action input or final answer. Pure, incremental; no text makes it raise.

For models that nothing holds to the format: markers are read in the spellings that models give them, and calls also in
the forms of other formats. Each liberty is named in ``Parsed.repairs``. A tool is never guessed from prose.

The first action wins. What follows it (an invented observation, a second action, a made-up answer) is kept apart as
``discarded``: counted, never believed, never shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwen_agent.arguments import TEXT_AFTER, Found, read_object, unfenced
from qwen_agent.types import Delta

Part = Literal["thought", "action", "action_input", "final_answer"]


@dataclass(frozen=True, slots=True)
class Parsed:
    """One model output, taken apart. ``action`` is None if there is none; then ``answer`` may be.

    ``kept`` is the text up to the end of what is believed, ``discarded`` the rest: together they are the output.
    ``repairs`` names each liberty taken in reading it; ``invented`` counts the observations in ``discarded``.
    """

    thought: str
    action: str | None
    action_input: str
    answer: str | None
    kept: str
    discarded: str
    repairs: tuple[str, ...] = ()
    invented: int = 0


class StepParser:
    """Feed text as it comes; get Deltas for display. ``finish`` gives the whole.

    ``first`` is the part that text without a marker belongs to: "thought" in a ReAct turn, "final_answer" in a chat
    without tools, where no marker is looked for. How the text is cut into pieces makes no difference.
    """

    def __init__(self, first: Part = "thought") -> None:
        self._markers = first != "final_answer"
        self._held = "\n"  # the last character that was read, and what may still become a marker
        self._part: Part | None = first  # None in a question that the model repeats: no part of the step
        self._texts: dict[Part, list[str]] = {}
        self._opened: dict[Part, str] = {}  # emphasis that a part's marker opened and did not close
        self._fenced = False  # a code fence was opened round the step
        self._kept: list[str] = []
        self._discarded: list[str] = []
        self._closed = False  # the step is over: what follows is not believed
        self._invented = 0
        self._repairs: dict[str, None] = {}  # a set that keeps the order

    def feed(self, text: str) -> list[Delta]:
        """Consume text; return what of it can be shown now."""
        return self._read(text) if self._markers else self._emit(text)

    def finish(self) -> tuple[list[Delta], Parsed]:
        """The end of the output: what was still held back, and the step."""
        deltas = self._read("", final=True) if self._markers else []
        texts = {part: self._text(part) for part in self._texts}
        parsed = Parsed(
            thought=texts.get("thought", ""),
            action=texts.get("action"),
            action_input=texts.get("action_input", ""),
            answer=texts.get("final_answer"),
            kept="".join(self._kept),
            discarded="".join(self._discarded),
            repairs=tuple(self._repairs),
            invented=self._invented,
        )
        return deltas, _with_call(parsed) if self._markers else parsed

    def _read(self, text: str, final: bool = False) -> list[Delta]:
        """Emit the text before each marker, and enter what the marker opens; hold back an unfinished one."""
        text = self._held + text
        deltas: list[Delta] = []
        at = 1
        while match := _MARKER[self._part == "action"].search(text, at):
            marker = _marker(match, final)
            if marker is None:
                break
            deltas += self._emit(text[at : match.start()])
            deltas += self._enter(marker)
            at = match.start() + len(marker.text)
        end = match.start() if match else len(text) if final else _unfinished(text, at, self._part)
        deltas += self._emit(text[at:end])
        self._held = text[end - 1 :]
        return _merged(deltas)

    def _enter(self, marker: _Marker) -> list[Delta]:
        """Open the marker's part, or close the step if the part may not stand here."""
        self._invented += marker.name == "observation"
        if self._closed:
            self._discarded.append(marker.text)
            return []
        deltas: list[Delta] = []
        if marker.fence and marker.name != self._part and self._in_fence():  # a closing fence: it belongs to the part
            deltas = self._emit(marker.fence)
            marker = replace(marker, text=marker.text[len(marker.fence) :], fence="")
        if marker.name == "final_answer":
            self._forget_no_action()
        if self._may_follow(marker.name):
            self._open(marker)
        else:
            self._close(marker)
        return deltas

    def _open(self, marker: _Marker) -> None:
        self._kept.append(marker.text)
        self._part = _PARTS[marker.name]
        if self._part is not None:
            self._texts.setdefault(self._part, [])
            self._opened[self._part] = marker.opened
        self._fenced = self._fenced or bool(marker.fence)
        self._note(*marker.liberties())

    def _close(self, marker: _Marker) -> None:
        self._discarded.append(marker.text)
        self._closed = True
        if marker.inline:
            self._note(f"the text was cut in the middle of a line, at {marker.text}")

    def _may_follow(self, name: str) -> bool:
        """True if a part may stand where it does."""
        if name == "question":  # some models begin by repeating it
            return not any(piece.strip() for piece in self._kept)
        if name == "observation" or "action_input" in self._texts or "final_answer" in self._texts:
            return False
        return name not in ("action", "final_answer") or "action" not in self._texts

    def _forget_no_action(self) -> None:
        """Before an answer, "Action: None" is no action."""
        if "action" in self._texts and _cleaned(self._text("action")).lower() in _NO_ACTION:
            del self._texts["action"]
            self._texts.pop("action_input", None)
            self._note("an action that says there is none was left out")

    def _emit(self, text: str) -> list[Delta]:
        if not text:
            return []
        if self._closed:
            self._discarded.append(text)
            return []
        self._kept.append(text)
        if self._part is None:
            return []
        self._texts.setdefault(self._part, []).append(text)
        return [Delta(self._part, text)]

    def _in_fence(self) -> bool:
        pieces = self._texts.get(self._part, []) if self._part is not None else []
        return "".join(pieces).count("```") % 2 == 1

    def _text(self, part: Part) -> str:
        """The whole text of a part, without the end of what was opened before it."""
        text = "".join(self._texts[part]).strip()
        if self._fenced and part == self._part and text.endswith("```") and text.count("```") % 2:
            text = text[:-3].rstrip()
        opened = self._opened.get(part)
        if opened and text.endswith(opened):
            text = text.removesuffix(opened).rstrip()
            self._note(f"the {opened} round a part was removed")
        return text

    def _note(self, *repairs: str) -> None:
        self._repairs.update(dict.fromkeys(repairs))


def _merged(deltas: list[Delta]) -> list[Delta]:
    merged: list[Delta] = []
    for delta in deltas:
        if merged and merged[-1].part == delta.part:
            merged[-1] = Delta(delta.part, merged[-1].text + delta.text)
        else:
            merged.append(delta)
    return merged


# ---- markers --------------------------------------------------------------------------------------------------------
# A marker stands at the start of a line, in any case, in Markdown's decoration, before an ASCII or a full-width colon.
# A code fence on the line before it is part of it. Two are also read in the middle of a line: "Observation:" as the
# prompt spells it, because no text may show one, and "Action Input:" behind the action.

_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "thought": ("Thought", "思考"),
    "action": ("Action", "行动"),
    "action_input": ("Action Input", "行动输入"),
    "observation": ("Observation", "观察"),
    "final_answer": ("Final Answer", "最终答案"),
    "question": ("Question",),
}
_PARTS: Mapping[str, Part | None] = {
    "thought": "thought",
    "action": "action",
    "action_input": "action_input",
    "final_answer": "final_answer",
    "observation": None,
    "question": None,
}
_LONGEST = 100  # characters; no marker with its fence and decoration is longer

# Every repetition has a limit: what may still become a marker is short. Lists are patterns item by item, so that a
# second pattern can be made of them which matches what may still become a match of the first.
_BLANK = r"[ \t\r\xa0\u3000]"
_MARKUP = r"[ \t\r\xa0\u3000*_#>`]"
_LEAD = _MARKUP + "{0,24}"
_TAIL = [_MARKUP + "{0,8}", "[:\uff1a]"]
_FENCE = [r"[ \t]{0,4}", "`", "`", "`", r"[\w+-]{0,16}", r"[ \t\r]{0,4}", r"\n"]


@dataclass(frozen=True, slots=True)
class _Marker:
    """A marker as it was written. ``opened`` is emphasis round it that is not closed again."""

    name: str
    text: str
    fence: str = ""
    opened: str = ""
    inline: bool = False

    def liberties(self) -> list[str]:
        """What was overlooked in reading it."""
        plain = f"{_SPELLINGS[self.name][0]}:"
        written = self.text[len(self.fence) :].strip()
        repairs = ["a code fence round the step was removed"] if self.fence else []
        if self.inline:
            repairs.append(f"{plain} was read in the middle of a line")
        elif written != plain:
            repairs.append(f"the marker {written!r} was read as {plain}")
        return repairs


def _marker(match: re.Match[str], final: bool) -> _Marker | None:
    """The marker in a match of ``_MARKER``; None if it takes more text to tell where it ends."""
    group = match.lastgroup or ""
    fence = match["fence"] or ""
    lead = match.string[match.start() + len(fence) : match.start(group)]
    tail = match.string[match.end(group) : match.end()]
    opened = "" if set(tail) & set("*_`") else lead[len(lead.rstrip("*_`")) :]
    follows = match.string[match.end() : match.end() + len(opened)]
    if len(follows) < len(opened) and opened.startswith(follows) and not final:
        return None
    text, opened = (match[0] + opened, "") if follows == opened else (match[0], opened)
    return _Marker(_INLINE.get(group, group), text, fence, opened, group in _INLINE)


def _unfinished(text: str, at: int, part: Part | None) -> int:
    """Where a marker begins that the text may be the beginning of; the text's end if there is none."""
    match = _UNFINISHED[part == "action"].search(text, max(at, len(text) - _LONGEST))
    return match.start() if match else len(text)


def _items(spelling: str) -> list[str]:
    return [r"[ \t_-]{0,4}" if letter == " " else letter for letter in spelling]


def _begun(items: list[str]) -> str:
    """A pattern for every beginning of what the items match in a row, the empty one included."""
    pattern = ""
    for item in reversed(items):
        pattern = f"(?:{item}{pattern})?"
    return pattern


def _patterns(in_action: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds a marker, and what finds the beginning of one at the end of a text."""
    named = {name: [_items(spelling) for spelling in spellings] for name, spellings in _SPELLINGS.items()}
    names = "|".join(f"(?P<{name}>{'|'.join(map(''.join, items))})" for name, items in named.items())
    starts = "|".join(_begun(items) for each in named.values() for items in each)
    fence, tail = "".join(_FENCE), "".join(_TAIL)
    whole = rf"^(?P<fence>{fence})?{_LEAD}(?i:{names}){tail}|(?P<cut>Observation)[:\uff1a]"
    begun = rf"^(?:{_begun(_FENCE)}|(?:{fence})?{_LEAD}(?i:{starts}|(?:{names}){_begun(_TAIL)}))\Z"
    begun += rf"|O{_begun(list('bservation'))}\Z"
    if in_action:
        beside = _items("Action Input")
        whole += rf"|{_BLANK}[*_`]{{0,3}}(?P<beside>(?i:{''.join(beside)})){tail}"
        begun += rf"|{_BLANK}[*_`]{{0,3}}(?i:{_begun(beside + _TAIL)})\Z"
    return re.compile(whole, re.MULTILINE), re.compile(begun, re.MULTILINE)


_INLINE = {"cut": "observation", "beside": "action_input"}
_MARKER, _UNFINISHED = zip(_patterns(in_action=False), _patterns(in_action=True), strict=True)


# ---- calls ----------------------------------------------------------------------------------------------------------

_NO_ACTION = ("", "none", "null", "n/a", "na", "no action", "no action needed", "none needed", "无")
_DECORATION = " \t\r\n`*\"'“”‘’「」【】[]<>()：:，,。.;"
_NAME = re.compile(r"([^\s(){}\[\]]+)(?:\s*(?:```\w*\s*)?(?=\{)|(?=[(\[]))")
_KEYWORD = re.compile(r"[^\W\d]\w*\s*=(?!=)")
_BRACKET = re.compile(r"""[()\[\]{}]|"(?:[^"\\]|\\.)*(?:"|\\?\Z)|'(?:[^'\\]|\\.)*(?:'|\\?\Z)""", re.DOTALL)
_CALL_KEYS = (("name", "arguments"), ("name", "parameters"), ("action", "action_input"))
_CALL_OBJECT = re.compile(
    r"""(?:<tool_call>\s*|^[ \t]*(?:```\w*[ \t]*)?)
        (?P<object>\{\s*["'“]?(?:name|arguments|parameters|action|action_input)["'”]?\s*[:：])""",
    re.MULTILINE | re.VERBOSE,
)
_OBJECT_END = re.compile(r"\s*(?:</tool_call>|```)")


@dataclass(frozen=True, slots=True)
class _Call:
    """A tool's name and an action input, with what had to be mended to find them."""

    name: str
    input: str
    repairs: tuple[str, ...] = ()


def _with_call(parsed: Parsed) -> Parsed:
    """The step with its call in a plain name and an input, in whichever form it was written."""
    if parsed.action is None and parsed.action_input:
        parsed = _with_action_beside_thought(parsed)
    parsed = _with_call_object(parsed) if parsed.action is None else _with_name(parsed, parsed.action)
    if re.sub(r"[\s_-]", "", parsed.action or "").lower() == "finalanswer":
        repairs = (*parsed.repairs, "the action Final Answer was read as the answer")
        return replace(parsed, action=None, action_input="", answer=parsed.action_input, repairs=repairs)
    return parsed


def _with_name(parsed: Parsed, text: str) -> Parsed:
    """The action's text as a tool's name; arguments that stand beside it become the input, if there is no other."""
    call = _call_beside(text)
    if call is not None and not parsed.action_input:
        repairs = (*parsed.repairs, f"{_start(text)} was read as a call", *call.repairs)
        return replace(parsed, action=call.name, action_input=call.input, repairs=repairs)
    line = text.partition("\n")[0].strip()
    name = call.name if call is not None else _cleaned(line) or line
    repairs = parsed.repairs if name == text else (*parsed.repairs, f"the name {name} was read from {_start(text)}")
    return replace(parsed, action=name, repairs=repairs)


def _call_beside(text: str) -> _Call | None:
    """The call in ``name(...)``, ``name[...]``, ``name {...}`` or an object that says both."""
    text = unfenced(text)[0].lstrip(_DECORATION)
    if text.startswith("{"):
        found = read_object(text)
        return _call_in(found) if found is not None else None
    match = _NAME.match(text)
    if match is None or not _cleaned(match[1]):
        return None
    name, rest = _cleaned(match[1]), text[match.end() :]
    if rest.startswith("{"):
        return _Call(name, rest)
    inside = _inside(rest)
    found = read_object(f"{{{inside}}}") if _KEYWORD.match(inside) else None
    return _Call(name, _json(found.values) if found is not None else inside or "{}")


def _inside(text: str) -> str:
    """What stands between the bracket that the text begins with and the one that closes it."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += (match[0] in "([{") - (match[0] in ")]}")
        if depth == 0:
            return text[1 : match.start()].strip()
    return text[1:].rstrip().rstrip(")]").strip()  # an apostrophe, or a bracket that is missing


def _with_action_beside_thought(parsed: Parsed) -> Parsed:
    """``Thought: so Action: name`` on one line: an action, because an input follows it."""
    line = parsed.thought.rpartition("\n")[2]
    match = re.search(r"\bAction[ \t]*[:：](.*)\Z", line)
    if match is None:
        return parsed
    thought = parsed.thought[: len(parsed.thought) - len(line) + match.start()].rstrip()
    repairs = (*parsed.repairs, "Action: was read in the middle of a line")
    return replace(parsed, thought=thought, action=match[1].strip(), repairs=repairs)


def _with_call_object(parsed: Parsed) -> Parsed:
    """A step without an action whose thought holds a call as an object, alone or in a tag or fence."""
    match = _CALL_OBJECT.search(parsed.thought)
    if match is None:
        return parsed
    text = parsed.thought[match.start("object") :]
    found = read_object(text) or read_object(text.partition("</tool_call>")[0])  # the tag hides what is missing
    call = _call_in(found) if found else None
    if found is None or call is None:
        return parsed
    end = match.start("object") + found.end
    closing = _OBJECT_END.match(parsed.thought, end)
    written = parsed.thought[match.start("object") : closing.end() if closing else end]
    start = parsed.kept.find(written)
    if start < 0:  # another marker stands inside it
        return parsed
    rest = start + len(written)
    return replace(
        parsed,
        thought=_without_last_fence(parsed.thought[: match.start()]),
        action=call.name,
        action_input=call.input,
        answer=None,
        kept=parsed.kept[:rest],
        discarded=parsed.kept[rest:] + parsed.discarded,
        repairs=(*parsed.repairs, "a JSON object was read as a call", *call.repairs),
    )


def _without_last_fence(text: str) -> str:
    text = text.rstrip()
    line = text.rpartition("\n")[2]
    return text.removesuffix(line).rstrip() if line.lstrip().startswith("```") else text


def _call_in(found: Found) -> _Call | None:
    """The call that an object is, in the words of three formats."""
    repairs = tuple(repair for repair in found.repairs if repair != TEXT_AFTER)
    for name_key, input_key in _CALL_KEYS:
        name, given = found.values.get(name_key), found.values.get(input_key)
        if isinstance(name, str) and _cleaned(name) and isinstance(given, (dict, str)):
            return _Call(_cleaned(name), given if isinstance(given, str) else _json(given), repairs)
    return None


def _json(values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values, ensure_ascii=False)
    except RecursionError:  # what could just be read may be too deep to be written
        return ""


def _cleaned(name: str) -> str:
    return name.strip(_DECORATION)


def _start(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
