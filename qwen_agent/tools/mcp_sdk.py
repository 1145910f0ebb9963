"""The MCP SDK (package ``mcp``), both versions of it, behind one small interface.

Version 2 brought another client, other names and another HTTP library; versions from 1.27 on and 2.x are known here.
What goes in and out is the wire's JSON, which is the same for both.

Promises
- the_environment_stays_here: a server that we start inherits PATH, HOME and a few more names, and what it is given.
- replies_are_bounded: one over HTTP has at most MAX_REPLY bytes, and is refused if it is compressed.

Not promised
- A started server can fill our memory with one endless line: it runs with our rights anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from qwen_agent import __version__
from qwen_agent.errors import MissingDependency

MAX_REPLY = 64 << 20  # bytes of one HTTP reply
_CANCEL_SECONDS = 1.0  # for telling a server that nobody waits any more
_LINE = 4096  # bytes of a server's stderr that are taken for one line
_INHERITED = ("LANG", "LC_ALL", "TMPDIR")  # besides what the SDK itself passes on: PATH, HOME, USER, ...


@dataclass(frozen=True, slots=True)
class StdioServer:
    """A program that speaks MCP over its standard input and output; ``env`` is all it gets besides PATH and HOME."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    cwd: str | Path | None = None


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server that speaks MCP over streamable HTTP; ``headers`` (a token, say) go with every request."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)


class Session(Protocol):
    """What is asked of a server; values are the wire's JSON."""

    async def list_tools(self, cursor: str | None) -> Mapping[str, Any]: ...
    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]: ...


def server_said(error: BaseException) -> bool:
    """Whether an error is the server's own reply, so that the connection works."""
    from mcp.shared import exceptions

    kind: type[Exception] = getattr(exceptions, "MCPError", None) or exceptions.McpError
    return isinstance(error, kind)


def sdk() -> Any:
    try:
        import mcp
    except ImportError:
        raise MissingDependency("mcp", "mcp") from None
    # Its errors reach the caller as such; without a handler Python would print them to the terminal as well.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    return mcp


@asynccontextmanager
async def connected(
    server: StdioServer | HttpServer, log: Callable[[str], None], over: Callable[[], None]
) -> AsyncIterator[Session]:
    """A session that is ready for requests. ``over`` is called when the server stops speaking."""
    mcp = sdk()
    about = mcp.types.Implementation(name="qwen-agent", version=__version__)
    transport = _stdio(server, log, over) if isinstance(server, StdioServer) else _http(server, over)
    if hasattr(mcp, "Client"):
        async with mcp.Client(transport, client_info=about) as client:
            yield _Session2(client)
    else:
        async with transport as (read, write), mcp.ClientSession(read, write, client_info=about) as session:
            await session.initialize()
            yield _Session1(session, mcp.types)


class _Session2:
    """A server through the SDK's version 2."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def list_tools(self, cursor: str | None) -> Mapping[str, Any]:
        return _wire(await self._client.list_tools(cursor=cursor))

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return _wire(await self._client.call_tool(name, dict(arguments)))


class _Session1:
    """A server through the SDK's version 1."""

    def __init__(self, session: Any, types: Any) -> None:
        self._session = session
        self._types = types

    async def list_tools(self, cursor: str | None) -> Mapping[str, Any]:
        page = self._types.PaginatedRequestParams(cursor=cursor) if cursor else None
        return _wire(await self._session.list_tools(params=page))

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        types = self._types
        request = types.CallToolRequest(params=types.CallToolRequestParams(name=name, arguments=dict(arguments)))
        number = getattr(self._session, "_request_id", None)
        try:
            # Not session.call_tool(): before 1.30 it fetched the documents that an output schema refers to.
            return _wire(await self._session.send_request(types.ClientRequest(request), types.CallToolResult))
        except asyncio.CancelledError:
            if number is not None:
                await self._tell_cancelled(number)
            raise

    async def _tell_cancelled(self, number: int) -> None:
        types = self._types
        params = types.CancelledNotificationParams(requestId=number, reason="nobody waits for it any more")
        notification = types.ClientNotification(types.CancelledNotification(params=params))
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._session.send_notification(notification), _CANCEL_SECONDS)


def _wire(value: Any) -> dict[str, Any]:
    made: dict[str, Any] = value.model_dump(by_alias=True, mode="json", exclude_none=True)
    return made


@asynccontextmanager
async def _stdio(
    server: StdioServer, log: Callable[[str], None], over: Callable[[], None]
) -> AsyncIterator[tuple[Any, Any]]:
    from mcp.client.stdio import StdioServerParameters, stdio_client

    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    parameters = StdioServerParameters(
        command=server.command,
        args=list(server.args),
        env={**inherited, **server.env},
        cwd=server.cwd,
        encoding_error_handler="replace",
    )
    read_end, write_end = os.pipe()
    threading.Thread(target=_relay, args=(read_end, log), name="mcp stderr", daemon=True).start()
    async with contextlib.AsyncExitStack() as stack:
        with os.fdopen(write_end, "w") as errors:  # ours is closed once the server has its copy
            read, write = await stack.enter_async_context(stdio_client(parameters, errors))
        yield _Watched(read, over), write


def _relay(descriptor: int, log: Callable[[str], None]) -> None:
    """Hand what a server writes to stderr to ``log``, line by line, until it ends."""
    with os.fdopen(descriptor, "rb") as lines:
        while line := lines.readline(_LINE):
            with contextlib.suppress(Exception):  # a log that fails must not block the server on a full pipe
                log(line.decode("utf-8", "replace").rstrip())


@asynccontextmanager
async def _http(server: HttpServer, over: Callable[[], None]) -> AsyncIterator[tuple[Any, Any]]:
    from mcp.client.streamable_http import streamable_http_client

    # A picture is larger than the SDK's own limit of 1 MiB, which it has since 2.2.
    takes_limit = "max_sse_event_size" in inspect.signature(streamable_http_client).parameters
    limits: dict[str, Any] = {"max_sse_event_size": MAX_REPLY} if takes_limit else {}
    async with (
        _http_client(server) as client,
        streamable_http_client(server.url, http_client=client, **limits) as (read, write, *_),
    ):
        yield _Watched(read, over), write


def _http_client(server: HttpServer) -> AbstractAsyncContextManager[Any]:
    """An HTTP client as the SDK wants it, that reads at most MAX_REPLY bytes of a reply."""
    # Not whichever is installed: the SDK's version 2 wants httpx2, its version 1 httpx.
    http: Any = import_module("httpx2" if hasattr(sdk(), "Client") else "httpx")

    class Bounded(http.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            total = 0
            async for chunk in self._stream:
                total += len(chunk)
                if total > MAX_REPLY:
                    raise http.ReadError(f"the reply has more than {MAX_REPLY} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def bound(response: Any) -> None:
        # Compressed bytes are counted before they are unpacked, and a few of them can become very many.
        if response.headers.get("content-encoding", "identity") != "identity":
            raise http.ReadError("the server compressed its reply although it was asked not to")
        response.stream = Bounded(response.stream)

    return http.AsyncClient(
        headers={**server.headers, "Accept-Encoding": "identity"},
        timeout=http.Timeout(30.0, read=None),  # how long a reply may take is decided by whoever asks
        event_hooks={"response": [bound]},
    )


class _Watched:
    """A stream of what a server says; calls ``over`` at its end."""

    def __init__(self, stream: Any, over: Callable[[], None]) -> None:
        self._stream = stream
        self._over = over

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> _Watched:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *details: Any) -> Any:
        self._over()
        return await self._stream.__aexit__(*details)

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except BaseException:
            self._over()
            raise
