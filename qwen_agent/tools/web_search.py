"""Searching the web: one tool, and a small function for each service that can stand behind it.

A backend takes a query and how many results are wanted and returns hits; it raises ToolError, in one sentence without
the key, when the service refuses. Keys and addresses are arguments: nothing here reads the environment.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from qwen_agent.errors import InputError, MissingDependency, ToolError
from qwen_agent.tools.base import Tool, tool

_SECONDS = 15.0
_MAX_BYTES = 2_000_000
_MAX_QUERY = 200
_MAX_TITLE = 100
_SNIPPET = 250


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: a page and the few words that a service shows of it."""

    title: str
    url: str
    snippet: str


Backend = Callable[[str, int], list[Hit]]


def web_search(backend: Backend, results: int = 5) -> Tool:
    """A tool named ``web_search`` that gives title, address and snippet of the best ``results`` pages."""

    @tool(name="web_search", description="Search the web.", seconds=_SECONDS + 10, untrusted=True, side_effects=False)
    def search(query: str) -> str:
        """Search the web.

        Args:
            query: a few words to look for
        """
        words = " ".join(query.split())[:_MAX_QUERY]
        if not words:
            raise ToolError("The query is empty: give a few words to look for.")
        found: dict[str, Hit] = {}
        for hit in backend(words, results):
            if hit.url.startswith(("http://", "https://")):
                found.setdefault(hit.url, hit)
        if not found:
            return f"No results found for '{words[:80]}'."
        return "\n".join(_shown(number, hit) for number, hit in enumerate([*found.values()][:results], 1))

    return search


def backend_from(settings: Mapping[str, str]) -> Backend:
    """The service that settings such as environment variables have a key or an address for; else DuckDuckGo.

    SERPAPI_KEY, SERPER_API_KEY, GOOGLE_CSE_KEY with GOOGLE_CSE_ID, and SEARXNG_URL are looked for in this order. Raises
    InputError when one of a pair is missing, MissingDependency when DuckDuckGo is left and ``ddgs`` is not installed.
    """
    given = {name: value.strip() for name, value in settings.items() if value.strip()}
    if key := given.get("SERPAPI_KEY"):
        return serpapi(key)
    if key := given.get("SERPER_API_KEY"):
        return serper(key)
    key, engine = given.get("GOOGLE_CSE_KEY", ""), given.get("GOOGLE_CSE_ID", "")
    if key and engine:
        return google(key, engine)
    if key or engine:
        raise InputError(f"GOOGLE_CSE_{'ID' if key else 'KEY'} is missing: Google's search needs the key and the id")
    if url := given.get("SEARXNG_URL"):
        return searxng(url)
    return duckduckgo()


def duckduckgo(engines: str = "duckduckgo", proxy: str = "") -> Backend:
    """DuckDuckGo through the package ``ddgs``, without a key; ``engines`` may name others of it, with commas."""
    if importlib.util.find_spec("ddgs") is None:
        raise MissingDependency("ddgs", "search")

    def search(query: str, results: int) -> list[Hit]:
        import ddgs
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

        try:
            rows = ddgs.DDGS(timeout=int(_SECONDS), proxy=proxy or None).text(
                query, max_results=results, backend=engines
            )
        except RatelimitException:
            raise _used_up("DuckDuckGo") from None
        except TimeoutException:
            raise ToolError(f"DuckDuckGo did not answer within {_SECONDS:g} s.") from None
        except DDGSException as error:
            if "No results" in str(error):
                return []
            raise ToolError("DuckDuckGo cannot be reached, or refuses to answer programs for a while.") from None
        return _hits(rows, "title", "href", "body")

    return search


def serpapi(key: str, base_url: str = "https://serpapi.com") -> Backend:
    """Google through SerpAPI (serpapi.com)."""

    def search(query: str, results: int) -> list[Hit]:
        service = _Service("SerpAPI", "SERPAPI_KEY", key)
        asked = {"engine": "google", "q": query, "num": results, "api_key": key}
        found = service.ask(f"{_base(base_url)}/search.json?{urlencode(asked)}")
        rows = _hits(found.get("organic_results"), "title", "link", "snippet")
        return [*_box(found.get("answer_box")), *rows]

    return search


def serper(key: str, base_url: str = "https://google.serper.dev") -> Backend:
    """Google through Serper (serper.dev)."""

    def search(query: str, results: int) -> list[Hit]:
        service = _Service("Serper", "SERPER_API_KEY", key)
        found = service.ask(f"{_base(base_url)}/search", headers={"X-API-KEY": key}, json={"q": query, "num": results})
        return [*_box(found.get("answerBox")), *_hits(found.get("organic"), "title", "link", "snippet")]

    return search


def google(key: str, engine: str, base_url: str = "https://www.googleapis.com") -> Backend:
    """Google's Custom Search JSON API; ``engine`` is the id of a search engine (cx)."""

    def search(query: str, results: int) -> list[Hit]:
        service = _Service("Google", "GOOGLE_CSE_KEY and GOOGLE_CSE_ID", key)
        asked = {"key": key, "cx": engine, "q": query, "num": min(results, 10)}
        found = service.ask(f"{_base(base_url)}/customsearch/v1?{urlencode(asked)}")
        return _hits(found.get("items"), "title", "link", "snippet")

    return search


def searxng(url: str) -> Backend:
    """A SearXNG server, on this machine or elsewhere, that has ``json`` among its ``search.formats``."""
    base = _base(url)

    def search(query: str, results: int) -> list[Hit]:
        service = _Service("SearXNG", "SEARXNG_URL", "")
        found = service.ask(f"{base}/search?{urlencode({'q': query, 'format': 'json'})}")
        hits = _hits(found.get("results"), "title", "url", "content")
        silent = [str(each[0]) for each in _list(found.get("unresponsive_engines")) if isinstance(each, list) and each]
        if silent and not hits:
            raise ToolError(f"SearXNG got no answer from its engines: {', '.join(silent[:5])}.")
        return hits[:results]

    return search


@dataclass(frozen=True, slots=True)
class _Service:
    """A search service as its errors name it; ``settings`` are what the user set for it."""

    name: str
    settings: str
    key: str

    def ask(self, url: str, *, headers: Mapping[str, str] | None = None, json: Any = None) -> dict[str, Any]:
        """The JSON object that the service answers. The address is the user's own, so it may be a private one."""
        from qwen_agent.tools.http import fetch  # loads requests

        method = "GET" if json is None else "POST"
        answer = fetch(
            url,
            seconds=_SECONDS,
            max_bytes=_MAX_BYTES,
            method=method,
            headers=headers,
            json=json,
            allow_private=True,
        )
        found = _parsed(answer.body)
        if answer.status != 200:
            raise self._refused(answer.status, _message(found))
        if not isinstance(found, dict):
            raise ToolError(f"{self.name} did not answer with JSON.")
        return found

    def _refused(self, status: int, message: str) -> ToolError:
        said = message.replace(self.key, "...") if self.key else message
        if status == 429 or re.search(r"credit|quota|run out", said, re.IGNORECASE):
            return _used_up(self.name)
        if status == 403 and not self.key:
            return ToolError(f"{self.name} gives no JSON: add json to search.formats in its settings.yml.")
        if status in (401, 403) or "api key" in said.lower():
            return ToolError(f"{self.name} refuses the key: check {self.settings}.")
        return ToolError(f"{self.name} answered {status}{': ' + said[:200] if said else ''}.")


def _used_up(service: str) -> ToolError:
    return ToolError(f"{service} allows no more searches for now: its quota is used up.")


def _base(url: str) -> str:
    """An address without what would be doubled. Raises InputError for one that is not for the web."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url!r} is not the address of a search service: it must begin with http:// or https://")
    return url.rstrip("/").removesuffix("/search")


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(found: Any) -> str:
    """What a service says went wrong, where each of them says it."""
    for name in ("error", "message"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return " ".join(found.split()).rstrip(".") if isinstance(found, str) else ""


def _box(found: Any) -> list[Hit]:
    """The answer that Google shows above the results, if it has a source."""
    row = found if isinstance(found, dict) else {}
    text = row.get("answer") or row.get("snippet") or row.get("result")
    return _hits([{**row, "text": text}], "title", "link", "text") if text else []


def _hits(rows: Any, title: str, url: str, snippet: str) -> list[Hit]:
    found = [row for row in _list(rows) if isinstance(row, dict)]
    return [Hit(*(_plain(row.get(name)) for name in (title, url, snippet))) for row in found]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(value: Any) -> str:
    """A service's text on one line, without the marks for bold that some put in."""
    text = re.sub(r"</?(?:b|strong|em|mark|span)\b[^>]{0,100}>", "", str(value or ""))
    return " ".join(html.unescape(text).split())


def _shown(number: int, hit: Hit) -> str:
    lines = [f"[{number}] {_cut(hit.title or 'Untitled', _MAX_TITLE)}", hit.url, _cut(hit.snippet, _SNIPPET)]
    return "\n".join(line for line in lines if line)


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 3].rstrip() + "..."
