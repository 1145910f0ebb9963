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
    from qwen_agent.confidence import pick_threshold
    from qwen_agent.delegate import agent_tool
    from qwen_agent.errors import QwenAgentError, ToolError
    from qwen_agent.limits import Limits
    from qwen_agent.llm.config import GenerationConfig
    from qwen_agent.llm.local import LocalRuntime, load_runtime
    from qwen_agent.llm.runtime import Runtime
    from qwen_agent.prompt import ReActTemplate
    from qwen_agent.react import Agent
    from qwen_agent.records.log import RunLog, read_log
    from qwen_agent.records.replay import replay
    from qwen_agent.session import Session
    from qwen_agent.tools.base import Tool, ToolOutput, tool
    from qwen_agent.types import (
        AgentResult,
        Artifact,
        Confidence,
        Message,
        Role,
        Step,
        StopReason,
        ToolCall,
        ToolResult,
        Usage,
    )

_HOMES = {
    "Agent": "react",
    "AgentResult": "types",
    "Artifact": "types",
    "Confidence": "types",
    "GenerationConfig": "llm.config",
    "Limits": "limits",
    "LocalRuntime": "llm.local",
    "Message": "types",
    "QwenAgentError": "errors",
    "ReActTemplate": "prompt",
    "Role": "types",
    "RunLog": "records.log",
    "Runtime": "llm.runtime",
    "Session": "session",
    "Step": "types",
    "StopReason": "types",
    "Tool": "tools.base",
    "ToolCall": "types",
    "ToolError": "errors",
    "ToolOutput": "tools.base",
    "ToolResult": "types",
    "Usage": "types",
    "agent_tool": "delegate",
    "load_runtime": "llm.local",
    "pick_threshold": "confidence",
    "read_log": "records.log",
    "replay": "records.replay",
    "tool": "tools.base",
}

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "AgentResult",
    "Artifact",
    "Confidence",
    "GenerationConfig",
    "Limits",
    "LocalRuntime",
    "Message",
    "QwenAgentError",
    "ReActTemplate",
    "Role",
    "RunLog",
    "Runtime",
    "Session",
    "Step",
    "StopReason",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolOutput",
    "ToolResult",
    "Usage",
    "agent_tool",
    "load_runtime",
    "pick_threshold",
    "read_log",
    "replay",
    "tool",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
