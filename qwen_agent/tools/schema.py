"""From a typed function to a JSON Schema, and from JSON arguments to its Python values.

pydantic, jsonschema and docstring-parser take a quarter of a second to import, so each is imported by the
function that needs it: whoever imports a tool without building one from a signature does not pay.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools.coercion import coerce

if TYPE_CHECKING:
    from pydantic import BaseModel

Reader = Callable[[Mapping[str, Any]], dict[str, Any]]

_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas")
_PLAIN_VALUES = ("default", "const", "enum", "examples", "required")
_NOISE = ("title", "$defs", "definitions", "discriminator")
_PREVIEW_CHARS = 60


@dataclass(frozen=True, slots=True)
class FunctionSchema:
    """What a signature and its docstring say.

    ``read`` turns JSON arguments into the function's keyword arguments; it raises ToolError, naming the first
    offending argument, when they do not fit. Arguments that were not given are left to the function's defaults.
    """

    description: str
    parameters: dict[str, Any]
    read: Reader


def function_schema(function: Callable[..., Any]) -> FunctionSchema:
    """The schema of a function's parameters, taken from its annotations and its docstring (both optional).

    A parameter without an annotation is a string. Descriptions come from ``Annotated[..., Field(description=...)]``
    or else from a google, numpy or sphinx docstring. Raises InputError for ``*args``, ``**kwargs``,
    positional-only parameters and types that JSON cannot carry.
    """
    description, described = _read_docstring(function)
    model = _argument_model(function)
    schema = compact(_model_schema(model))
    # Not "additionalProperties": it is noise in a prompt, and unknown names are refused by _check_names anyway.
    parameters = {"type": "object", "properties": schema.get("properties", {})}
    if schema.get("required"):
        parameters["required"] = schema["required"]
    for name, argument in parameters["properties"].items():
        if name in described:
            argument.setdefault("description", described[name])
    return FunctionSchema(description, parameters, functools.partial(_read_by_model, model, parameters))


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise InputError unless ``parameters`` is a usable JSON Schema of one object of arguments."""
    import jsonschema

    if parameters.get("type", "object") != "object" or not isinstance(parameters.get("properties", {}), Mapping):
        raise InputError("parameters must be a JSON Schema of type 'object' with its arguments under 'properties'")
    for reference in references(parameters):
        if not reference.startswith("#"):
            raise InputError(f"parameters may not refer to {reference!r}: put the schema under '$defs' instead")
    try:
        jsonschema.Draft202012Validator.check_schema(parameters)
    except jsonschema.SchemaError as error:
        raise InputError(f"parameters are not a valid JSON Schema: {_shorten(error.message, 200)}") from None


def read_by_schema(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments checked against an explicit JSON Schema, coerced where nothing is lost.

    Names outside ``properties`` are refused unless the schema says ``additionalProperties`` itself. Raises
    ToolError naming the first offending argument.
    """
    import jsonschema
    from jsonschema.exceptions import best_match

    shape = compact(parameters)
    values = _coerced(shape, arguments)
    error = best_match(jsonschema.Draft202012Validator(parameters).iter_errors(values))
    if error is None:
        return values
    path = ".".join(str(part) for part in error.absolute_path) or "arguments"
    if error.validator == "type":
        expected = _type_text({"type": error.validator_value})
        raise ToolError(f"'{path}' should be of type {expected}, but {_preview(error.instance)} was given")
    raise ToolError(f"'{path}': {_shorten(error.message, 200)}")


def describe_call(name: str, parameters: Mapping[str, Any]) -> str:
    """The call as a signature: ``search(query: string, limit: integer = 3)``."""
    required = parameters.get("required", ())
    parts = []
    for argument, schema in parameters.get("properties", {}).items():
        part = f"{argument}: {_type_text(schema)}"
        if "default" in schema:
            part += f" = {_preview(schema['default'])}"
        elif argument not in required:
            part += " (optional)"
        parts.append(part)
    return f"{name}({', '.join(parts)})"


def compact(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without titles and with local references put in place.

    A recursive reference becomes the empty schema at its second occurrence, and "T or null, default null" becomes
    T: both say enough to someone who fills the arguments in, in far fewer tokens.
    """
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    result: dict[str, Any] = _compact(schema, definitions, frozenset())
    return result


def _read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description on one line, and the descriptions of the parameters that have one."""
    import docstring_parser

    while isinstance(function, functools.partial):
        function = function.func
    text = inspect.getdoc(function) or ""
    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return _one_line(text.split("\n\n")[0]), {}
    description = f"{parsed.short_description or ''} {parsed.long_description or ''}"
    return _one_line(description), {p.arg_name: _one_line(p.description) for p in parsed.params if p.description}


def _argument_model(function: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model with one field per parameter.

    The fields have names of their own and carry the parameter's name as an alias, because a parameter may be
    called ``json``, ``_x`` or ``model_config``, which a field may not.
    """
    from pydantic import ConfigDict, Field, create_model
    from pydantic.errors import PydanticUserError

    fields: dict[str, Any] = {}
    for index, (name, annotation, default) in enumerate(_typed_parameters(function)):
        fields[f"field_{index}"] = (annotation, Field(default, alias=name))
    try:
        return create_model(_name(function), __config__=ConfigDict(extra="forbid"), **fields)
    except (PydanticUserError, TypeError) as error:
        reason = _shorten(_one_line(str(error)), 200)
        raise InputError(f"{_name(function)}: a parameter has a type that JSON cannot carry ({reason})") from None


def _typed_parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Name, type and default (Ellipsis when required) of every parameter."""
    from pydantic.fields import FieldInfo

    signature = inspect.signature(function)
    where = _name(function)
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            kind = parameter.kind.description
            raise InputError(f"{where}: a tool cannot take '{parameter}' ({kind}): name every parameter")
        if isinstance(parameter.default, FieldInfo):
            raise InputError(f"{where}: write '{parameter.name}: Annotated[..., Field(...)]', not '= Field(...)'")
    hints = _type_hints(function, signature)
    return [
        (name, hints.get(name, str), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in signature.parameters.items()
    ]


def _type_hints(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """The parameters' types with names resolved; what the function returns does not matter and is not looked at."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = inspect.unwrap(function)
    names = getattr(owner, "__globals__", None) or getattr(type(owner).__call__, "__globals__", {})
    given = {p.name: p.annotation for p in signature.parameters.values() if p.annotation is not p.empty}
    holder = types.SimpleNamespace(__annotations__=given)
    try:
        hints = typing.get_type_hints(holder, globalns=names, include_extras=True)
        return {name: _or_none(hint, signature.parameters[name]) for name, hint in hints.items()}
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        problem = f"a parameter's type cannot be read ({error})"
        raise InputError(f"{_name(function)}: {problem}: use types defined at module level") from None


def _or_none(hint: Any, parameter: inspect.Parameter) -> Any:
    return hint | None if parameter.default is None else hint


def _model_schema(model: type[BaseModel]) -> dict[str, Any]:
    from pydantic.errors import PydanticInvalidForJsonSchema
    from pydantic.json_schema import GenerateJsonSchema

    class Quiet(GenerateJsonSchema):
        def emit_warning(self, kind: Any, detail: str) -> None:
            """A default that JSON cannot show is simply not shown; the function still uses it."""

    try:
        return model.model_json_schema(schema_generator=Quiet)
    except PydanticInvalidForJsonSchema as error:
        reason = _shorten(_one_line(str(error)), 200)
        raise InputError(f"{model.__name__}: a parameter has a type that JSON cannot carry ({reason})") from None


def _read_by_model(
    model: type[BaseModel], parameters: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Validated through JSON text in strict mode: enums and dates are read, but True is no 1 and 1 is no date."""
    from pydantic import ValidationError

    values = _coerced(parameters, arguments)
    try:
        read = model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "arguments"
        message = re.sub(r"^Input (?=should)", "", _shorten(first["msg"], 200))
        raise ToolError(f"'{path}' {message}, but {_preview(first['input'])} was given") from None
    fields = type(read).model_fields
    return {fields[field].alias or field: getattr(read, field) for field in read.model_fields_set}


def _coerced(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with known names only, each coerced to its schema."""
    if not isinstance(arguments, Mapping):
        raise ToolError(f"the arguments should be one JSON object, but {_preview(arguments)} was given")
    properties = parameters.get("properties", {})
    _check_names(properties, parameters, arguments)
    return {name: coerce(value, properties.get(name)) for name, value in arguments.items()}


def _check_names(properties: Iterable[str], parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    known = set(properties)
    closed = "additionalProperties" not in parameters and "patternProperties" not in parameters
    unknown = [name for name in arguments if name not in known] if closed else []
    if unknown:
        given = _preview(arguments[unknown[0]])
        raise ToolError(f"there is no argument {_preview(unknown[0])}, but {given} was given for it")
    missing = [name for name in parameters.get("required", ()) if name not in arguments]
    if missing:
        given = f"only {', '.join(map(_preview, arguments))} was given" if arguments else "nothing was given"
        raise ToolError(f"the argument '{missing[0]}' is missing, {given}")


def _compact(schema: Any, definitions: Mapping[str, Any], inside: frozenset[str]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    name = _local_name(schema.get("$ref"))
    if name in definitions:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        target = {} if name in inside else _compact(definitions[name], definitions, inside | {name})
        return {**target, **_compact(rest, definitions, inside)}
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _MAPS_OF_SCHEMAS:
            result[key] = {each: _compact(part, definitions, inside) for each, part in value.items()}
        elif key in _PLAIN_VALUES:
            result[key] = value
        elif key not in _NOISE:
            result[key] = (
                [_compact(part, definitions, inside) for part in value]
                if isinstance(value, list)
                else _compact(value, definitions, inside)
            )
    return _without_null(result)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    branches = schema.get("anyOf", [])
    others = [branch for branch in branches if branch != {"type": "null"}]
    if len(branches) != 2 or len(others) != 1 or schema.get("default", 0) is not None:
        return schema
    return {**others[0], **{key: value for key, value in schema.items() if key not in ("anyOf", "default")}}


def _local_name(reference: Any) -> str:
    match = re.fullmatch(r"#/(?:\$defs|definitions)/([^/]+)", reference) if isinstance(reference, str) else None
    return match[1].replace("~1", "/").replace("~0", "~") if match else ""


def references(schema: Any) -> Iterator[str]:
    """Every reference in the schema, local or not, in its order."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from references(value)
    elif isinstance(schema, list):
        for part in schema:
            yield from references(part)


def _type_text(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if "enum" in schema:
        return _shorten(" | ".join(json.dumps(choice, ensure_ascii=False) for choice in schema["enum"]), 200)
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(_type_text(branch) for branch in branches)
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"list of {_type_text(schema['items'])}"
    return kind if isinstance(kind, str) else " | ".join(kind)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _preview(value: Any) -> str:
    """The value as JSON, cut short before it is written out in full."""
    if isinstance(value, str):
        value = _shorten(value, _PREVIEW_CHARS)
    elif isinstance(value, (list, tuple)) and len(value) > _PREVIEW_CHARS:
        value = value[:_PREVIEW_CHARS]
    elif isinstance(value, Mapping) and len(value) > _PREVIEW_CHARS:
        value = {"...": len(value)}
    return _shorten(json.dumps(value, ensure_ascii=False, default=repr), _PREVIEW_CHARS + 2)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
