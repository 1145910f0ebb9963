"""What stands between the browser and Gradio: few routes, one origin, no script but the page's own.

Promises
- few_routes: of Gradio's many only those that the page needs. Left out are, among others, those that fetch an address
  for the browser, which a picture in an answer could use to send out what it knows.
- nothing_from_elsewhere: the page names no other host, and its Content-Security-Policy lets no request leave for one.
- no_script_in_text: scripts run that are files of the page, or that were in it when it was sent, and no others.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALLOWED = re.compile(
    r"/?|/(assets|static)/.+|/(theme\.css|favicon\.ico|config/?)"
    r"|/gradio_api/(queue/(join|data)|upload|upload_progress|cancel|reset|startup-events|heartbeat/\w+|info/?)"
    r"|/gradio_api/file=(?!\w+:/).+"
)
_SCRIPT = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)
_ELSEWHERE = re.compile(
    rb'<(?:meta[^>]*\b(?:og|twitter):[^>]*|link[^>]*\bhref="https?:[^>]*|link rel="manifest"[^>]*)>|'
    rb'<script[^>]*\bsrc="https?:[^>]*>\s*</script>'
)
HEADERS: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_POLICY = (
    "default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; connect-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
FILE_POLICY = "default-src 'none'; sandbox"


class Shield:
    """ASGI middleware for what is below ``pages`` (path -> language); ``head`` is put first into their HTML."""

    def __init__(self, app: ASGIApp, *, pages: Mapping[str, str], head: str) -> None:
        self._app = app
        self._pages = pages
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._page(scope)
        if page is None:
            await self._app(scope, receive, send)
            return
        rest = unquote(scope["path"])[len(page) :]
        if not _ALLOWED.fullmatch(rest) or scope["type"] != "http":
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return
        is_page = rest in ("", "/")
        if is_page:  # it is rewritten, so it must not come compressed
            headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, _Sender(send, self._pages[page], self._head, is_page=is_page))

    def _page(self, scope: Scope) -> str | None:
        path = scope.get("path", "")
        return next((page for page in self._pages if path == page or path.startswith(f"{page}/")), None)


class _Sender:
    """Passes a response on with its headers; holds the page itself back until it is whole."""

    def __init__(self, send: Send, language: str, head: str, *, is_page: bool) -> None:
        self._send, self._language, self._head, self._is_page = send, language, head, is_page
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in HEADERS.items():
                headers[name] = value
            self._is_page = self._is_page and headers.get("content-type", "").startswith("text/html")
            if self._is_page:
                self._start = message
                return
            headers["content-security-policy"] = FILE_POLICY
        elif self._is_page and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            message = {"type": "http.response.body", "body": self._finished()}
            await self._send(self._start)
        await self._send(message)

    def _finished(self) -> bytes:
        headers = MutableHeaders(raw=self._start["headers"])
        body = rewritten(self._body, self._language, self._head)
        headers["content-security-policy"] = policy(body)
        headers["content-length"] = str(len(body))
        headers["cache-control"] = "no-store"
        return body


def rewritten(page: bytes, language: str, head: str) -> bytes:
    """The page in its language, with our head first and without the names of other hosts."""
    page = _ELSEWHERE.sub(b"", page)
    page = page.replace(b'lang="en"', f'lang="{language}"'.encode(), 1)
    return page.replace(b"<head>", b"<head>" + head.encode(), 1)


def policy(page: bytes) -> str:
    """The Content-Security-Policy of a page: the scripts it holds may run, by their hashes."""
    digests = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page)]
    return _POLICY.format(hashes=" ".join(f"'sha256-{digest}'" for digest in digests))
