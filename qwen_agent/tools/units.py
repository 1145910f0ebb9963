"""Unit conversion, exact: lengths, masses, volumes, temperatures, data, speeds, fuel, energy and their like.

The units of `qwen_agent.tools.unit_table` are read as people and models write them: ``metres``, ``m2``, ``sq ft``,
``L/100km``, ``miles per hour``, ``Mbps``. Arithmetic is on fractions, so 1 inch is 2.54 cm and nothing else. Where a
quantity and its inverse are both in use (km/l and L/100km, km/h and min/km) one is turned into the other.

Why not a library: pint, the one that is well kept, takes 0.7 s to load, reads "fl oz" as femtolitre ounces, "Mb" as
megabarn and "F" as farad, and has neither "mpg" nor "L/100km". It is the reference of the tests.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from qwen_agent.errors import ToolError
from qwen_agent.tools.arithmetic import format_number
from qwen_agent.tools.base import tool
from qwen_agent.tools.unit_table import AMBIGUOUS, BASE_UNITS, CURRENCIES, KINDS, PREFIXES, UNIT_TABLE

MAX_CHARS = 80

_DEGREES = re.compile(r"(?i)(?:degrees?|deg\.?) ?(c|f|k|celsius|fahrenheit|kelvin|centigrade)")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d{1,2})?)|(?P<operator>[*/·×⋅])"
    r"|(?P<name>[^\W\d]+|[°'\"%′](?:[CFK](?![^\W\d]))?)(?:(?:\^|\*\*)?(?P<power>-?\d+))?)\s*"  # ° may have its letter
)
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_RAISED_AFTER = {"squared": 2, "cubed": 3}
_MAX_POWER = 9

Dimensions = tuple[tuple[str, int], ...]  # such as (("m", 1), ("s", -1)), sorted


@dataclass(frozen=True, slots=True)
class Unit:
    """So many base units; ``zero`` is where the scale of a temperature begins, in kelvin."""

    factor: Fraction
    dimensions: Dimensions = ()
    zero: Fraction = Fraction(0)

    def times(self, other: Unit, power: int = 1) -> Unit:
        sums = dict(self.dimensions)
        for base, exponent in other.dimensions:
            sums[base] = sums.get(base, 0) + exponent * power
        return Unit(self.factor * other.factor**power, tuple(sorted((b, e) for b, e in sums.items() if e)))


@tool(name="convert_units", seconds=5.0)
def convert_units(value: float, from_unit: str, to_unit: str) -> str:
    """Convert a quantity from one unit into another.

    Args:
        value: how many
        from_unit: such as mile, kg, °F, km/h, GB
        to_unit: the unit to convert into
    """
    if not math.isfinite(value):
        raise ToolError(f"{value} is not a number that can be converted.")
    amount = Fraction(repr(value))
    result = convert(amount, from_unit, to_unit)
    return f"{_text(amount)} {from_unit.strip()} = {_text(result)} {to_unit.strip()}"


def convert(amount: Fraction, from_unit: str, to_unit: str) -> Fraction:
    """So many of one unit in another. Raises ToolError for units that are unknown or do not measure the same."""
    source, target = read_unit(from_unit), read_unit(to_unit)
    inverse = Unit(Fraction(1)).times(source, -1)
    if source.dimensions == target.dimensions:
        base = amount * source.factor + source.zero
        if (source.zero or target.zero) and base < 0:
            raise ToolError(f"{_text(amount)} {from_unit.strip()} is below absolute zero.")
        return (base - target.zero) / target.factor
    if inverse.dimensions == target.dimensions and target.dimensions:
        if not amount:
            raise ToolError(f"0 {from_unit.strip()} has no inverse, so it cannot be given in {to_unit.strip()}.")
        return inverse.factor / amount / target.factor
    hint = " The ounce of volumes is fl oz." if {from_unit.strip(), to_unit.strip()} & {"oz", "ounce", "ounces"} else ""
    raise ToolError(
        f"{_kind(from_unit, source)} and {_kind(to_unit, target)}: one cannot be converted into the other.{hint}"
    )


def read_unit(text: str) -> Unit:
    """The unit that a text names. Raises ToolError with what is unclear about it."""
    if len(text) > MAX_CHARS:
        raise ToolError(f"The unit '{text[:40]}...' is too long.")
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("μ", "u")  # so m² is m2, and µ u
    plain = re.sub(r"[\s_]+", " ", plain).strip()
    if match := _DEGREES.fullmatch(plain):
        plain = match[1] if len(match[1]) > 1 else match[1].upper()
    _refuse_currency(plain)
    if (unit := _lookup(plain)) is not None:  # the only way to a temperature with its own zero
        return unit
    return _product(text, _joined(plain))


def _product(text: str, plain: str) -> Unit:
    """Units that are multiplied and divided: each division is by the next unit only, and by a number before it."""
    result, sign, raised, at = Unit(Fraction(1)), 1, 1, 0
    last: tuple[Unit, int] | None = None
    expecting = True  # a unit: at the beginning and after an operator
    while at < len(plain):
        match = _TOKEN.match(plain, at)
        if match is None:
            raise ToolError(f"Cannot read the unit '{text}' near '{plain[at : at + 10]}': write it like kg*m/s^2.")
        at = match.end()
        word = (match["name"] or "").lower()
        if match["operator"]:
            sign, expecting = -1 if match["operator"] == "/" else sign, True
        elif match["number"]:
            result = result.times(Unit(Fraction(match["number"]) or Fraction(1)), sign)
        elif word in _POWERS:
            raised = _POWERS[word]
        elif word in _RAISED_AFTER and last is not None:
            result = result.times(last[0], last[1] * (_RAISED_AFTER[word] - 1))
        else:
            last = _without_zero(_named(match["name"])), sign * raised * int(match["power"] or 1)
            if abs(last[1]) > _MAX_POWER:
                raise ToolError(f"The power {last[1]} in '{text}' is too high.")
            result, sign, raised, expecting = result.times(*last), 1, 1, False
    if expecting:
        raise ToolError(f"'{text.strip()}' is not a whole unit: write it like metre, km/h or kg*m/s^2.")
    return result


def _without_zero(unit: Unit) -> Unit:
    """In J/°C a degree is a difference of temperatures."""
    return Unit(unit.factor, unit.dimensions)


def _joined(plain: str) -> str:
    """The text with a sign for ``per``, and names of several words made one."""
    plain = re.sub(r"(?i)\bper\b", "/", plain)
    return _names_of_several_words().sub(lambda match: match[0].replace(" ", "_"), plain)


def _named(name: str) -> Unit:
    _refuse_currency(name)
    unit = _lookup(name.replace("_", " "))
    if unit is not None:
        return unit
    near = difflib.get_close_matches(name, _units(), n=3, cutoff=0.7)
    hint = f" Did you mean {' or '.join(near)}?" if near else " Give its usual name or sign, such as metre or kg."
    raise ToolError(f"The unit '{name}' is not known.{hint}")


def _lookup(name: str) -> Unit | None:
    """A unit by its name, spelled with a prefix, in the plural or in other letters than usual."""
    if meanings := AMBIGUOUS.get(name):
        raise ToolError(f"'{name}' may mean {' or '.join(meanings)}: say which.")
    for spelling in (name, name[:-1] if name.endswith("s") else "", name[:-2] if name.endswith("es") else ""):
        if spelling and (unit := _units().get(spelling) or _prefixed(spelling)):
            return unit
    if len(name) == 1:  # the letters of one-letter units differ only by being small or large
        return None
    small = name.lower()
    for spelling in (small, small[:-1] if small.endswith("s") else ""):
        found = {_units()[each] for each in _by_small_letters().get(spelling, ())} if spelling else set()
        if len(found) == 1:
            return found.pop()
    return _prefixed(small) or _prefixed(small.removesuffix("s")) if len(small) > 4 else None


def _prefixed(name: str) -> Unit | None:
    for prefix, factor in PREFIXES.items():
        rest = name.removeprefix(prefix)
        if rest and rest != name and rest in _prefixable() and (unit := _units().get(rest)):
            return Unit(unit.factor * Fraction(factor), unit.dimensions)
    return None


@functools.cache
def _table() -> tuple[dict[str, Unit], frozenset[str]]:
    """Every unit by each of its names, and the names that take a prefix."""
    units = {base: Unit(Fraction(1), ((base, 1),)) for base in BASE_UNITS}
    prefixable: set[str] = set()
    for line in UNIT_TABLE.strip().splitlines():
        names, _, definition = line.partition(" = ")
        unit = _defined(definition, units)
        for name in (each.strip() for each in names.split(",")):
            if name.startswith("*"):
                prefixable.add(name[1:])
            units[name.removeprefix("*")] = unit
    return units, frozenset(prefixable)


def _defined(definition: str, units: dict[str, Unit]) -> Unit:
    """A definition of the table, which is simpler than what people write: numbers and units in plain spelling."""
    definition, _, zero = definition.partition(" from ")
    result, sign = Unit(Fraction(1)), 1
    for word in definition.split():
        if word == "/":
            sign = -1
            continue
        name, _, power = word.partition("^")
        unit = units.get(name.replace("_", " ")) or Unit(Fraction(name))
        result, sign = result.times(unit, sign * int(power or 1)), 1
    return Unit(result.factor, result.dimensions, Fraction(zero or "0"))


def _units() -> dict[str, Unit]:
    return _table()[0]


def _prefixable() -> frozenset[str]:
    return _table()[1]


@functools.cache
def _by_small_letters() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in _units():
        found.setdefault(name.lower(), []).append(name)
    return found


@functools.cache
def _names_of_several_words() -> re.Pattern[str]:
    names = sorted((name for name in _units() if " " in name), key=len, reverse=True)
    return re.compile(rf"(?i)(?<![^\W\d])(?:{'|'.join(map(re.escape, names))})s?(?![^\W\d])")


def _text(value: Fraction) -> str:
    return format_number(value if abs(value) < 10**21 else float(value))


def _kind(text: str, unit: Unit) -> str:
    kind = KINDS.get(" ".join(f"{base}{power}" for base, power in unit.dimensions))
    if kind is None:
        measured = " ".join(base if power == 1 else f"{base}^{power}" for base, power in unit.dimensions)
        kind = f"measured in {measured}" if measured else "a plain number"
    return f"'{text.strip()}' is {kind}"


def _refuse_currency(name: str) -> None:
    if name.lower().removesuffix("s") in CURRENCIES:
        raise ToolError(
            f"'{name}' is a currency, and exchange rates change every minute: look up today's rate, then calculate."
        )
