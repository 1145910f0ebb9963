"""One message as it is written: its parts, and at the end how it ended. Both formats are made from this."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qwen_agent.dialogue.reply import Answer, CallArguments, CallBegun, CallBroken, Piece, Reply, Thought, Trimmed
from qwen_agent.dialogue.request import Request
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, Runtime, TokenLogprob
from qwen_agent.llm.stopping import StopStrings
from qwen_agent.server.running import chunks
from qwen_agent.types import Text, Usage


@dataclass(frozen=True, slots=True)
class Begun:
    """Always first: the runtime has taken the request. What cannot be asked was raised before."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A piece of the answer. ``logprobs`` are the tokens that are shown with it, if they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """Always last. ``finish`` "call": the message calls a tool, and was not cut off by the token limit.

    ``thought_tokens`` are those of ``usage`` that were the thought. ``counted`` is False where the client's stop string
    ended the message in its middle, so that nobody counted what was in the KV cache.
    """

    finish: Literal["stop", "length", "call"]
    usage: Usage
    thought_tokens: int = 0
    counted: bool = True


Part = Begun | Thought | Spoken | CallBegun | CallArguments | Ended


async def write(
    runtime: Runtime, request: Request, config: GenerationConfig, stops: Sequence[str] = ()
) -> AsyncGenerator[Part, None]:
    """Generate one message. Closing the iterator stops the generation. Raises what the runtime raises.

    ``stops`` end the answer and are not part of it; they are not looked for in a thought or a call, which the client
    did not write them for. ``config`` is completed by the request.
    """
    message = _Message(request, () if request.first == "final_answer" else stops)
    config = replace(
        config,
        stop=(*request.stops, *(stops if request.first == "final_answer" else ())),
        grammar=request.grammar,
    )
    async with contextlib.aclosing(chunks(runtime, request.prompt, config)) as source:  # type: ignore[type-var]
        begun = False
        async for chunk in source:
            if not begun:
                begun = True
                yield Begun()
            for part in message.feed(chunk):
                yield part
            if message.stopped:
                break
    for part in message.finish():
        yield part
    yield await asyncio.to_thread(message.ended, runtime)


async def write_nothing(runtime: Runtime, request: Request) -> AsyncGenerator[Part, None]:
    """The message of a request for no tokens at all: the prompt is counted."""
    tokens = await asyncio.to_thread(runtime.count_tokens, request.prompt)
    yield Begun()
    yield Ended("length", Usage(tokens))


class _Message:
    """One message: feed it chunks, get parts."""

    def __init__(self, request: Request, stops: Sequence[str]) -> None:
        self.stopped = False  # by one of the stops
        self._request = request
        self._reply = Reply(request.tools, request.first)
        self._stops = StopStrings(stops)
        self._answer = Trimmed()  # once more: a stop string may leave whitespace before it
        self._logprobs = _Alignment()
        self._last = Chunk()
        self._tokens = 0
        self._thought = ""
        self._called = False

    def feed(self, chunk: Chunk) -> Iterator[Part]:
        self._last = chunk
        self._tokens += chunk.read is None and chunk.finish is None
        if chunk.read is None:
            self._logprobs.feed(chunk.logprobs)
        for piece in self._reply.feed(chunk.text):
            yield from self._part(piece)

    def finish(self) -> Iterator[Part]:
        if self.stopped:
            return
        at_limit, at_stop = self._last.finish == "length", self._last.stop is not None
        for piece in self._reply.finish(at_limit=at_limit, at_stop=at_stop):
            yield from self._part(piece)
        if not self.stopped:
            yield from self._spoken(self._stops.flush())

    def ended(self, runtime: Runtime) -> Ended:
        """How it ended. Counts tokens, which takes a while."""
        thought = runtime.count_tokens((Text(self._thought),)) if self._thought else 0
        if self.stopped:
            usage = Usage(runtime.count_tokens(self._request.prompt), 0, self._tokens)
            return Ended("stop", usage, thought, counted=False)
        finish = self._last.finish or "stop"
        return Ended("call" if self._called and finish == "stop" else finish, self._last.usage, thought)

    def _part(self, piece: Piece) -> Iterator[Part]:
        if isinstance(piece, Answer):
            yield from self._spoken(self._stops.feed(piece.text))
            self.stopped = self._stops.matched is not None
        elif isinstance(piece, Thought):
            self._thought += piece.text
            yield piece
        elif not isinstance(piece, CallBroken):
            self._called = True
            yield piece
        elif piece.sent or piece.name in self._request.tools:
            # What was written of it is told, as it is: a client can see that it is no JSON.
            self._called = True
            if not piece.sent:
                yield CallBegun(piece.id, piece.name)
            rest = piece.raw[len(piece.sent) :] if piece.raw.startswith(piece.sent) else ""
            if rest:
                yield CallArguments(rest)

    def _spoken(self, text: str) -> Iterator[Spoken]:
        if shown := self._answer.feed(text):
            yield Spoken(shown, self._logprobs.shown_with(shown))


class _Alignment:
    """Which tokens the pieces of an answer are made of: an answer begins and ends anywhere in the text."""

    def __init__(self) -> None:
        self._tokens: list[TokenLogprob] = []  # that were not handed out
        self._ahead: int | None = None  # bytes handed out beyond what was shown; None before the answer begins

    def feed(self, tokens: Sequence[TokenLogprob]) -> None:
        self._tokens += tokens

    def shown_with(self, text: str) -> tuple[TokenLogprob, ...]:
        """The tokens that have to be handed out with the next piece of the answer."""
        if not self._tokens:
            return ()
        shown = text.encode("utf-8", "replace")
        if self._ahead is None:
            self._ahead = -self._skip_to(shown)
        self._ahead -= len(shown)
        given: list[TokenLogprob] = []
        while self._tokens and self._ahead < 0:
            given.append(self._tokens.pop(0))
            self._ahead += len(given[-1].text)
        return tuple(given)

    def _skip_to(self, shown: bytes) -> int:
        """Leave out the tokens before the text; how many bytes of the first that stays are before it, too."""
        at = max(b"".join(token.text for token in self._tokens).rfind(shown), 0)
        while self._tokens and len(self._tokens[0].text) <= at:
            at -= len(self._tokens.pop(0).text)
        return at
