"""An agent as a tool of another agent: one level, with a budget of its own."""

from __future__ import annotations

from qwen_agent.errors import InputError, ToolError
from qwen_agent.react import Agent
from qwen_agent.tools.base import Approval, Tool, cancelled
from qwen_agent.types import StopReason


class _Delegate:
    """The function of such a tool; a class so that it can be recognised."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __call__(self, question: str) -> str:
        result = self._agent.run(question, cancelled=cancelled)
        if result.stop_reason in (StopReason.CANCELLED, StopReason.PAUSED):
            raise ToolError(f"The question was not answered: {result.stop_reason.value}.")
        return result.answer


def agent_tool(
    agent: Agent, name: str, description: str, *, seconds: float = 300.0, approval: Approval = "auto"
) -> Tool:
    """A tool that hands a question to ``agent`` and returns its answer.

    The inner run has the inner agent's limits, sees nothing of the outer conversation and is cancelled with the outer
    run or after ``seconds``. Raises InputError if ``agent`` has agents among its own tools: there is one level, so no
    run can grow without bound.
    """
    nested = [tool.name for tool in agent.tools.values() if isinstance(tool.function, _Delegate)]
    if nested:
        raise InputError(f"the agent for {name!r} itself has an agent as a tool ({', '.join(nested)}): only one level")
    parameters = {
        "type": "object",
        "properties": {"question": {"type": "string", "description": "A complete question; nothing else is known"}},
        "required": ["question"],
    }
    return Tool(name, description, parameters, _Delegate(agent), seconds=seconds, approval=approval)
