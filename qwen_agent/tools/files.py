"""Files of one folder, for a model: list, read and, if the user allows it, write.

Promises (with those of `qwen_agent.tools.beneath`)
- hidden_files_are_left_alone: what begins with a dot holds keys (.env) or is run by others (.git, .bashrc).
- what_is_read_is_bounded: files up to 16 MiB, of which a call shows a screenful and says how to read on.
- binary_is_said_so: bytes that are no text are never shown as if they were.
- writing_asks_first: `write_file` exists only if the user wants it, has ``approval="ask"``, and replaces nothing unless
  the call says so.
"""

from __future__ import annotations

import codecs
import fnmatch
import os
from collections.abc import Iterator

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools.artifacts import sniff
from qwen_agent.tools.base import Tool, cancelled, tool
from qwen_agent.tools.beneath import Entry, Folder, shown, size_text, split, worded_for_the_model
from qwen_agent.tools.images import read_header

MAX_READ = 16 << 20
MAX_WRITE = 1 << 20
MAX_LISTED = 60
MAX_VISITED = 20_000
LINES = 80
CHARS = 5_000

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENCODINGS = ("cp1252", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1251")


def file_tools(folder: str | os.PathLike[str], *, write: bool = False) -> tuple[Tool, ...]:
    """The tools ``list_files``, ``read_file`` and, with ``write``, ``write_file``, for one folder and what is in it.

    Raises InputError for a folder that does not exist.
    """
    root = Folder(folder)
    return (_list_files(root), _read_file(root), *((_write_file(root),) if write else ()))


def decode_text(data: bytes) -> tuple[str, str]:
    """(text, name of its encoding). Raises ToolError for bytes that are no text."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _decoded(data, encoding), encoding.removesuffix("-sig")
    if b"\0" in data[: 1 << 16]:
        raise ToolError("This is a binary file.")
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return _guessed(data)


def _list_files(root: Folder) -> Tool:
    @tool(name="list_files", untrusted=True, repeatable=True, seconds=10.0)
    def list_files(folder: str = "", pattern: str = "") -> str:
        """List the files of the user's folder, or of a folder inside it.

        Args:
            folder: path of a folder inside, empty for the whole
            pattern: only names like this, such as *.csv, also in deeper folders
        """
        with worded_for_the_model():
            _check_visible(folder)
            found = _matching(root, folder, pattern) if pattern else (_line(each) for each in _visible(root, folder))
            lines = sorted(found, key=lambda line: (not line.endswith("/"), line))
        if not lines:
            return f"No file matches {shown(pattern)}." if pattern else "The folder is empty."
        more = [f"... and {len(lines) - MAX_LISTED} more: give a pattern"] if len(lines) > MAX_LISTED else []
        return "\n".join([*lines[:MAX_LISTED], *more])

    return list_files


def _read_file(root: Folder) -> Tool:
    @tool(name="read_file", untrusted=True, repeatable=True, seconds=20.0)
    def read_file(path: str, first_line: int = 1, lines: int = LINES) -> str:
        """Read a text file of the user's folder, from its first line or from another one.

        Args:
            path: path inside the folder, as list_files gives it
            first_line: where to begin, counted from 1; -20 begins 20 lines before the end
            lines: how many lines at most
        """
        with worded_for_the_model():
            _check_visible(path)
            data = root.read(path, MAX_READ)
        text, encoding = _as_text(path, data)
        return _part(path, text.splitlines(), first_line, max(1, lines), encoding)

    return read_file


def _write_file(root: Folder) -> Tool:
    @tool(name="write_file", side_effects=True, approval="ask", repeatable=True, seconds=10.0)
    def write_file(path: str, content: str, overwrite: bool = False) -> str:
        """Write a text file into the user's folder.

        Args:
            path: path inside the folder; folders that are missing are made
            content: the whole text of the file
            overwrite: true to replace a file that exists
        """
        data = content.encode("utf-8", "replace")
        if len(data) > MAX_WRITE:
            raise ToolError(f"The text has {size_text(len(data))}; at most {size_text(MAX_WRITE)} can be written.")
        with worded_for_the_model():
            _check_visible(path)
            _check_printable(path)
            try:
                root.write(path, data, overwrite=overwrite)
            except FileExistsError:
                raise InputError(
                    f"{shown(path)} exists already: choose another name, or set overwrite to true to replace it"
                ) from None
        return f"Wrote {shown(path)}: {len(content.splitlines())} lines, {size_text(len(data))}."

    return write_file


def _check_visible(path: str) -> None:
    if hidden := [part for part in split(path) if part.startswith(".")]:
        raise InputError(f"{shown(hidden[0])} is hidden (its name begins with a dot), and hidden files are left alone")


def _check_printable(path: str) -> None:
    if not path.isprintable():
        raise InputError(f"{shown(path)} has characters that cannot be seen: use letters, digits, '-' and '_'")


def _visible(root: Folder, folder: str) -> list[Entry]:
    return [entry for entry in root.entries(folder) if not entry.name.startswith(".")]


def _matching(root: Folder, folder: str, pattern: str) -> Iterator[str]:
    """Every file below whose name, or path from the folder on, is like the pattern. Links are not followed."""
    pending = ["/".join(split(folder))]
    visited = 0
    while pending:
        place = pending.pop()
        for entry in _visible(root, place):
            visited += 1
            if visited > MAX_VISITED:
                raise InputError(f"there are more than {MAX_VISITED} files: name a folder further in")
            if cancelled():
                return
            path = f"{place}/{entry.name}" if place else entry.name
            if entry.kind == "folder":
                pending.append(path)
            elif fnmatch.fnmatchcase(entry.name, pattern) or fnmatch.fnmatchcase(path, pattern):
                yield _line(entry, path)


def _line(entry: Entry, path: str = "") -> str:
    name = path or entry.name
    name = name if name.isprintable() else ascii(name)
    if entry.kind == "folder":
        return f"{name}/"
    return f"{name}  {size_text(entry.size) if entry.kind == 'file' else f'({entry.kind}, cannot be read)'}"


def _as_text(path: str, data: bytes) -> tuple[str, str]:
    try:
        return decode_text(data)
    except ToolError:
        header = read_header(data)
        kind = f"a {header.format} picture of {header.width}x{header.height} pixels" if header else sniff(data)
        raise ToolError(f"{shown(path)} is no text but {kind}, {size_text(len(data))}.") from None


def _part(path: str, lines: list[str], first_line: int, count: int, encoding: str) -> str:
    """The lines asked for, as many as fit, headed by what part of the file they are unless they are all of it."""
    total = len(lines)
    if not total:
        return "The file is empty."
    start = max(0, total + first_line) if first_line < 0 else max(0, first_line - 1)
    if start >= total:
        raise ToolError(f"{shown(path)} has {total} lines; first_line {first_line} is behind its end.")
    end, room = start, CHARS
    while end < min(total, start + count) and (end == start or len(lines[end]) < room):
        room -= len(lines[end]) + 1
        end += 1
    text = "\n".join(lines[start:end])
    note = f" ({encoding})" if encoding != "utf-8" else ""
    if len(text) > CHARS:  # one line that is longer than a call shows
        text = f"{text[:CHARS]}\n[the line goes on for {len(text) - CHARS} characters]"
    if start == 0 and end == total:
        return f"[{shown(path)} in {encoding}]\n{text}" if note else text
    onward = f"; read on with first_line={end + 1}" if end < total else ""
    return f"[lines {start + 1}-{end} of {total} of {shown(path)}{note}{onward}]\n{text}"


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise ToolError("This is a binary file.") from None


def _guessed(data: bytes) -> tuple[str, str]:
    """Text in an older encoding, which only the frequency of its letters gives away."""
    from charset_normalizer import from_bytes  # costs import time

    sample = data[: 1 << 16]
    # Among all encodings a short text is too often taken for one of MS-DOS, so those in use are tried first.
    best = from_bytes(sample, cp_isolation=list(_ENCODINGS)).best() or from_bytes(sample).best()
    if best is None:
        raise ToolError("This is a binary file.")
    return data.decode(best.encoding, "replace"), best.encoding.replace("_", "-")
