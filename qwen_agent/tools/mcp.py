"""The tools of MCP servers as ours: over stdio (a program that is started) and streamable HTTP (a URL).

    with mcp_tools(["uvx", "mcp-server-time"]) as server:
        agent = Agent(runtime, server.tools)

Promises
- no_call_hangs: connecting, listing, calling and closing end after the seconds they were given, or soon after the run
  is cancelled; a server that ended is started again, once, for the next call.
- only_what_was_allowed: with ``allow`` no other tool is offered, whatever the server lists.
- texts_are_strangers: see `qwen_agent.tools.mcp_values`; every tool is marked ``untrusted``.

Not promised
- A program that is started as a server is no safer than any program: it runs with all rights of the user.
- That a server is honest about ``readOnlyHint``. Where that matters, use ``approval="ask"``.
"""

from __future__ import annotations

import re
import shlex
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from qwen_agent.errors import InputError, QwenAgentError, ToolError
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Approval, Tool, ToolOutput, cancelled
from qwen_agent.tools.mcp_connection import Cancelled, Connection, Lost, TimedOut
from qwen_agent.tools.mcp_sdk import HttpServer, StdioServer, server_said
from qwen_agent.tools.mcp_values import Definition, one_line, own_name, read_definition, read_result

__all__ = ["HttpServer", "McpServer", "StdioServer", "mcp_tools", "server_from"]

MAX_TOOLS = 500
MAX_MESSAGE = 300  # characters of what a server says of an error
_FORGOTTEN = "Session terminated"  # what the SDK says when a server over HTTP does not know us any more
_LAST_LINES = 5  # of a server's stderr, told when it does not start


def mcp_tools(
    server: str | Sequence[str] | StdioServer | HttpServer,
    *,
    allow: Collection[str] | None = None,
    prefix: str | None = None,
    seconds: float = 30.0,
    connect_seconds: float = 30.0,
    approval: Approval | None = None,
    store: ArtifactStore | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> McpServer:
    """Connect to an MCP server and read the list of its tools.

    ``server`` is a URL, a command as a list of words, or a `StdioServer` or `HttpServer`. ``allow`` names the tools to
    offer, by the server's own names. With a ``prefix`` "time" a tool "now" is called "time__now" here. A call takes at
    most ``seconds``; connecting, listing and closing each at most about ``connect_seconds``. ``approval`` is for all
    the tools; without it a person is asked before calls of tools that do not say they only read. ``store`` keeps the
    pictures and files of results, which are otherwise only named. ``log`` gets the lines that a started server writes
    to stderr.

    Raises InputError if the server cannot be reached or started, does not speak MCP in time, or lacks an allowed tool;
    MissingDependency without the package ``mcp``.
    """
    if prefix is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", prefix):
        raise InputError(f"prefix={prefix!r} cannot begin the name of a tool: use letters, digits and '_'")
    if isinstance(allow, str):
        raise InputError(f"allow={allow!r} must be a list of names: allow=[{allow!r}]")
    return McpServer(server_from(server), allow, prefix, seconds, connect_seconds, approval, store, log)


def server_from(server: str | Sequence[str] | StdioServer | HttpServer) -> StdioServer | HttpServer:
    """The address of a server: a URL, or a command as words or (for a command line) as one string.

    Raises InputError for what is neither.
    """
    if isinstance(server, (StdioServer, HttpServer)):
        return server
    if isinstance(server, str):
        if re.match(r"https?://", server):
            return HttpServer(server)
        if re.match(r"\w+://", server):
            raise InputError(f"{server!r} is no MCP server that can be reached: use http:// or https://, or a command")
        try:
            server = shlex.split(server)
        except ValueError as error:
            raise InputError(f"the command {server!r} cannot be read ({error})") from None
    words = list(server)
    if not words or not all(isinstance(word, str) for word in words):
        raise InputError(f"{server!r} is no command: give the program and its arguments, as in ['uvx', 'SERVER']")
    return StdioServer(words[0], tuple(words[1:]))


class McpServer:
    """A connected MCP server. ``tools`` are its tools; ``warnings`` says which were left out, and why.

    It is closed by `close`, at the end of a ``with`` block, when neither it nor a tool of it is used any more, and at
    exit. Its tools may be called from any thread.
    """

    def __init__(
        self,
        server: StdioServer | HttpServer,
        allow: Collection[str] | None,
        prefix: str | None,
        seconds: float,
        connect_seconds: float,
        approval: Approval | None,
        store: ArtifactStore | None,
        log: Callable[[str], None],
    ) -> None:
        self.name = _name(server)
        self.warnings: tuple[str, ...] = ()
        self._server = server
        self._seconds = seconds
        self._connect_seconds = connect_seconds
        self._approval = approval
        self._store = store
        self._lock = threading.Lock()
        self._log = _Log(log)
        self._open: list[Connection] = []  # none or one; a list, so that `_close` needs no McpServer
        self._closer = weakref.finalize(self, _close, self._open)
        try:
            self._connect(lambda: False)
            listed = self._list()
        except BaseException as error:
            self.close()
            if isinstance(error, Exception) and not isinstance(error, QwenAgentError):
                last = self._log.last_lines()
                told = f" (it wrote: {last})" if last else ""
                raise InputError(f"the MCP server '{self.name}' cannot be used: {self._why(error)}{told}") from error
            raise
        self.tools = self._offered(listed, allow, prefix)

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and the server if it was started here. Its tools fail from now on."""
        self._closer()

    # ---- its tools

    def _list(self) -> list[dict[str, Any]]:
        async def all_pages(session: Any) -> list[dict[str, Any]]:
            tools: list[dict[str, Any]] = []
            cursor = None
            while True:
                page = await session.list_tools(cursor)
                tools += page.get("tools", ())
                following = page.get("nextCursor")
                if not following or following == cursor or len(tools) >= MAX_TOOLS:
                    return tools
                cursor = following

        return self._open[0].request(all_pages, self._connect_seconds)

    def _offered(
        self, listed: list[dict[str, Any]], allow: Collection[str] | None, prefix: str | None
    ) -> tuple[Tool, ...]:
        names = [entry["name"] for entry in listed]
        missing = [name for name in allow or () if name not in names]
        if missing:
            self.close()
            has = ", ".join(one_line(name, 80) for name in names) or "no tools"
            raise InputError(f"the MCP server '{self.name}' has no tool {missing[0]!r}; it has {has}")
        offered: dict[str, Tool] = {}
        warnings: list[str] = []
        if len(listed) >= MAX_TOOLS:
            warnings.append(f"of the tools of '{self.name}' only the first {MAX_TOOLS} were read")
        for entry in listed[:MAX_TOOLS]:
            if allow is not None and entry["name"] not in allow:
                continue
            name = own_name(entry["name"], prefix, offered)
            try:
                offered[name] = self._tool(name, read_definition(entry))
            except InputError as problem:
                warnings.append(f"the tool {one_line(entry['name'], 80)!r} of '{self.name}' is left out: {problem}")
        self.warnings = tuple(warnings)
        return tuple(offered.values())

    def _tool(self, name: str, definition: Definition) -> Tool:
        return Tool(
            name=name,
            description=definition.description,
            parameters=definition.parameters,
            function=partial(self._call, definition.name),
            name_for_human=definition.title,
            seconds=self._connect_seconds + self._seconds,  # for a call may have to start the server again
            approval=self._approval or ("auto" if definition.read_only else "ask"),
            repeatable=True,  # a browser's page, a clock: nothing says that a server has no state
            untrusted=True,
            side_effects=not definition.read_only,
        )

    # ---- calls

    def _call(self, tool: str, /, **arguments: Any) -> ToolOutput:
        return read_result(self._result(tool, arguments), self._store)

    def _result(self, tool: str, arguments: Mapping[str, Any], *, again: bool = True) -> Mapping[str, Any]:
        connection = self._connected()
        try:
            return connection.request(lambda session: session.call_tool(tool, arguments), self._seconds, cancelled)
        except Exception as error:
            if again and str(error) == _FORGOTTEN:  # so it did not look at the call
                connection.give_up()
                return self._result(tool, arguments, again=False)
            if connection.lost:
                problem = f"the MCP server '{self.name}' was lost during the call; the next call reaches for it again"
                raise ToolError(f"{tool} failed: {problem}.") from None
            if not server_said(error) and not isinstance(error, (TimedOut, Cancelled)):
                connection.give_up()
            raise ToolError(f"{tool} failed: {self._why(error)}.") from None

    def _connected(self) -> Connection:
        """The connection; a new one if the old one is lost."""
        with self._lock:
            if self._closer.alive and (not self._open or self._open[0].lost):
                try:
                    self._connect(cancelled)
                except Exception as error:
                    problem = f"The MCP server '{self.name}' was lost and cannot be reached again: {self._why(error)}."
                    raise ToolError(problem) from None
            if not self._closer.alive:  # perhaps only since we began to connect
                _close(self._open)
                raise ToolError(f"The connection to the MCP server '{self.name}' was closed.")
            return self._open[0]

    def _connect(self, cancelled: Callable[[], bool]) -> None:
        _close(self._open)
        self._log.forget()
        connection = Connection(self._server, self._log)
        self._open.append(connection)
        try:
            connection.open(self._connect_seconds, cancelled)
        except BaseException:
            _close(self._open)
            raise

    def _why(self, error: Exception) -> str:
        """In a few words what went wrong with the connection, or what the server says of it."""
        if isinstance(error, TimedOut):
            return f"there was no answer from '{self.name}' in time"
        if isinstance(error, Cancelled):
            return "the run was cancelled"
        if isinstance(error, Lost):
            return "the connection was lost"
        if isinstance(self._server, HttpServer):  # the address may hold a key
            said = str(error).replace(self._server.url, self.name)
            return "no MCP server answers there" if said == _FORGOTTEN else one_line(said, MAX_MESSAGE).rstrip(".")
        if isinstance(error, FileNotFoundError):
            return f"there is no program {self._server.command!r} (or no folder {str(self._server.cwd)!r})"
        return one_line(str(error), MAX_MESSAGE).rstrip(".") or type(error).__name__


class _Log:
    """Passes lines on and remembers the last of them."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    def __call__(self, line: str) -> None:
        self._lines.append(line)
        self._log(line)

    def forget(self) -> None:
        self._lines.clear()

    def last_lines(self) -> str:
        return one_line(" | ".join(self._lines), MAX_MESSAGE)


def _name(server: StdioServer | HttpServer) -> str:
    """What the server is called in messages: without what may be a secret in its address or arguments."""
    if isinstance(server, HttpServer):
        parts = urlsplit(server.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    script = next((word for word in server.args if not word.startswith("-")), "")
    return " ".join(re.split(r"[/\\]", word)[-1] for word in (server.command, script) if word)


def _close(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()
