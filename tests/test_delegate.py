"""An agent as a tool of another."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_agent import Agent, tool
from qwen_agent.delegate import agent_tool
from qwen_agent.errors import InputError
from qwen_agent.limits import Limits
from qwen_agent.types import StopReason


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    return f"The {thing} is 330 m tall."


INNER = 'Thought: t\nAction: height\nAction Input: {"thing": "tower"}\nObservation:'
OUTER = 'Thought: t\nAction: expert\nAction Input: {"question": "How tall is it?"}\nObservation:'
ANSWER = "Final Answer: 330 m"


def test_an_agent_answers_for_another_within_its_own_budget(scripted: Any) -> None:
    inner_runtime = scripted(INNER, "about 330 m")
    inner = Agent(inner_runtime, [height], limits=Limits(steps=1))
    runtime = scripted(OUTER, ANSWER)
    result = Agent(runtime, [agent_tool(inner, "expert", "Knows heights.")]).run("q")
    assert result.answer == "330 m"
    assert "Observation: about 330 m\n" in runtime.prompts[1]
    assert "Question: How tall is it?" in inner_runtime.prompts[0]
    assert result.stop_reason is StopReason.FINAL_ANSWER


def test_there_is_only_one_level(scripted: Any) -> None:
    inner = Agent(scripted(), [height])
    middle = Agent(scripted(), [agent_tool(inner, "expert", "Knows heights.")])
    with pytest.raises(InputError, match="only one level"):
        agent_tool(middle, "manager", "Asks experts.")


def test_a_paused_inner_run_is_a_failure_the_outer_one_can_read(scripted: Any) -> None:
    @tool(approval="ask")
    def delete() -> str:
        raise AssertionError("nobody allowed this")

    inner = Agent(scripted("Thought: t\nAction: delete\nAction Input: {}\nObservation:"), [delete])
    runtime = scripted(OUTER, ANSWER)
    Agent(runtime, [agent_tool(inner, "expert", "Deletes.")]).run("q")
    assert "Observation: The question was not answered: paused." in runtime.prompts[1]
