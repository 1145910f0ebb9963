"""Running the loop, which blocks, for callers that may not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


async def iterate_in_thread(start: Callable[[Callable[[], bool]], Iterator[T]]) -> AsyncIterator[T]:
    """Iterate over ``start(cancelled)`` in a thread of its own, one item at a time.

    ``cancelled`` says True once the task that iterates here was cancelled or stopped iterating; the iterator is then
    closed in its thread, so nothing goes on behind the caller's back.
    """
    stopped = threading.Event()
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agent")
    try:
        iterator = await loop.run_in_executor(executor, start, stopped.is_set)
        try:
            while (item := await loop.run_in_executor(executor, next, iterator, _END)) is not _END:
                yield item  # type: ignore[misc]
        finally:
            stopped.set()
            close = getattr(iterator, "close", None)
            if close is not None:
                executor.submit(close)
    finally:
        executor.shutdown(wait=False)
