"""A call that the model asked for: read, permitted, made, and its result cut to what the model may read."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace

from qwen_agent.arguments import read_arguments
from qwen_agent.errors import ToolError
from qwen_agent.loop import context
from qwen_agent.loop.run import Run, call_key
from qwen_agent.parser import Parsed
from qwen_agent.prompt import READ_AGAIN, observation
from qwen_agent.tools.base import Tool
from qwen_agent.types import ApprovalNeeded, Approved, ToolCall, ToolFinished, ToolResult

Approve = Callable[[ToolCall], bool]


def read_call(parsed: Parsed, tools: Mapping[str, Tool], cut_off: bool) -> ToolCall:
    """The call in a parsed step. ``cut_off``: its end may be missing."""
    name, raw = parsed.action or "", parsed.action_input
    tool = tools.get(name)
    if tool is None:
        return ToolCall(name, None, raw, problem=_unknown(name, tools))
    found = read_arguments(raw, tool.parameters, tool.args_format)
    if cut_off and (found.repairs or parsed.repairs or tool.args_format == "code"):
        # What was mended here may be half of a file, or half of a command.
        return ToolCall(name, None, raw, problem="the end of the call is missing; write it again, and shorter")
    return ToolCall(name, found.values, raw, found.problem, found.repairs)


def _unknown(name: str, tools: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, tools, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"there is no tool {name!r}; the tools are {', '.join(tools)}.{hint}"


def permission(
    run: Run, call: ToolCall, tool: Tool | None, approve: Approve | None
) -> Generator[ApprovalNeeded | Approved, None, bool | None]:
    """Whether the call may be made; None if a person must say so first and there is no one to ask."""
    if tool is None or call.arguments is None or tool.approval == "auto":
        return True
    if tool.approval == "deny":
        return False
    key = call_key(call)
    decision = run.past.take(Approved, key)
    if decision is None:
        run.past.must_have_ended(key)
        yield ApprovalNeeded(call)
        if approve is None:
            return None
        decision = Approved(bool(approve(call)), key)
    yield decision
    return decision.granted


def observe(
    run: Run, call: ToolCall, tool: Tool | None, asked_before: bool, written: int, count: context.Count
) -> ToolFinished | None:
    """What the call gives: from the log, or from the tool. None if the run was cancelled meanwhile.

    ``tool`` is None where it does not exist or may not be called. ``written`` is how many tokens the call itself puts
    into the prompt.
    """
    key = call_key(call)
    earlier = run.earlier_result(key) if asked_before else None
    runs = tool is not None and call.arguments is not None and (earlier is None or not earlier.ok)
    run.tool_calls += runs
    finished = run.past.take(ToolFinished, key)
    if finished is not None:
        run.was_at(finished.elapsed)
    else:
        run.past.must_have_ended(key)
        result = _result(run, call, tool if runs else None, earlier)
        if run.cancelled:
            return None
        finished = _readable(run, call, key, tool, result, written, count)
    if runs:
        run.remember(finished)
    return finished


def _result(run: Run, call: ToolCall, tool: Tool | None, earlier: ToolResult | None) -> ToolResult:
    if call.arguments is None:
        return ToolResult(f"Error: {call.problem}", ok=False)
    if tool is not None:
        return tool.invoke(call.arguments, seconds=run.seconds_left, cancelled=lambda: run.cancelled)
    if earlier is None:
        return ToolResult(f"Error: the user does not allow this call of {call.name}; go on without it.", ok=False)
    nudge = "(This call was made before; its result is the same. Use it, or give the Final Answer.)"
    return ToolResult(f"{earlier.content}\n{nudge}", earlier.ok, earlier.dropped_chars)


def _readable(
    run: Run, call: ToolCall, key: str, tool: Tool | None, result: ToolResult, written: int, count: context.Count
) -> ToolFinished:
    """The result, cut to what the model may read of it."""
    wanted = (tool.max_tokens if tool is not None else None) or run.limits.observation_tokens
    content, dropped = context.cut(result.content, context.observation_limit(run, wanted, written), count)
    result = replace(result, content=content, dropped_chars=result.dropped_chars + dropped)
    return ToolFinished(call, result, count(observation(content)), round(run.elapsed, 6), key)


def reader(run: Run) -> Tool:
    """The tool that reads again what was left out of the prompt to save room."""

    def read(step: int) -> str:
        if not 1 <= step <= len(run.turns):
            raise ToolError(f"There is no observation {step}; there are 1 to {len(run.turns)}.")
        return run.turns[step - 1].result.content

    parameters = {"type": "object", "properties": {"step": {"type": "integer"}}, "required": ["step"]}
    description = "Reads an earlier observation again."
    return Tool(READ_AGAIN, description, parameters, read, repeatable=True)
