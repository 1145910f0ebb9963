"""One folder and nothing outside of it: how every file is opened whose name comes from a model, a guest or a stranger.

Promises
- nothing_outside_is_opened: not through "..", an absolute path, a link, a magic link of /proc, or a parent that is
  swapped for a link while the call runs: a path is walked part by part from the open folder, and no link is followed.
- only_regular_files_are_read: no pipe, no device, no socket; opening one never waits.
- writing_is_atomic: others see the whole old file or the whole new one.
- nothing_is_overwritten_unasked: a name that is taken, even by a dangling link, stays as it is.

Not promised
- On Windows no file can be opened relative to an open folder. There each part of the path is looked at first, and the
  opened file is compared with what was seen: a link that is there is refused, one planted in between may slip through.
- A hard link is a file like any other: who made it could read that file anyway, and the sandbox cannot make one to a
  file outside its work directory. Writing replaces the name, so what else the old file is called keeps the old content.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwen_agent.errors import InputError, ToolError

MAX_PART_BYTES = 255
MAX_PATH_CHARS = 4000
MAX_DEPTH = 40

_WINDOWS = os.name == "nt"
_RELATIVE = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_HERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _HERE
_NAME_SURROGATE = 0x20000000  # the bit of a Windows reparse tag that says: this stands for another name
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder. ``kind`` is "file", "folder", "link", "pipe", "socket" or "device"; ``size`` in bytes."""

    name: str
    kind: str
    size: int
    changed: float  # seconds since the epoch


class Folder:
    """A folder that must exist, or is made (0700) with ``create``. Raises InputError, as every method does."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        given = Path(path).expanduser()
        if create:
            given.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not given.is_dir():
            raise InputError(f"'{given}' is not an existing folder: create it first")
        self.path = given.resolve()
        self._identity = _identity(self.path.stat())

    def read(self, name: str, limit: int) -> bytes:
        """The whole of a regular file of at most ``limit`` bytes."""
        with self._parent(name) as (folder, last):
            seen = os.stat(last, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(seen.st_mode):
                raise InputError(f"{shown(name)} is a {_kind(seen)}, not a file")
            with os.fdopen(os.open(last, _READ | _HERE, dir_fd=folder), "rb") as file:
                opened = os.fstat(file.fileno())
                if not stat.S_ISREG(opened.st_mode) or (folder is None and _identity(opened) != _identity(seen)):
                    raise InputError(f"{shown(name)} changed while it was opened: try again")
                data = read_at_most(file, limit + 1)
        if len(data) > limit:
            raise InputError(f"{shown(name)} has more than {size_text(limit)}, which is the most that is read")
        return data

    def entries(self, name: str = "") -> list[Entry]:
        """What lies in a folder (by default in this one itself), sorted by name."""
        with self._opened(name) as folder, os.scandir(folder) as found:
            return sorted((_entry(each) for each in found), key=lambda entry: entry.name)

    def exists(self, name: str) -> bool:
        """Whether the name is taken, by anything."""
        try:
            with self._parent(name) as (folder, last):
                os.stat(last, dir_fd=folder, follow_symlinks=False)
        except InputError:
            return False
        return True

    def write(self, name: str, data: bytes, *, overwrite: bool = False, mode: int = 0o666) -> None:
        """A file of this content; folders that are missing are made. Raises FileExistsError for a name that is taken.

        With ``overwrite`` a file (and nothing but a file) is replaced, and keeps its mode; else ``mode`` is cut by the
        umask as usual.
        """
        with self._parent(name, make=True) as (folder, last):
            old = _look(last, folder)
            if old is not None and not overwrite:
                raise FileExistsError
            if old is not None and not stat.S_ISREG(old.st_mode):
                raise InputError(f"{shown(name)} is a {_kind(old)}, not a file")
            beside = _beside(last)
            try:
                with os.fdopen(os.open(beside, _WRITE | _HERE, mode, dir_fd=folder), "wb") as file:
                    file.write(data)
                    if old is not None and not _WINDOWS:
                        os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) & 0o777)
                if overwrite:
                    os.replace(beside, last, src_dir_fd=folder, dst_dir_fd=folder)
                else:
                    _move_unless_taken(beside, last, folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=folder)

    @contextlib.contextmanager
    def _parent(self, name: str, make: bool = False) -> Iterator[tuple[int | None, str]]:
        """The open folder that holds what is named, and its name in there; without dir_fd: None and a whole path."""
        *parents, last = split(name) or ("",)
        if not last:
            raise InputError("give the name of a file, not of the folder itself")
        with _explained(name), self._walked(parents, make) as folder:
            yield (folder, last) if isinstance(folder, int) else (None, str(folder / last))

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int | Path]:
        with _explained(name), self._walked(split(name), make=False) as folder:
            yield folder

    @contextlib.contextmanager
    def _walked(self, parts: list[str], make: bool) -> Iterator[int | Path]:
        if not _RELATIVE:
            yield self._checked(parts, make)
            return
        folder = os.open(self.path, _FOLDER)
        try:
            self._check_identity(os.fstat(folder))
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o777 if self._shared() else 0o700, dir_fd=folder)
                folder, outer = _step(part, folder), folder
                os.close(outer)
            yield folder
        finally:
            os.close(folder)

    def _shared(self) -> bool:
        """Whether others may look into this folder: only then may they look into what is made in it."""
        return bool(self.path.stat().st_mode & 0o077)

    def _checked(self, parts: list[str], make: bool) -> Path:
        """The path, where no folder can be opened relative to another one."""
        self._check_identity(self.path.lstat())
        path = self.path
        for part in parts:
            path /= part
            if make:
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
            if _kind(path.lstat()) != "folder":
                raise NotADirectoryError(path)
        return path

    def _check_identity(self, now: os.stat_result) -> None:
        if _identity(now) != self._identity:
            raise InputError(f"the folder '{self.path}' was replaced by another one since it was opened")


def split(name: str) -> list[str]:
    """The parts of a relative path, [] for the folder itself. Raises InputError for what is not one."""
    if not isinstance(name, str):
        raise InputError(f"{name!r} is not a path")
    path = name.replace("\\", "/") if _WINDOWS else name
    if "\0" in path or len(path) > MAX_PATH_CHARS or not _encodable(path):
        raise InputError(f"{shown(name)} cannot be a path")
    if path.startswith("/") or (_WINDOWS and ":" in path):
        raise InputError(f"{shown(name)} is an absolute path: give one inside the folder, such as 'notes.txt'")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InputError(f"{shown(name)} leads out of the folder with '..': give a path inside it")
    if len(parts) > MAX_DEPTH or any(len(os.fsencode(part)) > MAX_PART_BYTES for part in parts):
        raise InputError(f"{shown(name)} is too long or too deep for a path")
    if _WINDOWS and any(_WINDOWS_DEVICE.fullmatch(part) or part[-1] in ". " for part in parts):
        raise InputError(f"{shown(name)} is not a name that Windows allows for a file")
    return parts


def read_at_most(file: BinaryIO, limit: int) -> bytes:
    """The first ``limit`` bytes, taking no more memory than there are."""
    parts = []
    while limit and (part := file.read(min(limit, 1 << 20))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def shown(name: object) -> str:
    """A name as it may stand in a message: quoted, on one line, of bounded length."""
    text = str(name)[:121]
    text = f"{text[:117]}..." if len(text) > 120 else text
    return f"'{text}'" if text.isprintable() else ascii(text)


def size_text(size: int) -> str:
    """Bytes for people: 512 bytes, 12.3 KiB, 16 MiB."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"


@contextlib.contextmanager
def worded_for_the_model() -> Iterator[None]:
    """InputError, which is for the user, as ToolError, which is for the model: tools open files for models."""
    try:
        yield
    except InputError as problem:
        text = str(problem)
        raise ToolError(f"{text[:1].upper()}{text[1:]}.") from None


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What the system says of a path, as a sentence."""
    try:
        yield
    except FileExistsError:
        raise FileExistsError(f"{shown(name)} exists already") from None
    except FileNotFoundError:
        raise InputError(f"there is no {shown(name)}") from None
    except PermissionError:
        raise InputError(f"{shown(name)} may not be opened by this user") from None
    except NotADirectoryError:
        raise InputError(
            f"{shown(name)} leads through something that is not a folder (links are not followed)"
        ) from None
    except OSError as error:
        raise InputError(f"{shown(name)} cannot be opened: {error.strerror or error}") from None


def _step(part: str, outer: int) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=outer)
    except OSError as error:
        # A link is reported as "too many links" on one system and as "not a directory" on the next.
        seen = _look(part, outer)
        if seen is not None and not stat.S_ISDIR(seen.st_mode):
            raise NotADirectoryError(part) from None
        raise error


def _look(name: str, folder: int | None) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _beside(last: str) -> str:
    """The name that a file has while it is written."""
    return str(Path(last).with_name(f".{secrets.token_hex(8)}.part"))


def _move_unless_taken(beside: str, last: str, folder: int | None) -> None:
    if _WINDOWS:
        Path(beside).rename(last)  # fails there when the name is taken
        return
    try:  # renameat2(RENAME_NOREPLACE) is not in Python; a second name and the removal of the first do the same
        os.link(beside, last, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: take the name first
        os.close(os.open(last, _WRITE | _HERE, dir_fd=folder))
        os.replace(beside, last, src_dir_fd=folder, dst_dir_fd=folder)


def _entry(found: os.DirEntry[str]) -> Entry:
    try:
        status = found.stat(follow_symlinks=False)
    except OSError:  # deleted since it was listed, or on a file system that does not say
        return Entry(found.name, "file", 0, 0.0)
    return Entry(found.name, _kind(status), status.st_size if stat.S_ISREG(status.st_mode) else 0, status.st_mtime)


def _kind(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode) or _leads_elsewhere(status):
        return "link"
    if stat.S_ISREG(status.st_mode):
        return "file"
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    if stat.S_ISFIFO(status.st_mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(status.st_mode) else "device"


def _leads_elsewhere(status: os.stat_result) -> bool:
    """A junction of Windows: a link that calls itself a folder."""
    return bool(getattr(status, "st_reparse_tag", 0) & _NAME_SURROGATE)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
