"""The text of an action input and a tool's JSON Schema -> arguments. Pure; no text makes it raise.

Valid JSON is never changed. Anything else is mended as little as will do, and every mend is named. Where a mend would
be a guess (a missing comma, a word without quotes, NaN) there are no arguments but a problem, told in one sentence
that the model can act on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

TEXT_AFTER = "text after the object was dropped"


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments read from an action input, with what had to be mended; or why they could not be read."""

    values: dict[str, Any] | None
    repairs: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """An object that a text begins with; ``end`` is where the text goes on."""

    values: dict[str, Any]
    end: int
    repairs: tuple[str, ...] = ()


def read_arguments(raw: str, schema: Mapping[str, Any], args_format: Literal["json", "code"] = "json") -> Arguments:
    """The arguments in ``raw`` for a tool with this JSON Schema.

    JSON as it is; else mended (see ``read_object``); else an object without its opening brace, in a JSON string, or
    with text before it; else, for a tool with one string parameter, the bare text. A tool with ``args_format`` "code"
    takes a fenced or bare block, or an object with that parameter.
    """
    only = _only_string(schema)
    if args_format == "code" and only is not None:
        return _read_code(raw.strip(), only)
    text, repairs = unfenced(raw.strip())
    if not text and not schema.get("required"):
        return Arguments({}, (*repairs, "an empty input was read as no arguments"))
    found = read_object(text) or _in_a_string(text) or _within(text, schema)
    if found is not None:
        return Arguments(found.values, repairs + found.repairs)
    if only is not None and text and not text.startswith(("{", "[")):
        return Arguments({only: _bare(text, only)}, (*repairs, f"bare text was read as {only}"))
    return Arguments(None, repairs, _problem(text))


def read_object(text: str) -> Found | None:
    """The object at the start of ``text``; None if there is none that can be read without guessing.

    Mended are: JSON5's quotes, keys, commas and comments, Python's literals, full-width punctuation, unescaped quotes
    inside a string, missing closers, doubled braces. What follows the object is dropped.
    """
    if not text.startswith(("{", "\uff5b")):
        return None
    found = _strict(text) or _mended(text)
    return found and _without_rest(found, text)


def unfenced(text: str) -> tuple[str, tuple[str, ...]]:
    """The text inside the code fence that ``text`` begins with, and the repair; or the text as it is."""
    opening = _OPENING_FENCE.match(text)
    if opening is None:
        return text, ()
    body = text[opening.end() :]
    closing = _FENCE_LINE.search(body)
    end = closing.start() if closing else body.rfind("```")
    return (body if end < 0 else body[:end]).strip(), ("a code fence was removed",)


_OPENING_FENCE = re.compile(r"```(?:[\w+-]*[ \t]*\r?\n|(?:json5?|python3?|py)(?=\s|\{|\Z)[ \t]*)?", re.IGNORECASE)
_FENCE_LINE = re.compile(r"^[ \t]*```", re.MULTILINE)


def _read_code(text: str, only: str) -> Arguments:
    repairs: tuple[str, ...] = ()
    fence = _FENCE_LINE.search(text)
    if fence is not None:
        repairs = ("text before the code was dropped",) if fence.start() else ()
        text, _ = unfenced(text[fence.start() :].lstrip())  # the fence itself is what was asked for
    found = read_object(text)
    if found is not None and only in found.values:
        return Arguments(found.values, repairs + found.repairs)
    if len(text) > 1 and text[0] == text[-1] == "`":
        text = text.strip("`").strip()
    return Arguments({only: text}, repairs) if text else Arguments(None, repairs, _problem(text))


def _only_string(schema: Mapping[str, Any]) -> str | None:
    """The parameter that bare text must be meant for, if there is one."""
    properties, required = _properties(schema), schema.get("required") or []
    strings = [name for name, entry in properties.items() if _takes_string(entry)]
    if len(properties) == 1 and strings:
        return strings[0]
    return str(required[0]) if len(required) == 1 and required[0] in strings else None


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _takes_string(entry: Any) -> bool:
    kind = entry.get("type", "string") if isinstance(entry, Mapping) else None
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _in_a_string(text: str) -> Found | None:
    """The object in a JSON string that holds one."""
    inner = _string_value(text)
    found = read_object(inner.strip()) if inner is not None else None
    return found and Found(found.values, len(text), ("an object was read from a string", *found.repairs))


def _within(text: str, schema: Mapping[str, Any]) -> Found | None:
    """An object whose brace is missing or that comes late: taken only if the tool knows all of its keys."""
    start = text.find("{")
    tries = []
    if _KEY_FIRST.match(text):
        tries.append(("{" + text, "a missing { was added"))
    if start > 0:
        tries.append((text[start:], "text before the object was dropped"))
    for candidate, repair in tries:
        found = read_object(candidate)
        if found is not None and found.values and found.values.keys() <= _properties(schema).keys():
            return Found(found.values, len(text), (repair, *found.repairs))
    return None


_KEY_FIRST = re.compile(r"""["'“]?[^\W\d][\w-]*["'”]?\s*[:=：＝]""")


def _bare(text: str, only: str) -> str:
    """The text without the parameter's name before it and quotes round it."""
    text = re.sub(rf"{re.escape(only)}\s*[:=：＝]\s*", "", text, count=1) if text.startswith(only) else text
    value = _string_value(text)
    if value is not None:
        return value
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" else text


def _string_value(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False) if text.startswith('"') else None
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _problem(text: str) -> str:
    if not text:
        return "the action input is empty; give the arguments as a JSON object"
    start = text if len(text) <= 60 else text[:57] + "..."
    why = " (NaN and Infinity are not JSON)" if re.search(r":\s*-?(?:NaN|Infinity)\b", text) else ""
    return f"the action input {start!r} is not a JSON object{why}; give the arguments as one"


# ---- JSON, and what was nearly JSON ---------------------------------------------------------------------------------


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if abs(value) != float("inf") else _refused(number)


# Not strict: a raw newline inside a string is what models write, and can mean nothing else.
_DECODER = json.JSONDecoder(strict=False, parse_constant=_refused, parse_float=_finite)


def _strict(text: str) -> Found | None:
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError, MemoryError):
        return None
    return Found(value, end) if isinstance(value, dict) else None


def _mended(text: str) -> Found | None:
    if len(text) > _LONGEST:
        return None
    mender = _Mender(text)
    try:
        mender.run()
    except ValueError:
        return None
    found = _strict(" ".join(mender.out))
    return found and Found(found.values, mender.at, tuple(mender.repairs))


def _without_rest(found: Found, text: str) -> Found:
    """The same, with what follows the object accounted for."""
    surplus = _SURPLUS.match(text, found.end)
    repairs, end = found.repairs, surplus.end() if surplus else found.end
    if surplus and _DOUBLED not in repairs:  # with doubled braces they were to be expected
        repairs += ("a surplus } was dropped",)
    if text[end:].strip():
        repairs += (TEXT_AFTER,)
    return Found(found.values, end, repairs)


_LONGEST = 100_000  # characters; longer text is not a small slip
_DEEPEST = 100
_KEY_END = re.compile(r"""["'”’]\s*[:：]""")
_SURPLUS = re.compile(r"(?:\s*[}\])])+")

_JSON5 = "JSON5 was accepted"
_PYTHON = "Python literals were accepted"
_FULL_WIDTH = "full-width punctuation was read as ASCII"
_DOUBLED = "doubled braces were read as single"

_ASCII = str.maketrans("｛｝［］（），：＝", "{}[](),:=")
_CONSTANTS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>//[^\n]* | /\*.*?(?:\*/|\Z))
      | (?P<quote>\"{3} | '{3} | ["'`“”‘’])
      | (?P<mark>[{}\[\](),:=｛｝［］（），：＝])
      | (?P<key>[^\W\d][\w$-]*)(?=\s*[:=：＝])
      | (?P<word>[^\s"'`“”‘’{}\[\](),:=｛｝［］（），：＝]+)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"""\\(?: (?P<json>["\\/bfnrt]|u[0-9a-fA-F]{4})
            | x(?P<byte>[0-9a-fA-F]{2})
            | U(?P<wide>00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})
            | (?P<newline>\r?\n)
            | (?P<other>.?))
      | \"""",
    re.VERBOSE | re.DOTALL,
)
_OTHER_ESCAPES = {"0": "\\u0000", "a": "\\u0007", "v": "\\u000b", **{quote: quote for quote in "'`“”‘’"}}


class _Mender:
    """One pass, token by token, from something like an object to JSON in ``out``.

    Raises ValueError where it would have to guess. Other mistakes (a missing comma, two values) go through as they
    are and fail in the JSON decoder.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.out: list[str] = []
        self.repairs: dict[str, None] = {}  # a set that keeps the order
        self._due: list[str] = []  # closers of what is open

    def run(self) -> None:
        """Read one object, to its end or to the end of the text."""
        while self.at < len(self.text):
            token = _TOKEN.match(self.text, self.at)
            if token is None or token.lastgroup is None:
                raise ValueError("an unknown character")
            self.at = token.end()
            self._read(token.lastgroup, token[0])
            if not self._due:
                return
        self._close_all()

    def _read(self, kind: str, token: str) -> None:
        if kind == "comment":
            self._note(_JSON5)
        elif kind == "quote":
            self._string(token)
        elif kind == "key":
            self._note(_JSON5)
            self.out.append(json.dumps(token))
        elif kind == "word":
            self._word(token)
        elif kind == "mark":
            mark = token.translate(_ASCII)
            if mark != token:
                self._note(_FULL_WIDTH)
            self._mark(mark)

    def _mark(self, mark: str) -> None:
        if mark in "{[(":
            self._open(mark)
        elif mark in "}])":
            self._close(mark)
        elif mark == "=":
            self._note("= was read as :")
            self.out.append(":")
        else:
            self.out.append(mark)

    def _open(self, mark: str) -> None:
        if mark == "{" and self.out[-1:] == ["{"]:
            self._note(_DOUBLED)
            return
        if len(self._due) == _DEEPEST:
            raise ValueError("too deep")
        if mark == "(":
            self._note(_PYTHON)
        self._due.append({"{": "}", "[": "]", "(": ")"}[mark])
        self.out.append("[" if mark == "(" else mark)

    def _close(self, mark: str) -> None:
        if mark not in self._due:
            self._note(f"a surplus {mark} was dropped")
            return
        while self._due[-1] != mark:
            self._note(f"a missing {self._due[-1]} was added")
            self._close_one()
        self._close_one()

    def _close_one(self) -> None:
        closer = self._due.pop()
        if self.out[-1] == ",":
            self.out.pop()
            self._note(_PYTHON if closer == ")" else _JSON5)
        self.out.append("]" if closer == ")" else closer)

    def _close_all(self) -> None:
        if self.out[-1] in "{[":
            raise ValueError("nothing is there yet")
        missing = "".join(reversed(self._due))
        while self._due:
            self._close_one()
        self._note(f"a missing {missing} was added")

    def _word(self, word: str) -> None:
        number = word.removeprefix("+")
        number = "0" + number if number.startswith(".") else number
        if word in _CONSTANTS:
            self.out.append(_CONSTANTS[word])
            if _CONSTANTS[word] != word:
                self._note(_PYTHON)
        elif _NUMBER.fullmatch(number):
            self.out.append(number)
            if number != word:
                self._note(_JSON5)
        else:
            raise ValueError(f"{word} has no quotes")

    def _string(self, quote: str) -> None:
        found = _string_end(quote, ")" in self._due).match(self.text, self.at)
        body = found[1] if found else self._unterminated(quote)
        self.at = found.end() if found else self.at + len(body)
        if quote in "“”‘’":
            self._note(_FULL_WIDTH)
        elif quote != '"':
            self._note(_PYTHON if len(quote) == 3 else _JSON5)
        if quote in re.sub(r"\\.", "", body, flags=re.DOTALL):
            if found is None or self.out[-1] != ":":
                raise ValueError("each of its quotes may end the string")
            self._note("quotes inside a string were kept")
        self.out.append(f'"{_ESCAPE.sub(self._escape, body)}"')

    def _unterminated(self, quote: str) -> str:
        """The body of a string without an end: all that is left, less the closers that are due and not its own."""
        rest = self.text[self.at :]
        if _KEY_END.search(rest):
            raise ValueError("the string may end before the next key")
        self._note(f"a missing {quote} was added")
        body = rest.rstrip("}]) \t\r\n")
        closers = "".join(rest[len(body) :].split())
        own = sum(rest.count(mark) for mark in "}])") <= sum(rest.count(mark) for mark in "{[(")
        return body if closers and closers == "".join(reversed(self._due)) and not own else rest

    def _escape(self, match: re.Match[str]) -> str:
        """An escape sequence, or a quote without one, as JSON spells it."""
        if match["json"]:
            return match[0]
        if match["byte"]:
            return f"\\u00{match['byte']}"
        if match["wide"]:
            return json.dumps(chr(int(match["wide"], 16)))[1:-1]
        if match["newline"]:
            return ""
        if match["other"] is None:
            return '\\"'
        if match["other"] in _OTHER_ESCAPES:
            return _OTHER_ESCAPES[match["other"]]
        self._note("a backslash was kept as text")
        return "\\\\" + match["other"]

    def _note(self, repair: str) -> None:
        self.repairs[repair] = None


@lru_cache
def _string_end(quote: str, in_tuple: bool) -> re.Pattern[str]:
    """The rest of a string: up to a quote that is followed by what can follow a string, or by another string.

    The latter is no JSON either (a comma is missing), but it must not become one string with quotes in it.
    """
    if len(quote) == 3:
        return re.compile(f"(.*?){quote}", re.DOTALL)
    ends = "“”" if quote in "“”" else "‘’" if quote in "‘’" else quote
    follows = rf"(?:\s*(?://|/\*|[,:}}\]，：｝］{')）' if in_tuple else ''}]|\Z)|\s+[{ends}])"
    return re.compile(rf"([^{ends}\\]*(?:(?:\\.|[{ends}](?!{follows}))[^{ends}\\]*)*)[{ends}](?={follows})", re.DOTALL)
