"""HTML to text: what a person came to read, as Markdown, without scripts, menus, banners and footers.

Headings, lists, tables and preformatted text keep their shape. What is left out is decided by elements and roles, then
by telling names ("sidebar", "cookie"); nothing that holds a third of the page's text is left out for its name.

Promises: no markup takes more than some seconds. libxml2 parses it, which cuts nesting at 256 levels; only the
attributes of a single tag cost it time squared, so a tag with absurdly many is refused before.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin

from qwen_agent.errors import MissingDependency, ToolError

MAX_CHARS = 2_000_000
_MAX_ATTRIBUTES = 3_000  # no page has that many in a tag, but a script may have many words between "<" and ">"

_FURNITURE_TAGS = (
    "script style noscript template svg canvas iframe object audio video math head nav footer dialog button input "
    "select textarea"
)
_FURNITURE_ROLES = "navigation banner contentinfo search dialog alertdialog menu menubar"
_NAMED = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navbox|menu|sidebar|breadcrumbs?|cookies?|consent|footer|share|sharing|social|"
    r"advert|advertisement|ads|newsletter|popup|modal|toolbar|editsection|headerlink|skip)(?:$|[\s_-])",
    re.IGNORECASE,
)
_KEPT = frozenset(("html", "body", "main", "article"))
_MIN_MAIN = 0.3  # a main element with less of the text than this is not what it says

_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_BLOCK_TAGS = (
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure form header hr "
    "legend li main ol p section summary table tbody tfoot thead tr ul"
)
_FURNITURE, _ROLES, _BLOCKS = (frozenset(each.split()) for each in (_FURNITURE_TAGS, _FURNITURE_ROLES, _BLOCK_TAGS))
_TIGHT = frozenset(("li", "tr", "dt", "dd", "ul", "ol"))  # no empty line stands round them
_MAX_CELL = 200  # characters; a larger cell of a table is there for the layout
_CELL = "\ue000"  # stands for the border of a cell until the row is known
_QUOTED = r"""=\s*(?:"[^"]*"|'[^']*')"""
_TAG = re.compile(rf"<[a-zA-Z](?:{_QUOTED}|=|[^>=]+)*")
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# On the web a label means what browsers make of it, which is often the larger relative of what it names.
_LABELS = {
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "big5": "big5hkscs",
}


@dataclass(frozen=True, slots=True)
class Page:
    """A page's title and its main text as Markdown; ``[n]`` in the text stands for ``links[n - 1]``."""

    title: str
    text: str
    links: tuple[str, ...] = ()


def read_html(html: str, base: str | None = None) -> Page:
    """The main text of a page. With ``base``, the page's own address, the pages that it links to are numbered.

    Only the first `MAX_CHARS` characters are read. Raises MissingDependency without lxml, and ToolError for markup
    that no page has.
    """
    try:
        import lxml.etree
        import lxml.html
    except ImportError:
        raise MissingDependency("lxml", "web") from None
    html = html[:MAX_CHARS]
    if any(len(tag[0]) > 2 * _MAX_ATTRIBUTES and _attributes(tag[0]) > _MAX_ATTRIBUTES for tag in _TAG.finditer(html)):
        raise ToolError("The page has a tag with thousands of attributes, so it is not read.")
    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        tree = lxml.html.document_fromstring(html.encode("utf-8", "replace"), parser=parser)
    except lxml.etree.ParserError:  # nothing but white space and comments
        return Page("", "")
    main, dropped = _survey(tree)
    writer = _Writer(base)
    for node, event in _walk(main, dropped):
        writer.take(node, event)
    text = writer.text()
    heading = re.search(r"^#+ (.+)", text, re.MULTILINE)
    title = " ".join((tree.findtext(".//title") or "").split())
    return Page(title or (heading[1] if heading else ""), text, tuple(writer.links))


def decode(data: bytes, charset: str = "") -> str:
    """The text of a page, by its byte order mark, the server's ``charset``, its meta element, or what it looks like."""
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    meta = _CHARSET.search(data[:2048])
    for label in (charset, meta[1].decode("ascii", "replace") if meta else ""):
        if label and (text := _decode_as(data, label)) is not None:
            return text
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _guess(data)


def _decode_as(data: bytes, label: str) -> str | None:
    """The text under a label; None for one that Python does not know, or that names no encoding of text."""
    label = label.strip().strip("\"'").lower()
    try:
        return data.decode(_LABELS.get(label, label), "replace")
    except (LookupError, ValueError):
        return None


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:50_000]).best()
    return data.decode(best.encoding if best else "cp1252", "replace")


def _attributes(tag: str) -> int:
    return len(re.findall(r"[^\s/]+", re.sub(_QUOTED, "= ", tag)))


def _walk(root: Any, dropped: set[Any]) -> Iterator[tuple[Any, str]]:
    """Every element with "start" and "end", and "tail" where the text behind it is due; no recursion."""
    from lxml.etree import iterwalk

    walk = iterwalk(root, events=("start", "end"))
    for event, node in walk:
        if event == "start" and (node in dropped or _is_furniture(node)):
            walk.skip_subtree()
            dropped.add(node)
        elif node not in dropped:
            yield node, event
        if event == "end" and node is not root:
            yield node, "tail"


def _is_furniture(node: Any) -> bool:
    attributes = node.attrib
    return node.tag in _FURNITURE or (
        len(attributes) > 0
        and node.tag not in _KEPT
        and ("hidden" in attributes or attributes.get("aria-hidden") == "true" or attributes.get("role", "") in _ROLES)
    )


def _survey(tree: Any) -> tuple[Any, set[Any]]:
    """The element to read, and the elements inside it to leave out, after one look at the whole page."""
    body = tree.find("body")
    root = tree if body is None else body
    size = mains = 0  # of what lies before the current place
    began: dict[Any, tuple[int, int]] = {}
    named: list[tuple[Any, int]] = []
    main, most = root, 0
    for node, event in _walk(root, set()):
        if event == "tail":
            size += len(node.tail or "")
            continue
        is_main = node.tag in ("main", "article") or node.get("role") == "main"
        if event == "start":
            if is_main or _is_named(node, inside_main=mains > 0):
                began[node] = size, mains
            mains += is_main
            size += len(node.text or "")
        elif node in began:
            before, mains_before = began[node]
            if is_main:
                main, most = (node, size - before) if size - before > most else (main, most)
            elif mains == mains_before:
                named.append((node, size - before))
    dropped = {node for node, chars in named if chars * 3 < size}
    return (main if most > size * _MIN_MAIN else root), dropped


def _is_named(node: Any, inside_main: bool) -> bool:
    if node.tag in _KEPT:
        return False
    if node.tag == "aside" or (node.tag == "header" and not inside_main):
        return True
    return bool(_NAMED.search(f"{node.get('class', '')} {node.get('id', '')}"[:500]))


@dataclass(slots=True)
class _Writer:
    """Makes lines of what `_walk` passes."""

    base: str | None
    links: list[str] = field(default_factory=list)
    _marks: dict[str, str] = field(default_factory=dict)
    _lines: list[str] = field(default_factory=list)
    _inline: list[str] = field(default_factory=list)
    _prefix: str = ""
    _pre: int = 0
    _cell: Any = None

    def take(self, node: Any, event: str) -> None:
        if event == "tail":
            self._inline.append(node.tail or "")
        elif event == "start":
            self._open(node, node.tag)
            self._inline.append(node.text or "")
        else:
            self._close(node, node.tag)

    def text(self) -> str:
        self._end_line()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip("\n")

    def _open(self, node: Any, tag: str) -> None:
        if tag == "pre":
            self._end_line()
            self._pre += 1
        elif tag in ("td", "th") and self._cell is None and len(node.text_content()) < _MAX_CELL:
            self._cell = node
        elif tag == "br":
            self._inline.append(" " if self._cell is not None else "\v")
        elif tag in _HEADINGS or tag in _BLOCKS:
            self._end_line()
            if not self._prefix and tag not in _TIGHT:
                self._end_paragraph()
            if tag in _HEADINGS or tag == "li":
                self._prefix = _HEADINGS.get(tag, "- ")

    def _close(self, node: Any, tag: str) -> None:
        if tag == "a" and self.base is not None and node.text_content().strip():
            self._inline.append(self._mark(self.base, node.get("href", "")))
        elif tag in ("td", "th"):
            self._inline.append(_CELL)
            self._cell = None if self._cell is node else self._cell
        elif tag == "pre":
            self._end_code()
        elif tag in _HEADINGS or tag in _BLOCKS:
            self._end_line()
            self._prefix = ""
            if tag not in _TIGHT:
                self._end_paragraph()

    def _end_paragraph(self) -> None:
        if self._cell is None and self._lines and self._lines[-1]:
            self._lines.append("")

    def _end_line(self) -> None:
        """What stands inline becomes a line of text; inside preformatted text, or a small cell, it stays inline."""
        if self._pre or self._cell is not None:
            self._inline.append("\v" if self._pre else " ")
            return
        text = "".join(self._inline)
        self._inline.clear()
        for line in text.split("\v"):
            cells = [" ".join(cell.split()) for cell in line.split(_CELL)]
            while cells and not cells[-1]:
                cells.pop()
            if any(cells):
                self._lines.append(self._prefix + " | ".join(cells))
                self._prefix = ""

    def _end_code(self) -> None:
        self._pre -= 1
        if self._pre or self._cell is not None:
            return
        code = "".join(self._inline).replace("\v", "\n").replace(_CELL, " ")
        self._inline.clear()
        if code.strip():
            self._end_paragraph()
            self._lines += ["```", code.strip("\n"), "```", ""]

    def _mark(self, base: str, href: str) -> str:
        """What stands behind a link's text: the number of its page, nothing for a place in this one or no page."""
        if href not in self._marks:
            url = _joined(base, href)
            if url and url not in self.links:
                self.links.append(url)
            self._marks[href] = f" [{self.links.index(url) + 1}]" if url else ""
        return self._marks[href]


def _joined(base: str, href: str) -> str:
    try:
        url = urljoin(base, href.strip()).partition("#")[0]
    except ValueError:
        return ""
    return url if url.startswith(("http://", "https://")) and url != base.partition("#")[0] else ""
