"""Who may talk to a server on this machine, and what is looked at before any work is done.

Promises
- only_this_machine_is_served: a loopback address is bound; any other needs a key, and a request must name a host that
  is ours, so that a web page cannot reach the server under a name of its own (DNS rebinding).
- no_foreign_page_acts: a request that changes something, or has a credential the browser sends by itself, and comes
  from a page of another origin is refused, on loopback too.
- keys_are_compared_in_constant_time, and a wrong one is told nothing.
- nothing_is_parsed_unseen: a body is bounded in bytes while it arrives, said to be JSON, UTF-8, and not too deep
  before anything reads it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qwen_agent.errors import InputError
from qwen_agent.server.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refuse = Callable[[ApiError, Scope, Receive, Send], Awaitable[None]]

MAX_DEPTH = 64  # of a JSON body
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_SAFE = ("GET", "HEAD", "OPTIONS")
_STRINGS = re.compile(rb'"(?:[^"\\]+|\\.)*(?:"|\\?\Z)', re.DOTALL)
_DRAINED = 64 << 20  # bytes of a body that is too large, read so that its sender gets to read the answer
_DRAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What opens the server: keys, and a user with a password (HTTP Basic)."""

    keys: tuple[str, ...] = ()
    user: tuple[str, str] | None = None

    def __bool__(self) -> bool:
        return bool(self.keys or self.user)

    def admit(self, authorization: bytes) -> bool:
        """Whether this Authorization header is right: "Bearer KEY", "Basic USER:PASSWORD", or a key as a password."""
        scheme, _, given = authorization.partition(b" ")
        given = given.strip()
        if scheme.lower() == b"bearer":
            return _any_equal(given, self.keys)
        if scheme.lower() != b"basic":
            return False
        try:
            name, _, password = base64.b64decode(given, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        # Browsers have no other way to send a key: any name, and the key as the password.
        known = self.user is not None and _any_equal(name + b":" + password, (":".join(self.user),))
        return known or _any_equal(password, self.keys)


def _any_equal(given: bytes, wanted: Sequence[str]) -> bool:
    """Compares with all of them, so that the time tells nothing about which was nearly right."""
    equal = [hmac.compare_digest(given, one.encode()) for one in wanted]
    return any(equal)


def hosts_of(host: str, allowed_hosts: Sequence[str], *, guarded: bool) -> list[str]:
    """The names by which requests may call a server that listens on ``host``.

    Raises InputError for an address that others reach if the server is not ``guarded`` by a key.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InputError(f"host={host!r} is no IP address: give 127.0.0.1, ::1 or an address of this machine") from None
    if loopback:
        return [*_LOOPBACK, *allowed_hosts]
    if not guarded:
        raise InputError(f"host={host!r} can be reached by others: give a key or token for its clients, or 127.0.0.1")
    if ipaddress.ip_address(host).is_unspecified and not allowed_hosts:
        raise InputError(f"host={host!r} stands for every address: say in allowed_hosts by which names it is reached")
    return [f"[{host}]" if ":" in host else host, *allowed_hosts]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises InputError if that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened on ({error}): choose another port") from None


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Gate:
    """ASGI middleware: the host, then the origin, then the credentials; each wrong one is refused."""

    def __init__(
        self,
        app: App,
        *,
        hosts: Sequence[str],
        credentials: Credentials,
        refuse: Refuse,
        origins: Sequence[str] = (),
        open_paths: Sequence[str] = (),
    ) -> None:
        """``origins`` are pages of other servers that may send requests; ``open_paths`` need no credentials."""
        self._app = app
        self._hosts = {name.lower() for name in hosts}
        self._credentials = credentials
        self._refuse = refuse
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope, _headers(scope))
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _without_port(host) not in self._hosts:
            raise ApiError(421, "this server is not called by that name; see --allow-host", code="wrong_host")
        changes = scope["type"] != "http" or scope["method"] not in _SAFE
        origin = headers.get(b"origin")
        if changes and origin is not None and not self._may_send(origin.decode("latin-1").lower(), host):
            raise ApiError(403, "pages of another origin may not use this server; see --allow-origin", code="origin")
        guarded = bool(self._credentials) and scope["path"] not in self._open_paths
        if guarded and not self._credentials.admit(headers.get(b"authorization", b"")):
            raise _unknown()

    def _may_send(self, origin: str, host: str) -> bool:
        return origin in self._origins or (origin != "null" and urlsplit(origin).netloc == host)


def _unknown() -> ApiError:
    asks = {"www-authenticate": 'Basic realm="qwen-agent", charset="UTF-8"'}
    return ApiError(401, "a key is needed, and this is none that fits", code="invalid_api_key", headers=asks)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers; of several with one name there is none, if it is one that is checked."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        found[name] = b"" if name in found and name in (b"host", b"origin", b"authorization") else value
    return found


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


class Bodies:
    """ASGI middleware that takes a body in whole, within bounds, before the application sees the request."""

    def __init__(
        self, app: App, *, prefixes: Sequence[str], most: int, seconds: float, refuse: Refuse, depth: int = MAX_DEPTH
    ) -> None:
        """For paths that begin with one of ``prefixes``: ``most`` bytes, that have to arrive within ``seconds``."""
        self._app = app
        self._prefixes = tuple(prefixes)
        self._most, self._seconds, self._depth = most, seconds, depth
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(self._prefixes):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._taken(scope, receive)
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    async def _taken(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if its sender has left."""
        headers = _headers(scope)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            if b"expect" not in headers:  # else it waits to be told whether to send the body
                await _drain(receive)
            raise self._too_large()
        try:
            body = await asyncio.wait_for(self._received(receive), self._seconds)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._seconds:g} seconds", code="timeout") from None
        if body:
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise ApiError(415, "the body must be JSON: send 'Content-Type: application/json'", code="not_json")
            check_json(body, self._depth)
        return body

    async def _received(self, receive: Receive) -> bytes | None:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._most:
                await _drain(receive)
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._most} bytes, the most there may be", code="too_large")


def check_json(body: bytes, depth: int = MAX_DEPTH) -> None:
    """Raises ApiError for what should not be given to a JSON parser: no UTF-8, or nested too deep."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start} cannot be read", code="not_utf8") from None
    level = 0
    for bracket in _STRINGS.sub(b"", body).translate(None, delete=_NOT_BRACKETS):
        level += 1 if bracket in b"[{" else -1
        if level > depth:
            raise ApiError(400, f"the body is nested deeper than {depth} levels", code="too_deep")


_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


async def _drain(receive: Receive) -> None:
    """Read on, for a while: a sender that is cut off in the middle does not read what it is told."""
    until, size = time.monotonic() + _DRAIN_SECONDS, 0
    while size < _DRAINED and (left := until - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left)
        except asyncio.TimeoutError:
            return
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
