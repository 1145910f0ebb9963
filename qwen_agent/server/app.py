"""The application: its routes, and what stands between them and the network.

Promises
- nothing_blocks_the_event_loop: generations run in the runtime's thread, tokenizers and agents in others.
- a_client_that_leaves_stops_its_generation, whether it wanted a stream or not.
- every_error_is_json, in OpenAI's words, without tracebacks, paths or prompts.
- logs_and_metrics_have_no_content: method, route, status and time.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qwen_agent import __version__
from qwen_agent.errors import QwenAgentError
from qwen_agent.llm.tokenizer import Tokenizer
from qwen_agent.server import chat, completions, responses, tokens
from qwen_agent.server.completions import CompletionRequest
from qwen_agent.server.engine import AGENT, Engine
from qwen_agent.server.errors import ApiError, api_error, no_model, of_validation
from qwen_agent.server.metrics import Metrics
from qwen_agent.server.response_store import ResponseStore
from qwen_agent.server.security import App, Bodies, Gate, Message, Receive, Scope, Send
from qwen_agent.server.settings import LEGACY_NAME, Settings
from qwen_agent.server.streaming import Json, answered, log_failure, named_events, streamed
from qwen_agent.server.tokens import DetokenizeRequest, TokenizeRequest
from qwen_agent.server.wire_chat import ChatRequest
from qwen_agent.server.wire_responses import ResponsesRequest

access = logging.getLogger("qwen_agent.server.access")

_API = ("/v1/", "/tokenize", "/detokenize")  # paths with bodies of JSON
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error."""

    error: ErrorDetail


def create_app(
    engine: Engine, tokenizer: Tokenizer, settings: Settings = Settings(), metrics: Metrics | None = None
) -> FastAPI:
    """The server for this engine.

    ``tokenizer`` is the model's own. ``metrics`` are told of requests, and give /metrics; generations are counted where
    its ``served`` is the runtime's ``observe``.
    """
    metrics = metrics or Metrics()
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
    app = FastAPI(
        title="qwen-agent",
        version=__version__,
        description="A local model and agent behind OpenAI's API.",
        docs_url=None,  # its page is loaded from elsewhere
        redoc_url=None,
        responses=errors,
        redirect_slashes=False,
    )
    _add_errors(app)
    _add_generating(app, engine, tokenizer, settings)
    _add_telling(app, engine, tokenizer, settings, metrics)
    # The last one added is the outermost.
    app.add_middleware(Bodies, prefixes=_API, most=settings.body, seconds=settings.patience, refuse=_refuse)
    app.add_middleware(
        Gate,
        hosts=settings.hosts(),
        credentials=settings.credentials,
        origins=settings.allowed_origins,
        open_paths=("/health",),
        refuse=_refuse,
    )
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
        )
    app.add_middleware(_Outside, metrics=metrics)
    return app


def _add_generating(app: FastAPI, engine: Engine, tokenizer: Tokenizer, settings: Settings) -> None:
    served = _served(engine, settings)
    store = ResponseStore()

    async def stream(request: Request, events: AsyncIterator[dict[str, Any]]) -> Response:
        return await streamed(request, events, seconds=settings.seconds, patience=settings.patience)

    def check_model(name: str, *others: str) -> None:
        if name not in (*settings.names, LEGACY_NAME, *others):
            raise no_model(name, (*settings.names, *others))

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """A message of the assistant."""
        check_model(body.model, *served[len(settings.names) :])
        if body.stream:
            return await stream(request, chat.stream(body, engine))
        return Json(await answered(request, chat.complete(body, engine), settings.seconds))

    @app.post("/v1/completions")
    async def text_completions(body: CompletionRequest, request: Request) -> Response:
        """The continuation of a text, or of token ids."""
        check_model(body.model)
        if body.stream:
            return await stream(request, completions.stream(body, engine, tokenizer))
        return Json(await answered(request, completions.complete(body, engine, tokenizer), settings.seconds))

    @app.post("/v1/responses")
    async def make_response(body: ResponsesRequest, request: Request) -> Response:
        """A response: items of text and calls."""
        check_model(body.model, *served[len(settings.names) :])
        if body.stream:
            return await streamed(
                request,
                responses.stream(body, engine, store),
                encode=named_events(),
                end=b"",
                seconds=settings.seconds,
                patience=settings.patience,
            )
        return Json(await answered(request, responses.complete(body, engine, store), settings.seconds))

    @app.get("/v1/responses/{response_id}")
    async def get_response(response_id: str) -> Response:
        """A response that was stored."""
        return Json(store.get(response_id))

    @app.delete("/v1/responses/{response_id}")
    async def delete_response(response_id: str) -> Response:
        """Forget a response."""
        return Json(store.delete(response_id))


def _add_telling(app: FastAPI, engine: Engine, tokenizer: Tokenizer, settings: Settings, metrics: Metrics) -> None:
    window = engine.runtime.window
    served = _served(engine, settings)
    created = int(time.time())

    def told(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "qwen-agent", "max_model_len": window}

    @app.get("/v1/models")
    async def list_models() -> Response:
        """The models."""
        return Json({"object": "list", "data": [told(name) for name in served]})

    @app.get("/v1/models/{model:path}")
    async def get_model(model: str) -> Response:
        """A model."""
        if model not in (*served, LEGACY_NAME):
            raise no_model(model, served)
        return Json(told(model))

    @app.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> Response:  # not async: it runs in a thread, as the next one
        """The token ids of a text."""
        return Json(tokens.tokenize(body, tokenizer, window))

    @app.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        return Json(tokens.detokenize(body, tokenizer))

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        """The control tokens, and how many tokens there are."""
        return Json(tokens.tokenizer_info(tokenizer, window))

    @app.get("/health")
    async def health() -> Response:
        """Whether the server is there. Needs no key."""
        return Json({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    def get_metrics() -> Response:
        """Prometheus' metrics."""
        return Response(metrics.text(), media_type=metrics.content_type)


def _served(engine: Engine, settings: Settings) -> tuple[str, ...]:
    return (*settings.names, *((AGENT,) if engine.agent is not None else ()))


# ---- errors


def _add_errors(app: FastAPI) -> None:
    async def raised(request: Request, error: Exception) -> Response:
        return _error_response(api_error(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _error_response(of_validation(list(error.errors())))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {
            404: f"there is nothing at {quote(request.url.path)[:200]}",
            405: f"{request.method} is not possible here",
            400: "the body cannot be read as JSON",
        }
        message = said.get(error.status_code, str(error.detail))
        told = ApiError(error.status_code, message, headers=error.headers or {})
        return _error_response(told)

    app.add_exception_handler(ApiError, raised)
    app.add_exception_handler(QwenAgentError, raised)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


def _error_response(error: ApiError) -> Response:
    return Json(error.body(), status_code=error.status, headers=dict(error.headers))


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """The answer of a middleware."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
        return
    await _error_response(error)(scope, receive, send)


class _Outside:
    """ASGI middleware round everything: headers, the log, the metrics, and an answer where something failed."""

    def __init__(self, app: App, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, name = time.perf_counter(), 0, uuid.uuid4().hex

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = {key.lower() for key, _ in message["headers"]}
                more = {**_HEADERS, b"x-request-id": name.encode()}
                if not _is_of_the_api(message):
                    del more[b"content-security-policy"], more[b"cache-control"]
                message["headers"] = [*message["headers"], *((k, v) for k, v in more.items() if k not in there)]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            log_failure(error)
            if not status:
                with contextlib.suppress(Exception):
                    await _error_response(api_error(error))(scope, receive, sent)
            else:
                raise
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "") or "other"
            self._metrics.responded(route, status, seconds)
            path = quote(scope["path"])[:200]
            access.info("%s %s %s %d %.3fs", name, scope["method"], path, status, seconds)


def _is_of_the_api(message: Message) -> bool:
    """Whether a response is one of ours, and no page or file of an application that was mounted."""
    kinds = (value for key, value in message["headers"] if key.lower() == b"content-type")
    return next(kinds, b"").startswith((b"application/json", b"text/event-stream", b"text/plain"))
