"""The page's few addresses of its own: its script, the way to the reader's language, the exported conversation."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from qwen_agent.web.conversations import KEY_HEADER, Conversations
from qwen_agent.web.export import as_json, as_markdown
from qwen_agent.web.shield import FILE_POLICY, HEADERS
from qwen_agent.web.texts import ENGLISH, LANGUAGES, preferred

LANGUAGE_COOKIE = "qwen-agent-language"
_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect width='32' height='32' rx='8' fill='#4f46e5'/>"
    "<circle cx='15' cy='15' r='7' fill='none' stroke='#fff' stroke-width='3'/>"
    "<path d='m19 19 5 5' stroke='#fff' stroke-width='3' stroke-linecap='round'/></svg>"
)
_SCRIPT = Path(__file__).parent / "page.js"


def add_routes(app: FastAPI, conversations: Conversations, path: str) -> None:
    """Add them to an app, with the end of all conversations when the app ends."""

    @app.get(path, include_in_schema=False)
    @app.get(f"{path}/", include_in_schema=False)
    def to_language(request: Request) -> RedirectResponse:
        chosen = LANGUAGES.get(request.cookies.get(LANGUAGE_COOKIE, ""))
        texts = chosen or preferred(request.headers.get("accept-language", ""))
        return RedirectResponse(f"{request.scope.get('root_path', '')}{path}/{texts.code}/", 307)

    @app.get(f"{path}/page.js", include_in_schema=False)
    def script() -> FileResponse:
        return FileResponse(_SCRIPT, media_type="text/javascript", headers={**HEADERS, "cache-control": "no-cache"})

    @app.post(f"{path}/here", include_in_schema=False)
    def here(request: Request) -> Response:
        conversations.get(request.headers.get(KEY_HEADER, ""))
        return Response(status_code=204)

    @app.get(f"{path}/conversation.{{kind}}", include_in_schema=False)
    def export(kind: str, key: str = "", language: str = ENGLISH.code) -> Response:
        found = conversations.by_download_key(key)
        if found is None or kind not in ("md", "json"):
            return Response("Not Found", 404, media_type="text/plain")
        texts, model = LANGUAGES.get(language, ENGLISH), conversations.runtime.name
        text = as_markdown(found.turns, model, texts) if kind == "md" else as_json(found.turns, model)
        headers = {
            **HEADERS,
            "content-security-policy": FILE_POLICY,
            "content-disposition": f'attachment; filename="conversation.{kind}"',
            "cache-control": "no-store",
        }
        return Response(text, media_type="text/markdown" if kind == "md" else "application/json", headers=headers)

    @app.get(f"{path}/{{code}}", include_in_schema=False)
    def to_page(request: Request, code: str) -> Response:
        if code not in LANGUAGES:
            return Response("Not Found", 404, media_type="text/plain")
        return RedirectResponse(f"{request.scope.get('root_path', '')}{path}/{code}/", 307)

    before = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncIterator[object]:
        async with before(started) as state:
            try:
                yield state
            finally:
                conversations.close()

    app.router.lifespan_context = lifespan


def head() -> str:
    """What comes first in every page: its icon and its script, whose address changes with its content."""
    digest = hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()[:12]
    return f'<link rel="icon" href="data:image/svg+xml,{quote(_ICON)}"><script src="../page.js?{digest}"></script>'
