"""/v1/completions: text, or token ids, continued; with log-probabilities of the prompt, too, if it is echoed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from qwen_agent.errors import Busy, InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, TokenLogprob
from qwen_agent.llm.tokenizer import StreamDecoder, Tokenizer
from qwen_agent.server import wire
from qwen_agent.server.engine import Engine
from qwen_agent.server.running import chunks
from qwen_agent.server.wire import Number, Sampling, Stop
from qwen_agent.types import Generated, Usage

MAX_PROMPTS = 128
MAX_LOGPROBS = 20  # OpenAI takes 5, others more
_DEFAULT_TOKENS = 16  # OpenAI's
_RETRY_SECONDS = 0.2  # while the prompts that follow the first wait for a place

Token = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[Token], Field(min_length=1)]


def _kind(prompt: Any) -> str:
    """Which of four kinds of prompt it seems to be, so that an error speaks of that one."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else 0
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "tokens"


PromptField = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), Tag("texts")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS), Tag("lists")],
    Discriminator(_kind),
]


class CompletionRequest(Sampling):
    """A request to continue a prompt, or several."""

    prompt: PromptField
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=wire.MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None
    logit_bias: dict[str, Number] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None

    def check(self) -> None:
        """Raise InputError for what would change the answer and cannot be done."""
        if self.n not in (None, 1) or self.best_of not in (None, 0, 1):
            raise wire.refuse(f"n={self.n}, best_of={self.best_of}", "one completion is made of each prompt")
        if self.suffix:
            raise wire.refuse("suffix", "the model continues a text, it cannot fill a gap; leave it out")
        if any((self.logit_bias or {}).values()):
            raise wire.refuse("logit_bias", "leave it out")

    @property
    def with_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    def config(self, defaults: GenerationConfig) -> GenerationConfig:
        limit = _DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens
        return replace(
            self.sampled(defaults),
            max_new_tokens=max(limit, 1),
            stop=wire.stops_of(self.stop),
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )


async def complete(body: CompletionRequest, engine: Engine, tokenizer: Tokenizer) -> dict[str, Any]:
    """The completions of all prompts. Raises InputError for what cannot be asked, and what the runtime raises."""
    head, usage, choices = _head(body), Usage(), []
    for index, prompt in enumerate(await _checked(body, tokenizer)):
        text, logprobs, finish = "", _no_logprobs(body), "length"
        async with aclosing(_completion(body, engine, tokenizer, prompt, index)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                text += piece.text
                for name, values in (piece.logprobs or {}).items():
                    assert logprobs is not None
                    logprobs[name] += values
                finish, usage = piece.finish or finish, usage + piece.usage
        choices.append(_choice(index, text, logprobs, finish))
    return head | {"choices": choices, "usage": _usage(usage)}


async def stream(body: CompletionRequest, engine: Engine, tokenizer: Tokenizer) -> AsyncIterator[dict[str, Any]]:
    """The completions in chunks, one prompt after the other. Raises as `complete`, before the first chunk."""
    head, usage = _head(body), Usage()
    if body.with_usage:
        head["usage"] = None
    for index, prompt in enumerate(await _checked(body, tokenizer)):
        async with aclosing(_completion(body, engine, tokenizer, prompt, index)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                usage = usage + piece.usage
                if piece.text or piece.finish or (piece.logprobs or {}).get("tokens"):
                    yield head | {"choices": [_choice(index, piece.text, piece.logprobs, piece.finish)]}
    if body.with_usage:
        yield head | {"choices": [], "usage": _usage(usage)}


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    logprobs: dict[str, list[Any]] | None
    finish: str | None = None
    usage: Usage = field(default_factory=Usage)


async def _completion(
    body: CompletionRequest, engine: Engine, tokenizer: Tokenizer, prompt: list[int], index: int
) -> AsyncIterator[_Piece]:
    """One prompt, continued: what is echoed of it, the text, and last of all the finish with the usage."""
    writer = _Written(body, tokenizer)
    if body.max_tokens == 0 and not (body.echo and body.logprobs is not None):
        yield _Piece(writer.echo(prompt) if body.echo else "", _no_logprobs(body), "length", Usage(len(prompt)))
        return
    if body.echo and body.logprobs is None:
        yield _Piece(writer.echo(prompt), None)
    elif body.echo:
        yield _Piece(writer.echo(prompt[:1]), writer.unmeasured(prompt[0]))
    written = False
    source = _patient(engine, prompt, body.config(engine.defaults), first=index == 0)
    async with aclosing(source) as generated:  # type: ignore[type-var]
        async for chunk in generated:
            if chunk.read is not None:
                if chunk.logprobs:
                    text = writer.echo([entry.token for entry in chunk.logprobs])
                    yield _Piece(text, writer.measured(chunk.logprobs))
            elif body.max_tokens == 0:
                usage = replace(chunk.usage, prompt_tokens=len(prompt), generated_tokens=0)
                yield _Piece("", _no_logprobs(body), "length", usage)
                return
            else:
                logprobs = writer.measured(chunk.logprobs)
                written = written or bool(chunk.logprobs)
                if chunk.finish and body.echo and logprobs is not None and not written:
                    logprobs = writer.ended()
                yield _Piece(chunk.text, logprobs, chunk.finish, chunk.usage)


async def _patient(engine: Engine, prompt: list[int], config: GenerationConfig, *, first: bool) -> AsyncIterator[Chunk]:
    """The chunks. A prompt that follows others of its request waits for a place, where the first is refused."""
    while True:
        try:
            source = chunks(engine.runtime, (Generated("", tuple(prompt)),), config)
            async with aclosing(source) as generated:  # type: ignore[type-var]
                async for chunk in generated:
                    yield chunk
            return
        except Busy:  # raised before the first chunk only
            if first:
                raise
            await asyncio.sleep(_RETRY_SECONDS)


async def _checked(body: CompletionRequest, tokenizer: Tokenizer) -> list[list[int]]:
    """The prompts as token ids. Raises InputError for what cannot be asked."""
    body.check()

    def encode() -> list[list[int]]:
        return [
            tokenizer.encode(prompt) if isinstance(prompt, str) else known(prompt, tokenizer)
            for prompt in body.prompts()
        ]

    prompts = await asyncio.to_thread(encode)
    if not all(prompts):
        raise InputError("a prompt is empty: give at least one token to go on from")
    return prompts


def known(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The ids, if all of them are in the vocabulary; else InputError."""
    for token in ids:
        try:
            if not 0 <= token < tokenizer.size:
                raise KeyError(token)
            tokenizer.token_bytes(token)
        except KeyError:
            raise InputError(f"token {token} is not in the vocabulary, which has {tokenizer.size} ids") from None
    return list(ids)


class _Written:
    """Turns tokens into text and log-probabilities with their places in it."""

    def __init__(self, body: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._wanted = body.logprobs is not None
        self._tokenizer = tokenizer
        self._echoed = StreamDecoder(tokenizer)
        self._placed = StreamDecoder(tokenizer)
        self._offset = 0

    def echo(self, tokens: Sequence[int]) -> str:
        """The text of tokens of the prompt; control tokens have none."""
        return "".join(map(self._echoed.feed, tokens))

    def measured(self, tokens: Sequence[TokenLogprob]) -> dict[str, list[Any]] | None:
        """OpenAI's object: tokens, their log-probabilities, the likeliest ones, and where each begins in the text."""
        if not self._wanted:
            return None
        return {
            "tokens": [readable(entry.text) for entry in tokens],
            "token_logprobs": [entry.logprob for entry in tokens],
            "top_logprobs": [_likeliest(entry) for entry in tokens],
            "text_offset": [self._place(entry.token) for entry in tokens],
        }

    def unmeasured(self, token: int) -> dict[str, list[Any]]:
        """The same for the first token of a prompt, before which there is nothing that could tell how likely it is."""
        text = readable(self._tokenizer.token_bytes(token))
        return {"tokens": [text], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [self._place(token)]}

    def ended(self) -> dict[str, list[Any]]:
        """The same for a text that ended at once: a token, since lm-evaluation-harness drops one after the echo."""
        return {"tokens": [""], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [self._offset]}

    def _place(self, token: int) -> int:
        at, self._offset = self._offset, self._offset + len(self._placed.feed(token))
        return at


def readable(token: bytes) -> str:
    """A token's text; as OpenAI spells it ("bytes:\\xe2\\x82") where its bytes are a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _likeliest(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the one that is there, whatever its place among them."""
    found: dict[str, float] = {}
    for _, text, logprob in (*entry.top, (entry.token, entry.text, entry.logprob)):
        found.setdefault(readable(text), logprob)
    return found


def _no_logprobs(body: CompletionRequest) -> dict[str, list[Any]] | None:
    if body.logprobs is None:
        return None
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _choice(index: int, text: str, logprobs: dict[str, list[Any]] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _head(body: CompletionRequest) -> dict[str, Any]:
    made = int(time.time())
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": made, "model": body.model}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
