from __future__ import annotations

import itertools
import json

import pytest

from qwen_agent.arguments import read_arguments
from qwen_agent.parser import Parsed, StepParser
from qwen_agent.types import Delta

CALL = 'Thought: I should search.\nAction: search\nAction Input: {"query": "Eiffel"}\n'
INPUT = 'Action Input: {"query": "x"}'
X = {"query": "x"}
SCHEMA = {"properties": {"query": {"type": "string"}, "n": {"type": "integer"}}, "required": ["query"]}


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


# What models really write: the output, the call's name and arguments, and what had to be overlooked to read it.
CALLS = [
    (f"Action：search\nAction Input：{json.dumps(X)}", X, ["'Action：'", "'Action Input：'"]),
    (f"action: search\n{INPUT}", X, ["'action:'"]),
    (f"ACTION : search\n{INPUT}", X, ["'ACTION :'"]),
    (f"**Action:** search\n**{INPUT.replace(':', ':**', 1)}", X, ["'**Action:**'", "'**Action Input:**'"]),
    (f"**Action**: search\n{INPUT}", X, ["'**Action**:'"]),
    (f"### Action: search\n### {INPUT}", X, ["'### Action:'", "'### Action Input:'"]),
    (f"> **Action:** search\n> {INPUT}", X, ["'> **Action:**'", "'> Action Input:'"]),
    (f"__Action__: search\n{INPUT}", X, ["'__Action__:'"]),
    (f"**Action: search**\n{INPUT}", X, ["'**Action:'", "the ** round a part"]),
    (f"`Action: search`\n{INPUT}", X, ["'`Action:'", "the ` round a part"]),
    (f"\u3000\tAction: search\r\n{INPUT}\r\n", X, []),
    (f"Action: search\nActionInput: {json.dumps(X)}", X, ["'ActionInput:'"]),
    (f"Action: search\nAction_Input: {json.dumps(X)}", X, ["'Action_Input:'"]),
    (f"Action:\n  search\n{INPUT}", X, []),
    (f"Action: search {INPUT}", X, ["Action Input: was read in the middle of a line"]),
    (f"Action: search **{INPUT.replace(':', ':**', 1)}", X, ["Action Input: was read in the middle of a line"]),
    (f"I need facts. Action: search\n{INPUT}", X, ["Action: was read in the middle of a line"]),
    (f"Action: search\nI will search for x.\n{INPUT}", X, ["the name search was read from"]),
    (f"Action: `search`\n{INPUT}", X, ["the name search was read from"]),
    (f'Action: "search"\n{INPUT}', X, ["the name search was read from"]),
    (f"Action: [search]\n{INPUT}", X, ["the name search was read from"]),
    (f"Action: **search**.\n{INPUT}", X, ["the name search was read from"]),
    (f"Action: search()\n{INPUT}", X, ["the name search was read from"]),
    (f"思考：查\n行动：search\n行动输入：{json.dumps(X)}\n观察：12", X, ["'思考：'", "'行动：'", "'行动输入：'"]),
    ('Action: search(query="x")', X, ["was read as a call"]),
    ('Action: search(query="x", n=3)\nObservation: 12', X | {"n": 3}, ["was read as a call"]),
    ("Action: search(query='x', n=None)", X | {"n": None}, ["was read as a call"]),
    ('Action: search({"query": "x"})', X, ["was read as a call"]),
    ('Action: search("x")', X, ["was read as a call", "bare text"]),
    ("Action: search(what's up)", {"query": "what's up"}, ["was read as a call", "bare text"]),
    ('Action: search(query="a (b", n=3) to find it', {"query": "a (b", "n": 3}, ["was read as a call"]),
    ("Action: search[Eiffel Tower]", {"query": "Eiffel Tower"}, ["was read as a call", "bare text"]),
    ('Action: search {"query": "x"}', X, ["was read as a call"]),
    ('Action: search\n{"query": "x"}', X, ["was read as a call"]),
    ('Action: search\n```json\n{"query": "x"}\n```', X, ["was read as a call", "text after"]),
    ('Action:\n```\n{"action": "search", "action_input": {"query": "x"}}\n```', X, ["was read as a call"]),
    ('Action: {"name": "search", "arguments": {"query": "x"}}', X, ["was read as a call"]),
    ('{"name": "search", "arguments": {"query": "x"}}', X, ["a JSON object was read as a call"]),
    ('{"name": "search", "parameters": {"query": "x"}}', X, ["a JSON object was read as a call"]),
    ('{"action": "search", "action_input": "x"}', X, ["a JSON object was read as a call", "bare text"]),
    ('```json\n{"action": "search", "action_input": {"query": "x"}}\n```', X, ["a JSON object was read as a call"]),
    ('Let me see.\n{"name": "search", "arguments": {"query": "x"}}', X, ["a JSON object was read as a call"]),
    (
        '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>',
        X,
        ["a JSON object was read as a call"],
    ),
    (
        '<tool_call>{"name": "search", "arguments": {"query": "x"}</tool_call>\n<tool_call>{"name": "b"}</tool_call>',
        X,
        ["a JSON object was read as a call", "a missing } was added"],
    ),
    (f"```\nThought: t\nAction: search\n{INPUT}\n```", X, ["a code fence round the step"]),
    (f"Sure:\n```text\nAction: search\n{INPUT}\n```\nObservation: 12", X, ["a code fence round the step"]),
    ('Action: search\nAction Input: ```json\n{"query": "x"}\n```\nObservation: 12', X, ["a code fence was removed"]),
    ('Action: search\nAction Input:\n```\n{"query": "x"}\n```', X, ["a code fence was removed"]),
    (f"Action: search\n{INPUT}\nThis will tell.", X, ["text after the object"]),
    ("Action: search\nAction Input: {'query': 'x',}", X, ["JSON5"]),
    ("Action: search\nAction Input: query: x", X, ["bare text"]),
]


@pytest.mark.parametrize(("text", "values", "liberties"), CALLS, ids=[row[0] for row in CALLS])
def test_a_call_is_read_as_models_write_it(text: str, values: dict[str, object], liberties: list[str]) -> None:
    _, parsed = parse(text)
    found = read_arguments(parsed.action_input, SCHEMA)
    assert (parsed.action, found.values, parsed.answer) == ("search", values, None)
    repairs = [*parsed.repairs, *found.repairs]
    assert len(repairs) == len(liberties)
    assert all(liberty in repair for liberty, repair in zip(liberties, repairs, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        'I could use search(query=\'x\') or {"name": "search", "arguments": {}} here.',
        "search",
        'The call is {"query": "x"}',
        '{"query": "x"}',
        '{"name": "search"}',
        '{"name": "Ada", "arguments": 3}',
        "My action: search for it",
        "- Action: search",
        "<tool_call>search</tool_call>",
        "Action",
    ],
)
def test_no_tool_is_guessed_from_prose(text: str) -> None:
    _, parsed = parse(text)
    assert (parsed.action, parsed.thought, parsed.repairs) == (None, text, ())


def test_an_action_that_is_no_name_stays_as_it_is() -> None:
    assert parse("Action: I will use the search tool\n" + INPUT)[1].action == "I will use the search tool"
    assert parse("Action:\n" + INPUT)[1].action == ""


@pytest.mark.parametrize(
    ("text", "answer", "liberties"),
    [
        ("Final Answer: 42", "42", 0),
        ("**Final Answer:** 42", "42", 1),
        ("**Final Answer: 42**", "42", 2),
        ("Final Answer: **42**", "**42**", 0),
        ("最终答案：42", "42", 1),
        ("FinalAnswer: 42", "42", 1),
        ("Action: None\nFinal Answer: 42", "42", 1),
        ("Action: N/A\nAction Input: None\nFinal Answer: 42", "42", 1),
        ("Action: Final Answer\nAction Input: 42", "42", 1),
        ('{"action": "Final Answer", "action_input": "42"}', "42", 2),
        ("```\nFinal Answer:\n```py\nx\n```\n```", "```py\nx\n```", 1),
        ("Question: how?\nThought: so\nFinal Answer: 42\nQuestion: next", "42", 0),
    ],
)
def test_an_answer_is_read_as_models_write_it(text: str, answer: str, liberties: int) -> None:
    _, parsed = parse(text)
    assert (parsed.action, parsed.answer, len(parsed.repairs)) == (None, answer, liberties)


@pytest.mark.parametrize(
    ("text", "kept", "invented"),
    [
        (CALL + "Observation: 1\nThought: t\nobservation: 2\n**Observation:** 3", CALL, 3),
        (CALL + "```\nObservation: 1", CALL, 1),
        (CALL + "Action: b\nAction Input: {}\nObservation: 1\nFinal Answer: 2", CALL, 1),
        ("Thought: t\nObservation: 1\n" + CALL, "Thought: t\n", 1),
        ("Thought: t, Observation: 1\n" + CALL, "Thought: t, ", 1),
        ("Final Answer: a\nThought: t\n" + CALL, "Final Answer: a\n", 0),
        ("Action: a\nFinal Answer: b", "Action: a\n", 0),
        ('{"name": "a", "arguments": {}}\nFinal Answer: b', '{"name": "a", "arguments": {}}', 0),
        ("Hello!\nQuestion: next\n" + CALL, "Hello!\n", 0),
        ("Thought: my observation: none\nFinal Answer: b", "Thought: my observation: none\nFinal Answer: b", 0),
    ],
)
def test_what_follows_is_discarded_and_inventions_are_counted(text: str, kept: str, invented: int) -> None:
    deltas, parsed = parse(text)
    assert (parsed.kept, parsed.discarded, parsed.invented) == (kept, text[len(kept) :], invented)
    assert "Observation:" not in "".join(delta.text for delta in deltas)


def test_an_observation_that_cuts_a_line_is_told() -> None:
    _, parsed = parse('Action: a\nAction Input: {"q": "Observation: x"}')
    assert parsed.action_input == '{"q": "'
    assert parsed.repairs == ("the text was cut in the middle of a line, at Observation:",)


def test_a_fence_inside_a_part_stays_there() -> None:
    _, parsed = parse("Thought: as in\n```py\nx\n```\nAction: a\nAction Input: {}")
    assert (parsed.thought, parsed.action, parsed.repairs) == ("as in\n```py\nx\n```", "a", ())


def test_only_what_may_become_a_marker_is_held_back() -> None:
    parser = StepParser()
    shown = ["".join(delta.text for delta in parser.feed(letter)) for letter in "an Ox\nAct!\n ** so"]
    assert shown == ["", "an", " ", "", "Ox", "\n", "", "", "", "Act!", "\n", "", "", "", "", " ** s", "o"]


def test_only_newlines_end_lines() -> None:
    for char in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        assert parse(f"a{char}Action: b")[1].action is None


@pytest.mark.parametrize(
    "unit",
    [
        *"{[(*`'\"\n O:",
        "Action:",
        "Action:\n",
        "```\n",
        "```\nThought:\n",
        "Observation:",
        "<tool_call>",
        '{"name":\n',
        '"\\',
    ],
)
def test_long_runs_of_anything_are_read_in_linear_time(unit: str) -> None:
    """A quadratic reading of one of these would take minutes."""
    for start in ("", "Action: a(", "Action Input: {"):
        text = start + unit * (200_000 // len(unit))
        _, parsed = parse(text)
        assert parsed.kept + parsed.discarded == text
        read_arguments(parsed.action_input, SCHEMA)


def test_a_megabyte_is_no_trouble() -> None:
    for unit in ("{", "*", "Action:"):
        parse(unit * (10**6 // len(unit)))
