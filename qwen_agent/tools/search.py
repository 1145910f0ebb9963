"""Search in a folder of text files: ranked passages, short enough for a small model to read.

Passages of 80 to 150 words lie in an SQLite full-text index in memory. Words are stemmed and lose their accents;
Chinese, Japanese and Korean text, which has no spaces to split at, is indexed as overlapping pairs of characters.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen_agent.errors import InputError, QwenAgentError, ToolError
from qwen_agent.tools.base import Tool, tool

EXTENSIONS = (".txt", ".md", ".markdown", ".rst")

_MAX_BYTES = 10_000_000
_MIN_WORDS, _MAX_WORDS = 80, 150
_MAX_TERMS = 32
_WEIGHTS = "4.0, 3.0, 1.0, 1.0"  # title, heading, body, pairs
_OPEN, _CLOSE = "\x02", "\x03"  # marks that SQLite puts round the matching words
_CJK = r"[\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003134f]"
_CJK_RUN = re.compile(f"{_CJK}+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])|(?<=[。！？])")
_UNDERLINE = re.compile(r"""([=\-~^"'*+#])\1{2,}\s*""")
_MAX_MARKUP_CHARS = 5_000  # a longer paragraph is data, not prose, and unmatched signs in it would cost minutes
_MARKUP = (
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"(\*\*|__|``?)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
)
_SAYING_NOTHING = (
    "a about an and any are as at be been but by can could did do does for from had has have how i if in into is it "
    "its many me much my of on or our s should so t tell than that the their them then there these they this those "
    "to was we were what when where which who whom whose why will with would you your"
)
_STOP_WORDS = frozenset(_SAYING_NOTHING.split())


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of one document. ``heading`` is the path of headings above it, ``file`` is relative to the folder."""

    title: str
    heading: str
    body: str
    file: str


@dataclass(frozen=True, slots=True)
class Library:
    """What was read from a folder; ``skipped`` counts the files that were not, by reason."""

    passages: tuple[Passage, ...]
    documents: int
    skipped: Counter[str]


def search_documents(folder: str | os.PathLike[str], *, results: int = 3, chars: int = 300) -> Tool:
    """A tool named ``search`` over the text and Markdown files of a folder, read once, now.

    It returns the best ``results`` passages, each cut to about ``chars`` characters round the sentence that fits best.
    A single one comes as bare text, several with number, title and file: a small model reads the former better.
    Hidden, binary and very large files are left out (`read_library` counts them). Raises InputError when the folder
    does not exist or holds no readable text.
    """
    library = read_library(folder)
    connection = _index(library.passages)
    lock = threading.Lock()  # the connection is made here but used in the tool's worker threads

    @tool(description=f"Search {library.documents} documents for facts.", seconds=10.0)
    def search(query: str) -> str:
        """Search.

        Args:
            query: a few words to look for
        """
        with lock:
            return _answer(connection, query, results, chars)

    return search


def read_library(folder: str | os.PathLike[str]) -> Library:
    """Read and split every text file under the folder, in the order of their names. Raises InputError as above."""
    root = Path(folder).expanduser()
    if not root.exists():
        raise InputError(f"the folder '{root}' does not exist: give a folder with {', '.join(EXTENSIONS)} files")
    if not root.is_dir():
        raise InputError(f"'{root}' is not a folder: give the folder that holds the documents")
    passages: list[Passage] = []
    skipped: Counter[str] = Counter()
    documents = 0
    for path in _text_files(root):
        text = _read(path, skipped)
        found = list(_split(text, path.relative_to(root).as_posix())) if text else []
        passages += found
        documents += bool(found)
    if not passages:
        reasons = "".join(f", {count} {reason}" for reason, count in skipped.items())
        kinds = ", ".join(EXTENSIONS)
        raise InputError(f"no readable text in '{root}' ({kinds} files are read{reasons}): add some there")
    return Library(tuple(passages), documents, skipped)


def _text_files(root: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(parent, name)


def _read(path: Path, skipped: Counter[str]) -> str:
    """The file's text, or nothing and one more in ``skipped``."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            skipped["over 10 MB"] += 1
            return ""
        data = path.read_bytes() if path.is_file() else b"\0"  # reading a pipe would wait for ever
    except OSError:
        skipped["unreadable"] += 1
        return ""
    if b"\0" in data:
        skipped["binary"] += 1
        return ""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # never fails, and is right for most old Western text
    if not text.strip():
        skipped["empty"] += 1
    return text


def _split(text: str, file: str) -> Iterator[Passage]:
    """Passages of about 80 to 150 words that never cross a heading."""
    title = ""
    for headings, paragraphs in _sections(text):
        title = title or (headings[0] if headings else "")
        path = headings[1:] if headings[:1] == [title] else headings
        for body in _pack(paragraphs):
            yield Passage(title or _words_of(file), " > ".join(path), body, file)


def _sections(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """The paragraphs under each heading, with the path of headings that leads there."""
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    for level, line in _lines(text):
        if not level:
            lines.append(line)
            continue
        yield [name for _, name in path], _paragraphs(lines)
        lines = []
        path = [each for each in path if each[0] < level] + [(level, _clean(line))]
    yield [name for _, name in path], _paragraphs(lines)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Every line with its heading level, 0 for text. Underlined headings rank by when their sign first appears."""
    signs: list[str] = []
    fenced = False
    lines = text.splitlines()
    skip = False
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if skip:
            skip = False
            continue
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and (heading := re.match(r"(#{1,6})\s", line)):
            yield len(heading[1]), line.strip().strip("#").strip()
        elif not fenced and _is_title(line) and (underline := _UNDERLINE.fullmatch(following)):
            if underline[1] not in signs:
                signs.append(underline[1])
            yield signs.index(underline[1]) + 1, line
            skip = True
        elif not _UNDERLINE.fullmatch(line):
            yield 0, line


def _is_title(line: str) -> bool:
    return bool(line.strip()) and not line.startswith((" ", "|", "-", ">", "```")) and not _UNDERLINE.fullmatch(line)


def _paragraphs(lines: Iterable[str]) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    return [clean for each in paragraphs if (clean := _clean(each))]


def _clean(text: str) -> str:
    if len(text) <= _MAX_MARKUP_CHARS:
        for pattern, replacement in _MARKUP:
            text = pattern.sub(replacement, text)
    return " ".join(text.replace(_OPEN, "").replace(_CLOSE, "").split())


def _pack(paragraphs: Iterable[str]) -> Iterator[str]:
    """Join short paragraphs and cut long ones, at the ends of sentences."""
    parts: list[str] = []
    size = 0
    for part in _pieces(paragraphs):
        length = _length(part)
        if parts and (size >= _MIN_WORDS or size + length > _MAX_WORDS):
            yield " ".join(parts)
            parts, size = [], 0
        parts.append(part)
        size += length
    if parts:
        yield " ".join(parts)


def _pieces(paragraphs: Iterable[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        if _length(paragraph) <= _MAX_WORDS:
            yield paragraph
            continue
        for sentence in _SENTENCE_END.split(paragraph):
            yield from _chunks(sentence)


def _chunks(sentence: str) -> Iterator[str]:
    """A sentence of more than a passage (a table, a list without stops) is cut by length."""
    if _length(sentence) <= _MAX_WORDS:
        yield sentence
        return
    words = [word[at : at + _MAX_WORDS] for word in sentence.split(" ") for at in range(0, len(word), _MAX_WORDS)]
    chunk: list[str] = []
    size = 0
    for word in words:
        if size >= _MIN_WORDS:
            yield " ".join(chunk)
            chunk, size = [], 0
        chunk.append(word)
        size += _length(word)
    yield " ".join(chunk)


def _length(text: str) -> int:
    """Words; two characters of a script without spaces count as one."""
    pairs = sum(len(run) for run in _CJK_RUN.findall(text)) // 2
    return pairs + len(_CJK_RUN.sub(" ", text).split())


def _words_of(file: str) -> str:
    return " ".join(word.capitalize() for word in re.split(r"[\W_]+", Path(file).stem) if word) or file


def _index(passages: Iterable[Passage]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        connection.execute(
            "CREATE VIRTUAL TABLE passages USING fts5(title, heading, body, pairs, file UNINDEXED,"
            " tokenize = 'porter unicode61 remove_diacritics 2')"
        )
    except sqlite3.OperationalError as error:
        raise QwenAgentError(
            f"this Python's sqlite3 ({sqlite3.sqlite_version}) has no full-text search ({error}): "
            f"use a Python built with SQLite 3.27 or newer and FTS5"
        ) from None
    rows = ((p.title, p.heading, p.body, " ".join(_pairs(f"{p.title} {p.heading} {p.body}")), p.file) for p in passages)
    connection.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    return connection


def _pairs(text: str) -> Iterator[str]:
    """Single characters and overlapping pairs of every run of Chinese, Japanese or Korean text."""
    for run in _CJK_RUN.findall(unicodedata.normalize("NFKC", text)):
        yield from run
        yield from _overlapping(run)


def _overlapping(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]


def _terms(query: str) -> list[str]:
    """The query as separate FTS5 phrases, quoted, so that nothing in it is read as an operator."""
    text = unicodedata.normalize("NFKC", query).casefold()
    words = re.findall(r"\w+", _CJK_RUN.sub(" ", text))
    wanted = [word for word in words if word not in _STOP_WORDS]
    runs = _CJK_RUN.findall(text)
    pairs = [f'pairs : "{pair}"' for run in runs for pair in _overlapping(run) or [run]]
    words = wanted or ([] if pairs else words)
    return list(dict.fromkeys([*(f'"{word}"' for word in words), *pairs]))[:_MAX_TERMS]


def _answer(connection: sqlite3.Connection, query: str, most: int, chars: int) -> str:
    if not query.strip():
        raise ToolError("The query is empty: give a few words to look for.")
    terms = _terms(query)
    found = _best(connection, terms, most)
    if not found:
        shown = query.strip() if len(query) <= 80 else query.strip()[:77] + "..."
        return f"No results found for '{shown}'."
    if most == 1:
        return _excerpt(found[0].marked, found[0].pairs, chars)
    return "\n".join(f"[{n}] {hit.where}: {_excerpt(hit.marked, hit.pairs, chars)}" for n, hit in enumerate(found, 1))


@dataclass(frozen=True, slots=True)
class _Hit:
    """A passage that was found: where it is, its text with the matches marked, and the CJK pairs looked for."""

    where: str
    marked: str
    pairs: frozenset[str]


def _best(connection: sqlite3.Connection, terms: list[str], most: int) -> list[_Hit]:
    """The passages that match most terms, then those with the best bm25; far weaker ones are left out."""
    matched: Counter[int] = Counter()
    for term in terms:
        rows = connection.execute("SELECT rowid FROM passages WHERE passages MATCH ?", [term])
        matched.update(row for (row,) in rows)
    if not matched:
        return []
    least = max(matched.values()) / 2
    pairs = frozenset(term.split('"')[1] for term in terms if term.startswith("pairs"))
    found = connection.execute(
        f"SELECT rowid, bm25(passages, {_WEIGHTS}), title, heading, highlight(passages, 2, ?, ?), file"
        " FROM passages WHERE passages MATCH ? ORDER BY 2",
        [_OPEN, _CLOSE, " OR ".join(terms)],
    )
    ranked = sorted((row for row in found if matched[row[0]] >= least), key=lambda row: (-matched[row[0]], row[1]))
    return [_Hit(_where(title, heading, file), body, pairs) for _, _, title, heading, body, file in ranked[:most]]


def _where(title: str, heading: str, file: str) -> str:
    return f"{title} > {heading} ({file})" if heading else f"{title} ({file})"


def _excerpt(marked: str, pairs: frozenset[str], chars: int) -> str:
    """About ``chars`` characters round the sentence with most of the terms."""
    sentences = _SENTENCE_END.split(marked)
    best = max(range(len(sentences)), key=lambda at: (_hits(sentences[at], pairs), -at))
    first = last = best
    plain = [_unmark(sentence) for sentence in sentences]
    size = len(plain[best])
    while last + 1 < len(plain) and size + 1 + len(plain[last + 1]) <= chars:
        last += 1
        size += 1 + len(plain[last])
    while first > 0 and size + 1 + len(plain[first - 1]) <= chars:
        first -= 1
        size += 1 + len(plain[first])
    text = " ".join(plain[first : last + 1]) if size <= chars else _around(sentences[best], pairs, chars)
    return ("... " if first else "") + text + (" ..." if last + 1 < len(plain) else "")


def _hits(sentence: str, pairs: frozenset[str]) -> int:
    words = {word.casefold() for word in re.findall(f"{_OPEN}(.*?){_CLOSE}", sentence)}
    return len(words) + sum(pair in sentence for pair in pairs)


def _around(sentence: str, pairs: frozenset[str], chars: int) -> str:
    """The part of one long sentence that begins a little before its first match."""
    places = [sentence.find(mark) for mark in (_OPEN, *pairs) if mark in sentence]
    start = max(0, min(places, default=0) - chars // 4)
    text = _unmark(sentence[start:])
    return ("..." if start else "") + text[:chars] + ("..." if len(text) > chars else "")


def _unmark(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")
