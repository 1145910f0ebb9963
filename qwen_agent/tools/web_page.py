"""Reading a web page: its main text, piece by piece, short enough for a small model.

HTML becomes text (`qwen_agent.tools.html_text`), PDF the text of its pages; plain text, JSON and XML stay as they are.

Promises
- Requests keep the promises of `qwen_agent.tools.http`: only public addresses, bounded time and size.
- An address is at most `MAX_URL` characters long, which bounds what a page's author can make a model give away by it.
"""

from __future__ import annotations

import http.client
import importlib.util
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwen_agent.errors import MissingDependency, ToolError
from qwen_agent.tools.base import Tool, cancelled, tool
from qwen_agent.tools.documents import Skipped, pdf_pages
from qwen_agent.tools.html_text import MAX_CHARS, Page, decode, read_html

if TYPE_CHECKING:
    from qwen_agent.tools.http import Response

MAX_URL = 2_000

_SECONDS = 20.0
_MAX_BYTES = 10_000_000
_MAX_LINKS = 20
_REMEMBERED = 4  # pages, so that their second part is from the same reading as the first
_HTML = ("text/html", "application/xhtml+xml")
_READABLE = (
    *("text/", "application/xhtml+xml", "application/pdf", "application/json", "application/ld+json"),
    *("application/xml", "application/rss+xml", "application/atom+xml", "application/yaml"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff]")


@dataclass(frozen=True, slots=True)
class _Document:
    """A page that was read: where it really was, its title, its text in parts, and the links of each part."""

    url: str
    title: str
    parts: tuple[str, ...]
    links: tuple[str, ...] = ()


def web_page(*, chars: int = 4_000, links: bool = False, allow_private: bool = False, proxy: str = "") -> Tool:
    """A tool named ``web_page`` that reads a page of the web, in parts of about ``chars`` characters.

    With ``links`` the text has numbers where it links to other pages, and their addresses stand below it; a search
    tool needs none. ``allow_private`` lets it read private and loopback addresses on any port too: for trusted
    networks and models only. ``proxy`` is the URL of one. Raises MissingDependency without lxml.
    """
    if importlib.util.find_spec("lxml") is None:
        raise MissingDependency("lxml", "web")
    remembered: OrderedDict[str, _Document] = OrderedDict()
    lock = threading.Lock()

    @tool(name="web_page", description="Read a web page.", seconds=_SECONDS + 10, untrusted=True, side_effects=False)
    def read(url: str, page: int = 1) -> str:
        """Read a web page.

        Args:
            url: the address of the page
            page: which part of a long page to read
        """
        from qwen_agent.tools.http import fetch  # loads requests

        url = _address(url)
        with lock:
            document = remembered.get(url) if page > 1 else None
        if document is None:
            answer = fetch(
                url,
                seconds=_SECONDS,
                max_bytes=_MAX_BYTES,
                media_types=_READABLE,
                allow_private=allow_private,
                proxy=proxy,
            )
            document = _document(answer, chars, links)
        with lock:
            remembered[url] = document
            while len(remembered) > _REMEMBERED:
                remembered.popitem(last=False)
        return _shown(document, page)

    return read


def _address(url: str) -> str:
    url = url.strip().strip("<>\"'`")
    if len(url) > MAX_URL:
        raise ToolError(f"The address is longer than {MAX_URL} characters.")
    return url if "://" in url else f"https://{url}"


def _document(answer: Response, chars: int, links: bool) -> _Document:
    """What an answer holds. Raises ToolError for one that says it failed, or that has no text."""
    if answer.status // 100 != 2:
        raise ToolError(_refusal(answer.url, answer.status))
    page = _page(answer, answer.url if links else None)
    text = re.sub(r"\n{3,}", "\n\n", _CONTROL.sub("", page.text.replace("\r\n", "\n"))).strip()
    if not text:
        raise ToolError(f"{answer.url} holds no text: it may be made by scripts, which are not run.")
    if text.startswith(f"# {page.title}\n"):
        text = text.partition("\n")[2].lstrip()
    return _Document(answer.url, page.title, tuple(split_pages(text, chars)), page.links)


def _page(answer: Response, base: str | None) -> Page:
    kind = answer.media_type
    if kind == "application/pdf" or answer.body.startswith(b"%PDF-"):
        return _pdf(answer)
    text = decode(answer.body, answer.charset)
    unread = "\n\n(The rest is too long and was not read.)" if answer.truncated or len(text) > MAX_CHARS else ""
    if kind in _HTML or (not kind and re.match(r"\s*<(!doctype html|html)", text, re.IGNORECASE)):
        page = read_html(text, base)
        return replace(page, text=page.text + unread)
    if "\0" in text:
        raise ToolError(f"{answer.url} is not text.")
    return Page("", text[:MAX_CHARS] + unread)


def _pdf(answer: Response) -> Page:
    if answer.truncated:
        raise ToolError(f"{answer.url} is a PDF of more than {_MAX_BYTES // 1_000_000} MB, which is not read.")
    try:
        title, pages = pdf_pages(answer.body, cancelled)
    except Skipped as reason:
        raise ToolError(f"{answer.url} is a PDF that cannot be read: {reason}.") from None
    return Page(title, "\n\n".join(f"## Page {n}\n\n{text.strip()}" for n, text in enumerate(pages, 1)))


def _refusal(url: str, status: int) -> str:
    meaning = {401: "it needs a login", 403: "it does not let programs read it", 404: "there is no such page"}
    meaning |= {410: "the page is gone", 429: "it asks to wait before reading more"}
    more = meaning.get(status) or ("the server has a problem" if status >= 500 else "")
    said = f"{url} answered {status} {http.client.responses.get(status, '')}".rstrip()
    return f"{said}: {more}." if more else f"{said}."


def split_pages(text: str, chars: int) -> list[str]:
    """The text in parts of at most ``chars`` characters, cut between paragraphs, else lines, else words."""
    parts: list[str] = []
    while len(text) > chars:
        places = (text.rfind(border, chars // 2, chars + 1) for border in ("\n\n", "\n", " "))
        part = text[: next((place for place in places if place > 0), chars)].rstrip()
        before, _, last = part.rpartition("\n\n")
        if before and last.startswith("#"):  # a heading belongs to what follows
            part = before
        parts.append(part)
        text = text[len(part) :].lstrip("\n ")
    return [*parts, text]


def _shown(document: _Document, page: int) -> str:
    total = len(document.parts)
    if not 1 <= page <= total:
        raise ToolError(f"There is no page {page}: the text has {total} page{'s' if total > 1 else ''}.")
    text = document.parts[page - 1]
    head = [f"# {document.title}" if document.title else "", document.url, ""] if page == 1 else []
    numbers = dict.fromkeys(int(number) for number in re.findall(r"\[(\d{1,4})\]", text)) if document.links else {}
    linked = [f"[{n}] {document.links[n - 1]}" for n in numbers if 1 <= n <= len(document.links)]
    more = f": page={page + 1} reads on" if page < total else ""
    foot = ["", *linked[:_MAX_LINKS]] * bool(linked) + ["", f"(page {page} of {total}{more})"] * (total > 1)
    return "\n".join([*head[not document.title :], text, *foot])
