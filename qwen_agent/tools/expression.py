"""What people and small models write as arithmetic, read into Python: ``15% of 80`` is ``15 .percent * 80``.

The text is tidied into ASCII, scanned into tokens, and completed with what was only meant: brackets around a plain
argument, a multiplication without its sign. Each token remembers its place, so that errors can name it.

Reading rules that are a choice
- A comma groups digits (1,234,567) outside functions and in functions of one argument; in ``max(1,200)`` it separates.
- ``%`` between two numbers is modulo, elsewhere percent.
- An implied ``*`` binds like a written one: ``6/2(1+2)`` is 9.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qwen_agent.errors import ToolError
from qwen_agent.tools.arithmetic import CONSTANTS, FUNCTIONS

MAX_DEPTH = 50
_MAX_CHARS = 1000

_SIGNS = str.maketrans("×·⋅∙•÷∕⁄−–—{}$€£¥￥", "*****///---()     ")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_WORDS = {"of": "*", "x": "*", "times": "*", "over": "/", "divided": "/", "plus": "+", "minus": "-", "mod": "%"}
_ALIASES = {"π": "pi", "τ": "tau", "√": "sqrt", "average": "mean", "avg": "mean"}
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)(?:\.\d+)?")
_TOKEN = re.compile(
    r"""(?P<hex>0[xX][0-9a-fA-F]+)
      | (?P<number>(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<times>[xX](?=[\s\d.(+-]))
      | (?P<name>divided\s+by\b|(?:math\.)?[A-Za-z]\w*|[πτ√])
      | (?P<operator>\*\*|//|[-+*/^])
      | (?P<percent>%)
      | (?P<postfix>!(?![=!])|°|[⁰¹²³⁴-⁹]+)
      | (?P<open>[(\[])
      | (?P<close>[)\]])
      | (?P<comma>,)""",
    re.VERBOSE,
)
_STARTS = ("number", "constant", "function", "open")
_ENDS = ("number", "constant", "close", "postfix")


@dataclass(frozen=True, slots=True)
class Token:
    """``python`` is what it becomes; ``text`` stands at ``at`` in what the user wrote."""

    kind: str
    python: str
    text: str
    at: int


@dataclass(slots=True)
class _Bracket:
    """An open bracket: whether commas separate arguments in it, and how its commas have looked so far."""

    at: int
    separates: bool
    grouped: bool = False
    spaced: bool = False


def read(expression: str) -> list[Token]:
    """The expression as tokens whose ``python``, joined by spaces, is meant to be a Python expression.

    Names and brackets are checked here, the rest of the grammar by Python's parser. Raises ToolError.
    """
    if len(expression) > _MAX_CHARS:
        raise ToolError(f"The expression is longer than {_MAX_CHARS} characters.")
    written = _scan(_tidy(expression))
    if not written:
        raise ToolError("The expression is empty.")
    return _complete(written)


def _tidy(expression: str) -> str:
    """The expression in ASCII signs and digits, character for character so that positions stay true."""
    text = "".join(map(_plain, expression.translate(_SIGNS)))
    blank = functools.partial(re.sub, repl=lambda match: " " * len(match[0]))
    text = blank(r"^[\s=`'\"]+", string=text)
    return str(blank(r"[\s=?`'\"]+$", string=text))


def _plain(character: str) -> str:
    if character.isascii() or character in "⁰¹²³⁴⁵⁶⁷⁸⁹":
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    wide = unicodedata.normalize("NFKC", character)
    return wide if len(wide) == 1 and wide.isascii() else character


def _scan(text: str) -> list[Token]:
    tokens: list[Token] = []
    brackets: list[_Bracket] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _match(text, at, brackets)
        token = _token(match)
        _track(brackets, token, tokens[-1] if tokens else None, text)
        tokens.append(token)
        at = match.end()
    if brackets:
        raise ToolError(f"The bracket at character {brackets[-1].at + 1} of the expression is not closed.")
    if tokens and tokens[-1].kind == "operator":
        raise ToolError(f"The expression is not finished: something is missing after '{tokens[-1].text}'.")
    return tokens


def _match(text: str, at: int, brackets: list[_Bracket]) -> re.Match[str]:
    grouped = _GROUPED.match(text, at)
    if grouped and brackets and brackets[-1].separates:
        brackets[-1].grouped = True
    elif grouped:
        return grouped
    match = _TOKEN.match(text, at)
    if match is None:
        hint = ": give one side of the equation only" if text[at] == "=" else ""
        raise ToolError(f"Cannot read {text[at]!r} at character {at + 1} of the expression{hint}.")
    return match


def _token(match: re.Match[str]) -> Token:
    kind, text, at = match.lastgroup or "number", match[0], match.start()
    if kind == "hex":
        return Token("number", str(int(text, 16)), text, at)
    if kind == "number":
        digits = text.replace(",", "").replace("_", "")
        return Token("number", digits.lstrip("0") or "0" if digits.isdigit() else digits, text, at)
    if kind == "times":
        return Token("operator", "*", text, at)
    if kind == "name":
        return _named(text, at)
    if kind == "operator":
        return Token("operator", "**" if text == "^" else text, text, at)
    if kind == "postfix":
        power = ".power" + text.translate(_SUPERSCRIPTS)
        return Token("postfix", {"!": ".factorial", "°": ".degrees"}.get(text, power), text, at)
    return Token(kind, text, text, at)


def _named(text: str, at: int) -> Token:
    name = text.lower().removeprefix("math.")
    name = _ALIASES.get(name, name)
    if name in CONSTANTS:
        return Token("constant", name, text, at)
    if name in FUNCTIONS:
        return Token("function", name, text, at)
    if name == "percent":
        return Token("postfix", ".percent", text, at)
    if name.split()[0] in _WORDS:
        return Token("operator", _WORDS[name.split()[0]], text, at)
    close = difflib.get_close_matches(name, [*FUNCTIONS, *CONSTANTS], n=1, cutoff=0.7)
    advice = f"did you mean '{close[0]}'?" if close else "leave units and words out."
    raise ToolError(f"Unknown name '{text[:40]}' at character {at + 1}: {advice}")


def _track(brackets: list[_Bracket], token: Token, previous: Token | None, text: str) -> None:
    """Follow the brackets, since a comma means something else inside a function's."""
    if token.kind == "open":
        function = FUNCTIONS[previous.python] if previous and previous.kind == "function" else None
        many = token.text == "[" or (function is not None and function.most != 1)
        brackets.append(_Bracket(token.at, separates=many))
        if len(brackets) > MAX_DEPTH:
            raise ToolError("The expression is nested too deeply.")
    elif token.kind == "close":
        if not brackets:
            raise ToolError(f"The bracket at character {token.at + 1} of the expression was never opened.")
        bracket = brackets.pop()
        if bracket.grouped and bracket.spaced:
            raise ToolError("The commas are ambiguous: inside a function write numbers without thousands commas.")
    elif token.kind == "comma":
        if not brackets or not brackets[-1].separates:
            raise ToolError(f"Cannot read the comma at character {token.at + 1}: write 1234.5 or 1,234.5.")
        brackets[-1].spaced |= text[token.at + 1 : token.at + 2].isspace()


def _complete(tokens: list[Token]) -> list[Token]:
    """The tokens with everything written out that was only meant: modulo or percent, brackets, multiplication."""
    return list(_with_times(list(_with_brackets(list(_with_percent(tokens))))))


def _with_percent(tokens: list[Token]) -> Iterator[Token]:
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.kind != "percent":
            yield token
        elif following and following.kind in _STARTS:
            yield replace(token, kind="operator")
        else:
            yield replace(token, kind="postfix", python=".percent")


def _with_brackets(tokens: list[Token]) -> Iterator[Token]:
    """``sqrt 16`` and ``sin 30°`` get brackets; ``sin 2pi`` and ``sin 2^2`` could mean two things and are refused."""
    rest = iter([*zip(tokens, [*tokens[1:], None], strict=True)])
    for token, following in rest:
        yield token
        if token.kind != "function" or (following and following.kind == "open"):
            continue
        problem = ToolError(f"Put the argument of {token.python} at character {token.at + 1} in brackets.")
        if following is None or following.kind not in ("number", "constant"):
            raise problem
        yield Token("open", "(", "", following.at)
        for operand, after in rest:
            yield operand
            if after is None or after.kind != "postfix":
                break
        if after and (after.kind in _STARTS or after.python == "**"):
            raise problem
        yield Token("close", ")", "", operand.at)


def _with_times(tokens: list[Token]) -> Iterator[Token]:
    for previous, token in zip([None, *tokens[:-1]], tokens, strict=True):
        if previous and previous.kind in _ENDS and token.kind in _STARTS:
            if token.kind == "number" and previous.kind != "close":
                raise ToolError(f"There is no sign before '{token.text[:40]}' at character {token.at + 1}.")
            yield Token("operator", "*", "", token.at)
        yield token
