"""One runtime for many requests: turns, bounds, and what happens to requests that end early."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing

import pytest

from qwen_agent.errors import Busy, ContextOverflow, InputError, Stopped
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.llm.shared import Served, SharedRuntime
from qwen_agent.prompt import chatml
from qwen_agent.server.running import chunks
from qwen_agent.types import Prompt, Text, Usage

ANY = GenerationConfig()


class Counting:
    """Writes as many tokens as asked for; every prompt's text names it. It goes on only where it may."""

    name, window = "counting", 100

    def __init__(self) -> None:
        self.order: list[str] = []
        self.closed: list[str] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        name = text_of(prompt)
        if name == "long":
            raise ContextOverflow(101, 100)
        return self._write(name, config)

    def _write(self, name: str, config: GenerationConfig) -> Iterator[Chunk]:
        try:
            yield Chunk(read=(1, 1))
            for number in range(config.max_new_tokens):
                self.may_go.wait(10)
                if name == "broken" and number == 2:
                    raise ValueError("broken")
                self.order.append(name)
                yield Chunk(text=f"{name}{number} ")
            yield Chunk(finish="length", usage=Usage(1, 0, config.max_new_tokens))
        finally:
            self.closed.append(name)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return [float(len(text_of(choice))) for choice in choices]

    def count_tokens(self, prompt: Prompt) -> int:
        return len(text_of(prompt))


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[Counting, SharedRuntime]]]:
    made: list[tuple[Counting, SharedRuntime]] = []

    def build(**options: object) -> tuple[Counting, SharedRuntime]:
        counting = Counting()
        made.append((counting, SharedRuntime(counting, **options)))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for counting, shared in made:
        counting.may_go.set()
        shared.close()


def prompt(name: str) -> Prompt:
    return (Text(name),)


def config(tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=tokens)


def until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_those_with_a_place_take_turns_and_the_next_gets_the_first_free_one(make: Callable[..., tuple]) -> None:
    counting, shared = make(active=2)
    counting.may_go.clear()
    first = shared.stream(prompt("hold"), config(1))  # holds the worker while the others come
    assert until(lambda: shared.active == 1)
    streams = [shared.stream(prompt(name), config(3)) for name in "abc"]
    counting.may_go.set()
    texts = ["".join(chunk.text for chunk in stream) for stream in streams]
    assert texts == [f"{name}0 {name}1 {name}2 " for name in "abc"]
    assert list(first)[-1].finish == "length"
    # "c" gets the place that "a" leaves, and nobody has two turns while another waits for one.
    assert counting.order == ["hold", *"abababccc"]


def test_a_full_queue_refuses_and_says_how_many_wait(make: Callable[..., tuple]) -> None:
    told: list[Served] = []
    counting, shared = make(active=1, waiting=2, observe=told.append)
    counting.may_go.clear()
    streams = [shared.stream(prompt("a"), config(2))]
    assert until(lambda: shared.active == 1)
    streams += [shared.stream(prompt(name), config(2)) for name in "bc"]
    with pytest.raises(Busy, match="2 requests wait"):
        shared.stream(prompt("d"), config(2))
    assert (shared.active, shared.waiting) == (1, 2)
    counting.may_go.set()
    assert all(list(stream)[-1].finish == "length" for stream in streams)
    assert [served.outcome for served in told] == ["refused", "finished", "finished", "finished"]
    assert told[-1].usage.generated_tokens == 2
    assert told[-1].queued is not None and told[-1].first_token is not None
    assert told[-1].queued <= told[-1].first_token <= told[-1].total


def test_a_closed_request_gives_its_place_back_at_once_whether_it_runs_or_waits(make: Callable[..., tuple]) -> None:
    told: list[Served] = []
    counting, shared = make(active=1, waiting=1, buffer=10_000, observe=told.append)
    running = shared.stream(prompt("a"), config(1_000_000))
    assert next(running).read == (1, 1)
    waiting = shared.stream(prompt("b"), config(1))
    assert until(lambda: shared.waiting == 1)
    waiting.close()
    assert shared.waiting == 0
    running.close()
    assert until(lambda: shared.active == 0)
    assert counting.closed == ["a"], "the one that waited was never begun"
    assert [served.outcome for served in told] == ["closed", "closed"]
    assert [chunk.finish for chunk in shared.stream(prompt("c"), config(1))][-1] == "length"


def test_a_forgotten_request_is_closed(make: Callable[..., tuple]) -> None:
    counting, shared = make(active=1, buffer=10_000)
    stream = shared.stream(prompt("a"), config(1_000_000))
    next(stream)
    del stream
    gc.collect()
    assert until(lambda: counting.closed == ["a"])


def test_time_that_is_up_ends_requests_that_run_and_that_wait(make: Callable[..., tuple]) -> None:
    counting, shared = make(active=1, seconds=0.3, buffer=10_000_000)
    running, waiting = shared.stream(prompt("a"), config(10_000_000)), shared.stream(prompt("b"), config(10_000_000))
    for stream in (running, waiting):
        with pytest.raises(Stopped, match=r"not done after 0\.3 seconds"):
            list(stream)
    assert counting.closed[:1] == ["a"]
    assert (shared.active, shared.waiting) == (0, 0)


def test_who_does_not_read_stops_alone_and_is_cut_off_in_the_end(make: Callable[..., tuple]) -> None:
    counting, shared = make(active=2, buffer=4, patience=0.4)
    idle = shared.stream(prompt("idle"), config(100))
    assert until(lambda: counting.order.count("idle") == 3), "the prompt's chunk and three tokens fill the buffer"
    assert len(list(shared.stream(prompt("b"), config(50)))) == 52
    assert counting.order.count("idle") == 3
    assert until(lambda: counting.closed == ["b", "idle"])
    with pytest.raises(Stopped, match="nobody read"):
        list(idle)


def test_a_reader_that_comes_back_in_time_gets_everything(make: Callable[..., tuple]) -> None:
    counting, shared = make(buffer=4)
    stream = shared.stream(prompt("a"), config(20))
    assert until(lambda: counting.order.count("a") == 3)
    assert "".join(chunk.text for chunk in stream).split() == [f"a{number}" for number in range(20)]


def test_an_error_reaches_the_request_that_made_it(make: Callable[..., tuple]) -> None:
    _, shared = make()
    good, broken = shared.stream(prompt("good"), config(20)), shared.stream(prompt("broken"), config(20))
    with pytest.raises(ValueError, match="broken"):
        list(broken)
    assert list(good)[-1].finish == "length"
    with pytest.raises(ContextOverflow):
        shared.stream(prompt("long"), ANY)
    assert (shared.active, shared.waiting) == (0, 0)
    assert list(broken) == [], "raised once; then it is at its end"


def test_closing_the_runtime_ends_everything(make: Callable[..., tuple]) -> None:
    _, shared = make(active=1, buffer=10_000_000)
    streams = [shared.stream(prompt(name), config(10_000_000)) for name in "ab"]
    shared.close()
    for stream in streams:
        with pytest.raises(Stopped, match="shut down"):
            list(stream)
    with pytest.raises(InputError, match="closed"):
        shared.stream(prompt("c"), ANY)
    assert not shared._worker.is_alive()


def test_scores_wait_for_their_turn_too(make: Callable[..., tuple]) -> None:
    _, shared = make()
    assert shared.score(prompt("a"), [prompt("bb"), prompt("ccc")]) == [2.0, 3.0]
    assert shared.count_tokens(prompt("four")) == 4
    assert (shared.name, shared.window) == ("counting", 100)


@pytest.mark.parametrize("options", [{"active": 0}, {"waiting": -1}, {"seconds": 0}, {"patience": 0}, {"buffer": 0}])
def test_options_that_cannot_be_are_named(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"{name}="):
        SharedRuntime(Counting(), **options)  # type: ignore[arg-type]


def test_many_threads_each_get_their_own(make: Callable[..., tuple]) -> None:
    _, shared = make(active=3, waiting=40)
    got: dict[str, str] = {}

    def read(name: str) -> None:
        got[name] = "".join(chunk.text for chunk in shared.stream(prompt(name), config(30)))

    threads = [threading.Thread(target=read, args=(f"t{i}-",)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == {f"t{i}-": "".join(f"t{i}-{n} " for n in range(30)) for i in range(20)}


# ---- from asyncio


def test_chunks_are_read_without_blocking_the_loop(make: Callable[..., tuple]) -> None:
    counting, shared = make(active=2)
    counting.may_go.clear()

    async def read(name: str) -> str:
        return "".join([chunk.text async for chunk in chunks(shared, prompt(name), config(5))])

    async def main() -> tuple[list[str], int]:
        reading = asyncio.gather(read("a"), read("b"), read("c"))
        beats = 0
        for _ in range(20):
            await asyncio.sleep(0.005)
            beats += 1
        counting.may_go.set()
        return await reading, beats

    texts, beats = asyncio.run(main())
    assert texts == ["".join(f"{name}{n} " for n in range(5)) for name in "abc"]
    assert beats == 20


@pytest.mark.parametrize("way", ["close", "cancel", "cancel while opening"])
def test_closing_or_cancelling_stops_the_generation(make: Callable[..., tuple], way: str) -> None:
    _, shared = make(active=1, buffer=10_000)

    async def read() -> None:
        async for _ in chunks(shared, prompt("a"), config(1_000_000)):
            pass

    async def main() -> None:
        if way == "close":
            async with aclosing(chunks(shared, prompt("a"), config(1_000_000))) as source:  # type: ignore[type-var]
                async for chunk in source:
                    if chunk.text:
                        break
            return
        task = asyncio.ensure_future(read())
        await asyncio.sleep(0.1 if way == "cancel" else 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert until(lambda: (shared.active, shared.waiting) == (0, 0))


def test_errors_come_through(make: Callable[..., tuple], scripted: type) -> None:
    _, shared = make()

    async def read(runtime: object, name: str) -> str:
        return "".join([chunk.text async for chunk in chunks(runtime, prompt(name), config(5))])  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(read(shared, "broken"))
    with pytest.raises(ContextOverflow):
        asyncio.run(read(shared, "long"))
    assert asyncio.run(read(scripted("any other runtime"), "x")) == "any other runtime"


# ---- on a model


def test_interleaved_answers_are_those_given_alone_and_prefixes_are_shared(embedded: LocalRuntime) -> None:
    system = "You are a helpful assistant. You answer in one short sentence, without any further explanation at all."
    asked = [chatml(f"Say hello to {name}.", (), system) for name in ("Anna", "Bert", "Carla", "Dora")]
    short = config(8)
    alone = [text_of([*LocalRuntime(embedded.model, embedded.tokenizer).stream(p, short)][-1].output) for p in asked]
    runtime = LocalRuntime(embedded.model, embedded.tokenizer, kept_caches=3)
    shared = SharedRuntime(runtime, active=4)
    try:
        streams = [shared.stream(p, short) for p in asked]
        last = [list(stream)[-1] for stream in streams]
        again = list(shared.stream(asked[3], short))[-1]
    finally:
        shared.close()
    assert [text_of(chunk.output) for chunk in last] == alone
    prefix = embedded.count_tokens(asked[0]) // 2
    assert [chunk.usage.cached_tokens > prefix for chunk in last] == [False, True, True, True]
    assert again.usage.prefilled_tokens == 1
    assert len(runtime._sessions) == 3
    assert runtime._running == []
