"""A calculator for what people and small models write: ``15% of 80``, ``2(3+4)^2``, ``$1,234.50 × 3 = ?``.

The text is scanned into tokens, written out again as Python, read by `ast` and evaluated node by node; nothing is
ever given to ``eval``. Numbers are fractions, so that + - * / // % and whole powers are exact; functions such as sin
use floats.

Reading rules that are a choice
- A comma groups digits (1,234,567) outside functions and in functions of one argument; in ``max(1,200)`` it separates.
- ``%`` between two numbers is modulo, elsewhere percent; ``200 + 10%`` is 220, as on a pocket calculator.
- An implied ``*`` binds like a written one: ``6/2(1+2)`` is 9. ``log`` is the natural logarithm.
- ``round`` rounds halves away from zero, as taught in school.

Promises: no expression takes more than about 50 ms or has a whole part of more than 400 digits.
"""

from __future__ import annotations

import ast
import bisect
import difflib
import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Context, Decimal, Overflow, localcontext
from fractions import Fraction

from qwen_agent.errors import ToolError
from qwen_agent.tools.base import Tool
from qwen_agent.tools.schema import read_by_schema

Number = Fraction | float

_MAX_CHARS = 1000
_MAX_DEPTH = 50
_MAX_DIGITS = 400
_MAX_BITS = math.ceil(_MAX_DIGITS * math.log2(10))
_SIGNIFICANT = 12

_SIGNS = str.maketrans("×·⋅∙•÷∕⁄−–—{}$€£¥￥", "*****///---()     ")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_WORDS = {"of": "*", "x": "*", "times": "*", "over": "/", "divided": "/", "plus": "+", "minus": "-", "mod": "%"}
_ALIASES = {"π": "pi", "τ": "tau", "√": "sqrt", "average": "mean", "avg": "mean"}
_CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}
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
class _Token:
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


def evaluate(expression: str) -> str:
    """The value of an arithmetic expression, whole where it is whole, else with 12 significant digits.

    Raises ToolError, in one sentence, for anything that cannot be read or has no real, finite value of bounded size.
    """
    if len(expression) > _MAX_CHARS:
        raise ToolError(f"The expression is longer than {_MAX_CHARS} characters.")
    written = _scan(_tidy(expression))
    if not written:
        raise ToolError("The expression is empty.")
    tokens = _complete(written)
    source = " ".join(token.python for token in tokens)
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError as error:
        raise _unreadable(tokens, (error.offset or 1) - 1) from None
    except (MemoryError, RecursionError):
        raise ToolError("The expression is nested too deeply.") from None
    return _format(_value(tree.body, source, 0))


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


def _scan(text: str) -> list[_Token]:
    tokens: list[_Token] = []
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


def _token(match: re.Match[str]) -> _Token:
    kind, text, at = match.lastgroup or "number", match[0], match.start()
    if kind == "hex":
        return _Token("number", str(int(text, 16)), text, at)
    if kind == "number":
        digits = text.replace(",", "").replace("_", "")
        return _Token("number", digits.lstrip("0") or "0" if digits.isdigit() else digits, text, at)
    if kind == "times":
        return _Token("operator", "*", text, at)
    if kind == "name":
        return _named(text, at)
    if kind == "operator":
        return _Token("operator", "**" if text == "^" else text, text, at)
    if kind == "postfix":
        power = ".power" + text.translate(_SUPERSCRIPTS)
        return _Token("postfix", {"!": ".factorial", "°": ".degrees"}.get(text, power), text, at)
    return _Token(kind, text, text, at)


def _named(text: str, at: int) -> _Token:
    name = text.lower().removeprefix("math.")
    name = _ALIASES.get(name, name)
    if name in _CONSTANTS:
        return _Token("constant", name, text, at)
    if name in _FUNCTIONS:
        return _Token("function", name, text, at)
    if name == "percent":
        return _Token("postfix", ".percent", text, at)
    if name.split()[0] in _WORDS:
        return _Token("operator", _WORDS[name.split()[0]], text, at)
    close = difflib.get_close_matches(name, [*_FUNCTIONS, *_CONSTANTS], n=1, cutoff=0.7)
    advice = f"did you mean '{close[0]}'?" if close else "leave units and words out."
    raise ToolError(f"Unknown name '{text[:40]}' at character {at + 1}: {advice}")


def _track(brackets: list[_Bracket], token: _Token, previous: _Token | None, text: str) -> None:
    """Follow the brackets, since a comma means something else inside a function's."""
    if token.kind == "open":
        function = _FUNCTIONS[previous.python] if previous and previous.kind == "function" else None
        many = token.text == "[" or (function is not None and function.most != 1)
        brackets.append(_Bracket(token.at, separates=many))
        if len(brackets) > _MAX_DEPTH:
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


def _complete(tokens: list[_Token]) -> list[_Token]:
    """The tokens with everything written out that was only meant: modulo or percent, brackets, multiplication."""
    return list(_with_times(list(_with_brackets(list(_with_percent(tokens))))))


def _with_percent(tokens: list[_Token]) -> Iterator[_Token]:
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.kind != "percent":
            yield token
        elif following and following.kind in _STARTS:
            yield replace(token, kind="operator")
        else:
            yield replace(token, kind="postfix", python=".percent")


def _with_brackets(tokens: list[_Token]) -> Iterator[_Token]:
    """``sqrt 16`` and ``sin 30°`` get brackets; ``sin 2pi`` and ``sin 2^2`` could mean two things and are refused."""
    rest = iter([*zip(tokens, [*tokens[1:], None], strict=True)])
    for token, following in rest:
        yield token
        if token.kind != "function" or (following and following.kind == "open"):
            continue
        problem = ToolError(f"Put the argument of {token.python} at character {token.at + 1} in brackets.")
        if following is None or following.kind not in ("number", "constant"):
            raise problem
        yield _Token("open", "(", "", following.at)
        for operand, after in rest:
            yield operand
            if after is None or after.kind != "postfix":
                break
        if after and (after.kind in _STARTS or after.python == "**"):
            raise problem
        yield _Token("close", ")", "", operand.at)


def _with_times(tokens: list[_Token]) -> Iterator[_Token]:
    for previous, token in zip([None, *tokens[:-1]], tokens, strict=True):
        if previous and previous.kind in _ENDS and token.kind in _STARTS:
            if token.kind == "number" and previous.kind != "close":
                raise ToolError(f"There is no sign before '{token.text[:40]}' at character {token.at + 1}.")
            yield _Token("operator", "*", "", token.at)
        yield token


def _unreadable(tokens: list[_Token], column: int) -> ToolError:
    """Python's complaint about a column of the source, as a place in what the user wrote."""
    ends = list(itertools.accumulate(len(token.python) + 1 for token in tokens))
    token = tokens[min(bisect.bisect_right(ends, column), len(tokens) - 1)]
    return ToolError(f"Cannot read the expression at character {token.at + 1}, near '{token.text[:40]}'.")


def _value(node: ast.expr, source: str, depth: int) -> Number:
    """The value of a node. A long sum leans to the left, so that side is walked in a loop, not by recursion."""
    if depth > 2 * _MAX_DEPTH:
        raise ToolError("The expression is nested too deeply.")
    links: list[ast.BinOp] = []
    while isinstance(node, ast.BinOp):
        links.append(node)
        node = node.left
    value = _operand(node, source, depth)
    for link in reversed(links):
        right = _value(link.right, source, depth + 1)
        if isinstance(link.op, (ast.Add, ast.Sub)) and _is_percent(link.right) and not _is_percent(link.left):
            right = _bounded(_arithmetic(ast.Mult, value, right))
        value = _bounded(_arithmetic(type(link.op), value, right))
    return value


def _operand(node: ast.expr, source: str, depth: int) -> Number:
    sign = 1
    while isinstance(node, ast.UnaryOp):
        sign = -sign if isinstance(node.op, ast.USub) else sign
        node = node.operand
    if isinstance(node, ast.BinOp):
        value = _value(node, source, depth + 1)
    elif isinstance(node, ast.Constant):
        value = _literal(source[node.col_offset : node.end_col_offset])
    elif isinstance(node, ast.Name):
        value = _CONSTANTS[node.id]
    elif isinstance(node, ast.Attribute):
        value = _bounded(_postfix(node.attr, _value(node.value, source, depth + 1)))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        value = _bounded(_call(node.func.id, _arguments(node.args, source, depth + 1)))
    else:
        raise ToolError("Cannot read the expression: a list may only stand inside a function such as max(...).")
    return sign * value


def _arguments(nodes: list[ast.expr], source: str, depth: int) -> list[Number]:
    if len(nodes) == 1 and isinstance(nodes[0], ast.List):
        nodes = nodes[0].elts
    return [_value(node, source, depth) for node in nodes]


def _postfix(name: str, value: Number) -> Number:
    if name.startswith("power"):
        return _arithmetic(ast.Pow, value, Fraction(name.removeprefix("power")))
    return _POSTFIX[name](value)


def _is_percent(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "percent"


def _literal(text: str) -> Number:
    mantissa, _, exponent = text.lower().partition("e")
    if abs(int(exponent or 0)) > _MAX_DIGITS:
        raise ToolError(f"The number {text[:40]} is out of range.")
    return _bounded(Fraction(mantissa + "e" + (exponent or "0")))


def _arithmetic(operator: type[ast.operator], left: Number, right: Number) -> Number:
    if isinstance(left, float) or isinstance(right, float):
        left, right = _real(left), _real(right)
    try:
        return _OPERATORS[operator](left, right)
    except ZeroDivisionError:
        raise ToolError("Division by zero.") from None
    except OverflowError:
        raise _too_large() from None


def _power(base: Number, exponent: Number) -> Number:
    if exponent == Fraction(1, 2):
        return _sqrt(base)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = abs(exponent.numerator) * (max(abs(base.numerator), base.denominator).bit_length() - 1)
        if bits <= _MAX_BITS:
            return base**exponent.numerator
        if base.denominator == 1 and exponent > 0:
            raise _too_large()
    elif base < 0 and not float(exponent).is_integer():
        raise ToolError("A negative number to a fractional power has no real value.")
    result = _real_power(base, exponent)
    if result == 0 != base:
        raise ToolError("The result is too close to zero.")
    return result


def _real_power(base: Number, exponent: Number) -> float:
    """With 50 digits on the way where it can: 1.000001 as a float, to the millionth, is wrong in the tenth digit."""
    if isinstance(base, float) or isinstance(exponent, float) or exponent.denominator != 1:
        return float(_real(base) ** _real(exponent))
    with localcontext(Context(prec=50)):
        try:
            return float((Decimal(base.numerator) / Decimal(base.denominator)) ** exponent.numerator)
        except Overflow:
            raise _too_large() from None


def _sqrt(x: Number) -> Number:
    if x < 0:
        raise ToolError("The square root of a negative number has no real value.")
    if isinstance(x, Fraction):
        top, bottom = math.isqrt(x.numerator), math.isqrt(x.denominator)
        if top * top == x.numerator and bottom * bottom == x.denominator:
            return Fraction(top, bottom)
    return math.sqrt(_real(x))


def _round(x: Number, digits: Number = Fraction(0)) -> Number:
    places = _whole(digits)
    if abs(places) > _MAX_DIGITS:
        raise ToolError("round takes at most 400 places.")
    scale = Fraction(10) ** places
    rounded = math.floor(abs(Fraction(x)) * scale + Fraction(1, 2)) / scale
    return rounded if x >= 0 else -rounded


def _factorial(x: Number) -> Number:
    n = _whole(x)
    if n < 0:
        raise ToolError("factorial needs a number that is not negative.")
    if n > _MAX_DIGITS:
        raise _too_large()
    return Fraction(math.factorial(n))


def _combinations(count: Callable[[int, int], int], x: Number, y: Number) -> Number:
    """Bounded before it is computed: comb(n, k) is at least (n/k)^k for the smaller k, and perm at least that."""
    n, k = _whole(x), _whole(y)
    if n < 0 or k < 0:
        raise ToolError("comb and perm need numbers that are not negative.")
    smaller = max(0, min(k, n - k) if count is math.comb else k)
    bits = smaller * (n.bit_length() - 1 - smaller.bit_length())
    if k <= n and (smaller > _MAX_BITS or bits > _MAX_BITS):
        raise _too_large()
    return Fraction(count(n, k))


def _integers(function: Callable[..., int], *values: Number) -> Number:
    result = abs(_whole(values[0]))
    for value in values[1:]:
        result = _whole(_bounded(Fraction(function(result, _whole(value)))))
    return Fraction(result)


def _log(x: Number, base: Number | None = None) -> Number:
    return math.log(_real(x)) if base is None else math.log(_real(x)) / math.log(_real(base))


def _mean(*values: Number) -> Number:
    return _arithmetic(ast.Div, _sum(*values), Fraction(len(values)))


def _sum(*values: Number) -> Number:
    return functools.reduce(lambda a, b: _bounded(_arithmetic(ast.Add, a, b)), values)


def _trigonometric(function: Callable[[float], float], x: Number) -> Number:
    return round(function(_real(x)), 15)  # sin(pi) is 0 to a reader, not 1.2e-16


def _real(x: Number) -> float:
    try:
        return float(x)
    except OverflowError:
        raise _too_large() from None


def _whole(x: Number) -> int:
    if x != math.floor(x):
        raise ToolError(f"A whole number is needed, not {_short(x)}.")
    return math.floor(x)


def _bounded(value: Number) -> Number:
    """The value if it is small enough to go on with; a fraction that has grown too long becomes a float."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _too_large()
        return value
    if max(value.numerator.bit_length(), value.denominator.bit_length()) <= _MAX_BITS:
        return value
    if value.denominator == 1:
        raise _too_large()
    return _real(value)


def _too_large() -> ToolError:
    return ToolError(f"The result is too large (more than {_MAX_DIGITS} digits or beyond floating point).")


def _short(value: Number) -> str:
    text = _format(value)
    return text if len(text) <= 20 else text[:17] + "..."


def _format(value: Number) -> str:
    whole = math.floor(value)
    if value == whole and (isinstance(value, Fraction) or abs(whole) < 10**_SIGNIFICANT):
        return str(whole)
    whole_digits = len(str(abs(whole)))
    with localcontext() as context:
        # Never fewer digits than the whole part and cents need; a float has no more than 15 to show.
        context.prec = min(15, max(_SIGNIFICANT, whole_digits + 2))
        if isinstance(value, Fraction):
            context.prec = max(_SIGNIFICANT, whole_digits + 4)
            number = (Decimal(value.numerator) / Decimal(value.denominator)).normalize()
        else:
            number = Decimal(value).normalize()
    return format(number, "f") if -8 < number.adjusted() < 21 else f"{number:e}"


@dataclass(frozen=True, slots=True)
class _Function:
    call: Callable[..., Number]
    least: int = 1
    most: int | None = 1


def _call(name: str, arguments: list[Number]) -> Number:
    function = _FUNCTIONS[name]
    if len(arguments) < function.least or (function.most is not None and len(arguments) > function.most):
        wanted = {1: "one number", 2: "two numbers"}[function.most or function.least]
        raise ToolError(f"{name} takes {wanted}{'' if function.most else ' or more'}, but {len(arguments)} were given.")
    try:
        return function.call(*arguments)
    except (ValueError, ZeroDivisionError):
        raise ToolError(f"{name}({', '.join(map(_short, arguments))}) is not defined.") from None
    except OverflowError:
        raise _too_large() from None


def _by_float(function: Callable[..., float]) -> Callable[..., Number]:
    return lambda *values: function(*map(_real, values))


_OPERATORS: dict[type[ast.operator], Callable[..., Number]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: Fraction(math.floor(a // b)),
    ast.Mod: lambda a, b: a % b,
    ast.Pow: _power,
}

_POSTFIX: dict[str, Callable[[Number], Number]] = {
    "percent": lambda x: _arithmetic(ast.Div, x, Fraction(100)),
    "factorial": _factorial,
    "degrees": lambda x: math.radians(_real(x)),
}

_FUNCTIONS: dict[str, _Function] = {
    "sqrt": _Function(_sqrt),
    "abs": _Function(abs),
    "round": _Function(_round, 1, 2),
    "floor": _Function(lambda x: Fraction(math.floor(x))),
    "ceil": _Function(lambda x: Fraction(math.ceil(x))),
    "min": _Function(lambda *values: min(values), 1, None),
    "max": _Function(lambda *values: max(values), 1, None),
    "sum": _Function(_sum, 1, None),
    "mean": _Function(_mean, 1, None),
    "gcd": _Function(functools.partial(_integers, math.gcd), 1, None),
    "lcm": _Function(functools.partial(_integers, math.lcm), 1, None),
    "hypot": _Function(_by_float(math.hypot), 1, None),
    "pow": _Function(lambda x, y: _arithmetic(ast.Pow, x, y), 2, 2),
    "factorial": _Function(_factorial),
    "comb": _Function(functools.partial(_combinations, math.comb), 2, 2),
    "perm": _Function(functools.partial(_combinations, math.perm), 2, 2),
    "log": _Function(_log, 1, 2),
    "ln": _Function(_log),
    "log2": _Function(_by_float(math.log2)),
    "log10": _Function(_by_float(math.log10)),
    "exp": _Function(_by_float(math.exp)),
    "sin": _Function(functools.partial(_trigonometric, math.sin)),
    "cos": _Function(functools.partial(_trigonometric, math.cos)),
    "tan": _Function(functools.partial(_trigonometric, math.tan)),
    "asin": _Function(_by_float(math.asin)),
    "acos": _Function(_by_float(math.acos)),
    "atan": _Function(_by_float(math.atan)),
    "atan2": _Function(_by_float(math.atan2), 2, 2),
    "degrees": _Function(_by_float(math.degrees)),
    "radians": _Function(_by_float(math.radians)),
}

_PARAMETERS = {
    "type": "object",
    "properties": {"expression": {"type": "string", "description": "for example (12.5 + 3) * 4, 15% of 80 or sqrt(2)"}},
    "required": ["expression"],
}

# Built by hand and not checked again (a test does), so that importing it needs neither pydantic nor jsonschema.
calculator = Tool(
    name="calculator",
    description="Work out an arithmetic expression exactly.",
    parameters=_PARAMETERS,
    function=evaluate,
    seconds=5.0,
    _read=functools.partial(read_by_schema, _PARAMETERS),
)
