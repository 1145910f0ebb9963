"""What is written as an action input, and what is read from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent.arguments import read_arguments, read_object

QUERY = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TWO = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]}
CODE = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
X = {"query": "x"}

FENCE = "a code fence was removed"
AFTER = "text after the object was dropped"
JSON5 = "JSON5 was accepted"
PYTHON = "Python literals were accepted"
WIDE = "full-width punctuation was read as ASCII"
QUOTES = "quotes inside a string were kept"
BARE = "bare text was read as query"

MENDED: list[tuple[str, dict[str, Any], list[str]]] = [
    ('{"query": "x"}', X, []),
    ('{"query": "a\nb\t"}', {"query": "a\nb\t"}, []),
    ('{"query": "x", "query": "y"}', {"query": "y"}, []),
    ('```json\n{"query": "x"}\n```', X, [FENCE]),
    ('```\r\n{"query": "x"}\r\n```\r\nThat is all.', X, [FENCE]),
    ('```json {"query": "x"}```', X, [FENCE]),
    ('```{"query": "x"}```', X, [FENCE]),
    ('```json\n{"query": "x"}', X, [FENCE]),
    ('```json\n{"query": "```py"}\n```', {"query": "```py"}, [FENCE]),
    ('{"query": "x"} and so on', X, [AFTER]),
    ('{"query": "x"}\n```', X, [AFTER]),
    ('{"query": "x"}{"query": "y"}', X, [AFTER]),
    ('{"query": "x"}}', X, ["a surplus } was dropped"]),
    ('{"query": "x"})', X, ["a surplus } was dropped"]),
    ('{{"query": "x"}}', X, ["doubled braces were read as single"]),
    ('{{"query": {{"b": 1}}}}', {"query": {"b": 1}}, ["doubled braces were read as single"]),
    ("{'query': 'x',}", X, [JSON5]),
    ("{query: 'x' /* what */} // so", X, [JSON5, AFTER]),
    ('{"a": [1, 2,], "b": +.5}', {"a": [1, 2], "b": 0.5}, [JSON5]),
    (r"{'query': 'it\'s \x41\u0042\U0001F600'}", {"query": "it's AB😀"}, [JSON5]),
    ("{'query': None, 'b': True}", {"query": None, "b": True}, [JSON5, PYTHON]),
    ("{'query': (1, (2,), [])}", {"query": [1, [2], []]}, [JSON5, PYTHON]),
    ('{"query": """a "b"\nc"""}', {"query": 'a "b"\nc'}, [PYTHON]),
    ("{“query”：“x”，“b”：［1］}", X | {"b": [1]}, [WIDE]),
    ('｛"query": "x"｝', X, [WIDE]),
    ('{"query": "“x”，：", }', {"query": "“x”，："}, [JSON5]),
    ('{"query": "x"', X, ["a missing } was added"]),
    ('{"query": {"b": [1, [2', {"query": {"b": [1, [2]]}}, ["a missing ]]}} was added"]),
    ('{"query": [1, 2}', {"query": [1, 2]}, ["a missing ] was added"]),
    ('{"query": {"b": 1]}', {"query": {"b": 1}}, ["a surplus ] was dropped", "a missing } was added"]),
    ('{"query": "x', X, ['a missing " was added', "a missing } was added"]),
    ('{"query": "x}', X, ['a missing " was added']),
    ('{"query": "f({1: 2}', {"query": "f({1: 2}"}, ['a missing " was added', "a missing } was added"]),
    ('{"query": "print("hi")"}', {"query": 'print("hi")'}, [QUOTES]),
    ("{'query': 'what's up'}", {"query": "what's up"}, [JSON5, QUOTES]),
    (r'{"query": "C:\dir \d+"}', {"query": r"C:\dir \d+"}, ["a backslash was kept as text"]),
    (r"{'query': '\U00110000'}", {"query": r"\U00110000"}, [JSON5, "a backslash was kept as text"]),
    ('"{\\"query\\": \\"x\\"}"', X, ["an object was read from a string"]),
    ('"query": "x"}', X, ["a missing { was added"]),
    ('query="x"', X, ["a missing { was added", JSON5, "= was read as :", "a missing } was added"]),
    ('Here it is: {"query": "x"}', X, ["text before the object was dropped"]),
    ("Eiffel Tower height", {"query": "Eiffel Tower height"}, [BARE]),
    ('"Eiffel \\"Tower\\""', {"query": 'Eiffel "Tower"'}, [BARE]),
    ("'Eiffel'", {"query": "Eiffel"}, [BARE]),
    ("query: Eiffel", {"query": "Eiffel"}, [BARE]),
    ("what is {x}?", {"query": "what is {x}?"}, [BARE]),
    ("```\nEiffel\n```", {"query": "Eiffel"}, [FENCE, BARE]),
]


@pytest.mark.parametrize(("raw", "values", "repairs"), MENDED, ids=[row[0] for row in MENDED])
def test_what_can_be_mended_is_and_says_so(raw: str, values: dict[str, Any], repairs: list[str]) -> None:
    found = read_arguments(raw, QUERY)
    assert (found.values, list(found.repairs)) == (values, repairs)


@pytest.mark.parametrize(
    "raw",
    [
        *("", "[1, 2]", "3", "null", "{]", '{"a": }', "{", '{"a"', '{"a": [', '{"a": 1, "b"', '"{"', "a: 1\nb: 2"),
        *('{"a": x}', '{"a": 1 "b": 2}', '{"b": "x" "a": "y"}', '{"a": ["x"\n"y"]}', "{'a': 'x' 'y'}", "{{1, 2}}"),
        *('{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "{'a': NaN}", '{"a": 0x1F}', '{"a": 007}', "(1)"),
        *('{"a": ' * 5000, '{"a": ' + "9" * 5000 + "}", "{'a': 'what's up}", "{'a: 1, 'b': 2}"),
        *('{"a" 1, "b": 2}', '{"a": [1 2]}', '{"a": ["x, "y"]}', """{"a": "it's, 'b': 2}""", "see {}", 'see {"c": 1}'),
    ],
)
def test_a_guess_is_a_problem_in_one_sentence(raw: str) -> None:
    found = read_arguments(raw, TWO)
    assert found.values is None
    assert "JSON object" in found.problem
    assert len(found.problem) < 200


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_a_sign_that_is_lost_is_put_back_or_makes_a_problem_but_never_another_value(write: Any) -> None:
    values = {"query": "Eiffel", "tags": ["x", "y z"], "n": 15}
    text = write(values)
    for at, sign in enumerate(text):
        if not sign.isalnum() and sign != " ":
            assert read_arguments(text[:at] + text[at + 1 :], TWO).values in (None, values)


@pytest.mark.parametrize(
    ("raw", "code", "repairs"),
    [
        ("print(1)", "print(1)", 0),
        ("```print(1)```", "print(1)", 0),
        ("```py\nprint(1)\n```", "print(1)", 0),
        ("`print(1)`", "print(1)", 0),
        ("Here:\n```py\nprint('```')\nx = {}\n```\nThat prints.", "print('```')\nx = {}", 1),
        ('{"code": "print(1)"}', "print(1)", 0),
        ('```json\n{"code": "print("hi")"}\n```', 'print("hi")', 1),
        ("{'a': 1}", "{'a': 1}", 0),
        ("{x for x in y}", "{x for x in y}", 0),
    ],
)
def test_a_code_tool_takes_bare_or_fenced_code_or_an_object(raw: str, code: str, repairs: int) -> None:
    found = read_arguments(raw, CODE, "code")
    assert (found.values, len(found.repairs)) == ({"code": code}, repairs)


def test_no_code_is_a_problem() -> None:
    assert read_arguments("```\n```", CODE, "code").values is None


def test_no_arguments_for_a_tool_that_needs_none() -> None:
    found = read_arguments(" ", {"type": "object", "properties": {}})
    assert (found.values, found.repairs) == ({}, ("an empty input was read as no arguments",))


def test_an_object_ends_where_the_text_goes_on() -> None:
    found = read_object('{"a": 1}} then {')
    assert found is not None
    assert found.end == len('{"a": 1}}')
    assert read_object(" {}") is None


steady = settings(derandomize=True, deadline=None, database=None)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@steady
@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4), st.booleans(), st.sampled_from([None, 2]))
def test_valid_json_is_never_changed(values: dict[str, object], ascii_only: bool, indent: int | None) -> None:
    for schema in (TWO, QUERY, {}):
        found = read_arguments(json.dumps(values, ensure_ascii=ascii_only, indent=indent), schema)
        assert (found.values, found.repairs) == (values, ())


@steady
@given(
    st.text()
    | st.lists(
        st.sampled_from([*"\"'{}[]():=,“”，：a1\\ \n", '{"', '":', "```", "//", "/*", '"""', "\\u", "None"])
    ).map("".join)
)
def test_nothing_raises_and_a_problem_is_told_exactly_when_there_are_no_values(raw: str) -> None:
    for schema in (QUERY, TWO, {}, {"properties": {"a": True}}, {"properties": {"a": {"type": ["string", "null"]}}}):
        for found in (read_arguments(raw, schema), read_arguments(raw, schema, "code")):
            assert (found.values is None) == bool(found.problem)
