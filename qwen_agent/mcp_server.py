"""Our tools, and an agent, for the clients of others: an MCP server over stdio or streamable HTTP.

Promises (with those of `qwen_agent.mcp_service`)
- the_wire_stays_clean: over stdio nothing but MCP goes to standard output; what tools print goes to standard error.
- a_client_that_goes_away_cancels_its_call: and so does one that says it does not want the answer any more.
- only_this_machine_is_served: over HTTP a loopback address is bound; any other needs a token, and every request must
  name a host that is ours and no foreign origin, so that a web page cannot reach the server through its reader.

Not promised
- Nobody is asked before a call: a client asks its own user. Tools with approval "ask" are marked as destructive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from qwen_agent import __version__
from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.mcp_service import Service, UnknownTool
from qwen_agent.react import Agent
from qwen_agent.server.security import Credentials, hosts_of, listen, url_of
from qwen_agent.tools.base import Tool

NAME = "qwen-agent"
PATH = "/mcp"
_MAX_LINE = 8 << 20  # bytes of one message over stdio
_CHUNK = 1 << 16
_SCHEMES = ("http", "https")


def serve(
    tools: Iterable[Tool | Callable[..., Any]] | Mapping[str, Tool],
    agent: Agent | None = None,
    *,
    transport: Literal["stdio", "http"] = "stdio",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the tools, and ``agent`` as one more tool named "ask", until the client leaves or Ctrl-C.

    Over HTTP, ``port`` 0 takes any free port, and ``ready`` is called with the server's URL. ``token``, if given, is
    wanted from every client as "Authorization: Bearer TOKEN". A ``host`` that is not this machine alone is refused
    without a token; ``allowed_hosts`` are then the names under which clients reach it.

    Raises InputError for options that cannot be used, MissingDependency without the package ``mcp``.
    """
    service = Service(tools, agent)
    if transport == "stdio":
        _sdk()
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve_stdio(service))
        return
    app = http_app(service, host=host, token=token, allowed_hosts=allowed_hosts)
    import uvicorn

    with listen(host, port) as listening:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        ready(url_of(listening) + PATH)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def http_app(
    service: Service, *, host: str = "127.0.0.1", token: str | None = None, allowed_hosts: Sequence[str] = ()
) -> Any:
    """An ASGI application that serves at /mcp; see `serve` for the options and what is raised."""
    hosts = _hosts(host, token, allowed_hosts)
    server = _server(service)
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.applications import Starlette
    from starlette.routing import Route

    security = TransportSecuritySettings(
        allowed_hosts=[*hosts, *(f"{name}:*" for name in hosts)],
        allowed_origins=[f"{scheme}://{name}{port}" for scheme in _SCHEMES for name in hosts for port in ("", ":*")],
    )
    manager = StreamableHTTPSessionManager(server, security_settings=security)

    class Endpoint:  # a class, since Starlette takes a function for one that wants a request
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await manager.handle_request(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with manager.run():
            yield

    app = Starlette(routes=[Route(PATH, endpoint=Endpoint())], lifespan=lifespan)
    return app if token is None else _guarded(app, token)


# ---- HTTP


def _hosts(host: str, token: str | None, allowed_hosts: Sequence[str]) -> list[str]:
    """The names by which requests may call this server."""
    if token is not None and not token:
        raise InputError("the token is empty: give one of at least 16 random characters, or none")
    return hosts_of(host, allowed_hosts, guarded=token is not None)


def _guarded(app: Any, token: str) -> Any:
    """The application, for those who know the token."""
    credentials = Credentials((token,))

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not credentials.admit(given):
                headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    return guard


# ---- stdio


async def _serve_stdio(service: Service) -> None:
    from mcp.server.stdio import stdio_server

    server = _server(service)
    source, target = _claim_wire()
    async with stdio_server(_Lines(source), target) as (read, write):
        await server.run(read, write, server.create_initialization_options())


def _claim_wire() -> tuple[int, Any]:
    """Keep standard input and output for the protocol: whatever else reads finds nothing, and prints to stderr."""
    import anyio

    source, target = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    return source, anyio.wrap_file(os.fdopen(target, "w", encoding="utf-8", newline="\n"))


class _Lines:
    """The lines of a descriptor, read by a thread that may still wait for one when the program ends (Ctrl-C)."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, name="mcp stdin", daemon=True).start()

    def __aiter__(self) -> _Lines:
        return self

    async def __anext__(self) -> str:
        line = await self._lines.get()
        if not line:
            raise StopAsyncIteration
        return line.decode("utf-8", "replace")

    def _read(self) -> None:
        held = b""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while (chunk := os.read(self._descriptor, _CHUNK)) and len(held) < _MAX_LINE:
                *lines, held = (held + chunk).split(b"\n")
                for line in lines:
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, line + b"\n")
            self._loop.call_soon_threadsafe(self._lines.put_nowait, b"")


# ---- the SDK, both versions of it


def _sdk() -> Any:
    try:
        import mcp.server
    except ImportError:
        raise MissingDependency("mcp", "mcp") from None
    return mcp


def _server(service: Service) -> Any:
    """The SDK's server, which speaks the protocol for the service."""
    return _server2(service) if hasattr(_sdk(), "Client") else _server1(service)


def _server2(service: Service) -> Any:
    mcp = _sdk()
    from mcp.server import Server

    async def list_tools(context: Any, params: Any) -> Any:
        return mcp.types.ListToolsResult.model_validate({"tools": service.listed()})

    async def call_tool(context: Any, params: Any) -> Any:
        async def report(steps: int, text: str) -> None:
            await context.session.report_progress(steps, None, text)

        try:
            result = await service.call(params.name, params.arguments or {}, report)
        except UnknownTool as problem:
            raise mcp.MCPError(mcp.types.INVALID_PARAMS, str(problem)) from None
        return mcp.types.CallToolResult.model_validate(result)

    return Server(NAME, version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)


def _server1(service: Service) -> Any:
    mcp = _sdk()
    from mcp.server.lowlevel import Server

    server = Server(NAME, version=__version__)

    async def list_tools(request: Any) -> Any:
        return mcp.types.ServerResult(mcp.types.ListToolsResult.model_validate({"tools": service.listed()}))

    async def call_tool(request: Any) -> Any:
        context = server.request_context
        number = getattr(context.meta, "progressToken", None)

        async def report(steps: int, text: str) -> None:
            if number is not None:
                await context.session.send_progress_notification(
                    number, steps, None, text, related_request_id=context.request_id
                )

        try:
            result = await service.call(request.params.name, request.params.arguments or {}, report)
        except UnknownTool as problem:
            error = mcp.types.ErrorData(code=mcp.types.INVALID_PARAMS, message=str(problem))
            raise mcp.McpError(error) from None
        return mcp.types.ServerResult(mcp.types.CallToolResult.model_validate(result))

    # Not the decorators: they check arguments a second time, and turn an unknown tool into a result.
    server.request_handlers[mcp.types.ListToolsRequest] = list_tools
    server.request_handlers[mcp.types.CallToolRequest] = call_tool
    return server
