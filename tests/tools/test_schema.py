import enum
import functools
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools.schema import (
    check_parameters,
    coerce,
    compact,
    describe_call,
    function_schema,
    read_by_schema,
)

EMPTY: list[int] = []
FIELD = Field(3)


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = "kelvin"


class Point(BaseModel):
    x: int
    y: float = 0.0


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


def parameters(function: Any) -> dict[str, Any]:
    return function_schema(function).parameters


def test_a_typed_function_becomes_a_schema_without_noise():
    def find(query: str, limit: int = 3, exact: bool = False): ...

    assert parameters(find) == {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "integer", "default": 3},
            "exact": {"type": "boolean", "default": False},
        },
        "required": ["query"],
    }


def test_a_parameter_without_annotation_is_a_string():
    assert parameters(lambda text: text)["properties"] == {"text": {"type": "string"}}


def test_no_parameters_is_an_empty_object():
    assert parameters(lambda: 1) == {"type": "object", "properties": {}}


GOOGLE = """Find a thing.

Args:
    query: what to
        look for
"""
NUMPY = """Find a thing.

Parameters
----------
query : str
    what to look for
"""
SPHINX = """Find a thing.

:param query: what to look for
"""


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, SPHINX])
def test_docstring_styles(docstring):
    def find(query: str, other: int = 0): ...

    find.__doc__ = docstring
    described = function_schema(find)
    assert described.description == "Find a thing."
    assert described.parameters["properties"]["query"]["description"] == "what to look for"
    assert "description" not in described.parameters["properties"]["other"]


def test_a_missing_docstring_is_fine():
    assert function_schema(lambda x: x).description == ""


def test_an_annotated_description_wins_over_the_docstring():
    def find(query: Annotated[str, Field(description="short", min_length=2)]):
        """Find.

        Args:
            query: long
        """

    assert parameters(find)["properties"]["query"] == {"type": "string", "description": "short", "minLength": 2}


def test_enums_and_nested_models_are_written_in_place():
    def move(to: Point, unit: Unit, mode: Literal["fast", "slow"] = "fast"): ...

    properties = parameters(move)["properties"]
    assert properties["to"]["properties"] == {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.0}}
    assert properties["unit"] == {"type": "string", "enum": ["celsius", "kelvin"]}
    assert properties["mode"] == {"type": "string", "enum": ["fast", "slow"], "default": "fast"}


def test_a_recursive_model_ends():
    def plant(tree: Tree): ...

    assert parameters(plant)["properties"]["tree"]["properties"]["children"]["items"] == {}


def test_a_property_named_title_is_kept():
    assert "title" in parameters(lambda title: title)["properties"]


def test_an_optional_parameter_is_written_short_but_takes_null():
    def find(limit: int | None = None): ...

    described = function_schema(find)
    assert described.parameters["properties"] == {"limit": {"type": "integer"}}
    assert described.read({"limit": None}) == {"limit": None}


def test_a_default_of_none_makes_a_parameter_optional():
    def find(limit: int = None): ...  # noqa: RUF013

    assert function_schema(find).read({"limit": None}) == {"limit": None}


@pytest.mark.parametrize("name", ["json", "copy", "_hidden", "model_config", "field_0", "schema"])
def test_any_parameter_name_works(name):
    namespace: dict[str, Any] = {}
    exec(f"def f(first: int, {name}: int): ...", namespace)
    described = function_schema(namespace["f"])
    assert list(described.parameters["properties"]) == ["first", name]
    assert described.read({"first": 1, name: 2}) == {"first": 1, name: 2}


def test_defaults_are_left_to_the_function():
    marker = object()

    def f(x: int, y: Any = marker, z: list[int] = EMPTY): ...

    assert function_schema(f).read({"x": 1}) == {"x": 1}


def test_values_reach_the_function_as_their_python_types():
    def f(point: Point, unit: Unit, day: date, pair: tuple[int, str]): ...

    arguments = {"point": {"x": "1"}, "unit": "Celsius", "day": "2024-02-29", "pair": ["7", 8]}
    assert function_schema(f).read(arguments) == {
        "point": Point(x=1),
        "unit": Unit.CELSIUS,
        "day": date(2024, 2, 29),
        "pair": (7, "8"),
    }


def starred(*words: str): ...


def keywords(**options: str): ...


def positional(x: int, /): ...


@pytest.mark.parametrize("function", [starred, keywords, positional])
def test_parameters_a_model_cannot_name_are_refused(function):
    with pytest.raises(InputError, match="name every parameter"):
        function_schema(function)


def test_a_type_that_json_cannot_carry_is_refused():
    class Socket: ...

    for kind in (Socket, type(lambda: 0)):
        namespace = {"kind": kind}
        exec("def f(x: kind): ...", namespace)
        with pytest.raises(InputError, match="cannot carry"):
            function_schema(namespace["f"])


def test_an_unknown_annotation_is_refused():
    for annotation in ("Nowhere", "date.nothing", "not an expression"):
        namespace: dict[str, Any] = {"date": date}
        exec(f"def f(x: {annotation!r} = None): ...", namespace)
        with pytest.raises(InputError, match="module level"):
            function_schema(namespace["f"])


def test_a_field_as_default_is_refused():
    def f(x: int = FIELD): ...

    with pytest.raises(InputError, match="Annotated"):
        function_schema(f)


def test_partials_methods_and_callable_objects():
    class Finder:
        """Finds."""

        def find(self, query: "str") -> "Nowhere":  # noqa: F821
            """Find."""

        def __call__(self, query: "str"): ...

    finder = Finder()
    for function in (finder.find, finder, functools.partial(finder.find)):
        assert parameters(function)["properties"] == {"query": {"type": "string"}}
        assert function_schema(function).description.startswith("Find")


@pytest.mark.parametrize(
    "value, schema, expected",
    [
        ("3", {"type": "integer"}, 3),
        (3.0, {"type": "integer"}, 3),
        ("3.0", {"type": "integer"}, 3),
        (3.5, {"type": "integer"}, 3.5),
        ("three", {"type": "integer"}, "three"),
        ("9" * 5000, {"type": "integer"}, "9" * 5000),
        ("2.5", {"type": "number"}, 2.5),
        ("1e999", {"type": "number"}, "1e999"),
        ("True", {"type": "boolean"}, True),
        ("yes", {"type": "boolean"}, "yes"),
        (1, {"type": "boolean"}, 1),
        (42, {"type": "string"}, "42"),
        (True, {"type": "string"}, "true"),
        (None, {"type": "string"}, None),
        ("a", {"type": "array", "items": {"type": "string"}}, ["a"]),
        ("7", {"type": "array", "items": {"type": "integer"}}, [7]),
        ('["a", "b"]', {"type": "array"}, ["a", "b"]),
        (None, {"type": "array"}, None),
        ('{"x": "1"}', {"type": "object", "properties": {"x": {"type": "integer"}}}, {"x": 1}),
        ("null", {"type": ["integer", "null"]}, None),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 5),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "5"),
        (" KELVIN ", {"enum": ["celsius", "kelvin"]}, "kelvin"),
        ("2", {"enum": [1, 2]}, 2),
        ("other", {"enum": [1, 2]}, "other"),
        ("anything", {}, "anything"),
    ],
)
def test_coercion_changes_only_what_loses_nothing(value, schema, expected):
    result = coerce(value, schema)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize("given", [True, "x", 1.5, [1, 2], {}, None])
def test_what_does_not_fit_is_named_with_what_was_given(given):
    def f(limit: int): ...

    explicit = {"type": "object", "properties": {"limit": {"type": "integer"}}}
    for read in (function_schema(f).read, functools.partial(read_by_schema, explicit)):
        with pytest.raises(ToolError, match=r"'limit.* should .* integer.* was given"):
            read({"limit": given})


@pytest.mark.parametrize("arguments", [{}, {"q": "x"}, None, [], "query"])
def test_missing_unknown_and_shapeless_arguments(arguments):
    def f(query: str): ...

    with pytest.raises(ToolError, match=r"missing|no argument|JSON object"):
        function_schema(f).read(arguments)


def test_explicit_schemas_keep_their_own_rule_for_unknown_names():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with pytest.raises(ToolError, match='no argument "b"'):
        read_by_schema(schema, {"b": 1})
    assert read_by_schema({**schema, "additionalProperties": True}, {"b": 1}) == {"b": 1}


def test_explicit_schemas_with_local_references_are_checked():
    schema = {"$defs": {"n": {"type": "integer", "minimum": 1}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    check_parameters(schema)
    assert read_by_schema(schema, {"a": "3"}) == {"a": 3}
    with pytest.raises(ToolError, match="'a': 0 is less"):
        read_by_schema(schema, {"a": 0})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"properties": []},
        {"properties": {"a": {"type": "nonsense"}}},
        {"properties": {"a": {"$ref": "http://example.com/schema.json"}}},
    ],
)
def test_unusable_explicit_schemas_are_refused(schema):
    with pytest.raises(InputError):
        check_parameters(schema)


def test_the_call_is_described_like_a_signature():
    def f(a: str, unit: Unit, b: list[int] = EMPTY, c: int | None = None): ...

    described = describe_call("f", parameters(f))
    assert described == 'f(a: string, unit: "celsius" | "kelvin", b: list of integer = [], c: integer (optional))'


def test_compact_leaves_the_given_schema_alone():
    schema = {"title": "T", "$defs": {"a": {"title": "A", "type": "string"}}, "items": [{"$ref": "#/$defs/a"}]}
    before = repr(schema)
    assert compact(schema) == {"items": [{"type": "string"}]}
    assert repr(schema) == before
