"""What an MCP server of ours does, without the protocol: it lists tools and calls them, in the JSON of the wire.

Promises
- one_slow_tool_blocks_nobody: tools and the agent run in threads; cancelling the task of a call cancels its tool, or
  the agent's run.
- denied_tools_are_not_listed: a tool whose approval is "deny" does not exist for clients.
- what_is_sent_is_what_was_made: a file that became a link or a pipe since a tool made it is not followed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.react import Agent
from qwen_agent.tools.base import Tool, toolbox
from qwen_agent.tools.mcp_values import one_line
from qwen_agent.types import AgentResult, Artifact, Event, Finished, Reading, StepFinished, StopReason, ToolResult

ASK = "ask"
MAX_FILE = 8 << 20  # bytes of one file that is sent along
_MAX_CALLS = 16  # tools that run at the same time
_BEAT = 1.0  # seconds between signs of life of a tool
_MAX_STEP = 200  # characters of a step in a progress message
_UNANSWERED = (StopReason.CANCELLED, StopReason.PAUSED)

Report = Callable[[int, str], Awaitable[None]]  # how far it is, counted from 1, and what happened


class UnknownTool(InputError):
    """A client called a tool that is not served."""


class Service:
    """The tools, and an agent as one more tool named "ask". Raises InputError where there is nothing to serve."""

    def __init__(
        self, tools: Iterable[Tool | Callable[..., Any]] | Mapping[str, Tool], agent: Agent | None = None
    ) -> None:
        box = toolbox(tools.values() if isinstance(tools, Mapping) else tools)
        self._tools = {name: tool for name, tool in box.items() if tool.approval != "deny"}
        self._agent = agent
        if agent is not None and ASK in self._tools:
            raise InputError(f"a tool is called {ASK!r}, as the agent would be: give it another name")
        if not self._tools and agent is None:
            raise InputError("there is nothing to serve: give at least one tool, or an agent")
        self._one_question = asyncio.Lock()
        self._calls = asyncio.Semaphore(_MAX_CALLS)

    def listed(self) -> list[dict[str, Any]]:
        """The tools as MCP lists them."""
        own = [_ask_listed(self._agent)] if self._agent is not None else []
        return [*map(_listed, self._tools.values()), *own]

    async def call(self, name: str, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
        """The result of a call as MCP wants it. Raises UnknownTool; every other failure is a result."""
        if self._agent is not None and name == ASK:
            return await self._ask(self._agent, arguments, report)
        if name not in self._tools:
            raise UnknownTool(f"there is no tool {name!r}; the tools are {', '.join(self._tools)}")
        gone = threading.Event()
        work = partial(self._tools[name].invoke, arguments, cancelled=gone.is_set)
        async with self._calls:
            try:
                result = await _beating(_in_thread(work), name, report)
            finally:
                gone.set()
        return _result(result.content, result.ok, result.artifacts)

    async def _ask(self, agent: Agent, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
        question = arguments.get("question")
        if not isinstance(question, str) or set(arguments) != {"question"}:
            return _result('Wrong arguments: give one "question", a string.', False)
        async with self._one_question:  # each run holds a KV cache; a second one would only make both slower
            try:
                result = await self._run(agent, question, report)
            except QwenAgentError as problem:
                return _result(f"Error: {problem}", False)
        files = [file for step in result.steps if step.result is not None for file in step.result.artifacts]
        if result.stop_reason in _UNANSWERED:
            return _result(f"The question was not answered: {result.stop_reason.value}.", False, files)
        early = "" if result.stop_reason is StopReason.FINAL_ANSWER else f"\n(stopped by: {result.stop_reason.value})"
        return _result(result.answer + early, True, files)

    async def _run(self, agent: Agent, question: str, report: Report) -> AgentResult:
        reports, told = 0, time.monotonic()
        async with contextlib.aclosing(agent.astream(question)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Finished):
                    return event.result
                if isinstance(event, StepFinished) or time.monotonic() - told > _BEAT:
                    reports, told = reports + 1, time.monotonic()
                    await report(reports, _told(event))
        raise AssertionError("a stream of events always ends with Finished")


def _listed(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "title": tool.name_for_human,
        "description": tool.description,
        "inputSchema": {"type": "object", **tool.parameters},
        "annotations": {
            "readOnlyHint": not tool.side_effects,
            "destructiveHint": tool.side_effects and tool.approval == "ask",
            "openWorldHint": tool.untrusted,
        },
    }


def _ask_listed(agent: Agent | None) -> dict[str, Any]:
    tools = agent.tools.values() if agent is not None else ()
    using = f", using {', '.join(tool.name for tool in tools)}" if tools else ""
    question = {"type": "string", "description": "A complete question; nothing else is known"}
    return {
        "name": ASK,
        "title": "Ask the agent",
        "description": f"A local agent answers a question step by step{using}.",
        "inputSchema": {"type": "object", "properties": {"question": question}, "required": ["question"]},
        "annotations": {
            "readOnlyHint": not any(tool.side_effects for tool in tools),
            "destructiveHint": any(tool.side_effects and tool.approval == "ask" for tool in tools),
            "openWorldHint": any(tool.untrusted for tool in tools),
        },
    }


def _result(text: str, ok: bool, files: Iterable[Artifact] = ()) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}, *map(_attached, files)], "isError": not ok}


def _attached(file: Artifact) -> dict[str, Any]:
    """A file as a block of a result: a picture or sound as such, anything else as a resource."""
    data = _content(file)
    if data is None:
        return {"type": "text", "text": f"[{file.name}, {file.media_type}, {file.size} bytes: not sent]"}
    encoded = base64.b64encode(data).decode("ascii")
    kind = file.media_type.partition("/")[0]
    if kind in ("image", "audio"):
        return {"type": kind, "data": encoded, "mimeType": file.media_type}
    held = {"uri": f"artifact:///{quote(file.id)}/{quote(file.name)}", "mimeType": file.media_type}
    with contextlib.suppress(UnicodeDecodeError):
        if kind == "text":
            return {"type": "resource", "resource": {**held, "text": data.decode("utf-8")}}
    return {"type": "resource", "resource": {**held, "blob": encoded}}


def _content(file: Artifact) -> bytes | None:
    """The bytes of a file that a tool made; None if it is not what it was said to be, or too large to be sent."""
    # Code in a sandbox may have put a link or a pipe where its picture was.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file.path, flags)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as opened:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE:
            return None
        return opened.read(MAX_FILE)


def _told(event: Event) -> str:
    """What happens in a run, on a line."""
    if isinstance(event, Reading):
        return f"reading: {event.done} of {event.total} tokens"
    if not isinstance(event, StepFinished):
        return "thinking"
    step = event.step
    if step.call is None:
        return "answering"
    came = step.result.content if step.result is not None else ""
    return one_line(f"{step.call.name}({step.call.raw.strip()}) -> {came}", _MAX_STEP)


async def _beating(work: Awaitable[ToolResult], name: str, report: Report) -> ToolResult:
    """Wait for the work, and say every second that it goes on: a client waits longer for what is alive."""
    task = asyncio.ensure_future(work)
    seconds = 0
    try:
        while not (await asyncio.wait({task}, timeout=_BEAT))[0]:
            seconds += 1
            await report(seconds, f"{name} has run for {seconds * _BEAT:g} s")
        return task.result()
    finally:
        task.cancel()


async def _in_thread(work: Callable[[], ToolResult]) -> ToolResult:
    """Run ``work`` in a thread of its own, and stop waiting for it when the task is cancelled."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ToolResult] = loop.create_future()

    def finish(result: ToolResult) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        result = work()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, result)

    threading.Thread(target=run, name="mcp call", daemon=True).start()
    return await done
