"""One question of a tool-use set, whatever set it is of: the tools on offer, and the right call, or that none is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Function:
    """A tool as ``qwen_agent.prompt`` describes it to the model; ``parameters`` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    args_format: Literal["json", "code"] = "json"

    @property
    def name_for_human(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Gold:
    """The right call. ``example`` are right arguments; None where the data name the tool only.

    ``accepts`` says whether arguments are right by the set's own rules, ``exact`` whether they are so to the letter.
    ``optional`` may be left out; arguments that are not in ``known`` are invented.
    """

    name: str
    example: Arguments | None = None
    known: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    accepts: Callable[[Arguments], bool] = lambda arguments: True
    exact: Callable[[Arguments], bool] = lambda arguments: True


@dataclass(frozen=True, slots=True)
class Case:
    """One question. ``gold`` None = no call is right.

    ``given`` is the whole user turn where the set has it, tools and all; else the question is put into our template.
    ``response`` is the right text where the set has it.
    """

    category: str
    id: str
    question: str
    functions: tuple[Function, ...]
    gold: Gold | None
    given: str = ""
    response: str = ""


def shallow(case: Case) -> Case:
    """The case with schemas one level deep, as the embedded model was trained: type, description and choices."""
    functions = tuple(replace(function, parameters=_shallow(function.parameters)) for function in case.functions)
    return replace(case, functions=functions)


def _shallow(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = {name: _shown(entry) for name, entry in schema.get("properties", {}).items()}
    return {"type": "object", "properties": properties, "required": schema.get("required", [])}


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("description", "type", "enum") if key in entry}
    choices = entry.get("items", {}).get("enum")
    return kept | ({"items": {"enum": choices}} if choices else {})


def read_schema(given: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    """A set's own description of an object as JSON Schema; ``types`` maps the set's type names to those of JSON."""
    properties = {name: _read_entry(entry, types) for name, entry in given.get("properties", {}).items()}
    return {"type": "object", "properties": properties, "required": list(given.get("required", []))}


def _read_entry(entry: Mapping[str, Any], types: Mapping[str, str]) -> dict[str, Any]:
    given = entry.get("type", "string")
    kind = types.get(given, given)
    schema = {"description": entry["description"], "type": kind} if "description" in entry else {"type": kind}
    choices, items = entry.get("enum"), entry.get("items")
    if kind == "array":
        inside = _read_entry(items, types) if isinstance(items, Mapping) else {}
        # some data name the choices of a list's items beside the list
        inside |= {"enum": choices} if choices else {}
        return schema | ({"items": inside} if inside else {})
    if choices:
        schema["enum"] = choices
    if kind == "object" and entry.get("properties"):
        schema |= read_schema(entry, types)
    return schema


# ---- right calls of sets that name one value an argument ------------------------------------------------------------


def plain_gold(name: str, arguments: Arguments, optional: Sequence[str] = ()) -> Gold:
    """A right call with one right value for each argument.

    Accepted are strings that differ in case, blanks and punctuation only, and numbers of the same value.
    """
    free = frozenset(optional)

    def match(same: Callable[[Any, Any], bool]) -> Callable[[Arguments], bool]:
        def matches(given: Arguments) -> bool:
            needed = set(arguments) - free
            return needed <= set(given) <= set(arguments) and all(same(given[key], arguments[key]) for key in given)

        return matches

    return Gold(name, arguments, frozenset(arguments), free, match(alike), match(same_json))


def same_json(a: Any, b: Any) -> bool:
    """Equal as JSON values: 1 is 1.0, but true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_json, a, b))
    return bool(a == b)


def alike(a: Any, b: Any) -> bool:
    """Equal as JSON values but for case, blanks and punctuation in strings."""
    return same_json(_plain(a), _plain(b))


_IGNORED = str.maketrans("'", '"', " ,./-_*^")


def plain_text(text: str) -> str:
    """A string as the Berkeley leaderboard compares it: without blanks and ``,./-_*^``, in lower case."""
    return text.translate(_IGNORED).lower()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
