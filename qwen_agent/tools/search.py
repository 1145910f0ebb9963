"""Search in a folder of documents: ranked passages, short enough for a small model to read.

`qwen_agent.tools.index` keeps the passages; here a query becomes terms, passages are ranked by how many of the terms
they hold and then by bm25, and each is cut to the sentences that fit best.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import unicodedata
from collections import Counter
from dataclasses import dataclass

from qwen_agent.errors import ToolError
from qwen_agent.tools.base import Tool, tool
from qwen_agent.tools.index import CLOSE, OPEN, Index, Progress, discard, names_in, open_index, pairs_of, words_in
from qwen_agent.tools.passages import CJK_RUN, SENTENCE_END

_MAX_TERMS = 32
_WEIGHTS = "4.0, 3.0, 1.0, 1.0"  # title, heading, body, parts
_SAYING_NOTHING = (
    "a about an and any are as at be been but by can could did do does for from had has have how i if in into is it "
    "its many me much my of on or our s should so t tell than that the their them then there these they this those "
    "to was we were what when where which who whom whose why will with would you your"
)
_STOP_WORDS = frozenset(_SAYING_NOTHING.split())


def search_documents(
    folder: str | os.PathLike[str],
    results: int = 3,
    chars: int = 300,
    *,
    index: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Tool:
    """A tool named ``search`` over the documents of a folder, whose index is brought up to date once, now.

    It returns the best ``results`` passages, each cut to about ``chars`` characters round the sentence that fits best.
    A single one comes as bare text, several with number, title and file: a small model reads the former better.
    ``index`` (a file) and ``progress`` are explained at `open_index`, which also raises the errors.
    """
    return search_tool(open_index(folder, index, progress), results, chars)


def search_tool(index: Index, results: int = 3, chars: int = 300) -> Tool:
    """The tool of `search_documents`, for an index that is open already."""
    lock = threading.Lock()  # the connection is made here but used in the tool's worker threads

    @tool(
        description=f"Search {index.documents} documents for facts.", seconds=10.0, untrusted=True, side_effects=False
    )
    def search(query: str) -> str:
        """Search.

        Args:
            query: a few words to look for
        """
        nonlocal index
        with lock:
            try:
                return answer(index, query, results, chars)
            except sqlite3.OperationalError as error:
                raise ToolError(f"The search index cannot be read now ({error}): try again.") from None
            except sqlite3.DatabaseError:  # damaged; a rebuild that takes too long goes on while the model is told so
                discard(index)
                index = open_index(index.folder, index.place)
                return answer(index, query, results, chars)

    return search


def answer(index: Index, query: str, most: int, chars: int) -> str:
    """What the tool returns for a query. Raises ToolError for an empty one, sqlite3.Error for a broken index."""
    if not query.strip():
        raise ToolError("The query is empty: give a few words to look for.")
    wanted = _wanted(query)
    found = _best(index.connection, wanted, most)
    if not found:
        shown = query.strip() if len(query) <= 80 else query.strip()[:77] + "..."
        return f"No results found for '{shown}'."
    texts = [_excerpt(hit, wanted, chars) for hit in found]
    if most == 1:
        return texts[0]
    return "\n".join(_listed(number, hit, text) for number, (hit, text) in enumerate(zip(found, texts, strict=True), 1))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A query: its terms for FTS5, and what of it marks do not show: pairs of characters, words inside of names."""

    terms: tuple[str, ...]
    pairs: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Hit:
    """A passage that was found: where it is, the words of its title, and its text with the matching words marked."""

    where: str
    topic: frozenset[str]
    marked: str


def _wanted(query: str) -> _Wanted:
    """The query as separate FTS5 phrases, quoted, so that nothing in it is read as an operator."""
    text = unicodedata.normalize("NFKC", query)
    names = [name for name in re.findall(r"\w+", CJK_RUN.sub(" ", text)) if words_in(name)]
    text = text.casefold()
    found = re.findall(r"\w+", CJK_RUN.sub(" ", text)) + [word.casefold() for name in names for word in words_in(name)]
    telling = [word for word in found if word not in _STOP_WORDS]
    pairs = [pair for run in CJK_RUN.findall(text) for pair in pairs_of(run) or [run]]
    words = telling or ([] if pairs else found)
    spelled = {name.casefold(): " ".join(words_in(name)).casefold() for name in names}
    terms = [f'"{word}" OR "{spelled[word]}"' if word in spelled else f'"{word}"' for word in words]
    terms += [f'parts : "{pair}"' for pair in pairs]
    return _Wanted(tuple(dict.fromkeys(terms))[:_MAX_TERMS], tuple(pairs), tuple(words))


def _best(connection: sqlite3.Connection, wanted: _Wanted, most: int) -> list[_Hit]:
    """The passages that match most terms, then those with the best bm25; far weaker ones are left out."""
    connection.execute("BEGIN")  # one state of the index, whatever another process writes meanwhile
    try:
        matched: Counter[int] = Counter()
        for term in wanted.terms:
            rows = connection.execute("SELECT rowid FROM passages WHERE passages MATCH ?", [term])
            matched.update(row for (row,) in rows)
        if not matched:
            return []
        least = max(matched.values()) / 2
        either = " OR ".join(wanted.terms)
        scores = connection.execute(
            f"SELECT rowid, bm25(passages, {_WEIGHTS}) FROM passages WHERE passages MATCH ?", [either]
        )
        ranked = sorted((-matched[row], score, row) for row, score in scores if matched[row] >= least)
        return [_hit(connection, either, row) for _, _, row in ranked[:most]]
    finally:
        connection.execute("ROLLBACK")


def _hit(connection: sqlite3.Connection, terms: str, row: int) -> _Hit:
    title, heading, body, file, place = connection.execute(
        "SELECT title, heading, highlight(passages, 2, ?, ?), file, place FROM passages"
        " WHERE passages MATCH ? AND rowid = ?",
        [OPEN, CLOSE, terms, row],
    ).fetchone()
    source = f"{file}, {place}" if place else file
    name = f"{title} > {heading}" if heading else title
    topic = frozenset(re.findall(r"\w+", f"{title} {heading}".casefold()))
    return _Hit(source if file.endswith(name) else f"{name} ({source})", topic, body)


def _listed(number: int, hit: _Hit, text: str) -> str:
    """One line, or for code and tables, whose lines matter, a line above them."""
    return f"[{number}] {hit.where}:" + ("\n" if "\n" in text else " ") + text


def _excerpt(hit: _Hit, wanted: _Wanted, chars: int) -> str:
    """About ``chars`` characters round the sentence (the line, in code and tables) with most of the terms.

    Terms in the title say little: all of the passage is about them, and it is the other terms that were asked for.
    """
    between = "\n" if "\n" in hit.marked else " "
    sentences = hit.marked.split("\n") if between == "\n" else SENTENCE_END.split(hit.marked)
    best = max(range(len(sentences)), key=lambda at: (*_hits(sentences[at], wanted, hit.topic), -at))
    first = last = best
    plain = [_unmark(sentence) for sentence in sentences]
    size = len(plain[best])
    while last + 1 < len(plain) and size + 1 + len(plain[last + 1]) <= chars:
        last += 1
        size += 1 + len(plain[last])
    while first > 0 and size + 1 + len(plain[first - 1]) <= chars:
        first -= 1
        size += 1 + len(plain[first])
    text = between.join(plain[first : last + 1]) if size <= chars else _around(sentences[best], wanted, chars)
    return ("... " if first else "") + text + (" ..." if last + 1 < len(plain) else "")


def _hits(sentence: str, wanted: _Wanted, topic: frozenset[str]) -> tuple[int, int]:
    """How many of the terms are in the sentence: those that are not in the title, and those that are.

    Words count that are marked, or inside of names, and pairs of characters.
    """
    found = {word.casefold() for word in re.findall(f"{OPEN}(.*?){CLOSE}", sentence)}
    found |= {word.casefold() for word in names_in(sentence)}.intersection(wanted.words)
    pairs = sum(pair in sentence for pair in set(wanted.pairs))
    known = {word for word in found if any(_alike(word, other) for other in topic)}
    return len(found - known) + pairs, len(known)


def _alike(word: str, other: str) -> bool:
    """Forms of one word, as far as endings go: clock and clocks, open and opened."""
    stem = max(4, len(word) - 3, len(other) - 3)
    return word == other or (len(word) >= stem and word[:stem] == other[:stem])


def _around(sentence: str, wanted: _Wanted, chars: int) -> str:
    """The part of one long sentence that begins a little before its first match."""
    places = [sentence.find(mark) for mark in (OPEN, *wanted.pairs) if mark in sentence]
    start = max(0, min(places, default=0) - chars // 4)
    text = _unmark(sentence[start:])
    return ("..." if start else "") + text[:chars] + ("..." if len(text) > chars else "")


def _unmark(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")
