"""Reading the files of a folder: text, Markdown, HTML, PDF, tables, JSON lines and source code, as passages.

Promises
- Nothing outside of the folder is read: links are not followed, neither to files nor to folders.
- A file that cannot be read (binary, very large, damaged, encrypted, not a regular file) raises `Skipped` with the
  reason, and nothing else.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from qwen_agent.errors import MissingDependency, ToolError
from qwen_agent.tools.html_text import decode, read_html
from qwen_agent.tools.passages import Passage, Row, split_code, split_markdown, split_prose, split_rows, words_of

KINDS = "text (.txt, .md, .rst), .html, .pdf, .csv, .tsv, .jsonl and source code"

_MEGABYTE = 1_000_000
_MAX_BYTES = 10 * _MEGABYTE
_MAX_PDF_BYTES = 100 * _MEGABYTE
_MAX_PDF_CHARS = 10 * _MEGABYTE
_MAX_COLUMNS = 200
_TEXT = ".txt .text .md .markdown .rst .adoc .org .tex"
_CODE = (
    ".bash .c .cc .clj .cmake .cpp .cs .cxx .dart .erl .ex .exs .fish .go .gradle .h .hh .hpp .hs .ini .java .jl .js "
    ".jsx .kt .kts .lua .m .mjs .ml .mm .php .pl .pm .proto .ps1 .py .pyi .r .rb .rs .scala .sh .sql .svelte .swift "
    ".tf .toml .ts .tsx .vue .yaml .yml .zig .zsh"
)
_NOT_DOCUMENTS = frozenset(("node_modules", "__pycache__"))
_NUMBER = re.compile(r"[\s$€£¥+-]*\d[\d.,\s%]*")


class Skipped(Exception):
    """A file is left out. ``reason`` fits after a count ("2 binary"); ``lasting`` if only the file can change it."""

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


def walk(root: Path, skipped: Counter[str]) -> Iterator[tuple[str, Path]]:
    """Every file of a known kind under a resolved folder, in the order of names, with its path relative to it.

    Hidden files and folders, virtual environments, ``node_modules`` and ``__pycache__`` are passed over. Links, and
    folders that cannot be listed, are counted in ``skipped``.
    """

    def unlisted(_: OSError) -> None:
        skipped["unreadable folder"] += 1

    for parent, folders, files in os.walk(root, onerror=unlisted):
        # A junction of Windows is a link that os.walk follows.
        if "pyvenv.cfg" in files or os.path.realpath(parent) != parent:
            folders.clear()
            continue
        visible = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_DOCUMENTS)
        linked = {name for name in visible if Path(parent, name).is_symlink()}
        skipped["a link"] += len(linked)
        folders[:] = [name for name in visible if name not in linked]
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in _READERS:
                continue
            if path.is_symlink():
                skipped["a link"] += 1
                continue
            # A name that is not UTF-8 can be opened but not stored.
            yield os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace"), path
    for reason in [reason for reason, count in skipped.items() if not count]:
        del skipped[reason]


def read_file(path: Path, file: str) -> tuple[list[Passage], os.stat_result]:
    """The passages of a file, and what it was when it was opened. Raises Skipped."""
    read = _READERS[path.suffix.lower()]
    data, status = _load(path, _MAX_PDF_BYTES if read is _pdf else _MAX_BYTES)
    if read is not _pdf and b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Skipped("binary")
    try:
        passages = list(read(data, file))
    except MissingDependency as error:
        raise Skipped(f"{path.suffix.lower()}: {error}", lasting=False) from None
    except ToolError:
        raise Skipped("unreadable markup") from None
    if not passages:
        raise Skipped("empty")
    return passages, status


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change (ns), by which a changed file is known; None if it cannot be told."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _load(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise Skipped("not a regular file", lasting=False)
            if status.st_size > limit:
                raise Skipped(f"over {limit // _MEGABYTE} MB", lasting=False)
            return file.read(limit), status
    except OSError:
        raise Skipped("unreadable", lasting=False) from None


def plain_text(data: bytes) -> str:
    """Text in UTF-8, in UTF-16 with its mark, or else in Latin-1, which never fails and suits old Western text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def pdf_pages(data: bytes, stopped: Callable[[], bool] = lambda: False) -> tuple[str, list[str]]:
    """Title and text of each page of a PDF; ``stopped`` is asked before every page whether to give up.

    Raises Skipped for a file that is damaged, encrypted or has no text, and MissingDependency without pypdf.
    """
    try:
        import pypdf
    except ImportError:
        raise MissingDependency("pypdf", "pdf") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every flaw of every file
    pages: list[str] = []
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Skipped("encrypted")
        title = str(reader.metadata.title or "") if reader.metadata else ""
        chars = 0
        for page in reader.pages:
            if stopped():
                raise Skipped("stopped", lasting=False)
            pages.append(_unhyphenated(page.extract_text()))
            chars += len(pages[-1])
            if chars > _MAX_PDF_CHARS:
                break
    except Skipped:
        raise
    except pypdf.errors.DependencyError:
        raise Skipped("encrypted") from None
    except Exception:  # pypdf raises anything at all for a file that is not what it says
        if not any(page.strip() for page in pages):
            raise Skipped("damaged") from None
        title = ""
    if not any(page.strip() for page in pages):
        raise Skipped("without text (scanned pages need OCR)")
    return " ".join(title.split()), pages


def _unhyphenated(text: str) -> str:
    return re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text)


def _prose(data: bytes, file: str) -> Iterable[Passage]:
    return split_markdown(plain_text(data), file)


def _source(data: bytes, file: str) -> Iterable[Passage]:
    return split_code(plain_text(data), file)


def _html(data: bytes, file: str) -> Iterable[Passage]:
    page = read_html(decode(data))
    return split_markdown(page.text, file, page.title)


def _pdf(data: bytes, file: str) -> Iterable[Passage]:
    title, pages = pdf_pages(data)
    # Many programs write the name of the file they were given, or of themselves, where the title belongs.
    usable = " " in title and len(title) < 200 and not re.search(r"\.\w{2,4}$|^Microsoft|^untitled", title, re.I)
    for number, text in enumerate(pages, 1):
        yield from split_prose(text, file, title if usable else words_of(file), f"page {number}")


def _table(data: bytes, file: str) -> Iterable[Passage]:
    """Rows as "column: value; ..." lines, so that each can be understood alone."""
    text = plain_text(data)
    try:
        return list(split_rows(_rows(text, "\t" if file.lower().endswith(".tsv") else ""), file))
    except csv.Error:
        return split_code(text, file)


def _rows(text: str, delimiter: str) -> Iterator[Row]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or _delimiter(text))
    header: list[str] | None = None
    number = 0
    for cells in rows:
        cells = [" ".join(cell.split()) for cell in cells[:_MAX_COLUMNS]]
        if not any(cells):
            continue
        number += 1
        if header is None:
            header = cells if _is_header(cells) else []
            if header:
                continue
        names = header + [""] * (len(cells) - len(header))
        shown = (f"{name}: {cell}" if name else cell for name, cell in zip(names, cells, strict=False) if cell)
        yield number, "; ".join(shown)


def _delimiter(text: str) -> str:
    """The sign that cuts the first lines into the same number of cells, more than one; a comma if none does."""
    lines = text.splitlines()[:20]
    counts = {sign: Counter(line.count(sign) for line in lines if line).most_common(1) for sign in ",;\t|"}
    return max(counts, key=lambda sign: [(n > 0) * times for n, times in counts[sign]] or [0])


def _is_header(cells: list[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return len(set(filled)) == len(filled) and not any(_NUMBER.fullmatch(cell) for cell in filled)


def _json_lines(data: bytes, file: str) -> Iterable[Passage]:
    lines = enumerate(plain_text(data).splitlines(), 1)
    return split_rows(((number, _record(line)) for number, line in lines if line.strip()), file)


def _record(line: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return line.strip()
    if not isinstance(value, dict):
        return " ".join(_compact(value).split())
    return "; ".join(f"{key}: {' '.join(_compact(each).split())}" for key, each in value.items())


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_READERS: dict[str, Callable[[bytes, str], Iterable[Passage]]] = {
    **dict.fromkeys(_TEXT.split(), _prose),
    **dict.fromkeys(_CODE.split(), _source),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    **dict.fromkeys((".csv", ".tsv"), _table),
    **dict.fromkeys((".jsonl", ".ndjson"), _json_lines),
    ".pdf": _pdf,
}
