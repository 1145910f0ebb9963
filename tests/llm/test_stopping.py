from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from qwen_agent.llm.stopping import StopStrings

ALPHABET = st.text("ab\nO观", max_size=30)


def shown_in_pieces(text: str, stops: list[str], cuts: list[int]) -> tuple[list[str], StopStrings]:
    matcher = StopStrings(stops)
    bounds = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    pieces = [matcher.feed(text[a:b]) for a, b in itertools.pairwise(bounds)]
    return pieces, matcher


@example("aOO", ["O", "aOO"], [2])
@given(ALPHABET, st.lists(st.text("abO观\n", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 99)))
def test_any_chunking_shows_exactly_what_precedes_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    pieces, matcher = shown_in_pieces(text, stops, cuts)
    shown = "".join(pieces)
    at = min(((text.find(s) + len(s), text.find(s)) for s in stops if s in text), default=(0, None))[1]
    if at is None:
        assert matcher.matched is None
        assert shown + matcher.flush() == text
    else:
        assert shown == text[:at]
        assert matcher.matched is not None
        assert text.startswith(matcher.matched, at)


def test_a_stop_split_over_two_tokens_never_leaks() -> None:
    matcher = StopStrings(["Observation:"])
    assert [matcher.feed(p) for p in ("}\n", "Observ", "ation", ":", " 42")] == ["}\n", "", "", "", ""]
    assert matcher.matched == "Observation:"


def test_text_that_only_looked_like_a_stop_is_shown_later() -> None:
    matcher = StopStrings(["Observation:"])
    assert matcher.feed("An Observ") == "An "
    assert matcher.feed("er") == "Observer"


def test_of_two_stops_the_one_that_is_complete_first_is_named() -> None:
    for stops, named in ((["Obs", "Observation:"], "Obs"), (["vation:", "Observation:"], "Observation:")):
        matcher = StopStrings(stops)
        assert matcher.feed("x Observation: y") == "x "[: 2 if named[0] == "O" else 7]
        assert matcher.matched == named


def test_without_stops_everything_passes() -> None:
    matcher = StopStrings([])
    assert matcher.feed("abc") == "abc"
    assert matcher.flush() == ""
