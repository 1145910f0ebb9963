from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_agent.parser import Parsed, StepParser, read_arguments
from qwen_agent.types import Delta

CALL = 'Thought: I should search.\nAction: search\nAction Input: {"query": "Eiffel"}\n'
QUERY = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TWO = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]}


def parse(text: str, *cuts: int) -> tuple[list[Delta], Parsed]:
    parser = StepParser()
    bounds = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    deltas = [d for a, b in itertools.pairwise(bounds) for d in parser.feed(text[a:b])]
    held, parsed = parser.finish()
    return deltas + held, parsed


def test_a_call() -> None:
    _, parsed = parse(CALL)
    assert (parsed.thought, parsed.action) == ("I should search.", "search")
    assert json.loads(parsed.action_input) == {"query": "Eiffel"}
    assert (parsed.answer, parsed.kept, parsed.discarded) == (None, CALL, "")


def test_a_final_answer_of_several_lines() -> None:
    _, parsed = parse("Thought: done\nFinal Answer: 990\n\nThat is 3 x 330.")
    assert parsed.answer == "990\n\nThat is 3 x 330."
    assert parsed.action is None


def test_an_action_at_position_0_and_a_continued_thought() -> None:
    assert parse("Action: a\nAction Input: {}")[1].action == "a"
    assert parse(" I now know.\nFinal Answer: x")[1].thought == "I now know."


@pytest.mark.parametrize(
    "text",
    ["Action：search\nAction Input：{}", "action: `search`\nACTION INPUT: {}", "Action:  search()\nAction  Input: {}"],
)
def test_spellings_of_other_models(text: str) -> None:
    parsed = parse(text)[1]
    assert (parsed.action, parsed.action_input) == ("search", "{}")


def test_the_first_action_wins_and_inventions_are_cut() -> None:
    invented = "Observation: 12 m\nThought: so\nAction: other\nAction Input: {}\nFinal Answer: 36"
    _, parsed = parse(CALL + invented)
    assert (parsed.action, parsed.answer) == ("search", None)
    assert (parsed.kept, parsed.discarded) == (CALL, invented)


def test_an_action_after_a_final_answer_is_cut() -> None:
    _, parsed = parse("Final Answer: 1\nAction: x\nAction Input: {}")
    assert (parsed.answer, parsed.action) == ("1", None)


def test_words_that_begin_like_markers_are_text() -> None:
    _, parsed = parse("Thought: a\nActionable advice: none\nThoughtful\nFinal Answer: b")
    assert parsed.thought == "a\nActionable advice: none\nThoughtful"


def test_plain_text_is_a_thought_or_in_a_chat_the_answer() -> None:
    assert parse("Hello!")[1].thought == "Hello!"
    chat = StepParser("final_answer")
    chat.feed("Action: is what counts.\nThought: none.")
    assert chat.finish()[1].answer == "Action: is what counts.\nThought: none."


PIECES = [
    "Thought:",
    "Action:",
    "Action Input:",
    "Observation:",
    "Final Answer:",
    "\n",
    " ",
    "{",
    '"',
    "x",
    "：",
    "\x0b",
    "\u2028",
]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text(), st.lists(st.integers(0, 200)))
@example("Action", [])
def test_any_text_in_any_pieces_parses_the_same_and_loses_nothing(text: str, cuts: list[int]) -> None:
    whole_deltas, whole = parse(text)
    deltas, parsed = parse(text, *cuts)
    assert parsed == whole
    assert sorted(parsed.kept + parsed.discarded) == sorted(text)
    assert "".join(d.text for d in deltas) == "".join(d.text for d in whole_deltas)


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        ('{"query": "x"}', {"query": "x"}),
        ('```json\n{"query": "x"}\n```', {"query": "x"}),
        ("{'query': 'x',}", {"query": "x"}),
        ('{"query": "x"', {"query": "x"}),
        ('{"query": "x', {"query": "x"}),
        ('{"query": "x"} and so on', {"query": "x"}),
        ('{"query": "x"}}', {"query": "x"}),
        ("Eiffel Tower height", {"query": "Eiffel Tower height"}),
        ('"Eiffel"', {"query": "Eiffel"}),
        ('{"query": "a\nb"}', {"query": "a\nb"}),
    ],
)
def test_what_can_be_mended_is_and_says_so(raw: str, values: dict[str, str]) -> None:
    found = read_arguments(raw, QUERY)
    assert found.values == values
    assert bool(found.repairs) == (raw not in ('{"query": "x"}', '{"query": "a\nb"}'))


@pytest.mark.parametrize("raw", ["", "[1, 2]", "3", "null", "{]", '{"a": }'])
def test_what_cannot_be_read_is_a_problem_in_one_sentence(raw: str) -> None:
    found = read_arguments(raw, TWO)
    assert found.values is None
    assert "JSON object" in found.problem


def test_a_code_tool_takes_bare_or_fenced_code() -> None:
    schema = {"properties": {"code": {"type": "string"}}, "required": ["code"]}
    for raw in ("print(1)", "```py\nprint(1)\n```", '{"code": "print(1)"}'):
        assert read_arguments(raw, schema, "code").values == {"code": "print(1)"}


def test_no_arguments_for_a_tool_that_needs_none() -> None:
    assert read_arguments("", {"type": "object", "properties": {}}).values == {}


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())))
def test_valid_json_is_never_changed(values: dict[str, object]) -> None:
    found = read_arguments(json.dumps(values), TWO)
    assert (found.values, found.repairs) == (values, ())


@given(
    st.text()
    | st.lists(st.sampled_from(['{"', "'", '":', "}", "{", "[", "]", ",", "a", "1", "```", "\\"])).map("".join)
)
def test_nothing_raises(raw: str) -> None:
    for schema in (QUERY, TWO, {}):
        found = read_arguments(raw, schema)
        assert (found.values is None) == bool(found.problem)
