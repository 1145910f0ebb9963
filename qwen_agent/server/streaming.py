"""Answers for clients that may leave, or read slowly: JSON at the end, or server-sent events as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from qwen_agent.errors import Stopped
from qwen_agent.server.errors import ApiError, api_error
from qwen_agent.server.security import Message, Receive, Scope, Send

T = TypeVar("T")
Event = dict[str, Any]
Encode = Callable[[Event], bytes]

LEFT = 499  # nginx's status for a client that did not wait; nobody reads it but the log
_ALIVE = 15.0  # seconds after which a stream without news says that it is there

log = logging.getLogger("qwen_agent.server")


class Json(Response):  # type: ignore[misc]
    """A response of JSON in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def to_json(value: Any) -> bytes:
    """JSON in UTF-8; half characters, which JSON can spell and UTF-8 cannot, become U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def data_only(event: Event) -> bytes:
    """An event as chat completions and completions have it."""
    return b"data: " + to_json(event) + b"\n\n"


def named_events() -> Encode:
    """Events as the Responses API has them: their type is their name, too, and an error is numbered like the rest."""
    last = -1

    def encode(event: Event) -> bytes:
        nonlocal last
        if "type" not in event:
            event = {**event["error"], **event, "type": "error", "sequence_number": last + 1}
        last = event["sequence_number"]
        return b"event: " + event["type"].encode() + b"\n" + data_only(event)

    return encode


async def answered(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of ``work``, which is cancelled when the client leaves or the time is up (Stopped)."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({doing, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if leaving.done():
            raise ApiError(LEFT, "the client has left")
        raise _late(seconds)
    finally:
        await _cancelled(doing, leaving)


async def streamed(
    request: Request,
    events: AsyncIterator[Event],
    *,
    encode: Encode = data_only,
    end: bytes = b"data: [DONE]\n\n",
    seconds: float,
    patience: float,
) -> Response:
    """The events as a response. What is raised before the first of them is raised here, so that it has a status."""
    until = time.monotonic() + seconds
    try:
        first = await answered(request, _next(events), seconds)
    except BaseException:
        await _close(events)
        raise
    return _EventStream(first, events, encode, end, until, patience)


class _EventStream(Response):  # type: ignore[misc]
    """Server-sent events. The generation behind them ends when the client leaves, reads too slowly, or time is up."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Event | None,
        events: AsyncIterator[Event],
        encode: Encode,
        end: bytes,
        until: float,
        patience: float,
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events = first, events
        self._encode, self._end = encode, end
        self._until, self._patience = until, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(writing, leaving)
            await _close(self._events)
        if not writing.cancelled() and isinstance(writing.exception(), asyncio.TimeoutError):
            log.warning("a reader was cut off: it did not read for %g seconds", self._patience)

    async def _write(self, send: Send) -> None:
        async def put(message: Message) -> None:
            await asyncio.wait_for(send(message), self._patience)

        async def put_bytes(data: bytes, *, more: bool = True) -> None:
            await put({"type": "http.response.body", "body": data, "more_body": more})

        await put({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            event = self._first
            while event is not None:
                await put_bytes(self._encode(event))
                event = await self._following(put_bytes)
            await put_bytes(self._end, more=False)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:
            told = api_error(error)
            if told.status == 500:
                log_failure(error)
            await put_bytes(self._encode(told.body()), more=False)

    async def _following(self, put_bytes: Callable[[bytes], Coroutine[Any, Any, None]]) -> Event | None:
        """The next event; while there is none, a sign of life now and then."""
        coming = asyncio.ensure_future(_next(self._events))
        try:
            while not coming.done():
                left = self._until - time.monotonic()
                if left <= 0:
                    raise Stopped("the request took longer than it may")
                await asyncio.wait({coming}, timeout=min(left, _ALIVE))
                if not coming.done():
                    await put_bytes(b": working\n\n")
            return coming.result()
        finally:
            await _cancelled(coming)


def log_failure(error: BaseException) -> None:
    """Say what failed and where, but not with what: an error's text may quote a request."""
    places = []
    at = error.__traceback__
    while at is not None:
        places.append(f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}")
        at = at.tb_next
    log.error("%s at %s", type(error).__name__, " > ".join(places[-4:]))
    log.debug("in full:", exc_info=error)


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what is not done, and wait until it is."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _close(events: AsyncIterator[Event]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        with contextlib.suppress(Exception):
            await close()


def _late(seconds: float) -> Stopped:
    return Stopped(f"the request was not done after {seconds:g} seconds")
