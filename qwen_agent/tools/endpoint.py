"""Requests to an OpenAI-compatible service that the user has named, with its errors in the service's own words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools import http


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service by its base URL (such as ``http://localhost:8000/v1``), with the key that it wants, if any.

    It may lie in a private network, since the user named it. Raises InputError for what is no such URL.
    """

    base_url: str
    key: str = field(default="", repr=False)
    seconds: float = 120.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"'{self.base_url}' is not a base URL such as http://localhost:8000/v1")

    def post(self, path: str, body: dict[str, Any], max_bytes: int) -> Any:
        """The JSON value that the service answers with. Raises ToolError with what it says is wrong."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        url = f"{self.base_url.rstrip('/')}/{path}"
        reply = http.fetch(
            url,
            method="POST",
            headers=headers,
            json=body,
            seconds=self.seconds,
            max_bytes=max_bytes,
            allow_private=True,
        )
        if reply.truncated:
            raise ToolError(f"The service at {self.host} sent more than {max_bytes >> 20} MiB.")
        try:
            value = json.loads(reply.body)
        except (ValueError, RecursionError):
            value = None
        if reply.status != 200 or value is None:
            raise ToolError(f"The service at {self.host} answered {reply.status}: {_complaint(value, reply.body)}")
        return value

    @property
    def host(self) -> str:
        """Host and port, as they may be shown."""
        parts = urlsplit(self.base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    def is_at(self, url: str) -> bool:
        """Whether a URL is of this very service."""
        here, there = urlsplit(self.base_url), urlsplit(url)
        return (here.scheme, here.hostname, here.port) == (there.scheme, there.hostname, there.port)


def _complaint(value: Any, body: bytes) -> str:
    """What of an answer says what is wrong: {"error": {"message": ...}}, its variants, or the text itself."""
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    text = value if isinstance(value, str) else body.decode(errors="replace")
    return " ".join(text.split())[:200] or "nothing"
