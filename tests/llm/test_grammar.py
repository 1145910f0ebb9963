from __future__ import annotations

import pytest

from qwen_agent.llm.grammar import ChoiceAfter

VOCABULARY = {bytes([b]): b for b in range(256)} | {
    b" se": 300,
    b" search": 301,
    b"search": 302,
    b"\n\n": 303,
    b"h\n": 304,
}


def allowed(text: str, *choices: str) -> set[int] | None:
    found = ChoiceAfter("Action:", choices).bind(VOCABULARY)(text.encode())
    return None if found is None else set(found)


def test_nothing_is_bound_outside_the_marked_line() -> None:
    for text in (
        "",
        "Thought: Action: x",
        "Actio",
        "Action Input:",
        "Action: search\n",
        "Action: search\nAction Input:",
    ):
        assert allowed(text, "search", "calculator") is None


def test_after_the_marker_every_tokenisation_of_a_choice_may_begin() -> None:
    assert allowed("Thought: x\nAction:", "search") == {32, 300, 301, ord("s"), 302}
    assert allowed("Action: sear", "search") == {ord("c")}
    assert allowed("Action: searc", "search") == {ord("h"), 304}


def test_a_whole_choice_is_followed_by_a_newline_or_a_longer_choice() -> None:
    assert allowed("Action: search", "search", "search_web") == {10, ord("_")}


def test_a_line_that_fits_no_choice_is_left_alone() -> None:
    assert allowed("Action: **", "search") is None


@pytest.mark.parametrize("choice", ["get.weather_now", "天气查询"])
def test_any_name_can_be_written_byte_by_byte(choice: str) -> None:
    """A token may end within a character; the next one must continue it."""
    bound = ChoiceAfter("Action:", (choice,)).bind(VOCABULARY)
    whole = f"Action: {choice}\n".encode()
    for end in range(len(b"Action:"), len(whole)):
        ids = bound(whole[:end])
        assert ids is not None
        assert whole[end] in ids
