from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from qwen_agent.errors import InputError
from qwen_agent.llm.grammar import Compiler, Grammar, Matcher, call_grammar, closed, json_grammar, step_grammar
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.tokenizer import QwenTokenizer
from qwen_agent.tools.base import Tool, tool


@tool
def search(query: str, limit: int = 3) -> str:
    return query


@tool(name="math.add")
def add(a: float, b: float) -> str:
    return str(a + b)


@tool(args_format="code")
def python(code: str) -> str:
    return code


TOOLS = [search, add, python]


class Text:
    """Whole texts against a grammar, token by token, as the tokenizer cuts them."""

    def __init__(self, tokenizer: Any, stop: int) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.compiler = Compiler(tokenizer, {stop})

    def matcher(self, grammar: Grammar) -> Matcher:
        return self.compiler.matcher(grammar)

    def refused(self, grammar: Grammar, text: str) -> str | None:
        """What is left of the text at the first token that is not allowed; "<end>" if it may not end; None if fine."""
        matcher = self.matcher(grammar)
        forced: list[int] = []
        ids = self.tokenizer.encode(text)
        for at, token in enumerate(ids):
            if forced[:1] == [token]:
                forced = forced[1:]
            elif forced or matcher.ended or not _has(matcher.allowed(999, 999), token):
                return b"".join(map(self.tokenizer.token_bytes, ids[at:])).decode()
            else:
                forced = matcher.advance(token)
        may_end = matcher.ended or _has(matcher.allowed(999, 999), self.stop)
        return None if may_end and not forced else "<end>"


def _has(mask: bytes, token: int) -> bool:
    return bool(mask[token // 8] >> token % 8 & 1)


@pytest.fixture(scope="module")
def small(embedded: LocalRuntime) -> Text:
    return Text(embedded.tokenizer, embedded.tokenizer.specials["<|im_end|>"])


@pytest.fixture(scope="module")
def large(qwen_tokenizer: QwenTokenizer) -> Text:
    return Text(qwen_tokenizer, qwen_tokenizer.specials["<|im_end|>"])


GOOD = [
    'Thought: I should.\nAction: search\nAction Input: {"query": "Eiffel é \\"x\\"", "limit": 5}\nObservation:',
    'Thought: a\nb\nAction: search\nAction Input: {"query": "埃菲尔铁塔"}\nObservation:',
    'Action: math.add\nAction Input: {"a": 1, "b": -2.5e3}\nObservation:',
    "Thought: run it\nAction: python\nAction Input: ```py\nfor i in range(3):\n    print(i)\n```\nObservation:",
    "Thought: I now know the final answer.\nFinal Answer: 3\nAction: is what counts.",
    "Just an answer, with Action: in the middle of a line.",
]


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.parametrize("which", ["small", "large"])
def test_a_step_may_be_a_thought_and_a_call_or_an_answer(text: str, which: str, request: Any) -> None:
    assert request.getfixturevalue(which).refused(step_grammar(TOOLS), text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Action: searches\n",
        "Action: math.sub\n",
        'Action: search\nAction Input: {"limit": 3}',
        'Action: search\nAction Input: {"query": 3}',
        'Action: search\nAction Input: {"query": "a", "other": 1}',
        'Action: math.add\nAction Input: {"a": "1"',
        "Action: python\nAction Input: print(1)",
        "Thought: so\nAction: search\nAction Input: hello",
        'Action: search\nAction Input: {"query": "a"}\nThought: and',
    ],
)
def test_a_call_of_another_tool_or_with_wrong_arguments_cannot_be_written(text: str, large: Text) -> None:
    refused = large.refused(step_grammar(TOOLS), text)
    assert refused is not None
    assert text.endswith(refused)


def test_a_required_call_cannot_be_evaded(small: Text) -> None:
    grammar = call_grammar([search])
    assert small.refused(grammar, 'Thought: ok\nAction: search\nAction Input: {"query": "a"}\nObservation:') is None
    assert small.refused(grammar, "Thought: I could just answer.") == "<end>"
    assert small.refused(grammar, "Thought: I now know") is not None
    assert small.refused(grammar, "Action: math.add") is not None


def test_an_answer_can_be_made_to_fit_a_schema(small: Text) -> None:
    metres = {"type": "object", "properties": {"metres": {"type": "integer"}}, "required": ["metres"]}
    grammar = step_grammar([search], metres)
    assert small.refused(grammar, 'Thought: I now know.\nFinal Answer: {"metres": 330}') is None
    assert small.refused(grammar, "Thought: I now know.\nFinal Answer: 330 m") is not None
    assert small.refused(grammar, "330 m") == "<end>"
    assert small.refused(json_grammar(metres, lead=" "), ' {"metres": 330}') is None


def test_what_must_follow_is_not_chosen(small: Text) -> None:
    matcher = small.matcher(step_grammar([search, python]))
    forced: list[int] = []
    for token in small.tokenizer.encode("Action: search"):
        forced = matcher.advance(token)
    assert b"".join(map(small.tokenizer.token_bytes, forced)) == b'\nAction Input: {"query":'


def test_a_tool_without_parameters_takes_an_empty_object(small: Text) -> None:
    nothing = Tool("now", "the time", {"type": "object", "properties": {}}, lambda: "12:00")
    assert small.refused(step_grammar([nothing]), "Action: now\nAction Input: {}\nObservation:") is None


SCHEMAS: list[dict[str, Any]] = [
    {"a": {"type": "string"}, "b": {"type": "integer", "minimum": 1, "maximum": 40}},
    {"kind": {"enum": ["x", "y z", 3]}, "flag": {"type": "boolean"}},
    {"xs": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 4}},
    {"o": {"type": "object", "properties": {"p": {"type": "string"}, "q": {"type": "null"}}, "required": ["q"]}},
    {"when": {"type": "string", "format": "date"}, "any": {}},
    {"u": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}]}},
    {"r": {"$ref": "#/$defs/node"}},
]
DEFS = {"node": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}}


@pytest.mark.parametrize("properties", SCHEMAS)
def test_whatever_is_sampled_within_a_budget_is_valid(properties: dict[str, Any], small: Text) -> None:
    """Random tokens of those allowed: the worst model there is. Near the end of its budget it is made to close."""
    schema = {"type": "object", "properties": properties, "required": list(properties), "$defs": DEFS}
    for seed in range(3):
        text = _sampled(small, json_grammar(schema), random.Random(seed), limit=150)
        jsonschema.validate(json.loads(text), closed(schema), format_checker=jsonschema.FormatChecker())


def _sampled(text: Text, grammar: Grammar, rng: random.Random, limit: int) -> str:
    matcher, written = text.matcher(grammar), []
    while not matcher.ended and len(written) < limit:
        mask = matcher.allowed(limit - len(written), limit)
        token = int(rng.choice(np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))))
        if token == text.stop:
            break
        written += [token, *matcher.advance(token)]
    return b"".join(map(text.tokenizer.token_bytes, written)).decode()


def test_objects_that_list_their_properties_are_closed() -> None:
    schema = {"properties": {"enum": {"type": "string"}, "o": {"properties": {}}}, "required": ["o"]}
    assert closed(schema) == {
        "properties": {"enum": {"type": "string"}, "o": {"properties": {}, "additionalProperties": False}},
        "required": ["o"],
        "additionalProperties": False,
    }
    assert closed({"properties": {}, "additionalProperties": True})["additionalProperties"] is True


def test_a_grammar_that_cannot_be_compiled_is_refused(small: Text) -> None:
    with pytest.raises(InputError, match=re.escape("this grammar cannot be used")):
        small.matcher(Grammar("start: nowhere"))
