"""Cutting documents into passages of about 80 to 150 words, each short enough to be found and read on its own.

Prose (plain text, Markdown, reStructuredText) is cut at headings, paragraphs and sentences; code at blank lines;
tables between rows. Two characters of Chinese, Japanese or Korean count as one word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

_MIN_WORDS, _MAX_WORDS = 80, 150
_MAX_CHARS = 3_000  # a passage without spaces (base64, minified code) ends here
_CJK = r"[\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003134f]"
CJK_RUN = re.compile(f"{_CJK}+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])|(?<=[。！？])")
_UNDERLINE = re.compile(r"""([=\-~^"'*+#])\1{2,}\s*""")
_MAX_MARKUP_CHARS = 5_000  # a longer paragraph is data, not prose, and unmatched signs in it would cost minutes
_MARKUP = (
    (re.compile(r"<!--.*?-->", re.DOTALL), ""),
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"(\*\*|__|``?)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
)

Row = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of one document.

    ``heading`` is the path of headings above it, ``file`` is relative to the folder, ``place`` says where in the file
    it stands if lines, rows or pages tell ("page 3"). Prose is one line; code and tables keep their lines.
    """

    title: str
    heading: str
    body: str
    file: str
    place: str = ""


def split_markdown(text: str, file: str, title: str = "") -> Iterator[Passage]:
    """Passages of Markdown, reStructuredText or plain text, which never cross a heading.

    The first heading is the title, unless one is given; without any it is made from the file's name.
    """
    for headings, paragraphs in _sections(text):
        title = title or (headings[0] if headings else "")
        path = headings[1:] if headings[:1] == [title] else headings
        for body in _pack(paragraphs):
            yield Passage(title or words_of(file), " > ".join(path), body, file)


def split_prose(text: str, file: str, title: str, place: str) -> Iterator[Passage]:
    """Passages of text that has paragraphs but no markup."""
    paragraphs = (" ".join(each.split()) for each in re.split(r"\n\s*\n", text))
    for body in _pack(each for each in paragraphs if each):
        yield Passage(title, "", body, file, place)


def split_code(text: str, file: str) -> Iterator[Passage]:
    """Passages of whole blocks, where a block ends at a blank line; only a block that is too long is cut."""
    blocks: list[list[Row]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            blocks[-1].append((number, line.rstrip()))
        elif blocks[-1]:
            blocks.append([])
    yield from _numbered(blocks, file, PurePosixPath(file).name, "lines")


def split_rows(rows: Iterable[Row], file: str) -> Iterator[Passage]:
    """Passages of whole rows, each a line that can be understood without the others."""
    yield from _numbered(([row] for row in rows), file, words_of(file), "rows")


def words_of(file: str) -> str:
    """A title from a file's name: ``notes/my_old-plan.txt`` is ``My Old Plan``."""
    return " ".join(word.capitalize() for word in re.split(r"[\W_]+", PurePosixPath(file).stem) if word) or file


def _numbered(units: Iterable[list[Row]], file: str, title: str, what: str) -> Iterator[Passage]:
    for group in _groups(units):
        first, last = group[0][0], group[-1][0]
        place = f"{what} {first}-{last}" if last > first else f"{what[:-1]} {first}"
        yield Passage(title, "", "\n".join(line for _, line in group), file, place)


def _groups(units: Iterable[list[Row]]) -> Iterator[list[Row]]:
    """Join short units and cut long ones between two rows."""
    group: list[Row] = []
    size = 0
    for unit in units:
        if group and (size >= _MIN_WORDS or size + sum(_length(line) for _, line in unit) > _MAX_WORDS):
            yield group
            group, size = [], 0
        for number, line in unit:
            for piece in _chunks(line):
                length = _length(piece)
                if group and size + length > _MAX_WORDS:
                    yield group
                    group, size = [], 0
                group.append((number, piece))
                size += length
    if group:
        yield group


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
    return " ".join(text.split())


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
        if _fits(paragraph):
            yield paragraph
            continue
        for sentence in SENTENCE_END.split(paragraph):
            yield from _chunks(sentence)


def _chunks(sentence: str) -> Iterator[str]:
    """A sentence of more than a passage (a table, a list without stops) is cut by length."""
    if _fits(sentence):
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


def _fits(text: str) -> bool:
    return len(text) <= _MAX_CHARS and _length(text) <= _MAX_WORDS


def _length(text: str) -> int:
    """Words; two characters of a script without spaces count as one."""
    pairs = sum(len(run) for run in CJK_RUN.findall(text)) // 2
    return pairs + len(CJK_RUN.sub(" ", text).split())
