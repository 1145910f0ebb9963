"""What the model writes -> the pieces of one message."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent.dialogue.reply import Answer, CallArguments, CallBegun, CallBroken, Piece, Reply, Thought
from qwen_agent.dialogue.request import toolbox_of

SPEC = {"name": "search", "description": "", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}
TOOLS = toolbox_of([SPEC, SPEC | {"name": "search_web"}])
STEP = 'Thought: so\nAction: search\nAction Input: {"q": "a \\"b\\" 你"}\n'


def pieces(text: str, size: int = 1, first: str = "thought", **end: bool) -> list[Piece]:
    reply = Reply(TOOLS, first)  # type: ignore[arg-type]
    shown = [piece for at in range(0, len(text), size) for piece in reply.feed(text[at : at + size])]
    return [*shown, *reply.finish(**end)]


def joined(found: list[Piece], kind: type[Piece]) -> str:
    return "".join(piece.text for piece in found if isinstance(piece, kind))  # type: ignore[union-attr]


@given(st.integers(1, 40))
def test_a_call_comes_in_pieces_that_make_one_object(size: int) -> None:
    found = pieces(STEP, size, at_stop=True)
    assert joined(found, Thought) == "so"
    (begun,) = [piece for piece in found if isinstance(piece, CallBegun)]
    assert begun.name == "search"
    assert json.loads(joined(found, CallArguments)) == {"q": 'a "b" 你'}
    assert found.index(begun) < min(i for i, piece in enumerate(found) if isinstance(piece, CallArguments))


def test_an_answer_comes_without_what_is_round_it() -> None:
    found = pieces(" so\nFinal Answer:\n a  b \n")
    assert (joined(found, Thought), joined(found, Answer)) == ("so", "a  b")
    assert joined(pieces(" Action: this is text\n", first="final_answer"), Answer) == "Action: this is text"


def test_a_thought_that_is_all_there_is_was_the_answer_unless_it_was_cut_off() -> None:
    assert joined(pieces("It is 3."), Answer) == "It is 3."
    assert joined(pieces("It is 3.", at_limit=True), Answer) == ""


@pytest.mark.parametrize("written", ["{'q': 'a'}", '{"q": "a",}', '{"q": "a"}} and more', "a"])
def test_what_can_be_mended_is_one_object_in_the_end(written: str) -> None:
    found = pieces(f"Action: search\nAction Input: {written}\n", at_stop=True)
    assert json.loads(joined(found, CallArguments)) == {"q": "a"}


@given(st.integers(0, len(STEP) - 2), st.integers(1, 9))
def test_a_call_that_was_cut_off_anywhere_is_broken(end: int, size: int) -> None:
    text = STEP[:end]
    found = pieces(text, size, at_limit=True)
    broken = [piece for piece in found if isinstance(piece, CallBroken)]
    assert len(broken) == ("Action:" in text)
    for piece in broken:
        assert piece is found[-1]
        assert piece.sent == joined(found, CallArguments)
        assert piece.problem
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|Invalid"):
            json.loads(piece.sent)


def test_a_name_that_was_cut_off_is_no_call() -> None:
    """Half of "search_web" is the name of another tool, and half of any name is no tool's."""
    for text in ("Action: search", "Action: sear"):
        (piece,) = pieces(text, at_limit=True)
        assert isinstance(piece, CallBroken)


def test_an_unknown_tool_is_left_to_whoever_runs_the_tools() -> None:
    found = pieces('Action: serch\nAction Input: {"q": "a"}\n', at_stop=True)
    assert [piece.name for piece in found if isinstance(piece, CallBegun)] == ["serch"]
    assert json.loads(joined(found, CallArguments)) == {"q": "a"}
