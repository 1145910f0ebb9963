"""Hugging Face's agents, today's and those of 2023, on our runtime; and what of theirs works in ours.

smolagents (``pip install 'qwen-react-agent[smolagents]'``)
- `QwenModel`: the model of a ToolCallingAgent or CodeAgent.
- `to_smolagents`, `from_smolagents`: our tools in their agents, their tools in ours.

Transformers Agents, the API of transformers 4.29 to 4.51 (needs nothing but the package)
- `QwenAgent`: ``run(task)`` and ``chat(task)``; `evaluate`, the restricted Python of the code that it writes.
- `default_toolbox`, `load_tool`: the fourteen tools, each loaded when it is first called (``[hf]`` has what they need).

Importing this imports none of it. What is missing says which one command adds it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_agent.hf_agent_adapter.interpreter import BASE_PYTHON_TOOLS, InterpretorError, evaluate
    from qwen_agent.hf_agent_adapter.smolagents_model import QwenModel, to_smolagents
    from qwen_agent.hf_agent_adapter.toolbox import default_toolbox, load_tool
    from qwen_agent.hf_agent_adapter.transformers_agent import QwenAgent, UnreadableOutput
    from qwen_agent.tools.plugins import from_smolagents

_ADAPTER = "qwen_agent.hf_agent_adapter"
_HOMES = {
    "BASE_PYTHON_TOOLS": f"{_ADAPTER}.interpreter",
    "InterpretorError": f"{_ADAPTER}.interpreter",
    "QwenAgent": f"{_ADAPTER}.transformers_agent",
    "QwenModel": f"{_ADAPTER}.smolagents_model",
    "UnreadableOutput": f"{_ADAPTER}.transformers_agent",
    "default_toolbox": f"{_ADAPTER}.toolbox",
    "evaluate": f"{_ADAPTER}.interpreter",
    "from_smolagents": "qwen_agent.tools.plugins",
    "load_tool": f"{_ADAPTER}.toolbox",
    "to_smolagents": f"{_ADAPTER}.smolagents_model",
}

__all__ = [
    "BASE_PYTHON_TOOLS",
    "InterpretorError",
    "QwenAgent",
    "QwenModel",
    "UnreadableOutput",
    "default_toolbox",
    "evaluate",
    "from_smolagents",
    "load_tool",
    "to_smolagents",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
