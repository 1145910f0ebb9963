"""One connection to an MCP server, for callers that know nothing of event loops.

The SDK is asynchronous, so an event loop runs in a thread of its own. A task of that loop, the keeper, opens the
connection and holds it, since the SDK wants a connection closed by the task that opened it; requests are tasks beside
it.

Promises
- every_wait_ends: connecting, each request and closing have a limit in seconds, also when the server says nothing.
- a_lost_connection_is_noticed: when the server ends, requests under way fail at once and `Connection.lost` is True.
- a_started_server_ends_with_us: at `close` and at exit its input is closed, then it is terminated, then killed.

Not promised
- A started server that ignores the end of its input outlives this process if that is killed (SIGKILL).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import wait
from typing import Any, TypeVar

from qwen_agent.tools.mcp_sdk import HttpServer, Session, StdioServer, connected, sdk

T = TypeVar("T")

_TICK = 0.1  # seconds between looks at whether a call was cancelled
_MARGIN = 5.0  # seconds that a wait may take longer when the loop itself is busy
_LAST_WORDS = 1.0  # seconds that a reply may come after its connection is lost
_CLOSE_SECONDS = 10.0  # the SDK gives a server 2 s to end by itself, and 2 s more before it is killed


class TimedOut(Exception):
    """There was no reply in time."""


class Cancelled(Exception):
    """Nobody waits for the reply any more."""


class Lost(Exception):
    """The connection is gone."""


class Connection:
    """An open connection. Build it with the server's address, then `open` it; all methods may be called from any
    thread, and none takes longer than the seconds it is given.
    """

    def __init__(self, server: StdioServer | HttpServer, log: Callable[[str], None]) -> None:
        sdk()
        self._server = server
        self._log = log
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="mcp", daemon=True)
        self._session: Session | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._over = asyncio.Event()
        self._given_up = False
        self._thread.start()

    @property
    def lost(self) -> bool:
        return self._given_up or self._over.is_set()

    def open(self, seconds: float, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start or reach the server and agree on a version. Raises what the SDK raises, TimedOut or Cancelled."""
        self._wait(self._open(), seconds, cancelled)

    def request(
        self,
        ask: Callable[[Session], Coroutine[Any, Any, T]],
        seconds: float,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> T:
        """The reply to a request. Raises TimedOut, Cancelled, Lost, or what the SDK raises (see `server_said`)."""
        return self._wait(self._request(ask), seconds, cancelled)

    def give_up(self) -> None:
        """Take the connection for lost."""
        self._given_up = True

    def close(self) -> None:
        """Close the connection and end a server that was started for it. Takes at most about 10 seconds."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            if threading.current_thread() is self._thread:  # as can happen when garbage is collected
                closing = self._loop.create_task(self._close())
                closing.add_done_callback(lambda _: self._loop.stop())
                return
            with contextlib.suppress(TimedOut):
                self._wait(self._close(), _CLOSE_SECONDS, lambda: False)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_MARGIN)

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float, cancelled: Callable[[], bool]) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(_within(work, seconds), self._loop)
        except RuntimeError:
            work.close()
            raise
        deadline = time.monotonic() + seconds + _MARGIN
        while not future.done():
            if time.monotonic() > deadline:
                future.cancel()
                raise TimedOut
            if cancelled():
                future.cancel()
                raise Cancelled
            wait([future], timeout=_TICK)
        return future.result()

    async def _open(self) -> None:
        ready: asyncio.Future[Session] = self._loop.create_future()
        self._keeper = self._loop.create_task(self._keep(ready))
        try:
            self._session = await ready
        except asyncio.CancelledError:
            self._keeper.cancel()
            raise

    async def _keep(self, ready: asyncio.Future[Session]) -> None:
        try:
            async with connected(self._server, self._log, self._over.set) as session:
                if not ready.cancelled():
                    ready.set_result(session)
                    await self._closing.wait()
        except BaseException as error:  # the SDK ends a connection with groups of errors and with cancellations
            if not ready.done():
                ready.set_exception(_first(error))
        finally:
            self._over.set()

    async def _request(self, ask: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        if self._session is None or self._over.is_set():
            raise Lost
        task = self._loop.create_task(ask(self._session))
        over = self._loop.create_task(self._over.wait())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=_LAST_WORDS)
            if not task.done():
                raise Lost
            return task.result()
        finally:
            task.cancel()
            over.cancel()

    async def _close(self) -> None:
        self._closing.set()
        if self._keeper is not None:
            await asyncio.wait({self._keeper})


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        with contextlib.suppress(Exception):
            loop.run_until_complete(asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), _MARGIN))
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _within(work: Awaitable[T], seconds: float) -> T:
    try:
        return await asyncio.wait_for(work, seconds)
    except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        raise TimedOut from None


def _first(error: BaseException) -> Exception:
    """The error inside groups of errors."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and inner:
        error = inner[0]
    return error if isinstance(error, Exception) else Lost()
