"""Our tools where code calls them: arguments by place, a person asked first, failures raised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_agent.errors import InputError, ToolError
from qwen_agent.loop.calls import Approve
from qwen_agent.tools.base import Tool
from qwen_agent.types import ToolCall


def check_approval(tool: Tool, approve: Approve | None) -> None:
    """Raises InputError for a tool that nobody may call, and for one that asks first where there is no one to ask."""
    if tool.approval == "deny" or (tool.approval == "ask" and approve is None):
        raise InputError(
            f"the tool {tool.name} has approval={tool.approval!r}: give approve=... to ask before each call, or "
            f"dataclasses.replace(tool, approval='auto')"
        )


def call(tool: Tool, args: Sequence[Any], named: Mapping[str, Any], approve: Approve | None) -> str:
    """What the tool says, with its own checks and limits. Raises ToolError where it fails or may not be called."""
    arguments = _by_name(tool, args, named)
    if tool.approval != "auto" and not _allowed(tool, arguments, approve):
        raise ToolError(f"Error: the user does not allow this call of {tool.name}; go on without it.")
    result = tool.invoke(arguments)
    if not result.ok:
        raise ToolError(result.content)
    return result.content


def _allowed(tool: Tool, arguments: Mapping[str, Any], approve: Approve | None) -> bool:
    if tool.approval == "deny" or approve is None:
        return False
    return approve(ToolCall(tool.name, arguments, json.dumps(arguments, default=str)))


def _by_name(tool: Tool, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name. Raises ToolError for more than the tool has, and for one that is given twice."""
    names = list(tool.parameters.get("properties", {}))
    if len(args) > len(names):
        takes = f"{len(names)}: {', '.join(names)}" if names else "none"
        raise ToolError(f"{tool.name} was given {len(args)} arguments by place, but it takes {takes}.")
    placed = dict(zip(names, args, strict=False))
    if twice := placed.keys() & named.keys():
        raise ToolError(f"{tool.name} was given {min(twice)!r} twice: by place and by name.")
    return {**placed, **named}
