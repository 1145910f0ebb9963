"""HTTP to one OpenAI-compatible endpoint: requests, streams, retries, and errors in plain words.

Promises
- A request is repeated only while nothing of its answer has been seen: after connection errors and the statuses 408,
  409, 429 and 5xx, with exponential backoff and jitter, or after as long as the endpoint asks for.
- A stream never blocks the one who reads it: it is read by a thread of its own, and closing it shuts the connection,
  which is how engines learn that a generation is not wanted any more.
- The key goes into the Authorization header and nowhere else: not into errors, not into a repr.

Not promised: between the request and its response headers a closed stream is given up only when the headers come. Most
engines send them at once; llama.cpp sends them with the first token.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from qwen_agent.errors import ContextOverflow, EndpointError, InputError, ModelNotFound, QwenAgentError

T = TypeVar("T")

_AGAIN = frozenset((408, 409, 429))
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 8.0
_LONGEST_WAIT_ASKED = 60.0
_GRACE = 5.0
_TOO_LONG = re.compile(
    r"context.length|longer than the (maximum )?model|exceeds the available context|maximum context", re.IGNORECASE
)
_END = object()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait: for a connection, for the first token of an answer, and from one token to the next."""

    connect: float = 10.0
    first_token: float = 300.0
    between_tokens: float = 60.0

    def __post_init__(self) -> None:
        for name in ("connect", "first_token", "between_tokens"):
            if not getattr(self, name) > 0:
                raise InputError(f"Timeouts({name}={getattr(self, name)!r}) cannot be used: it must be above 0")


class Refused(Exception):
    """The endpoint answered with an error status. ``error`` is what is wrong, in words for the user."""

    def __init__(self, status: int, error: QwenAgentError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error
        self.after = after

    @property
    def temporary(self) -> bool:
        return self.status in _AGAIN or self.status >= 500


class Endpoint:
    """One endpoint with its connections. Safe to share between threads."""

    def __init__(
        self, base_url: str, *, api_key: str | None, timeouts: Timeouts, retries: int, concurrency: int
    ) -> None:
        self.base, self.root = _urls(base_url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InputError("the API key has a character in it that cannot be sent: is there a line end in it?")
        if retries < 0 or concurrency < 1:
            raise InputError(f"retries={retries}, concurrency={concurrency}: use at least 0 and at least 1")
        self.timeouts = timeouts
        self.retries = retries
        self.slots = threading.BoundedSemaphore(concurrency)
        # Of streams the reader knows which wait it is in; this ends a thread that nobody reads from any more.
        longest = max(timeouts.first_token, timeouts.between_tokens) + _GRACE
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(longest, connect=timeouts.connect, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency),
        )
        self.has_key = bool(api_key)
        self.window = 0  # of the model, once it is known; for errors

    def get(self, url: str) -> Any:
        """The JSON that stands at a URL. Raises Refused or EndpointError."""
        return self._again(lambda: self._json(self.client.get(url)), time.sleep)

    def post(self, url: str, body: Mapping[str, Any]) -> Any:
        """The JSON that the endpoint answers with. Raises Refused or EndpointError."""
        return self._again(lambda: self._json(self.client.post(url, json=body)), time.sleep)

    def events(self, url: str, body: Mapping[str, Any]) -> Events:
        """The answer as it is streamed; the request goes out as soon as one of the ``concurrency`` places is free."""
        return Events(self, url, body)

    def close(self) -> None:
        self.client.close()

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code != 200:
            raise self.refusal(response)
        try:
            return response.json()
        except ValueError:
            raise self.nonsense(response) from None

    def _again(self, send: Callable[[], T], pause: Callable[[float], object]) -> T:
        """Send until it works, with pauses in between; the last failure is raised."""
        for attempt in range(self.retries + 1):
            try:
                return send()
            except Refused as refused:
                waits = refused.after is None or refused.after <= _LONGEST_WAIT_ASKED
                if attempt == self.retries or not refused.temporary or not waits:
                    raise
                pause(_backoff(attempt) if refused.after is None else refused.after)
            except httpx.TransportError as failure:
                if attempt == self.retries:
                    raise self.unreachable(failure) from None
                pause(_backoff(attempt))
        raise AssertionError("the last attempt returns or raises")

    # ---- what goes wrong, in words

    def refusal(self, response: httpx.Response) -> Refused:
        """An answer with an error status; its body has been read."""
        value = None
        with contextlib.suppress(ValueError, RecursionError):
            value = response.json()
        after = _retry_after(response)
        said = complaint(value, response.text) + (f"; asks to wait {after:g} s" if after else "")
        return Refused(response.status_code, self.error(response.status_code, said, value), after)

    def error(self, status: int, said: str, value: Any) -> QwenAgentError:
        """The error for what an endpoint said with an error status, or in the middle of a stream."""
        at = f"{self.base} answered {status} ({said})"
        if status in (401, 403):
            fix = "the key is not the right one" if self.has_key else "it wants a key"
            return InputError(f"{at}: {fix}; set QWEN_AGENT_API_KEY, or pass api_key")
        if _is_overflow(said, value):
            return ContextOverflow(max(self.window, *map(int, re.findall(r"\d+", said)), 0), self.window)
        if status == 404 and "model" in said.lower():
            return ModelNotFound(f"{at}: ask for a model that it serves")
        if status in (404, 405):
            return EndpointError(f"{at}: there is no such route; a base URL looks like http://localhost:8000/v1")
        if 300 <= status < 400:
            return EndpointError(f"{at}: it redirects elsewhere; give the URL that it leads to")
        if status == 429:
            return EndpointError(f"{at}: it is busy; lower the concurrency, or try later")
        return EndpointError(at)

    def unreachable(self, failure: httpx.TransportError) -> EndpointError:
        if isinstance(failure, httpx.ConnectTimeout):
            return EndpointError(f"{self.base} cannot be reached within {self.timeouts.connect:g} s: is the URL right?")
        if isinstance(failure, httpx.ConnectError):
            return EndpointError(f"nothing answers at {self.base} ({failure}): start the server, or check the URL")
        if isinstance(failure, httpx.TimeoutException):
            return EndpointError(f"{self.base} did not answer in time ({type(failure).__name__}): try later")
        return EndpointError(f"the connection to {self.base} broke off ({failure or type(failure).__name__})")

    def nonsense(self, response: httpx.Response) -> EndpointError:
        start = " ".join(response.text.split())[:100]
        return EndpointError(f"{self.base} answered with no JSON ({start!r}): is it an OpenAI-compatible endpoint?")


class Events:
    """The JSON events of one streamed answer, as they come. Close it when no more are wanted."""

    def __init__(self, endpoint: Endpoint, url: str, body: Mapping[str, Any]) -> None:
        self._endpoint = endpoint
        self._url = url
        self._body = body
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._abandoned = threading.Event()
        self._connection: socket.socket | None = None
        self._seen = False  # something of the answer
        self.sent_at: float | None = None
        """When the request went out (time.monotonic), None while it waits for a place."""
        threading.Thread(target=self._read, name="qwen-agent stream", daemon=True).start()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next event, or None if none came within ``seconds``.

        Raises StopIteration at the end, QwenAgentError if there is none.
        """
        try:
            event = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if event is _END:
            raise StopIteration
        if isinstance(event, Refused):
            raise event.error
        if isinstance(event, Exception):
            raise event
        found: dict[str, Any] = event
        return found

    def close(self) -> None:
        """Shut the connection, if the answer is not complete."""
        self._abandoned.set()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own, which another thread in the middle of a read does not survive.
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    # ---- the reading thread

    def _read(self) -> None:
        try:
            with self._place():
                self._endpoint._again(self._stream, self._pause)
            self._queue.put(_END)
        except _Abandoned:
            return
        except Exception as error:  # belongs to the one who reads
            self._queue.put(error)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        while not self._endpoint.slots.acquire(timeout=0.1):
            self._check()
        try:
            yield
        finally:
            self._endpoint.slots.release()

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned

    def _pause(self, seconds: float) -> None:
        self.sent_at = None
        self._abandoned.wait(seconds)
        self._check()

    def _stream(self) -> None:
        self._check()
        self.sent_at = time.monotonic()
        try:
            with self._endpoint.client.stream("POST", self._url, json=self._body) as response:
                self._connection = response.extensions["network_stream"].get_extra_info("socket")
                self._check()
                if response.status_code != 200:
                    response.read()
                    raise self._endpoint.refusal(response)
                self._events_of(response)
        except httpx.TransportError as failure:
            self._check()
            if self._seen:
                raise self._endpoint.unreachable(failure) from None
            raise
        finally:
            self._connection = None

    def _events_of(self, response: httpx.Response) -> None:
        if "event-stream" not in response.headers.get("content-type", ""):
            response.read()  # some gateways do not stream whatever they are asked for
            self._put(self._endpoint._json(response))
            return
        for data in _data_lines(response.iter_bytes()):
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                raise EndpointError(f"{self._endpoint.base} sent an event that is no JSON: {data[:100]!r}") from None
            self._put(event)

    def _put(self, event: Any) -> None:
        self._check()
        error = event.get("error") if isinstance(event, dict) else None
        if error or not isinstance(event, dict):
            status = _status(error)
            refused = Refused(status, self._endpoint.error(status, complaint(event, str(event)), event))
            if self._seen:
                raise refused.error
            raise refused
        self._seen = True
        self._queue.put(event)


class _Abandoned(Exception):
    """Nobody wants the answer any more."""


def complaint(value: Any, text: str) -> str:
    """What of an answer says what is wrong: {"error": {"message": ...}}, its variants, or the text itself."""
    for key in ("error", "message", "detail"):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
    said = value if isinstance(value, str) else text
    return " ".join(said.split())[:300] or "no reason given"


def _urls(base_url: str) -> tuple[str, str]:
    """The URL that ends in /v1, and the one before it. Raises InputError for what is no such URL."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(f"{base_url!r} is not a base URL such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise InputError("the base URL has a name or a password in it: pass a key as api_key")
    root = base_url.rstrip("/").removesuffix("/v1")
    return f"{root}/v1", root


def _data_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The data of server-sent events. On bytes, since JSON may hold characters that str.splitlines() takes for ends."""
    held = b""
    for piece in pieces:
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if held.startswith(b"data:"):
        yield held[5:].strip()


def _backoff(attempt: int) -> float:
    return min(_FIRST_PAUSE * 2.0**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait: a number or a date."""
    asked = response.headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError, TypeError):
        return max(float(asked), 0.0)
    with contextlib.suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    return None


def _status(error: Any) -> int:
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _is_overflow(said: str, value: Any) -> bool:
    error = value.get("error") if isinstance(value, Mapping) else None
    words = [error.get(key) for key in ("code", "type")] if isinstance(error, Mapping) else []
    return bool({"context_length_exceeded", "exceed_context_size_error"}.intersection(map(str, words))) or bool(
        _TOO_LONG.search(said)
    )
