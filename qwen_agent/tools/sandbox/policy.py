"""The two values of the sandbox: what a guest may use, and what came of a call."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from qwen_agent.errors import InputError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. Sizes are bytes, times are seconds of wall clock.

    ``disk`` and ``files`` count what the guest adds to the work directory since the sandbox was opened (or reset);
    they are watched a few times a second, so a fast writer overshoots them by what it writes in between; then nothing
    can be written until enough is deleted.
    ``file`` is the size of one file, ``tmp`` and ``shm`` of ``/tmp`` and ``/dev/shm``; these three are exact.
    ``output`` is how many characters of each of stdout, stderr, value and error are kept.
    ``grace`` is the time between the interrupt at the deadline (variables survive) and the kill (they do not).
    """

    seconds: float = 30.0
    grace: float = 1.0
    memory: int = 2048 * MIB
    disk: int = 256 * MIB
    files: int = 5000
    file: int = 64 * MIB
    tmp: int = 64 * MIB
    shm: int = 64 * MIB
    open_files: int = 256
    threads: int = 256
    output: int = 20_000

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not value > 0:
                raise InputError(f"Limits.{limit.name} must be greater than zero, not {value!r}")
        if self.memory < 64 * MIB:
            raise InputError(f"Limits.memory must be at least 64 MiB (the interpreter itself), not {self.memory} bytes")


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of one call. Everything but ``state``, ``restarted``, ``notes`` and ``elapsed`` is the guest's word.

    ``value`` is the ``repr`` of the last expression ("" if there was none or it was None); ``error`` is the traceback
    of an uncaught exception ("" if there was none). ``images`` are PNG files, checked for size but never decoded.
    ``files`` are the paths, relative to the work directory, of regular files that the call made or changed.
    ``state`` is "ok" when the code ran to its end (with or without an exception), "interrupted" when a limit stopped
    it and variables are kept, "died" when the interpreter is gone and the next call starts a new one.
    ``restarted`` says that this call was the first in such a new interpreter. ``notes`` are the host's sentences on
    what happened. ``dropped`` counts the characters cut out of the middle of long texts.
    """

    stdout: str = ""
    stderr: str = ""
    value: str = ""
    error: str = ""
    images: tuple[bytes, ...] = ()
    files: tuple[str, ...] = ()
    state: Literal["ok", "interrupted", "died"] = "ok"
    restarted: bool = False
    notes: tuple[str, ...] = ()
    dropped: int = 0
    elapsed: float = 0.0
