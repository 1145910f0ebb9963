"""Conversations on disk: one JSON file each, in the user's state folder, written whole after every turn.

Promises
- private: files are 0600 in a folder 0700.
- nothing_is_lost: a file is replaced at once or not at all, and one that another program has changed since is left
  alone: the conversation goes on under another name.
- text_is_kept: the ids of tokens are not, because they mean nothing to another model; turns are encoded anew.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_agent.errors import InputError
from qwen_agent.records.codec import from_json, to_json
from qwen_agent.tools.beneath import Folder
from qwen_agent.types import AgentResult, Finished

LAST = "last"
_FORMAT, _VERSION = "qwen-agent conversation", 1
_NAME = re.compile(r"\w[\w.-]{0,79}")
_SUFFIX = ".json"
_MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Turn:
    """A question as it was put to the agent, and what came of it."""

    question: str
    result: AgentResult


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is saved. ``attached`` are the paths of the user's own files, ``began`` is in seconds since the epoch."""

    model: str
    system: str
    turns: tuple[Turn, ...] = ()
    attached: tuple[str, ...] = ()
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A saved conversation in a list; ``problem`` says why it cannot be read, if so. ``changed`` as `began`."""

    name: str
    changed: float
    turns: int = 0
    first: str = ""
    problem: str = ""


def state_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Where this program keeps what should outlive it, by the custom of the system."""
    if platform == "win32":
        base: str | Path = environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = environment.get("XDG_STATE_HOME", "")
        base = base if os.path.isabs(base) else Path.home() / ".local" / "state"  # noqa: PTH117
    return Path(base, "qwen-react-agent")


class Saved:
    """The conversations of a folder, which is made at the first write. Every method raises InputError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._seen: dict[str, tuple[int, int] | None] = {}  # what each file was when we read or wrote it

    def free_name(self, wanted: str = "") -> str:
        """A name that is not taken: ``wanted`` or the time, with a number behind it if need be."""
        stem = wanted or time.strftime("%Y%m%d-%H%M%S")
        name, number = stem, 1
        while self._look(name) is not None:
            number += 1
            name = f"{stem}-{number}"
        return name

    def claim(self, name: str) -> str:
        """The name, checked: for a new conversation."""
        _check(name)
        if self._look(name) is not None:
            raise InputError(f"there is a conversation {name!r} already: go on with it by --resume {name}, or choose")
        return name

    def write(self, name: str, conversation: Conversation) -> str:
        """Save it; returns the name it was saved under, which is another if the file was changed by someone else."""
        _check(name)
        if self._look(name) != self._seen.get(name):
            name = self.free_name(name)
        data = json.dumps(_to_plain(conversation), ensure_ascii=False, indent=1).encode("utf-8", "replace")
        try:
            Folder(self._path, create=True).write(name + _SUFFIX, data, overwrite=True, mode=0o600)
        except OSError as error:
            raise InputError(f"the conversation cannot be saved in '{self._path}' ({error})") from None
        self._seen[name] = self._look(name)
        return name

    def read(self, name: str) -> tuple[str, Conversation]:
        """(name, conversation). ``last`` is the one that was changed last."""
        if name == LAST:
            newest = max(self._files(), key=lambda file: file.stat().st_mtime_ns, default=None)
            if newest is None:
                raise InputError("no conversation has been saved yet: leave --resume out")
            name = newest.stem
        _check(name)
        seen = self._look(name)
        if seen is None:
            known = ", ".join(file.stem for file in sorted(self._files())[-8:])
            raise InputError(
                f"there is no conversation {name!r}; " + (f"there are {known}" if known else "none is saved")
            )
        data = Folder(self._path).read(name + _SUFFIX, _MAX_BYTES)
        conversation = _from_text(data, self._path / (name + _SUFFIX))
        self._seen[name] = seen
        return name, conversation

    def list(self) -> list[Listed]:
        """Every conversation, the one that was changed last at the end."""
        files = sorted(self._files(), key=lambda file: file.stat().st_mtime_ns)
        return [self._listed(file) for file in files]

    def _listed(self, file: Path) -> Listed:
        changed = file.stat().st_mtime
        try:
            turns = _from_text(Folder(self._path).read(file.name, _MAX_BYTES), file).turns
        except InputError as error:
            return Listed(file.stem, changed, problem=str(error))
        return Listed(file.stem, changed, len(turns), turns[0].question if turns else "")

    def _files(self) -> Iterator[Path]:
        return (file for file in self._path.glob(f"*{_SUFFIX}") if _NAME.fullmatch(file.stem))

    def _look(self, name: str) -> tuple[int, int] | None:
        try:
            found = (self._path / (name + _SUFFIX)).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


def _check(name: str) -> None:
    if not _NAME.fullmatch(name) or name == LAST:
        raise InputError(f"{name!r} cannot name a conversation: use up to 80 letters, digits, '-', '_' and '.'")


def _to_plain(conversation: Conversation) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "model": conversation.model,
        "system": conversation.system,
        "began": conversation.began,
        "attached": conversation.attached,
        "turns": [
            {"question": turn.question, "result": to_json(Finished(replace(turn.result, written=())))["result"]}
            for turn in conversation.turns
        ],
    }


def _from_text(data: bytes, file: Path) -> Conversation:
    try:
        read = json.loads(data)
        if read["format"] != _FORMAT:
            raise InputError(f"'{file}' holds no conversation")
        if read["version"] > _VERSION:
            raise InputError(f"'{file}' was written by a newer version of this program: update it")
        turns = tuple(_turn(each) for each in read["turns"])
        return Conversation(
            str(read["model"]), str(read["system"]), turns, tuple(map(str, read["attached"])), float(read["began"])
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"'{file}' is damaged ({type(error).__name__}: {error}): move it away") from None


def _turn(value: Mapping[str, Any]) -> Turn:
    try:
        finished = from_json({"event": "finished", "result": value["result"]})
    except InputError as error:
        raise ValueError(str(error)) from None
    assert isinstance(finished, Finished)
    return Turn(str(value["question"]), finished.result)
