"""What the one who starts the server decides; no request can change any of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from qwen_agent.errors import InputError
from qwen_agent.server.security import Credentials, hosts_of

LEGACY_NAME = "gpt-3.5-turbo"  # what Qwen's server of 2023 called its model


@dataclass(frozen=True, slots=True)
class Settings:
    """Who may use the server, under which names, and how much one request may take.

    ``names`` are what clients call the model by; ``LEGACY_NAME`` is understood besides, and not listed.
    ``body`` is in bytes. ``seconds`` bounds a whole request; ``patience`` is how long a body may take to arrive and an
    answer to be read.

    Raises InputError for an address that others reach without credentials, and for what cannot be.
    """

    host: str = "127.0.0.1"
    credentials: Credentials = field(default_factory=Credentials)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ("qwen-agent",)
    body: int = 1 << 20
    seconds: float = 600.0
    patience: float = 30.0

    def __post_init__(self) -> None:
        rules = (
            ("names", bool(self.names) and all(self.names), "at least one name that is not empty"),
            ("body", self.body >= 1024, "at least 1024 bytes"),
            ("seconds", 0 < self.seconds < math.inf, "above 0"),
            ("patience", 0 < self.patience < math.inf, "above 0"),
            ("allowed_origins", all(map(_is_origin, self.allowed_origins)), "like https://name or http://name:8080"),
        )
        for name, good, wanted in rules:
            if not good:
                raise InputError(f"{name}={getattr(self, name)!r} cannot be used: it must be {wanted}")
        self.hosts()  # raises

    def hosts(self) -> list[str]:
        """The names by which requests may call this server."""
        return hosts_of(self.host, self.allowed_hosts, guarded=bool(self.credentials))


def _is_origin(text: str) -> bool:
    scheme, found, name = text.rstrip("/").partition("://")
    return scheme in ("http", "https") and bool(found and name) and not set("*/?# ") & set(name)
