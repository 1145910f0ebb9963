"""Generations, read from asyncio: nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, Runtime
from qwen_agent.llm.shared import SharedRuntime, SharedStream
from qwen_agent.loop.threads import iterate_in_thread
from qwen_agent.types import Prompt


async def chunks(runtime: Runtime, prompt: Prompt, config: GenerationConfig) -> AsyncIterator[Chunk]:
    """The chunks of a generation. Closing this iterator, or cancelling the task that reads it, stops it.

    Raises what the runtime raises. A SharedRuntime's own thread does the work; any other gets a thread for each
    generation.
    """
    if not isinstance(runtime, SharedRuntime):

        def start(cancelled: Callable[[], bool]) -> Iterator[Chunk]:
            return runtime.stream(prompt, config)

        async with contextlib.aclosing(iterate_in_thread(start)) as threaded:  # type: ignore[type-var]
            async for chunk in threaded:
                yield chunk
        return
    arrived = asyncio.Event()
    stream = await _opened(runtime, prompt, config, _waker(arrived))
    try:
        while True:
            arrived.clear()  # before taking: what comes after that sets it again
            taken, ended = stream.take()
            for chunk in taken:
                yield chunk
            if ended:
                return
            if not taken:
                await arrived.wait()
    finally:
        stream.close()


def _waker(event: asyncio.Event) -> Callable[[], None]:
    """A function for other threads that sets the event."""
    loop = asyncio.get_running_loop()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(event.set)

    return wake


async def _opened(
    runtime: SharedRuntime, prompt: Prompt, config: GenerationConfig, arrived: Callable[[], None]
) -> SharedStream:
    """The stream, opened in a thread, since a long prompt takes a while to encode."""
    opening = asyncio.ensure_future(asyncio.to_thread(runtime.open, prompt, config, arrived))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)
        raise


def _close_opened(opening: asyncio.Future[SharedStream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
