"""Exact arithmetic of bounded size on real numbers, and the calculator's table of functions.

Numbers are fractions, so that + - * / // % and whole powers are exact; functions such as sin use floats. What could
grow without limit (powers, factorials, combinations) is measured before it is computed. Every error is a ToolError.

``log`` is the natural logarithm. ``round`` rounds halves away from zero, as taught in school.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, Overflow, localcontext
from fractions import Fraction

from qwen_agent.errors import ToolError

Number = Fraction | float

_MAX_DIGITS = 400
_MAX_BITS = math.ceil(_MAX_DIGITS * math.log2(10))
_SIGNIFICANT = 12


@dataclass(frozen=True, slots=True)
class Function:
    """A function and how many numbers it takes: ``least`` to ``most``, which is None for any number of them."""

    call: Callable[..., Number]
    least: int = 1
    most: int | None = 1


def literal(text: str) -> Number:
    """The number that a decimal literal of Python stands for, exactly."""
    mantissa, _, exponent = text.lower().partition("e")
    if abs(int(exponent or 0)) > _MAX_DIGITS:
        raise ToolError(f"The number {text[:40]} is out of range.")
    return bounded(Fraction(mantissa + "e" + (exponent or "0")))


def operate(operator: type[ast.operator], left: Number, right: Number) -> Number:
    """What a binary operator makes of two numbers, not yet bounded."""
    if isinstance(left, float) or isinstance(right, float):
        left, right = _real(left), _real(right)
    try:
        return _OPERATORS[operator](left, right)
    except ZeroDivisionError:
        raise ToolError("Division by zero.") from None
    except OverflowError:
        raise _too_large() from None


def postfix(name: str, value: Number) -> Number:
    """The value of ``50%``, ``5!``, ``30°`` or ``2³``: ``name`` is percent, factorial, degrees or power3."""
    if name.startswith("power"):
        return operate(ast.Pow, value, Fraction(name.removeprefix("power")))
    return _POSTFIX[name](value)


def call(name: str, arguments: list[Number]) -> Number:
    """What a function of the table makes of its arguments, not yet bounded."""
    function = FUNCTIONS[name]
    if len(arguments) < function.least or (function.most is not None and len(arguments) > function.most):
        wanted = {1: "one number", 2: "two numbers"}[function.most or function.least]
        raise ToolError(f"{name} takes {wanted}{'' if function.most else ' or more'}, but {len(arguments)} were given.")
    try:
        return function.call(*arguments)
    except (ValueError, ZeroDivisionError):
        raise ToolError(f"{name}({', '.join(map(_short, arguments))}) is not defined.") from None
    except OverflowError:
        raise _too_large() from None


def bounded(value: Number) -> Number:
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


def format_number(value: Number) -> str:
    """The number in decimal: every digit of a whole one, any other rounded to 12 significant digits or more."""
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
        result = _whole(bounded(Fraction(function(result, _whole(value)))))
    return Fraction(result)


def _log(x: Number, base: Number | None = None) -> Number:
    return math.log(_real(x)) if base is None else math.log(_real(x)) / math.log(_real(base))


def _mean(*values: Number) -> Number:
    return operate(ast.Div, _sum(*values), Fraction(len(values)))


def _sum(*values: Number) -> Number:
    return functools.reduce(lambda a, b: bounded(operate(ast.Add, a, b)), values)


def _trigonometric(function: Callable[[float], float], x: Number) -> Number:
    return round(function(_real(x)), 15)  # sin(pi) is 0 to a reader, not 1.2e-16


def _by_float(function: Callable[..., float]) -> Callable[..., Number]:
    return lambda *values: function(*map(_real, values))


def _real(x: Number) -> float:
    try:
        return float(x)
    except OverflowError:
        raise _too_large() from None


def _whole(x: Number) -> int:
    if x != math.floor(x):
        raise ToolError(f"A whole number is needed, not {_short(x)}.")
    return math.floor(x)


def _too_large() -> ToolError:
    return ToolError(f"The result is too large (more than {_MAX_DIGITS} digits or beyond floating point).")


def _short(value: Number) -> str:
    text = format_number(value)
    return text if len(text) <= 20 else text[:17] + "..."


CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}

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
    "percent": lambda x: operate(ast.Div, x, Fraction(100)),
    "factorial": _factorial,
    "degrees": lambda x: math.radians(_real(x)),
}

FUNCTIONS: dict[str, Function] = {
    "sqrt": Function(_sqrt),
    "abs": Function(abs),
    "round": Function(_round, 1, 2),
    "floor": Function(lambda x: Fraction(math.floor(x))),
    "ceil": Function(lambda x: Fraction(math.ceil(x))),
    "min": Function(lambda *values: min(values), 1, None),
    "max": Function(lambda *values: max(values), 1, None),
    "sum": Function(_sum, 1, None),
    "mean": Function(_mean, 1, None),
    "gcd": Function(functools.partial(_integers, math.gcd), 1, None),
    "lcm": Function(functools.partial(_integers, math.lcm), 1, None),
    "hypot": Function(_by_float(math.hypot), 1, None),
    "pow": Function(lambda x, y: operate(ast.Pow, x, y), 2, 2),
    "factorial": Function(_factorial),
    "comb": Function(functools.partial(_combinations, math.comb), 2, 2),
    "perm": Function(functools.partial(_combinations, math.perm), 2, 2),
    "log": Function(_log, 1, 2),
    "ln": Function(_log),
    "log2": Function(_by_float(math.log2)),
    "log10": Function(_by_float(math.log10)),
    "exp": Function(_by_float(math.exp)),
    "sin": Function(functools.partial(_trigonometric, math.sin)),
    "cos": Function(functools.partial(_trigonometric, math.cos)),
    "tan": Function(functools.partial(_trigonometric, math.tan)),
    "asin": Function(_by_float(math.asin)),
    "acos": Function(_by_float(math.acos)),
    "atan": Function(_by_float(math.atan)),
    "atan2": Function(_by_float(math.atan2), 2, 2),
    "degrees": Function(_by_float(math.degrees)),
    "radians": Function(_by_float(math.radians)),
}
