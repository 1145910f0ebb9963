"""OpenAIRuntime: any OpenAI-compatible endpoint behind the Runtime seam.

What the endpoint can do is asked once, when the runtime is made, and named in `OpenAIRuntime.served`; a request never
falls back to something else. The agent is the same one: where the engine does not hold the model to a grammar, the
parser and the repairs do the rest, and where it does not tell log-probabilities there are no confidences.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal

from qwen_agent.errors import ContextOverflow, EndpointError, InputError, ModelNotFound, QwenAgentError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar
from qwen_agent.llm.remote.encoding import (
    AsMessages,
    AsText,
    AsTokenIds,
    Encoding,
    EndpointVocabulary,
    LocalVocabulary,
    Vocabulary,
    estimate,
    repeated,
)
from qwen_agent.llm.remote.endpoint import Endpoint, Events, Refused, Timeouts
from qwen_agent.llm.remote.engines import LLAMA_CPP, engine_of, sampling_fields
from qwen_agent.llm.remote.weighing import probabilities
from qwen_agent.llm.remote.writing import Writer
from qwen_agent.llm.runtime import Chunk
from qwen_agent.llm.tokenizer import Tokenizer
from qwen_agent.types import END_OF_TEXT, IM_END, IM_START, Prompt, Text, Usage

Mode = Literal["auto", "completions", "chat"]

_BEAT = 0.2  # seconds after which a caller that waits may look whether it still wants the answer
_FOR_THE_END = 5.0  # seconds; what comes after the text is worth no more
_STOP_CONTROLS = (IM_END, IM_START, END_OF_TEXT)
_PROBE = Text("yes")


class OpenAIRuntime:
    """A model that an OpenAI-compatible endpoint serves. Share it between threads; `close` it at the end.

    ``base_url`` ends in /v1. ``model`` may be left out where only one is served. ``mode`` "completions" sends the
    prompt as it is, "chat" as messages; "auto" takes completions where there are any. ``engine`` says whose words the
    endpoint understands ("vllm", "sglang", "llama.cpp", "qwen-agent", "openai"); "auto" reads it from /models.
    ``tokenizer`` is the model's own, if it is at hand; else the endpoint's is asked, else tokens are estimated.
    ``window`` is needed where the endpoint does not tell. ``guided`` has the engine hold the output to
    `GenerationConfig.grammar`. ``weigh`` answers `GenerationConfig.choices`, at the price of reading the prompt once
    more for each choice, unless the engine keeps prefixes for that.

    ``retries`` and ``timeouts`` are for single requests, ``concurrency`` is the most that are open at once; the rest
    waits here. Raises InputError, ModelNotFound or EndpointError, with the URL and the fix, if the endpoint cannot be
    used so.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        mode: Mode = "auto",
        engine: str = "auto",
        tokenizer: Tokenizer | None = None,
        window: int | None = None,
        guided: bool = False,
        weigh: bool = False,
        timeouts: Timeouts = Timeouts(),
        retries: int = 4,
        concurrency: int = 16,
    ) -> None:
        if mode not in ("auto", "completions", "chat"):
            raise InputError(f"mode={mode!r} is unknown: use auto, completions or chat")
        self._endpoint = Endpoint(
            base_url, api_key=api_key, timeouts=timeouts, retries=retries, concurrency=concurrency
        )
        try:
            with _in_words():
                served = self._served_model(model)
                self.name = str(served["id"])
                self.engine = engine_of(str(served.get("owned_by", "")), engine)
                vocabulary = self._vocabulary(tokenizer)
                self._encoding = self._negotiate(mode, vocabulary)
                self.window = window or self._window(served)
                self._endpoint.window = self.window
                self._stop_ids = self._known_controls(vocabulary)
            self._guided = guided
            self._weigh = weigh
            self._check_guided()
            self._check_weigh()
        except BaseException:
            self._endpoint.close()
            raise

    @property
    def served(self) -> str:
        """What was found at the endpoint and is used of it, in one line for people."""
        route = "chat/completions" if isinstance(self._encoding, AsMessages) else "completions"
        extras = [word for word, on in (("guided", self._guided), ("weighed", self._weigh)) if on]
        counted = "counted" if self._encoding.exact else "estimated"
        words = (f"{route} from {self._encoding.about}", f"tokens {counted}", f"window {self.window}", *extras)
        return f"{self.name} at {self._endpoint.base} ({self.engine.name}): {', '.join(words)}"

    def close(self) -> None:
        """Close the connections. Streams that are open end with an error."""
        self._endpoint.close()

    def __enter__(self) -> OpenAIRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the Runtime protocol

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens the prompt has; an estimate on the high side where nobody here or there can count."""
        with _in_words():
            return self._encoding.count(prompt)

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Generate. While the endpoint is waited for, chunks without text come several times a second.

        Raises ContextOverflow, InputError for settings the endpoint has no field for, and EndpointError, also in the
        middle of a text: what was shown cannot be asked for again.
        """
        total = self.count_tokens(prompt)
        if not total or (self._encoding.exact and total >= self.window):
            raise ContextOverflow(total, self.window)
        return self._stream(prompt, self._body(prompt, config, total), config, total)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        """Log-probability of each choice after the prompt. Raises InputError where the endpoint does not tell."""
        encoding = self._in_ids("log-probabilities of a prompt")
        with _in_words():
            ids = encoding.ids(prompt)
            tails = [encoding.ids(choice) for choice in choices]
            longest = len(ids) + max(map(len, tails), default=0)
            if not ids or longest >= self.window:
                raise ContextOverflow(longest, self.window)
            return self._score(ids, tails)

    # ---- generating

    def _body(self, prompt: Prompt, config: GenerationConfig, total: int) -> dict[str, Any]:
        if config.logprobs is not None or config.prompt_logprobs is not None:
            raise InputError("logprobs are not passed on to an endpoint: leave them out, or use score()")
        with _in_words():
            body = {
                "model": self.name,
                **self._encoding.body(prompt),
                "max_tokens": max(min(config.max_new_tokens, self.window - total), 1),
                "stream": True,
                "stream_options": {"include_usage": True},
                **sampling_fields(self.engine, config),
            }
        if isinstance(self._encoding, AsTokenIds | AsText):
            body.update(self.engine.completion)
        if config.stop and self.engine.keep_stop is not None:
            body.update(stop=list(config.stop), **self.engine.keep_stop)
        if self._stop_ids and self.engine.stops_at_ids:
            body["stop_token_ids"] = self._stop_ids
        if config.grammar is not None and self._guided and self.engine.guided is not None:
            body.update(self.engine.guided(config.grammar.lark))
        return body

    def _stream(self, prompt: Prompt, body: Mapping[str, Any], config: GenerationConfig, total: int) -> Iterator[Chunk]:
        began = time.perf_counter()
        yield Chunk(read=(0, total))
        if config.choices and self._weigh:
            weights = self._weights(prompt, config.choices)
            yield Chunk(weights=weights, usage=Usage(total, 0, 0, time.perf_counter() - began))
        again = repeated(self._encoding, prompt)
        writer = Writer(config.stop, ends_in_ids=self.engine.ends_in_ids, repeated=again)
        route = "chat/completions" if isinstance(self._encoding, AsMessages) else "completions"
        events = self._endpoint.events(f"{self._endpoint.base}/{route}", body)
        try:
            first = yield from self._write(events, writer, total)
            self._rest(events, writer)
        finally:
            events.close()
        usage = Usage(
            writer.prompt_tokens or total,
            writer.cached_tokens,
            writer.tokens,
            first - began,
            time.perf_counter() - first,
        )
        tail = writer.end()
        finish = "stop" if writer.stopped is not None else writer.finish
        yield Chunk(tail, finish=finish, stop=writer.stopped, output=writer.output(), usage=usage)

    def _write(self, events: Events, writer: Writer, total: int) -> Generator[Chunk, None, float]:
        """Chunks up to the end or the stop; the result is when the first token came (time.perf_counter)."""
        first: float | None = None
        last_token: float | None = None
        while writer.finish is None and writer.stopped is None:
            try:
                event = events.next(_BEAT)
            except StopIteration:
                raise EndpointError(
                    f"{self._endpoint.base} broke off in the middle of the answer, after {writer.tokens} tokens"
                ) from None
            if event is None:
                self._check_time(events, last_token)
                yield Chunk()
                continue
            text = writer.take(event, self._endpoint.base)
            if first is None and (writer.begun or writer.finish is not None):
                first = time.perf_counter()
                yield Chunk(read=(total, total))
            if first is None:
                yield _progress(event, total)
                continue
            last_token = time.monotonic()
            yield Chunk(text=text)
        return time.perf_counter() if first is None else first

    def _check_time(self, events: Events, last_token: float | None) -> None:
        """Raise EndpointError if the endpoint takes longer than it may."""
        since = last_token or events.sent_at
        limits = self._endpoint.timeouts
        limit = limits.first_token if last_token is None else limits.between_tokens
        if since is not None and time.monotonic() - since > limit:
            what = "no first token" if last_token is None else "no further token"
            raise EndpointError(
                f"{self._endpoint.base} sent {what} within {limit:g} s: it may be overloaded; "
                f"try later, or give more time with timeouts=Timeouts(...)"
            )

    def _rest(self, events: Events, writer: Writer) -> None:
        """What comes after the text: the usage, if the engine ends by itself."""
        if writer.stopped is not None and self.engine.keep_stop is None:
            return
        until = time.monotonic() + _FOR_THE_END
        with contextlib.suppress(StopIteration, QwenAgentError):
            while (left := until - time.monotonic()) > 0:
                event = events.next(left)
                if event is not None:
                    writer.take(event, self._endpoint.base)

    # ---- weighing

    def _weights(self, prompt: Prompt, choices: Sequence[Prompt]) -> tuple[float, ...]:
        encoding = self._in_ids("choices")
        with _in_words():
            ids = encoding.ids(prompt)
            tails = [encoding.ids(choice) for choice in choices]
            if len(ids) + max(map(len, tails)) >= self.window:
                return ()
            return probabilities(tails, lambda shorter: self._score(ids, shorter))

    def _score(self, ids: Sequence[int], tails: Sequence[Sequence[int]]) -> list[float]:
        """By an echo of the prompt with log-probabilities, as lm-evaluation-harness asks for them."""
        if not tails:
            return []
        body = {
            "model": self.name,
            "prompt": [[*ids, *tail] for tail in tails],
            "max_tokens": 1,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
        }
        answer = self._endpoint.post(f"{self._endpoint.base}/completions", body)
        found: dict[int, float] = {}
        for choice in answer.get("choices") or ():
            logs = (choice.get("logprobs") or {}).get("token_logprobs") or ()
            at = choice.get("index", 0)
            if at < len(tails) and len(logs) >= len(ids) + len(tails[at]):
                found[at] = sum(logs[len(ids) : len(ids) + len(tails[at])])
        if len(found) != len(tails):
            raise InputError(
                f"{self._endpoint.base} does not tell the log-probabilities of a prompt (echo with logprobs), "
                f"so nothing can be scored or weighed there"
            )
        return [found[at] for at in range(len(tails))]

    def _in_ids(self, what: str) -> AsTokenIds:
        if not isinstance(self._encoding, AsTokenIds):
            raise InputError(
                f"{what} need prompts of token ids, but {self._endpoint.base} takes {self._encoding.about}: "
                f"use an endpoint with /completions and /tokenize, or pass tokenizer="
            )
        return self._encoding

    # ---- what the endpoint can do

    def _served_model(self, asked: str | None) -> Mapping[str, Any]:
        """The entry of /models, for the model that was asked for or the only one there is."""
        try:
            listed = self._endpoint.get(f"{self._endpoint.base}/models")
        except Refused as refused:
            if refused.status not in (404, 405) or asked is None:
                raise
            return {"id": asked}
        models = listed.get("data") if isinstance(listed, Mapping) else None
        known = {str(model["id"]): model for model in models or () if isinstance(model, Mapping) and "id" in model}
        names = ", ".join(known) or "none"
        if asked is None and len(known) == 1:
            return next(iter(known.values()))
        if asked is None:
            raise InputError(f"{self._endpoint.base} serves several models or none: name one of {names}")
        if asked not in known:
            raise ModelNotFound(f"{self._endpoint.base} does not serve {asked!r}: it serves {names}")
        return known[asked]

    def _vocabulary(self, tokenizer: Tokenizer | None) -> Vocabulary | None:
        """Ours, checked against the endpoint's; or the endpoint's, if it has one."""
        theirs = EndpointVocabulary(self._endpoint, self.name, self.engine)
        try:
            probe = tuple(theirs.encode(_CHECKED))
        except (Refused, InputError) as problem:
            if isinstance(problem, Refused) and problem.status not in (400, 404, 405, 422, 501):
                raise
            return None if tokenizer is None else LocalVocabulary(tokenizer)
        if tokenizer is None:
            return theirs
        ours = LocalVocabulary(tokenizer)
        if tuple(ours.encode(_CHECKED)) != probe:
            raise InputError(f"the tokenizer given is not that of {self.name!r} at {self._endpoint.base}: leave it out")
        return ours

    def _negotiate(self, mode: Mode, vocabulary: Vocabulary | None) -> Encoding:
        """The most exact form of a prompt that the endpoint takes; what was asked for, or InputError."""
        counted = estimate if vocabulary is None else lambda text: len(vocabulary.encode(text))
        chat = AsMessages(counted, self.engine.continued)
        if mode == "chat":
            return chat
        refused: Refused | None = None
        raw: list[Encoding] = [AsText(counted)]
        if vocabulary is not None and _has_chatml(vocabulary):
            raw.insert(0, AsTokenIds(vocabulary))
        for encoding in raw:
            try:
                self._complete({**encoding.body((_PROBE,)), "max_tokens": 1, "temperature": 0.0})
            except Refused as problem:
                if problem.status not in (400, 404, 405, 422, 501):
                    raise
                refused = problem
            else:
                return encoding
        if mode == "completions":
            raise InputError(
                f"{self._endpoint.base} has no completions to continue a prompt with ({refused}): use chat"
            )
        return chat

    def _known_controls(self, vocabulary: Vocabulary | None) -> list[int]:
        if vocabulary is None:
            return []
        found = []
        for control in _STOP_CONTROLS:
            with contextlib.suppress(InputError):
                found.append(vocabulary.control(control.name))
        return found

    def _window(self, served: Mapping[str, Any]) -> int:
        """vLLM and SGLang tell max_model_len, llama.cpp n_ctx: in /models, older ones in /props."""
        told = served.get("max_model_len") or (served.get("meta") or {}).get("n_ctx")
        if not told and self.engine is LLAMA_CPP:
            with contextlib.suppress(Refused, AttributeError):
                told = self._endpoint.get(f"{self._endpoint.root}/props")["default_generation_settings"].get("n_ctx")
        if not isinstance(told, int) or told < 1:
            raise InputError(f"{self._endpoint.base} does not tell how long {self.name!r} may read: pass window=TOKENS")
        return told

    def _complete(self, fields: Mapping[str, Any]) -> str:
        answer = self._endpoint.post(f"{self._endpoint.base}/completions", {"model": self.name, **fields})
        choices = answer.get("choices") if isinstance(answer, Mapping) else None
        if not choices:
            raise EndpointError(f"{self._endpoint.base}/completions answers without choices")
        return str(choices[0].get("text") or "")

    def _check_guided(self) -> None:
        """Try a grammar that allows one word only."""
        if not self._guided:
            return
        if self.engine.guided is None:
            raise InputError(f"guided: an endpoint of kind {self.engine.name!r} takes no grammar; leave it off")
        config = GenerationConfig(max_new_tokens=16, grammar=Grammar('start: "guided" " output"\n'))
        try:
            *_, last = self.stream((_PROBE,), config)
        except EndpointError as error:
            raise InputError(f"guided: {error}; it needs {self.engine.guided_by}") from None
        written = "".join(getattr(segment, "content", "") for segment in last.output)
        if written != "guided output":
            raise InputError(
                f"guided: {self._endpoint.base} does not hold to a grammar (it wrote {written!r}); "
                f"it needs {self.engine.guided_by}"
            )

    def _check_weigh(self) -> None:
        if self._weigh:
            self.score((_PROBE,), [(_PROBE,), (Text(" no"),)])


_CHECKED = 'Größe 10 "x": 你好 🙂\n\n  {"a": 1}'


def _has_chatml(vocabulary: Vocabulary) -> bool:
    try:
        vocabulary.control(IM_START.name)
        vocabulary.control(IM_END.name)
    except InputError:
        return False
    return True


def _progress(event: Mapping[str, Any], total: int) -> Chunk:
    """How much of the prompt llama.cpp has read; other engines do not say."""
    told = event.get("prompt_progress")
    if not isinstance(told, Mapping):
        return Chunk()
    return Chunk(read=(min(int(told.get("processed", 0)), total), total))


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """What the endpoint refused, as an error for the user."""
    try:
        yield
    except Refused as refused:
        raise refused.error from None
