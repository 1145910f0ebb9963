"""Promises of the parser that hold for any text: what a model may write, and what no one would."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qwen_agent.arguments import read_arguments

steady = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = Path(__file__).parent.parent / "eval" / "parser_fuzz.py"
    spec = importlib.util.spec_from_file_location("parser_fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parser_fuzz"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("make", ["assembled", "mutated"])
def test_outputs_of_the_fuzz_break_no_promise(fuzz: ModuleType, make: str) -> None:
    rng = Random(7)
    for _ in range(300):
        text = getattr(fuzz, make)(rng)
        assert fuzz.violations(text, fuzz.ways_to_cut(text, rng)) == [], text


@given(st.text(), st.sets(st.integers(1, 200)))
@example("Action", set())
@example("**Action:", {9})
@example("```\nObservation:", {4})
@settings(steady, max_examples=300)
def test_any_text_in_any_pieces_breaks_no_promise(fuzz: ModuleType, text: str, cuts: set[int]) -> None:
    places = sorted(cut for cut in cuts if cut < len(text))
    assert fuzz.violations(text, [places, range(1, len(text))]) == []


@given(st.data())
@settings(steady, max_examples=300)
def test_any_pieces_of_steps_break_no_promise(fuzz: ModuleType, data: st.DataObject) -> None:
    """As the fuzz does, but with outputs that hypothesis can make small."""
    markers = [
        lead + name + tail for lead in set(fuzz.LEADS) for name in fuzz.NAMES[:7] for tail in (":", "**：", ":**")
    ]
    pieces = st.sampled_from(["\n" + marker for marker in markers]) | st.sampled_from(fuzz.PIECES)
    text = "".join(data.draw(st.lists(pieces, max_size=12)))
    assert fuzz.violations(text, [(place,) for place in range(1, len(text))]) == []


# ---- arguments by schema --------------------------------------------------------------------------------------------

# Pairs of a schema and an instance of it, grown together. (hypothesis-jsonschema 0.23.1 makes no objects with the
# hypothesis of constraints.txt: it uses internals that are gone.)

Pair = tuple[dict[str, Any], Any]


def _leaves(schema: dict[str, Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Pair]:
    return st.tuples(st.just(schema), values)


def _nested(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    arrays = st.lists(inner, max_size=3).map(
        lambda pairs: (
            {"type": "array", "items": {"anyOf": [schema for schema, _ in pairs]} if pairs else {}},
            [value for _, value in pairs],
        )
    )
    return arrays | _objects(inner)


def _objects(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    names = st.sampled_from(["query", "a", "b-c", "北京", "it's", '"']) | st.text(max_size=3)
    return st.tuples(st.dictionaries(names, inner, max_size=4), st.sets(names)).map(lambda drawn: _object(*drawn))


def _object(properties: dict[str, Pair], optional: set[str]) -> Pair:
    schema = {
        "type": "object",
        "properties": {name: schema for name, (schema, _) in properties.items()},
        "required": [name for name in properties if name not in optional],
    }
    return schema, {name: value for name, (_, value) in properties.items()}


TRICKY = st.lists(st.sampled_from([*"\"'{}[]():,`\\ a1：，“”\n", "```", "\n```", "//", "/*", "True"])).map("".join)
LEAVES = st.one_of(
    _leaves({"type": "string"}, st.text() | TRICKY),
    _leaves({"type": "integer"}, st.integers()),
    _leaves({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False)),
    _leaves({"type": ["boolean", "null"]}, st.none() | st.booleans()),
    _leaves({"enum": ["a", 1, None, [1.5]]}, st.sampled_from(["a", 1, None, [1.5]])),
)
PAIRS = _objects(st.recursive(LEAVES, _nested, max_leaves=5))

NOISE: list[Callable[[dict[str, Any]], str]] = [
    json.dumps,
    lambda values: json.dumps(values, ensure_ascii=False, indent=2),
    repr,
    lambda values: f"```json\n{json.dumps(values)}\n```",
    lambda values: f"```{values!r}```",
    lambda values: json.dumps(values) + "\nI wait for the result.",
    lambda values: f"{values!r} and then {{",
    lambda values: json.dumps(values)[:-1] + ("," if values else "") + "}",
    lambda values: json.dumps(values) + "}}",
    lambda values: "{" + json.dumps(values) + "}",
    lambda values: json.dumps(json.dumps(values)),
    lambda values: json.dumps(values)[:-1] if values else "{}",
]


@given(PAIRS, st.sampled_from(NOISE))
@settings(steady, max_examples=300)
def test_an_instance_of_a_schema_is_read_back_through_noise(pair: Pair, noise: Callable[[dict[str, Any]], str]) -> None:
    schema, values = pair
    assert Draft202012Validator(schema).is_valid(values)
    found = read_arguments(noise(values), schema)
    assert found.values == values
