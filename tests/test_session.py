"""Conversations: what is remembered, what is not, and what of the cache a turn can use."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_agent import Agent, tool
from qwen_agent.errors import InputError
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.session import Session
from qwen_agent.types import Finished, StopReason

CALL = 'Thought: look it up\nAction: height\nAction Input: {"thing": "tower"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: 330 m"


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    return f"The {thing} is 330 m tall."


def test_turns_are_remembered_in_the_original_placement(scripted: Any) -> None:
    runtime = scripted(CALL, ANSWER, "Final Answer: two", "Final Answer: three")
    session = Session(Agent(runtime, [height]))
    assert [session.ask(q).answer for q in ("one?", "two?", "three?")] == ["330 m", "two", "three"]
    second, third = runtime.prompts[2:]
    assert second.index("Question: one?") < second.index("Observation: The tower is 330 m tall.") < second.index("two?")
    # The tools move to the last finished turn; the newest question stands as it is.
    assert third.index("one?") < third.index("Question: two?") < third.index("three?")
    assert third.endswith("three?\nassistant\n")
    assert len(session.history) == 6
    session.clear()
    assert session.history == ()


def test_a_turn_that_was_stopped_leaves_no_trace(scripted: Any) -> None:
    session = Session(Agent(scripted(CALL, ANSWER), [height]))
    *_, last = session.stream("one?", cancelled=lambda: True)
    assert isinstance(last, Finished)
    assert last.result.stop_reason is StopReason.CANCELLED
    with pytest.raises(InputError):
        session.ask(" ")
    assert session.history == ()


def test_the_second_turn_reads_only_what_is_new(embedded: LocalRuntime) -> None:
    session = Session(Agent(embedded, [height]))
    first = session.ask("How tall is the tower?")
    second = session.ask("And the hill?")
    read = second.steps[0].usage
    new = embedded.count_tokens(second.written) + 40  # the question and the marks round the turns
    assert read.prompt_tokens > first.usage.prompt_tokens / len(first.steps)
    assert read.prefilled_tokens < new
