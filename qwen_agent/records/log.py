"""One log of a run: its trace, the point to resume it from, and the cassette to repeat it with. JSON Lines.

Promises
- An event is in the file before whoever reads the events sees it, so a killed process loses nothing that was seen;
  what came from outside (the facts) is on the disk by then.
- A log is never overwritten, and never written by two runs at once (on systems that have flock).
- A last line that a crash left half-written is cut off; any other damage is an error, never skipped.

Not promised
- Secrecy: questions, observations and answers stand in the log in full. Nothing is taken from the environment.
- `Delta` and `Reading` are not logged: the first can be made again from the facts, the second is of no use later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import qwen_agent
from qwen_agent.errors import InputError
from qwen_agent.loop.run import call_key
from qwen_agent.records.codec import from_json, to_json
from qwen_agent.types import (
    ApprovalNeeded,
    Approved,
    Delta,
    Event,
    Fact,
    Finished,
    Notice,
    Reading,
    RunStarted,
    StopReason,
    ToolCall,
)

__all__ = ["FORMAT", "Header", "Log", "RunLog", "from_json", "read_log", "to_json"]

FORMAT = 1
_CAN_GO_ON = (StopReason.PAUSED, StopReason.CANCELLED)


@dataclass(frozen=True, slots=True)
class Header:
    """What the first line says about the log. ``time`` is when the run began (ISO 8601, UTC)."""

    format: int
    version: str
    time: str


@dataclass(frozen=True, slots=True)
class Log:
    """A log that was read. ``torn``: its last line was half-written, and is not among the events."""

    path: Path
    header: Header
    events: tuple[Event, ...]
    torn: bool = False

    @property
    def started(self) -> RunStarted:
        """The first event of every log."""
        first = self.events[0]
        assert isinstance(first, RunStarted)
        return first

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(event for event in self.events if isinstance(event, Fact))

    @property
    def notices(self) -> tuple[Notice, ...]:
        return tuple(event for event in self.events if isinstance(event, Notice))

    @property
    def finished(self) -> Finished | None:
        """The end of the run; None if it was broken off, or is still going on."""
        last = self.events[-1]
        return last if isinstance(last, Finished) else None

    @property
    def resumable(self) -> bool:
        """Whether there is anything left to do: the run was broken off, paused or cancelled."""
        return self.finished is None or self.finished.result.stop_reason in _CAN_GO_ON

    @property
    def waiting(self) -> ToolCall | None:
        """The call that a person has to allow or refuse before the run can go on."""
        last = next(event for event in reversed(self.events) if not isinstance(event, Finished))
        return last.call if self.resumable and isinstance(last, ApprovalNeeded) else None

    def check_resumable(self, approved: bool | None = None) -> None:
        """Raise InputError if nothing is left to do; or if there is a decision, and no call waits for it."""
        if not self.resumable:
            raise InputError(f"{self.path} ended with a final answer or at a limit: nothing left to do")
        if approved is not None and self.waiting is None:
            raise InputError(f"{self.path}: no call waits for a decision, so none can be approved or refused")


def read_log(path: str | os.PathLike[str]) -> Log:
    """Read a log, finished or not. Raises InputError, with the line, if it is damaged (but for a torn last line)."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unusable(path, error) from None
    *lines, rest = data.split(b"\n")
    if not lines:
        raise InputError(f"{path} holds no run: there is nothing to read")
    values = [_value(path, number, line) for number, line in enumerate(lines, 1)]
    header = _header(path, values[0])
    events = tuple(_event(path, number, value) for number, value in enumerate(values, 1))
    for number, event in enumerate(events[:-1], 1):
        if isinstance(event, Finished) and event.result.stop_reason not in _CAN_GO_ON:
            raise InputError(f"{path}, line {number + 1}: the log goes on after the end of its run")
    return Log(path, header, events, torn=bool(rest))


class RunLog:
    """Writes the events of one run to a file as they pass. A context manager, for one thread at a time.

        with RunLog("run.jsonl") as log:
            for event in log.record(agent.stream(question)): ...

        with RunLog.resumed("run.jsonl") as log:
            for event in log.record(agent.resume(log.facts)): ...

    Creates the folders above ``path``. Raises InputError if the file holds a log already, is being written by another
    run, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.past: Log | None = None
        self._known_facts: deque[Fact] = deque()
        self._known_notices: deque[Event] = deque()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self.path.parent, error) from None
        self._file, self._regular = _open(self.path, os.O_CREAT)
        if self._regular and os.fstat(self._file).st_size:
            self.close()
            raise InputError(
                f"{self.path} already holds a log: choose another file, or go on with its run (qwen-agent resume)"
            )

    @classmethod
    def resumed(cls, path: str | os.PathLike[str], approved: bool | None = None) -> RunLog:
        """Open the log of a run that was broken off, paused or cancelled, to go on with it.

        ``past`` is the log so far; a torn last line is cut off (`Log.torn` says so). The events of the past, which a
        resumed run repeats, are not written again. ``approved`` is a person's decision about the call that the run
        waits for. Raises InputError if nothing is left to do, or no call waits.
        """
        made = cls.__new__(cls)
        made.path = Path(path)
        made._file, made._regular = _open(made.path, 0)
        try:
            made._take_up(read_log(made.path), approved)
        except BaseException:
            made.close()
            raise
        return made

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What the run is resumed from."""
        return self.past.facts if self.past is not None else ()

    def record(self, events: Iterable[Event]) -> Iterator[Event]:
        """The same events, each written before it is handed on."""
        try:
            for event in events:
                self.write(event)
                yield event
        finally:
            close = getattr(events, "close", None)  # a generation that nobody listens to any more
            if close is not None:
                close()

    def write(self, event: Event) -> None:
        """What `record` does with each event, for those who have none to iterate over (`Agent.astream`)."""
        if isinstance(event, Delta | Reading) or self._is_known(event):
            return
        self._append(event)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the past

    def _take_up(self, past: Log, approved: bool | None) -> None:
        past.check_resumable(approved)
        self.past, self._known_facts, self._known_notices = past, deque(), deque()
        if past.torn:
            data = self.path.read_bytes()
            os.ftruncate(self._file, data.rindex(b"\n") + 1)
        if approved is not None and past.waiting is not None:
            decision = Approved(approved, call_key(past.waiting))
            self._append(decision)
            self.past = dataclasses.replace(past, events=(*past.events, decision))
        self._known_facts.extend(self.past.facts)
        self._known_notices.extend(_after_last_fact(self.past.events))

    def _is_known(self, event: Event) -> bool:
        """Whether a resumed run only repeats this: all up to its last known fact, and the notices that followed it."""
        if self._known_facts:
            if event in self._known_facts:
                while self._known_facts.popleft() != event:
                    pass
            return True
        if self._known_notices and self._known_notices[0] == event:
            self._known_notices.popleft()
            return True
        return False

    # ---- the file

    def _append(self, event: Event) -> None:
        written = to_json(event)
        if isinstance(event, RunStarted):
            time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            header = {"format": FORMAT, "version": qwen_agent.__version__, "time": time}
            written = {"event": written.pop("event"), **header, **written}
        # A lone surrogate becomes the escape that JSON has for it.
        line = memoryview(json.dumps(written, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        try:
            while line:
                line = line[os.write(self._file, line) :]
            if self._regular and isinstance(event, Fact):
                os.fsync(self._file)
        except OSError as error:
            raise _unusable(self.path, error) from None


def _open(path: Path, flags: int) -> tuple[int, bool]:
    """The file for appending, locked; and whether it is a regular one (not a pipe or a terminal)."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0) | flags, 0o666)
    except OSError as error:
        raise _unusable(path, error) from None
    regular = stat.S_ISREG(os.fstat(file).st_mode)
    if regular and not _locked(file):
        os.close(file)
        raise InputError(f"{path} is being written by another run: wait until it has ended, or choose another file")
    return file, regular


def _locked(file: int) -> bool:
    """Lock the file until it is closed, however the process ends. False if another has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _value(path: Path, number: int, line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    raise InputError(f"{path}, line {number}: not a JSON object; the log is damaged, or it is no log")


def _header(path: Path, first: dict[str, Any]) -> Header:
    """Taken out of the first line, which is then a plain event."""
    found = [first.pop(field.name, None) for field in dataclasses.fields(Header)]
    match first.get("event"), found:
        case "run_started", [int(number), str(version), str(time)]:
            if number > FORMAT:
                raise InputError(f"{path} has format {number}, and this version reads {FORMAT}: install a newer one")
            return Header(number, version, time)
    raise InputError(f"{path}, line 1: not the beginning of a run; the log is damaged, or it is no log")


def _event(path: Path, number: int, value: Mapping[str, Any]) -> Event:
    try:
        return from_json(value)
    except InputError as error:
        raise InputError(f"{path}, line {number}: {error}") from None


def _after_last_fact(events: tuple[Event, ...]) -> list[Event]:
    last = max(at for at, event in enumerate(events) if isinstance(event, Fact))
    return [event for event in events[last + 1 :] if not isinstance(event, Finished)]


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(f"the log {path} cannot be used: {error.strerror or error}")
