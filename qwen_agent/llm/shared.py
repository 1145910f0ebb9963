"""SharedRuntime: one runtime for many requests at a time.

A single thread advances the open generations in turn, one chunk each (a token, or a piece of a prompt), so all of
them move while the model does one thing at a time.

Promises
- fair: requests start in the order in which they came, as soon as one of ``active`` places is free; those that have
  a place take turns.
- bounded: at most ``waiting`` requests wait for a place, the next is refused with Busy; what a request has written
  and nobody has read is at most ``buffer`` chunks, then it does not go on until somebody reads.
- one_request_alone: what one raises, or takes too long for, ends that one.
- nothing_runs_for_nobody: a request that is closed, or whose time is up, gives its place (or its place in the queue)
  back at once; so does one that nobody has read for ``patience`` seconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from qwen_agent.errors import Busy, InputError, Stopped
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, Runtime
from qwen_agent.types import Prompt, Usage

Outcome = Literal["finished", "closed", "stopped", "failed", "refused"]

_TICK = 0.5  # seconds between looks at the clock while every request waits for its reader


@dataclass(frozen=True, slots=True)
class Served:
    """How one request went. Seconds are counted from its arrival; None: it did not get so far.

    ``outcome`` is "finished", "closed" (by its reader), "stopped" (its time was up), "failed" (it raised) or
    "refused". ``usage`` is the runtime's own where it finished; else what was seen of it.
    """

    outcome: Outcome
    queued: float | None = None
    first_token: float | None = None
    total: float = 0.0
    usage: Usage = field(default_factory=Usage)


def _ignore(served: Served) -> None:
    pass


class SharedRuntime:
    """A Runtime over another one, for many threads."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        active: int = 8,
        waiting: int = 64,
        seconds: float | None = None,
        patience: float = 30.0,
        buffer: int = 256,
        observe: Callable[[Served], None] = _ignore,
    ) -> None:
        """``seconds`` bounds each request from its arrival to its end; ``observe`` is told how each went.

        ``observe`` is called in whatever thread ends a request: it has to be quick, and must not raise.
        """
        rules = (
            ("active", active, active >= 1, "1 or more"),
            ("waiting", waiting, waiting >= 0, "0 or more"),
            ("seconds", seconds, seconds is None or seconds > 0, "above 0, or None"),
            ("patience", patience, patience > 0, "above 0"),
            ("buffer", buffer, buffer >= 1, "1 or more"),
        )
        for name, value, good, wanted in rules:
            if not good:
                raise InputError(f"SharedRuntime({name}={value!r}) cannot be used: it must be {wanted}")
        self.runtime = runtime
        self.name = runtime.name
        self.window = runtime.window
        self._places, self._queue = active, waiting
        self._seconds, self._patience, self._buffer = seconds, patience, buffer
        self._observe = observe
        self._changed = threading.Condition()  # guards all that follows, and what is in the requests
        self._waiting: deque[_Request] = deque()
        self._active: deque[_Request] = deque()
        self._arriving = 0
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="shared runtime", daemon=True)
        self._worker.start()

    @property
    def active(self) -> int:
        """How many requests have a place."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return len(self._waiting)

    def stream(self, prompt: Prompt, config: GenerationConfig) -> SharedStream:
        """As Runtime.stream. Raises Busy, too; reading it raises Stopped if it was ended from outside."""
        return self.open(prompt, config, _nobody)

    def open(self, prompt: Prompt, config: GenerationConfig, arrived: Callable[[], None]) -> SharedStream:
        """``stream``, which calls ``arrived``, in the worker's thread, whenever there is something to take."""
        return self._enter(lambda: self.runtime.stream(prompt, config), arrived)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        """As Runtime.score: waits for its turn like a generation, and is done in one piece."""
        scores: list[float] = []

        def once() -> Iterator[Chunk]:
            scores.extend(self.runtime.score(prompt, choices))
            yield Chunk(finish="stop")

        for _ in self._enter(once, _nobody):
            pass
        return scores

    def count_tokens(self, prompt: Prompt) -> int:
        return self.runtime.count_tokens(prompt)

    def close(self) -> None:
        """End every request with Stopped, and the worker. Waits for the chunk that is being made."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    # ---- in the callers' threads

    def _enter(self, start: Callable[[], Iterator[Chunk]], arrived: Callable[[], None]) -> SharedStream:
        with self._changed:
            if self._closed:
                raise InputError("this runtime was closed: make another one")
            free = self._places - len(self._active)
            taken = len(self._waiting) + self._arriving
            if taken >= self._queue + max(free, 0):
                refused = True
            else:
                refused = False
                self._arriving += 1
        if refused:
            self._observe(Served("refused"))
            raise Busy(taken)
        request = None
        try:
            # Here and not in the worker: what is wrong with a prompt is its sender's, and encoding it takes a while.
            request = _Request(start(), arrived)
        finally:
            with self._changed:
                self._arriving -= 1
                if request is not None:
                    self._waiting.append(request)
                    self._changed.notify_all()
        return SharedStream(self, request)

    def _take(self, request: _Request, wait: bool) -> list[Chunk]:
        with self._changed:
            while wait and not request.chunks and not request.ended:
                self._changed.wait()
            chunks = list(request.chunks)
            request.chunks.clear()
            request.read = time.monotonic()
            if len(chunks) >= self._buffer:
                self._changed.notify_all()
        return chunks

    def _drop(self, request: _Request) -> None:
        with self._changed:
            if request.ended:
                return
            request.closed = True
            waits = request in self._waiting  # and has not been begun, nor will be: nothing of it runs
            if waits:
                self._waiting.remove(request)
            self._changed.notify_all()
        if waits:
            self._end(request, "closed")

    # ---- in the worker's thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (turn := self._next()) is None:
                    self._changed.wait(_TICK if self._active or self._waiting else None)
                if self._closed:
                    break
            assert turn is not None
            self._advance(turn)
        for request in (*self._active, *self._waiting):
            self._end(request, "stopped", Stopped("the model is being shut down"))

    def _next(self) -> _Request | None:
        """The request whose turn it is, moved to the end of the row; None if all wait for their readers."""
        now = time.monotonic()
        for request in self._waiting:
            if request.closed or self._overdue(request, now):
                return request
        while self._waiting and len(self._active) < self._places:
            request = self._waiting.popleft()
            request.started = now
            self._active.append(request)
        for _ in range(len(self._active)):
            request = self._active[0]
            self._active.rotate(-1)
            if request.closed or len(request.chunks) < self._buffer or self._overdue(request, now):
                return request
        return None

    def _overdue(self, request: _Request, now: float) -> str:
        """What time ran out, if one did."""
        if self._seconds is not None and now - request.arrived_at > self._seconds:
            return f"the request was not done after {self._seconds:g} seconds"
        if len(request.chunks) >= self._buffer and now - request.read > self._patience:
            return f"nobody read the answer for {self._patience:g} seconds"
        return ""

    def _advance(self, request: _Request) -> None:
        if request.closed:
            return self._end(request, "closed")
        if late := self._overdue(request, time.monotonic()):
            return self._end(request, "stopped", Stopped(late))
        try:
            chunk = next(request.steps, None)
        except BaseException as error:  # it belongs to whoever reads this request, and to nobody else
            return self._end(request, "failed", error)
        if chunk is None:
            return self._end(request, "finished")
        request.note(chunk)
        with self._changed:
            request.chunks.append(chunk)
            self._changed.notify_all()
        if request.finished:
            return self._end(request, "finished")
        request.arrived()
        return None

    def _end(self, request: _Request, outcome: Outcome, error: BaseException | None = None) -> None:
        """Take a request out of the row, and tell its reader how it ended."""
        try:
            close = getattr(request.steps, "close", None)
            if close is not None:
                close()
        except BaseException as problem:
            error = error or problem
        with self._changed:
            if request.ended:
                return
            for row in (self._active, self._waiting):
                if request in row:
                    row.remove(request)
            request.error, request.ended = error, True
            self._changed.notify_all()
        self._observe(request.served(outcome))
        request.arrived()


class SharedStream:
    """The chunks of one request: an iterator that can be closed, from any thread, before it is at its end."""

    def __init__(self, shared: SharedRuntime, request: _Request) -> None:
        self._shared = shared
        self._request = request
        self._chunks: deque[Chunk] = deque()

    def __iter__(self) -> SharedStream:
        return self

    def __next__(self) -> Chunk:
        if not self._chunks:
            self._chunks.extend(self._shared._take(self._request, wait=True))
        if not self._chunks:
            self._raise()
            raise StopIteration
        return self._chunks.popleft()

    def take(self) -> tuple[list[Chunk], bool]:
        """What has come since the last call, without waiting, and whether that was all. Raises as reading it does."""
        ended = self._request.ended  # before taking: what comes in between is for the next call
        chunks = self._shared._take(self._request, wait=False)
        if ended and not chunks:
            self._raise()
        return chunks, ended and not chunks

    def close(self) -> None:
        """Stop the generation and give its place back. Does nothing at the end."""
        self._shared._drop(self._request)

    def __del__(self) -> None:
        # No lock may be taken here, where this thread may hold it: the worker looks for itself.
        self._request.closed = True

    def _raise(self) -> None:
        error, self._request.error = self._request.error, None
        if error is not None:
            raise error


@dataclass(slots=True, eq=False)
class _Request:
    """One request, from its arrival to its end."""

    steps: Iterator[Chunk]
    arrived: Callable[[], None]
    arrived_at: float = field(default_factory=time.monotonic)
    started: float | None = None
    first: float | None = None  # when its first token came
    read: float = field(default_factory=time.monotonic)  # when its reader last took something
    chunks: deque[Chunk] = field(default_factory=deque)  # that nobody has read yet
    tokens: int = 0
    usage: Usage | None = None
    finished: bool = False
    closed: bool = False  # its reader has left
    ended: bool = False
    error: BaseException | None = None

    def note(self, chunk: Chunk) -> None:
        if chunk.finish is not None:
            self.finished, self.usage = True, chunk.usage
        elif chunk.read is None and chunk.weights is None:
            self.tokens += 1
            self.first = self.first or time.monotonic()

    def served(self, outcome: Outcome) -> Served:
        def since(then: float | None) -> float | None:
            return None if then is None else then - self.arrived_at

        usage = self.usage or Usage(generated_tokens=self.tokens)
        return Served(outcome, since(self.started), since(self.first), time.monotonic() - self.arrived_at, usage)


def _nobody() -> None:
    pass
