"""A server that runs until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qwen_agent.errors import MissingDependency
from qwen_agent.server.security import url_of
from qwen_agent.server.settings import Settings

if TYPE_CHECKING:
    from qwen_agent.llm.config import GenerationConfig
    from qwen_agent.llm.local import LocalRuntime
    from qwen_agent.llm.shared import SharedRuntime
    from qwen_agent.react import Agent
    from qwen_agent.web.page import PageOptions

WEB = "/web"
_GRACE = 2  # seconds that answers may take to end after Ctrl-C


def check_installed(*, web: bool) -> None:
    """Raise MissingDependency before a model is loaded for nothing."""
    from importlib.util import find_spec

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingDependency(package, "server")
    if web and find_spec("gradio") is None:
        raise MissingDependency("gradio", "webui")


def launch(
    listening: socket.socket,
    runtime: LocalRuntime,
    settings: Settings,
    *,
    defaults: GenerationConfig,
    agent: Callable[[SharedRuntime], Agent] | None = None,
    page: PageOptions | None = None,
    active: int = 8,
    waiting: int = 64,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve on a socket that listens, until SIGINT or SIGTERM. ``ready`` is told the URL once requests are answered.

    ``defaults`` are for requests that do not say how to sample. ``agent`` makes the one behind "react-agent", ``page``
    is the web page's options; without them there is neither.
    """
    import uvicorn

    from qwen_agent.llm.shared import SharedRuntime
    from qwen_agent.server.app import create_app
    from qwen_agent.server.engine import Engine
    from qwen_agent.server.metrics import Metrics

    metrics = Metrics()
    shared = SharedRuntime(
        runtime,
        active=active,
        waiting=waiting,
        seconds=settings.seconds,
        patience=settings.patience,
        observe=metrics.served,
    )
    metrics.watch(shared)
    engine = Engine(shared, defaults, agent=agent(shared) if agent is not None else None)
    app = create_app(engine, runtime.tokenizer, settings, metrics)
    if page is not None:
        from qwen_agent.web.page import mount

        mount(app, shared, page, path=WEB)

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready(url_of(listening))

    config = uvicorn.Config(
        app,
        loop="asyncio",
        ws="none",
        log_level="critical",  # what fails is logged by the application, without content
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )
    with contextlib.closing(shared), _terminated_as_interrupted(), contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listening])


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the program like Ctrl-C, so that what was opened is closed."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
