"""Thresholds for calling a tool: the operating points, and the one that keeps false positives within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent.confidence import Threshold, curve, pick_threshold
from qwen_agent.errors import InputError

PROBABILITIES = (0.9, 0.8, 0.7, 0.4, 0.2)
SHOULD_CALL = (True, False, True, True, False)


def test_the_curve_goes_from_calling_nothing_to_calling_everything() -> None:
    points = curve(PROBABILITIES, SHOULD_CALL)
    assert [(p.false_positive_rate, round(p.recall, 2)) for p in points] == [
        (0.0, 0.0),
        (0.0, 0.33),
        (0.5, 0.33),
        (0.5, 0.67),
        (0.5, 1.0),
        (1.0, 1.0),
    ]
    assert [p.value for p in points[1:]] == list(PROBABILITIES)


@pytest.mark.parametrize(("rate", "value"), [(0.0, 0.9), (0.49, 0.9), (0.5, 0.4), (0.99, 0.4), (1.0, 0.2)])
def test_the_lowest_threshold_within_the_rate_is_picked(rate: float, value: float) -> None:
    assert pick_threshold(PROBABILITIES, SHOULD_CALL, rate).value == value


def test_equal_probabilities_are_called_together() -> None:
    assert curve([0.5, 0.5, 0.5], [True, False, True])[1:] == (Threshold(0.5, 1.0, 1.0),)


def test_nothing_can_be_picked_where_a_false_call_is_certain() -> None:
    assert curve([1.0, 1.0], [True, False]) == (Threshold(1.0, 1.0, 1.0),)
    with pytest.raises(InputError, match=r"no threshold keeps the false positives at 5.0%"):
        pick_threshold([1.0, 1.0], [True, False], 0.05)


@pytest.mark.parametrize(
    ("probabilities", "should_call", "rate", "message"),
    [
        ([], [], 0.1, "no case"),
        ([0.5], [True], 0.1, "no case without a right call"),
        ([0.5], [False], 0.1, "no case with a right call"),
        ([0.5], [True, False], 0.1, "1 probabilities do not go with 2"),
        ([0.5, 1.5], [True, False], 0.1, "1.5 is no probability"),
        ([0.5, float("nan")], [True, False], 0.1, "nan is no probability"),
        ([0.5, 0.1], [True, False], 2.0, "false_positive_rate=2.0"),
    ],
)
def test_bad_input_is_named(probabilities: list[float], should_call: list[bool], rate: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pick_threshold(probabilities, should_call, rate)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2), st.floats(0, 1))
def test_a_picked_threshold_does_what_it_says(cases: list[tuple[float, bool]], rate: float) -> None:
    cases += [(0.3, False), (0.6, True)]
    probabilities, should_call = zip(*cases, strict=True)
    try:
        threshold = pick_threshold(probabilities, should_call, rate)
    except InputError:
        assert 1.0 in probabilities
        return
    called = [should for probability, should in cases if probability >= threshold.value]
    assert threshold.recall == sum(called) / sum(should_call)
    assert threshold.false_positive_rate == called.count(False) / should_call.count(False) <= rate
