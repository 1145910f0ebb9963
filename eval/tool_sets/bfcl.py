"""Berkeley Function Calling Leaderboard (v4), single turn: ``BFCL_v4_{category}`` and ``possible_answer_BFCL_v4_...``.

In a category with "irrelevance" in its name no call is right. What is accepted is what the leaderboard's own checker
(``ast_checker`` of bfcl-eval 2026.3.23, for Python) accepts, its oddities included: types are looked at first, a value
of another type passes only where an accepted value has that type; strings are compared without case, blanks and some
punctuation; an argument may be left out only where "" is accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cases import Arguments, Case, Function, Gold, plain_text, read_schema, same_json

from .files import find, rows

CATEGORIES = ("simple_python", "multiple", "live_simple", "live_multiple", "irrelevance", "live_irrelevance")
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_PYTHON: Mapping[str, type[Any]] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
}


def categories(folder: Path) -> Sequence[str]:
    return CATEGORIES


def files(folder: Path, category: str) -> Sequence[str]:
    name = f"BFCL_v4_{category}"
    return (name,) if "irrelevance" in category else (name, f"possible_answer_{name}")


def load(folder: Path, category: str) -> Iterator[Case]:
    """The cases of a category that offer any function (four of ``live_irrelevance`` offer none)."""
    questions, *answers = files(folder, category)
    right = {row["id"]: row["ground_truth"] for stem in answers for row in rows(find(folder, stem))}
    for row in rows(find(folder, questions)):
        if row["function"]:
            yield _case(category, row, right.get(row["id"]))


def _case(category: str, row: Mapping[str, Any], answer: Sequence[Mapping[str, Any]] | None) -> Case:
    messages = row["question"][0]
    said = [m["content"] for role in ("system", "user") for m in messages if m["role"] == role]
    functions = tuple(map(_function, row["function"]))
    gold = None
    if answer:
        (name, accepted), *_ = answer[0].items()
        gold = _gold(name, accepted, next(f.parameters for f in functions if f.name == name))
    return Case(category, row["id"], "\n".join(said), functions, gold)


def _function(function: Mapping[str, Any]) -> Function:
    schema = read_schema(function["parameters"], _TYPES)
    return Function(function["name"], function.get("description", "").strip(), schema)


def _gold(name: str, accepted: Mapping[str, Sequence[Any]], schema: Mapping[str, Any]) -> Gold:
    required = schema["required"]
    example = {key: _first(values) for key, values in accepted.items() if "" not in values or key in required}
    optional = frozenset(key for key, values in accepted.items() if "" in values and key not in required)
    accepts, exact = partial(accepted_by_leaderboard, accepted, schema), partial(_exact, accepted)
    return Gold(name, example, frozenset(accepted), optional, accepts, exact)


def _first(values: Sequence[Any]) -> Any:
    """The first accepted value that is given."""
    value = next((value for value in values if value != ""), "")
    if isinstance(value, list):
        return [_first_object(item) for item in value]
    return _first_object(value)


def _first_object(value: Any) -> Any:
    """In an object, and in objects of a list, accepted values are listed for each key, but no deeper."""
    if not isinstance(value, Mapping):
        return value
    return {key: next((v for v in values if v != ""), "") for key, values in value.items() if "" not in values}


def _exact(accepted: Mapping[str, Sequence[Any]], given: Arguments) -> bool:
    return _keys_fit(given, accepted) and all(
        any(_exact_value(value, each) for each in accepted[key]) for key, value in given.items()
    )


def _exact_value(given: Any, accepted: Any) -> bool:
    if isinstance(accepted, list) and isinstance(given, list):
        return len(given) == len(accepted) and all(map(_exact_value, given, accepted))
    if isinstance(accepted, Mapping) and isinstance(given, Mapping):
        return _keys_fit(given, accepted) and all(
            any(same_json(value, each) for each in accepted[key]) for key, value in given.items()
        )
    return same_json(given, accepted)


def _keys_fit(given: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> bool:
    """Whether there is no key too many, and none missing that must be there."""
    return given.keys() <= accepted.keys() and all("" in accepted[key] for key in accepted.keys() - given.keys())


# ---- the leaderboard's rules ----------------------------------------------------------------------------------------


def accepted_by_leaderboard(accepted: Mapping[str, Sequence[Any]], schema: Mapping[str, Any], given: Arguments) -> bool:
    properties = schema["properties"]
    if not set(schema["required"]) <= set(given) <= set(properties) or not _keys_fit(given, accepted):
        return False
    return all(_accepted(value, accepted[key], properties[key]) for key, value in given.items())


def _accepted(value: Any, accepted: Sequence[Any], entry: Mapping[str, Any]) -> bool:
    kind = _PYTHON[entry["type"]]
    inside = _PYTHON[entry.get("items", {}).get("type", "string")] if kind is list else None
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        return type(value) is _type_of(accepted) and value in accepted
    if inside is not None and not any(_items_fit(value, each, inside) for each in accepted):
        return False
    if _type_of(accepted) not in (None, kind):  # the name of a variable stands for the value
        return value in accepted
    return _equal(value, accepted, inside)


def _type_of(accepted: Sequence[Any]) -> type | None:
    return next((type(value) for value in accepted if value != ""), None)


def _items_fit(value: list[Any], accepted: Any, inside: type) -> bool:
    """Whether a list's items have the type of the schema, or that of this accepted list's items."""
    return not isinstance(accepted, list) or all(type(item) in (inside, _type_of(accepted)) for item in value)


def _equal(value: Any, accepted: Sequence[Any], inside: type | None) -> bool:
    if isinstance(value, dict):
        return any(_equal_objects(value, each) for each in accepted if each != "")
    if inside is dict:
        return any(len(value) == len(each) and all(map(_equal_objects, value, each)) for each in accepted)
    if isinstance(value, list):
        return [_text(item) for item in value] in [[_text(item) for item in each] for each in accepted]
    return _text(value) in [_text(each) for each in accepted if isinstance(each, str) or not isinstance(value, str)]


def _equal_objects(value: Any, accepted: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(accepted, dict) or not _keys_fit(value, accepted):
        return False
    return all(_text(item) in [_text(each) for each in accepted[key]] for key, item in value.items())


def _text(value: Any) -> Any:
    return plain_text(value) if isinstance(value, str) else value
