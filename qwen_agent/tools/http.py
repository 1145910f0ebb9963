"""One web request that a model may steer: bounded in time and size, and never into the user's own network.

Promises
- only_public_addresses: a name is resolved once, every address that it has must be public, and the connection goes to
  one of these very addresses, so that neither another spelling, a redirect nor a changed DNS answer leads elsewhere.
  The name stays in the Host header, in TLS's server name and in the check of the certificate.
- bounded: the whole request, with redirects, ends after about ``seconds``, however slowly bytes come; no more than
  ``max_bytes`` of the body are kept, counted after decompression.
- nothing_is_carried_along: no cookies, no .netrc, no proxy from the environment; the caller's headers and body are sent
  only to the server that the URL names.

Not promised
- With ``proxy`` the proxy resolves names, so only addresses that are written out can be checked.
- A public server may itself fetch from private ones; and whoever may choose a URL may put data into it.
"""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3

from qwen_agent.errors import ToolError
from qwen_agent.tools.addresses import refusal, written_out
from qwen_agent.tools.base import cancelled
from qwen_agent.tools.connection import Clock, PinnedAdapter, resolve

PORTS = frozenset((80, 443, 8080, 8443))
MAX_REDIRECTS = 5
MAX_URL = 8_000

_CONNECT_SECONDS = 5.0
_CHUNK = 16_384
_SCHEMES = {"http": 80, "https": 443}
_ENCODINGS = frozenset(("", "identity", "gzip", "x-gzip", "deflate"))
_MAX_ADDRESSES = 4
_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
_AGENT = "Mozilla/5.0 (compatible; qwen-react-agent)"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. Header names are in lower case; ``url`` is where it came from, after redirects.

    ``truncated`` is True when the body goes on after the ``max_bytes`` that were kept.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    truncated: bool = False

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        found = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", self.headers.get("content-type", ""), re.IGNORECASE)
        return found[1] if found else ""


def fetch(
    url: str,
    *,
    seconds: float = 20.0,
    max_bytes: int = 2_000_000,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    json: Any = None,
    media_types: Collection[str] = (),
    ports: Collection[int] = PORTS,
    allow_private: bool = False,
    proxy: str = "",
) -> Response:
    """Send a request and return the answer, whatever its status.

    ``media_types`` are the beginnings of the content types that are read ("text/"; empty: all). ``allow_private`` is
    for an address that the user configured: its host may be private or loopback and its port any; what it redirects to
    may not. ``proxy`` is the URL of one. Raises ToolError, in one sentence with the host but without the rest of the
    URL (there may be a key in it), when no such answer comes.
    """
    ask = _Ask(method.upper(), dict(headers or {}), json, tuple(media_types), max_bytes)
    first = target = _target(url)
    with Clock(seconds) as clock:
        for _ in range(MAX_REDIRECTS + 1):
            trusted = allow_private and _host(target) == _host(first)
            if not trusted and _port(target) not in ports:
                known = ", ".join(str(port) for port in sorted(ports))
                raise ToolError(f"Port {_port(target)} of {_host(target)} is not allowed: only {known} are.")
            answer = _send(target, ask, clock, trusted, proxy)
            location = answer.headers.get("location", "")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            target, ask = _redirected(first, target, answer.status, location, ask)
    raise ToolError(f"{_host(first)} redirects more than {MAX_REDIRECTS} times.")


@dataclass(frozen=True, slots=True)
class _Ask:
    """What is asked for, apart from where."""

    method: str
    headers: dict[str, str]
    json: Any
    media_types: tuple[str, ...]
    max_bytes: int


def _send(target: SplitResult, ask: _Ask, clock: Clock, trusted: bool, proxy: str) -> Response:
    """One request and its answer, redirects not followed. Raises ToolError."""
    host = _host(target)
    prepared = _prepared(target, ask)
    proxies = {"http": proxy, "https": proxy} if proxy else {}
    error = clock.error(host)
    for address in _addresses(target, clock, trusted, proxy):
        adapter = PinnedAdapter(host, address, clock)
        try:
            left = clock.left(host)
            answer = adapter.send(
                prepared, stream=True, timeout=(min(_CONNECT_SECONDS, left), left), verify=True, proxies=proxies
            )
            with contextlib.closing(answer):
                found = _read(answer, host, ask)
            clock.left(host)  # a shut connection can look like the end of the answer
            return found
        except _FAILURES as failure:
            if clock.expired or isinstance(failure, requests.ReadTimeout):
                raise clock.error(host) from None
            error = _unreachable(host, failure)
            if adapter.connected or isinstance(failure, requests.exceptions.SSLError):
                raise error from None
        finally:
            adapter.close()
    raise error


def _prepared(target: SplitResult, ask: _Ask) -> requests.PreparedRequest:
    accept = ", ".join(f"{each}*" if each.endswith("/") else each for each in ask.media_types) or "*/*"
    headers = {"User-Agent": _AGENT, "Accept": accept, "Accept-Encoding": "gzip, deflate", **ask.headers}
    headers["Host"] = target.netloc
    try:
        for value in headers.values():
            value.encode("latin-1")
        return requests.Request(ask.method, target.geturl(), headers=headers, json=ask.json).prepare()
    except (ValueError, requests.RequestException):  # the error would show the value, which may be a key
        raise ToolError(
            "A header of the request has a character in it that cannot be sent, such as a line end."
        ) from None


def _addresses(target: SplitResult, clock: Clock, trusted: bool, proxy: str) -> list[str]:
    """The addresses of a host to try in turn, all of them allowed; one empty one for a proxy to resolve."""
    host = _host(target)
    found = [written_out(host)] if proxy else resolve(host, _port(target), clock)
    for address in filter(None, found):
        if word := refusal(address, trusted):
            raise ToolError(f"{host} is not fetched: its address {address} is {word}, not public.")
    return [""] if proxy else found[:_MAX_ADDRESSES]


def _read(answer: requests.Response, host: str, ask: _Ask) -> Response:
    """The answer with as much of its body as is allowed."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    status = answer.status_code
    found = Response(status, headers, b"", answer.url)
    if headers.get("content-encoding", "").lower() not in _ENCODINGS:
        raise ToolError(f"{host} compresses its answer as {headers['content-encoding']!r}, which is not read.")
    if status // 100 == 3:
        return found
    if status // 100 == 2 and found.media_type and not (found.media_type.startswith(ask.media_types or "")):
        raise ToolError(f"{host} sends {found.media_type}, which cannot be read here.")
    body = bytearray()
    while len(body) <= ask.max_bytes and (chunk := answer.raw.read(_CHUNK, decode_content=True)):
        body += chunk
        if cancelled():
            raise ToolError("The request was cancelled.")
    kept = bytes(body[: ask.max_bytes])
    return Response(status, headers, kept, answer.url, truncated=len(body) > ask.max_bytes)


def _unreachable(host: str, failure: BaseException) -> ToolError:
    """What went wrong, in words without the URL."""
    if isinstance(failure, requests.exceptions.SSLError):
        return ToolError(f"{host} cannot be trusted: its certificate or its encryption is not valid.")
    if isinstance(failure, requests.ConnectTimeout):
        return ToolError(f"{host} cannot be reached: it does not answer.")
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno and cause.strerror:
            return ToolError(f"{host} cannot be reached: {cause.strerror}.")
        cause = cause.__cause__ or cause.__context__
    return ToolError(f"{host} broke the connection off, or does not speak HTTP.")


def _target(url: str) -> SplitResult:
    """The parts of a URL that may be fetched; ToolError, with the reason, for any other."""
    shown = f"The address {url[:100]!r}"
    if len(url) > MAX_URL:
        raise ToolError(f"The address is longer than {MAX_URL} characters.")
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ToolError(f"{shown} has a space, a backslash or a control character in it: write them as %20 and so on.")
    try:
        parts = urlsplit(requests.Request("GET", url).prepare().url or "")
        _port(parts)
    except (ValueError, requests.RequestException, urllib3.exceptions.HTTPError):
        raise ToolError(f"{shown} is not a web address such as https://example.org/page.") from None
    if parts.scheme not in _SCHEMES:
        raise ToolError(f"{shown} cannot be fetched: only http:// and https:// can.")
    if not parts.hostname:
        raise ToolError(f"{shown} names no host.")
    if "@" in parts.netloc or "@" in urlsplit(url).netloc:
        raise ToolError("An address with a user name or password in it is not fetched: leave out what is before '@'.")
    return parts


def _host(target: SplitResult) -> str:
    return (target.hostname or "").rstrip(".")


def _port(target: SplitResult) -> int:
    return target.port or _SCHEMES.get(target.scheme, 0)


def _origin(target: SplitResult) -> tuple[str, str, int]:
    return target.scheme, _host(target), _port(target)


def _redirected(
    first: SplitResult, here: SplitResult, status: int, location: str, ask: _Ask
) -> tuple[SplitResult, _Ask]:
    """Where a redirect leads and what is sent there. The caller's headers and body never go to another server."""
    with contextlib.suppress(UnicodeError):  # bytes were read as Latin-1, but are UTF-8 if they are not ASCII
        location = location.encode("latin-1").decode("utf-8")
    try:
        there = _target(urljoin(here.geturl(), location.strip().replace(" ", "%20")))
    except (ValueError, ToolError):  # whose text would show the address
        raise ToolError(f"{_host(here)} redirects to something that is not an address of the web.") from None
    if ask.method != "HEAD" and (status == 303 or (status in (301, 302) and ask.method == "POST")):
        ask = replace(ask, method="GET", json=None)
    if _origin(there) == _origin(first):
        return there, ask
    secret = bool(ask.headers) or ask.json is not None
    if secret and (here.scheme, there.scheme) == ("https", "http"):
        raise ToolError(f"{_host(here)} redirects from https to http, which would show what is sent to anyone.")
    if ask.json is not None:
        raise ToolError(f"{_host(here)} redirects to {_host(there)}, where what is sent does not belong.")
    return there, replace(ask, headers={})
