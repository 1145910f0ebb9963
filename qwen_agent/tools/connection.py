"""The parts of `qwen_agent.tools.http` below HTTP: names, addresses, connections and the time they may take."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter

from qwen_agent.errors import ToolError


class Clock:
    """The time that a request has, as a context. When it is over, its connections are shut, in the middle of a read.

    Limits of single reads, which is what sockets have, never add up to one for the whole.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Clock:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def left(self, host: str) -> float:
        """The seconds that are left. Raises ToolError when there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0 or self.expired:
            raise self.error(host)
        return left

    def error(self, host: str) -> ToolError:
        return ToolError(f"{host} did not answer within {self.seconds:g} s.")

    def watch(self, connected: socket.socket) -> None:
        """Shut this connection too when the time is over; TimeoutError if it is over already."""
        with self._lock:
            if self.expired:
                raise TimeoutError
            self._sockets.append(connected)

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own, which another thread in the middle of a read does not survive.
                    # A connection inside of a connection (TLS through a proxy with TLS) is no socket but has one.
                    socket.socket.shutdown(getattr(each, "socket", each), socket.SHUT_RDWR)


class PinnedAdapter(HTTPAdapter):
    """What requests sends with, connected to one address whatever the name means by now.

    Without an address it connects to what the name means, or to the proxy. ``connected`` tells whether it did.
    """

    def __init__(self, name: str, address: str, clock: Clock) -> None:
        self.name = name
        self.address = address
        self.clock = clock
        self.connected = False
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        return self._watch(super().proxy_manager_for(*args, **options))

    def build_connection_pool_key_attributes(self, *args: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        where, how = super().build_connection_pool_key_attributes(*args, **options)
        if self.address:
            where["host"] = self.address
            if where["scheme"] == "https":
                how["server_hostname"] = how["assert_hostname"] = self.name
        return where, how

    def _watch(self, manager: Any) -> Any:
        """Make a manager of connections tell the clock of each."""
        adapter = self

        class Plain(urllib3.connection.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                adapter._opened(self.sock)

        class Secure(urllib3.connection.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                adapter._opened(self.sock)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
        return manager

    def _opened(self, connected: socket.socket) -> None:
        self.connected = True
        self.clock.watch(connected)


def resolve(host: str, port: int, clock: Clock) -> list[str]:
    """The addresses that a name means, asked for once. Raises ToolError when there are none, or not in time."""
    answer: Future[list[str]] = Future()

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.set_result(list(dict.fromkeys(str(row[4][0]) for row in rows)))
        except (OSError, ValueError) as error:  # UnicodeError, of a label too long, is a ValueError
            answer.set_exception(error)

    # In a thread, because the system's own patience may be half a minute.
    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    try:
        found = answer.result(timeout=clock.left(host))
    except FutureTimeout:
        raise clock.error(host) from None
    except (OSError, ValueError):
        found = []
    if not found:
        raise ToolError(f"There is no host {host}, or its name cannot be resolved now.")
    return found
