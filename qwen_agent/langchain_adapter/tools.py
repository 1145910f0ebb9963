"""Tools, both ways."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool, ToolException

from qwen_agent.errors import InputError
from qwen_agent.loop.calls import Approve
from qwen_agent.tools import plugins
from qwen_agent.tools.base import Tool
from qwen_agent.types import ToolCall


class QwenAgentTool(BaseTool):
    """One of our tools as a LangChain tool; `to_langchain` makes it."""

    tool: Tool
    approve: Approve | None = None
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True

    def _run(self, **arguments: Any) -> tuple[str, Any]:
        return self._invoke(arguments, lambda: False)

    async def _arun(self, **arguments: Any) -> tuple[str, Any]:
        left = threading.Event()
        try:
            return await run_in_executor(None, partial(self._invoke, arguments, left.is_set))
        finally:
            left.set()

    def _invoke(self, arguments: dict[str, Any], cancelled: Callable[[], bool]) -> tuple[str, Any]:
        if self.approve is not None and not self.approve(ToolCall(self.name, arguments, json.dumps(arguments))):
            raise ToolException(f"Error: the user does not allow this call of {self.name}; go on without it.")
        result = self.tool.invoke(arguments, cancelled=cancelled)
        if not result.ok:
            raise ToolException(result.content)
        return result.content, result.artifacts


def to_langchain(tool: Tool, approve: Approve | None = None) -> QwenAgentTool:
    """One of our tools for LangChain, with its own checks and limits; files that it makes are the message's artifact.

    A failure becomes a ToolMessage with status "error". Raises InputError for a tool that nobody may call, and for one
    that asks a person first, unless ``approve`` says how to ask.
    """
    if tool.approval == "deny" or (tool.approval == "ask" and approve is None):
        raise InputError(
            f"the tool {tool.name} has approval={tool.approval!r}: give approve=... to ask before each call, or "
            f"dataclasses.replace(tool, approval='auto') and decide with LangChain's middleware"
        )
    return QwenAgentTool(
        name=tool.name,
        description=tool.description,
        args_schema=tool.parameters,
        tool=tool,
        approve=approve if tool.approval == "ask" else None,
        metadata={"untrusted": tool.untrusted, "side_effects": tool.side_effects},
    )


def from_langchain(tool: Any, *, untrusted: bool = True, side_effects: bool = True) -> Tool:
    """A LangChain tool as one of ours, as `qwen_agent.tools.plugins.from_langchain`; also one that is only async."""
    made = plugins.from_langchain(tool, untrusted=untrusted, side_effects=side_effects)
    only_async = getattr(tool, "coroutine", None) is not None and getattr(tool, "func", None) is None
    return replace(made, function=lambda **arguments: tool.ainvoke(arguments)) if only_async else made
