"""A turn folded from events."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_agent.react import Agent
from qwen_agent.tools.base import Tool, tool
from qwen_agent.types import Delta, StopReason, ToolCall
from qwen_agent.web.turn import Turn, written


@tool
def double(n: int) -> int:
    """Double a number."""
    return 2 * n


@tool(approval="ask")
def erase() -> str:
    """Erase everything."""
    return "erased"


CALL = 'Thought: I double it.\nAction: double\nAction Input: {"n": 4}\nObservation: '
ANSWER = "Thought: I now know the final answer.\nFinal Answer: It is 8."


def played(runtime: Any, *tools: Tool, **options: Any) -> tuple[Turn, list[list[str]]]:
    """The turn, and the phases of its steps after every event."""
    turn, phases = Turn("4?"), []
    for event in Agent(runtime, tools, **options).stream("4?"):
        turn.apply(event)
        phases.append([step.phase for step in turn.steps])
    return turn, phases


def test_a_step_is_seen_while_it_happens_and_whole_in_the_end(scripted: Any) -> None:
    turn, phases = played(scripted(CALL, ANSWER), double)
    (step,) = turn.steps
    assert (step.thought, step.tool, step.arguments) == ("I double it.", "double", '{\n  "n": 4\n}')
    assert (step.observation, step.ok, step.phase) == ("8", True, "done")
    assert step.seconds is not None
    assert (turn.answer, turn.end, turn.over) == ("It is 8.", StopReason.FINAL_ANSWER, True)
    assert ["writing"] in phases
    assert ["running"] in phases
    assert ["done"] in phases


def test_the_thought_that_only_announces_the_answer_is_no_step(scripted: Any) -> None:
    turn, _ = played(scripted(ANSWER), double)
    assert turn.steps == []


def test_a_thought_that_is_the_answer_is_shown_once(scripted: Any) -> None:
    turn, _ = played(scripted("Thought: Just hello."), double)
    assert turn.answer == "Just hello."
    assert turn.steps == []


def test_a_failed_call_is_not_ok(scripted: Any) -> None:
    call = 'Thought: x\nAction: double\nAction Input: {"n": "four"}\nObservation: '
    turn, _ = played(scripted(call, ANSWER), double)
    assert not turn.steps[0].ok
    assert "Wrong arguments" in turn.steps[0].observation


@pytest.mark.parametrize("granted", [True, False])
def test_a_call_that_needs_approval(scripted: Any, granted: bool) -> None:
    call = "Thought: x\nAction: erase\nAction Input: {}\nObservation: "
    turn, phases = played(scripted(call, ANSWER), erase, approve=lambda call: granted)
    assert ["asking"] in phases
    assert turn.steps[0].refused is not granted
    assert (turn.steps[0].observation == "erased") is granted


def test_a_repeated_call_ends_without_a_result(scripted: Any) -> None:
    turn, _ = played(scripted(CALL, CALL, CALL, CALL, "It is 8."), double)
    assert turn.end is StopReason.REPEATED_CALL
    assert all(step.phase == "done" for step in turn.steps)
    assert turn.steps[-1].observation == ""


def test_what_was_written_before_a_stop_stays(scripted: Any) -> None:
    turn = Turn("4?")
    runtime = scripted(ANSWER)
    for event in Agent(runtime).stream("4?", cancelled=lambda: len(turn.answer) > 10):
        turn.apply(event)
    assert turn.end is StopReason.CANCELLED
    assert turn.answer


def test_a_failure_keeps_the_steps() -> None:
    turn = Turn("x")
    turn.apply(Delta("thought", "I wonder."))
    turn.fail(RuntimeError("no"))
    assert turn.over
    assert turn.end is None
    assert [(step.thought, step.phase) for step in turn.steps] == [("I wonder.", "done")]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (ToolCall("f", {"code": "print(1)\n"}, ""), ("print(1)\n", True)),
        (ToolCall("f", {"a": "ü"}, ""), ('{\n  "a": "ü"\n}', False)),
        (ToolCall("f", None, " not json "), ("not json", False)),
    ],
)
def test_arguments_for_people(call: ToolCall, expected: tuple[str, bool]) -> None:
    assert written(call) == expected
