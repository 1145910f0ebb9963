"""The full-text index of a folder: an SQLite file that follows the folder, reading only what changed.

Words are stemmed and lose their accents; Chinese, Japanese and Korean text, which has no spaces to split at, is indexed
as overlapping pairs of characters, and a name such as ``parseDate`` also as the words it is made of.

Promises
- A file is read again only when its size or its time of change differs; one that is gone is forgotten.
- Two processes may use one index at the same time: every change is one short transaction.
- A damaged index, or one of another version, is made anew. One that cannot be kept on disk is made in memory, and a
  warning says so. A file that is not an index is never overwritten.
- The index holds the text of the documents, so only its owner may read it (on Windows: as the folder it lies in).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import sys
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.tools.documents import KINDS, Skipped, read_file, stamp, walk
from qwen_agent.tools.passages import CJK_RUN, Passage

OPEN, CLOSE = "\x02", "\x03"  # marks that SQLite puts round the matching words

_IN_MEMORY = ":memory:"
_APPLICATION_ID = 0x71776169  # "qwai", in the file's header
_VERSION = 1  # of the tables and of how passages are cut
_BUSY_SECONDS = 20.0
_BATCH_SECONDS = 0.5  # what one transaction waits for, so that a stopped run keeps its work and others get their turn
_SCHEMA = (
    "CREATE TABLE files(file TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, skipped TEXT, first INTEGER,"
    " last INTEGER) WITHOUT ROWID",
    "CREATE VIRTUAL TABLE passages USING fts5(title, heading, body, parts, file UNINDEXED, place UNINDEXED,"
    " tokenize = 'porter unicode61 remove_diacritics 2')",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
_UPPER, _LOWER = "A-ZÀ-ÖØ-Þ", "a-zß-öø-ÿ"
_CAMEL = re.compile(rf"\b\w*(?:[{_LOWER}0-9][{_UPPER}]|[{_UPPER}]{{2}}[{_LOWER}])\w*")
_PART = re.compile(rf"[{_UPPER}]+(?![{_LOWER}])|[{_UPPER}]?[{_LOWER}]+|[0-9]+|[^\W\d_{_UPPER}{_LOWER}]+")

Progress = Callable[[int, int], None]


class _Connection(sqlite3.Connection):
    """One that is closed with the last tool that uses it; from Python 3.13 on that is a warning else."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # of one that could not be opened
            self.close()


@dataclass(frozen=True, slots=True)
class Index:
    """An open index. ``skipped`` counts the files that were left out, by reason; ``place`` is None in memory."""

    connection: sqlite3.Connection
    folder: Path
    documents: int
    skipped: Counter[str]
    place: Path | None


def open_index(
    folder: str | os.PathLike[str], place: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Index:
    """The index of a folder, brought up to date now.

    ``place`` is the index's file, ":memory:" for none, or None for one in the user's cache directory, named after the
    folder. ``progress`` is told how many of the new and changed files have been read. Raises InputError when the folder
    does not exist or holds nothing readable, and when ``place`` is taken by another file.
    """
    root = _folder(folder)
    if place is None or os.fspath(place) != _IN_MEMORY:
        try:
            index = _on_disk(root, _checked(Path(place).expanduser()) if place else _default(root), progress)
            return _not_empty(index, root)
        except (OSError, RuntimeError, sqlite3.Error) as error:
            where = os.fspath(place) if place else "the cache directory"
            warnings.warn(
                f"the search index cannot be kept in {where} ({error}), so every start reads all files anew: "
                f"free or choose another place, or ask for {_IN_MEMORY!r}",
                stacklevel=3,
            )
    memory = _connect(_IN_MEMORY)
    _create(memory)
    return _not_empty(_refreshed(memory, root, None, progress), root)


def discard(index: Index) -> None:
    """Close an index that turned out to be damaged, and remove its file."""
    index.connection.close()
    if index.place is not None:
        _remove(index.place)


def cache_folder(environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where this program may keep what it can make again, by the custom of the system."""
    if platform == "win32":
        base = environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = environment.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else Path.home() / ".cache"  # noqa: PTH117
    return Path(base, "qwen-react-agent")


def pairs_of(text: str) -> list[str]:
    """The overlapping pairs of characters in a run of text without spaces."""
    return [text[at : at + 2] for at in range(len(text) - 1)]


def words_in(name: str) -> list[str]:
    """The words that a name is made of, as in ``parse_date``, ``parseDate`` or ``HTTPServer``; else none."""
    return _PART.findall(name) if "_" in name.strip("_") or _CAMEL.fullmatch(name) else []


def names_in(text: str) -> list[str]:
    """The words of all names such as ``parseDate``; those of ``parse_date`` are words to SQLite already."""
    return [word for name in dict.fromkeys(_CAMEL.findall(text)) for word in _PART.findall(name)]


def _folder(folder: str | os.PathLike[str]) -> Path:
    root = Path(folder).expanduser()
    if not root.exists():
        raise InputError(f"the folder '{root}' does not exist: give a folder that holds {KINDS}")
    if not root.is_dir():
        raise InputError(f"'{root}' is not a folder: give the folder that holds the documents")
    return root.resolve()


def _default(root: Path) -> Path:
    folder = cache_folder(os.environ) / "search"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(os.fsencode(os.path.normcase(root))).hexdigest()[:32]
    # Versions have files of their own, or two that run side by side would rebuild each other's for ever.
    return folder / f"{name}-{_VERSION}.sqlite"


def _checked(place: Path) -> Path:
    """A file that the user named. Raises InputError for one that is not an index."""
    if place.is_dir():
        raise InputError(f"'{place}' is a folder: give a file for the index")
    with contextlib.suppress(FileNotFoundError), place.open("rb") as file:
        header = file.read(72)
        ours = header.startswith(b"SQLite format 3\0") and int.from_bytes(header[68:], "big") == _APPLICATION_ID
        if header and not ours:
            raise InputError(f"'{place}' exists and is not a search index: give another file")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _on_disk(root: Path, place: Path, progress: Progress | None) -> Index:
    try:
        return _attempt(root, place, progress)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
    _remove(place)
    return _attempt(root, place, progress)


def _attempt(root: Path, place: Path, progress: Progress | None) -> Index:
    if not place.exists():
        os.close(os.open(place, os.O_CREAT | os.O_RDWR, 0o600))
    connection = _connect(place)
    try:
        if connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            _create(connection)
        return _refreshed(connection, root, place, progress)
    except BaseException:
        connection.close()
        raise


def _connect(place: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(
        place, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None, factory=_Connection
    )


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether a new file would help. The kind of error tells, except for what FTS5 and old tables say."""
    words = ("malformed", "corrupt", "vtable constructor", "no such table", "no such column")
    return not isinstance(error, sqlite3.OperationalError) or any(word in str(error) for word in words)


def _remove(place: Path) -> None:
    for each in (place.with_name(f"{place.name}-journal"), place):
        each.unlink(missing_ok=True)


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables, unless another process did so while this one waited."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE name IN ('files', 'passages')"
            ).fetchall():
                connection.execute(f"DROP TABLE {table}")
            for statement in _SCHEMA:
                connection.execute(statement)
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if "fts5" not in str(error):
            raise
        raise QwenAgentError(
            f"this Python's sqlite3 ({sqlite3.sqlite_version}) has no full-text search ({error}): "
            f"use a Python built with SQLite 3.27 or newer and FTS5"
        ) from None


def _refreshed(connection: sqlite3.Connection, root: Path, place: Path | None, progress: Progress | None) -> Index:
    """Bring the tables up to date with the folder."""
    skipped: Counter[str] = Counter()
    known = {
        file: (size, time_ns) for file, size, time_ns in connection.execute("SELECT file, size, mtime_ns FROM files")
    }
    present = dict(walk(root, skipped))
    changed = [(file, path) for file, path in present.items() if known.get(file) != stamp(path)]
    gone = [file for file in known if file not in present]
    if gone:
        with _writing(connection):
            for file in gone:
                _forget(connection, file)
    for batch in _batches(_read(changed, skipped, progress)):
        with _writing(connection):
            for each in batch:
                _store(connection, each)
    documents = connection.execute("SELECT count(*) FROM files WHERE last >= first").fetchone()[0]
    for reason, count in connection.execute("SELECT skipped, count(*) FROM files WHERE skipped != '' GROUP BY skipped"):
        skipped[reason] += count
    return Index(connection, root, documents, skipped, place)


@dataclass(frozen=True, slots=True)
class _Read:
    """A file as it was read: its passages, or why it has none. ``stamp`` is None if it must be tried again."""

    file: str
    stamp: tuple[int, int] | None
    passages: list[Passage]
    skipped: str = ""


def _read(files: list[tuple[str, Path]], skipped: Counter[str], progress: Progress | None) -> Iterator[_Read]:
    for done, (file, path) in enumerate(files):
        if progress:
            progress(done, len(files))
        try:
            passages, status = read_file(path, file)
            yield _Read(file, (status.st_size, status.st_mtime_ns), passages)
        except Skipped as reason:
            if not reason.lasting:
                skipped[reason.reason] += 1
            yield _Read(file, stamp(path) if reason.lasting else None, [], reason.reason)
    if progress and files:
        progress(len(files), len(files))


def _batches(reads: Iterator[_Read]) -> Iterator[list[_Read]]:
    batch: list[_Read] = []
    started = time.monotonic()
    for each in reads:
        batch.append(each)
        if time.monotonic() - started > _BATCH_SECONDS:
            yield batch
            batch, started = [], time.monotonic()
    if batch:
        yield batch


@contextlib.contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _forget(connection: sqlite3.Connection, file: str) -> None:
    row = connection.execute("SELECT first, last FROM files WHERE file = ?", [file]).fetchone()
    if row is not None:
        connection.execute("DELETE FROM passages WHERE rowid BETWEEN ? AND ?", row)
        connection.execute("DELETE FROM files WHERE file = ?", [file])


def _store(connection: sqlite3.Connection, read: _Read) -> None:
    """Put a file's passages in the place of its old ones, unless another process was faster."""
    found = connection.execute("SELECT size, mtime_ns FROM files WHERE file = ?", [read.file]).fetchone()
    if found is not None and found == read.stamp:
        return
    _forget(connection, read.file)
    if read.stamp is None:
        return
    (last,) = connection.execute("SELECT rowid FROM passages ORDER BY rowid DESC LIMIT 1").fetchone() or (0,)
    rows = [(last + 1 + at, *_row(passage)) for at, passage in enumerate(read.passages)]
    connection.executemany(
        "INSERT INTO passages(rowid, title, heading, body, parts, file, place) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
    )
    entry = (read.file, *read.stamp, read.skipped, last + 1, last + len(rows))
    connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", entry)


def _row(passage: Passage) -> tuple[str, ...]:
    text = f"{passage.title} {passage.heading} {passage.body}"
    parts = [
        *_characters(text),
        *(word for name in dict.fromkeys(_CAMEL.findall(text)) for word in _PART.findall(name)),
    ]
    columns = (passage.title, passage.heading, passage.body, " ".join(parts), passage.file, passage.place)
    return tuple(_storable(column) for column in columns)


def _storable(text: str) -> str:
    """Without our marks, and without the halves of characters that SQLite cannot store."""
    return text.replace(OPEN, "").replace(CLOSE, "").encode("utf-8", "replace").decode("utf-8")


def _characters(text: str) -> Iterator[str]:
    """Single characters and overlapping pairs of every run of Chinese, Japanese or Korean text."""
    for run in CJK_RUN.findall(unicodedata.normalize("NFKC", text)):
        yield from run
        yield from pairs_of(run)


def _not_empty(index: Index, root: Path) -> Index:
    if index.documents:
        return index
    index.connection.close()
    reasons = "".join(f", {count} {reason}" for reason, count in index.skipped.items())
    raise InputError(f"no readable text in '{root}' ({KINDS} can be read{reasons}): add some there")
