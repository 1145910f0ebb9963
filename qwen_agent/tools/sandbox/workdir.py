"""The host's view of a directory that an untrusted guest writes to.

Every name in it may be a link, a pipe or a lie. So nothing here takes a path apart from the directory itself: all
access goes component by component from an open directory, follows no link, opens regular files only and never waits.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from qwen_agent.errors import InputError

MAX_DEPTH = 32


@dataclass(slots=True)
class Snapshot:
    """What lay in the directory at one moment. ``stamps`` holds regular files by their relative path.

    ``hidden`` counts entries that could not be measured: nested deeper than MAX_DEPTH, or not readable.
    """

    stamps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    size: int = 0
    entries: int = 0
    hidden: int = 0

    def changed_since(self, before: Snapshot) -> tuple[str, ...]:
        return tuple(sorted(name for name, stamp in self.stamps.items() if before.stamps.get(name) != stamp))


class WorkDir:
    """An open work directory. ``close`` it, or leave that to the garbage collector."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(f"the work directory {str(path)!r} is not an existing directory: create it first")
        self.path = path.resolve()
        self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def snapshot(self) -> Snapshot:
        """Sizes and names of everything below, links not followed."""
        seen = Snapshot()
        _walk(self._folder, "", 1, seen)
        return seen

    def read(self, name: str, limit: int) -> bytes:
        """At most ``limit`` bytes of a regular file. Raises OSError for anything else, InputError for a bad path."""
        handle = self._open(name, os.O_RDONLY | os.O_NONBLOCK, 0)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(f"{name!r} is not a regular file")
            return file.read(limit)

    def create(self, name: str, data: bytes) -> None:
        """A new file. Raises FileExistsError if the name is taken, by a dangling link too."""
        with os.fdopen(self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(data)

    def close(self) -> None:
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def __del__(self) -> None:
        if hasattr(self, "_folder"):
            self.close()

    def _open(self, name: str, flags: int, mode: int) -> int:
        *parents, last = name.split("/")
        if any(part in ("", ".", "..") for part in (*parents, last)) or "\0" in name:
            raise InputError(f"{name!r} is not a plain relative path inside the work directory")
        folder = os.dup(self._folder)
        try:
            for part in parents:
                folder, outer = _open_folder(part, folder), folder
                os.close(outer)
            return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
        finally:
            os.close(folder)


def _open_folder(name: str, outer: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)


def _walk(folder: int, prefix: str, depth: int, seen: Snapshot) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            seen.entries += 1
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted between two system calls: the guest may be running
            except PermissionError:
                seen.hidden += 1
                continue
            seen.size += status.st_blocks * 512
            if stat.S_ISREG(status.st_mode):
                seen.stamps[prefix + entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
            elif stat.S_ISDIR(status.st_mode):
                _descend(folder, entry.name, prefix, depth, seen)


def _descend(outer: int, name: str, prefix: str, depth: int, seen: Snapshot) -> None:
    if depth >= MAX_DEPTH:
        seen.hidden += 1
        return
    try:
        folder = _open_folder(name, outer)
    except PermissionError:
        seen.hidden += 1
        return
    except OSError:
        return  # deleted, or swapped for something else, since it was listed
    try:
        _walk(folder, f"{prefix}{name}/", depth + 1, seen)
    finally:
        os.close(folder)


def remove_tree(path: Path) -> None:
    """Delete a directory that a guest filled, after the guest's end: no recursion, whatever the depth or the modes."""
    path.chmod(0o700)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while names := _names(root):
            for name in names:
                if _is_folder(name, root):
                    _hoist(root, name)
                else:
                    os.unlink(name, dir_fd=root)
    finally:
        os.close(root)
    path.rmdir()


def _hoist(root: int, name: str) -> None:
    """Move what a folder holds up into the root, under names that cannot be taken, and remove the folder."""
    os.chmod(name, 0o700, dir_fd=root)
    folder = _open_folder(name, root)
    try:
        for inner in _names(folder):
            if _is_folder(inner, folder):
                os.chmod(inner, 0o700, dir_fd=folder)
            os.rename(inner, secrets.token_hex(8), src_dir_fd=folder, dst_dir_fd=root)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=root)


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _is_folder(name: str, outer: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=outer, follow_symlinks=False).st_mode)
