"""A real server on a real socket, over the embedded model."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.shared import SharedRuntime
from qwen_agent.server.engine import Engine
from qwen_agent.server.security import listen
from qwen_agent.server.settings import Settings

MODEL = "tiny"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        told = self.json
        assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}, told
        return told["error"]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What a stream sent, without the mark at its end."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


@dataclass(frozen=True)
class Server:
    port: int
    shared: SharedRuntime

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, sent | {name.replace("_", "-"): v for name, v in headers.items()})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def idle(self, seconds: float = 10.0) -> bool:
        """Whether nothing is generated any more, within some seconds."""
        end = time.monotonic() + seconds
        while (self.shared.active or self.shared.waiting) and time.monotonic() < end:
            time.sleep(0.02)
        return not self.shared.active and not self.shared.waiting


Start = Callable[..., contextlib.AbstractContextManager[Server]]


@contextlib.contextmanager
def running(runtime: Any, tokenizer: Any, settings: Settings, **options: Any) -> Iterator[Server]:
    import uvicorn

    from qwen_agent.server.app import create_app
    from qwen_agent.server.metrics import Metrics

    metrics = Metrics()
    shared = SharedRuntime(runtime, observe=metrics.served, **options)
    metrics.watch(shared)
    app = create_app(Engine(shared), tokenizer, settings, metrics)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", access_log=False, ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Server(listening.getsockname()[1], shared)
    finally:
        server.should_exit = True
        thread.join()
        shared.close()
        listening.close()


@pytest.fixture(scope="session")
def start(embedded: LocalRuntime) -> Start:
    """Starts a server over the embedded model, or over another runtime with its tokenizer."""
    for package in ("fastapi", "prometheus_client", "uvicorn"):
        pytest.importorskip(package)

    def begin(settings: Settings = Settings(names=(MODEL,)), runtime: Any = embedded, **options: Any) -> Any:
        return running(runtime, embedded.tokenizer, settings, **options)

    return begin


@pytest.fixture(scope="module")
def server(start: Start) -> Iterator[Server]:
    with start() as started:
        yield started
