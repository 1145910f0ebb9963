"""Threads that tools run in: daemons, so that none keeps the process alive; used again, since starting one is slow."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_MOST_IDLE = 8


class Job(Generic[T]):
    """Work that was given to a thread. ``result`` is there once ``wait`` has said True."""

    result: T

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._running = threading.Lock()  # cheaper to wait for than an Event or a Future
        self._running.acquire()

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the work, for at most this long."""
        return self._running.acquire(timeout=max(seconds, 0.0))

    def run(self) -> None:
        self.result = self._work()

    def end(self) -> None:
        self._running.release()


def start(work: Callable[[], T]) -> Job[T]:
    """Have ``work``, which must not raise, done in another thread."""
    job: Job[T] = Job(work)
    try:
        inbox = _idle.pop()
    except IndexError:
        inbox = queue.SimpleQueue()
        threading.Thread(target=_work, args=(inbox,), name="tool", daemon=True).start()
    inbox.put(job)
    return job


def _work(inbox: queue.SimpleQueue[Job[Any]]) -> None:
    idle = True
    while idle:
        job = inbox.get()
        job.run()
        idle = len(_idle) < _MOST_IDLE
        if idle:
            _idle.append(inbox)  # before the job ends, so that the next one finds it
        job.end()
        del job  # nothing of it is kept while there is no work


_idle: deque[queue.SimpleQueue[Job[Any]]] = deque()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # threads do not survive a fork
