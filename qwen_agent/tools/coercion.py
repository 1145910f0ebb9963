"""Values made to fit a JSON Schema where nothing is lost by it: "3" becomes 3 for an integer, 3 becomes [3] for a list.

Whatever cannot be converted without loss is returned unchanged: the validator that comes after says what is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def coerce(value: Any, schema: Any) -> Any:
    """``value`` as the type that ``schema`` wants where nothing is lost by it, else unchanged."""
    if not isinstance(schema, Mapping):
        return value
    branches = schema.get("anyOf") or schema.get("oneOf")
    kind = schema.get("type")
    if isinstance(kind, list):
        branches = [{**schema, "type": each} for each in kind]
    if branches:
        return _coerce_to_any(value, branches)
    if "enum" in schema or "const" in schema:
        return _coerce_to_choice(value, schema.get("enum", [schema.get("const")]))
    convert = _COERCIONS.get(kind or "")
    return convert(value, schema) if convert else value


def _coerce_to_any(value: Any, branches: Iterable[Any]) -> Any:
    branches = list(branches)
    for branch in branches:
        if _fits(value, branch):
            return coerce(value, branch)
    for branch in branches:
        candidate = coerce(value, branch)
        if _fits(candidate, branch):
            return candidate
    return value


def _coerce_to_choice(value: Any, choices: Iterable[Any]) -> Any:
    """The one choice that reads the same, apart from case and spaces: "Celsius" is "celsius", "3" is 3."""
    choices = list(choices)
    if any(_same(value, choice) for choice in choices) or not isinstance(value, (str, int, float)):
        return value
    alike = [choice for choice in choices if str(choice).casefold() == str(value).strip().casefold()]
    return alike[0] if len(alike) == 1 else value


def _coerce_to_integer(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([+-]?[0-9]{1,300})(\.0+)?\s*", value)):
        return int(match[1])
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _coerce_to_number(value: Any, schema: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"\s*[+-]?[0-9]{1,300}(\.[0-9]+)?([eE][+-]?[0-9]+)?\s*", value):
        return value
    number = float(value)
    whole = _coerce_to_integer(value, schema)
    return whole if isinstance(whole, int) else number if math.isfinite(number) else value


def _coerce_to_boolean(value: Any, schema: Mapping[str, Any]) -> Any:
    return {"true": True, "false": False}.get(value.strip().lower(), value) if isinstance(value, str) else value


def _coerce_to_string(value: Any, schema: Mapping[str, Any]) -> Any:
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value


def _coerce_to_null(value: Any, schema: Mapping[str, Any]) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("null", "none") else value


def _coerce_to_array(value: Any, schema: Mapping[str, Any]) -> Any:
    value = _parsed(value, "[", list)
    if value is None:
        return value
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    first = schema.get("prefixItems", [])
    schemas = [*first, *[schema.get("items")] * max(0, len(items) - len(first))]
    return [coerce(item, item_schema) for item, item_schema in zip(items, schemas, strict=False)]


def _coerce_to_object(value: Any, schema: Mapping[str, Any]) -> Any:
    value = _parsed(value, "{", dict)
    if not isinstance(value, Mapping):
        return value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    return {name: coerce(item, properties.get(name, others)) for name, item in value.items()}


_COERCIONS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "integer": _coerce_to_integer,
    "number": _coerce_to_number,
    "boolean": _coerce_to_boolean,
    "string": _coerce_to_string,
    "null": _coerce_to_null,
    "array": _coerce_to_array,
    "object": _coerce_to_object,
}

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "string": (str,),
    "null": (type(None),),
    "array": (list, tuple),
    "object": (Mapping,),
}


def _parsed(value: Any, opening: str, kind: type) -> Any:
    """A list or an object that was given as its JSON text, read; anything else unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(opening):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, kind) else value


def _fits(value: Any, schema: Any) -> bool:
    """Whether the value has the schema's own type (what is inside it is left to the validator)."""
    if not isinstance(schema, Mapping):
        return True
    if "enum" in schema or "const" in schema:
        return any(_same(value, choice) for choice in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if not isinstance(kind, str):
        return True
    return isinstance(value, _PYTHON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
