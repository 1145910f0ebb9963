"""A tool-using ReAct agent that runs on your own machine.

    from qwen_agent import Agent, load_runtime, tool

    agent = Agent(load_runtime("embedded"), tools=[...])
    print(agent.run("How tall is the Eiffel Tower multiplied by 3?").answer)

Everything is imported when it is first asked for: ``import qwen_agent`` itself is fast and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_agent.errors import QwenAgentError, ToolError
    from qwen_agent.llm.config import GenerationConfig
    from qwen_agent.llm.local import LocalRuntime, load_runtime
    from qwen_agent.llm.runtime import Runtime
    from qwen_agent.prompt import ReActTemplate
    from qwen_agent.react import Agent
    from qwen_agent.tools.base import Tool, tool
    from qwen_agent.types import AgentResult, Message, Role, Step, StopReason, ToolCall, ToolResult, Usage

_HOMES = {
    "Agent": "react",
    "AgentResult": "types",
    "GenerationConfig": "llm.config",
    "LocalRuntime": "llm.local",
    "Message": "types",
    "QwenAgentError": "errors",
    "ReActTemplate": "prompt",
    "Role": "types",
    "Runtime": "llm.runtime",
    "Step": "types",
    "StopReason": "types",
    "Tool": "tools.base",
    "ToolCall": "types",
    "ToolError": "errors",
    "ToolResult": "types",
    "Usage": "types",
    "load_runtime": "llm.local",
    "tool": "tools.base",
}

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "AgentResult",
    "GenerationConfig",
    "LocalRuntime",
    "Message",
    "QwenAgentError",
    "ReActTemplate",
    "Role",
    "Runtime",
    "Step",
    "StopReason",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolResult",
    "Usage",
    "load_runtime",
    "tool",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
