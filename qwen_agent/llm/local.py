"""LocalRuntime: a tokenizer and a model on this machine, behind the Runtime seam.

The KV cache of a finished request stays; the next request keeps the longest common prefix of token ids and reads
only the rest. So a ReAct step costs its observation, not its history. A prefix is reused only under the same NTK
alpha, because keys and everything computed from them depend on it.
"""

from __future__ import annotations

import bisect
import functools
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import GenerationConfig, read_model_config
from qwen_agent.llm.generate import Decoder, decode, prefill
from qwen_agent.llm.grammar import Compiler, GrammarTooComplex, Matcher
from qwen_agent.llm.hub import resolve_model
from qwen_agent.llm.kernels import has_triton
from qwen_agent.llm.logprobs import Measure, build_measure, rows_at_once
from qwen_agent.llm.model import Model
from qwen_agent.llm.rope import request_alpha
from qwen_agent.llm.runtime import Chunk, FinishReason, TokenLogprob
from qwen_agent.llm.sampling import Sampler, build_sampler
from qwen_agent.llm.stopping import StopStrings
from qwen_agent.llm.tokenizer import StreamDecoder, Tokenizer, encode_prompt, load_tokenizer
from qwen_agent.llm.weights import Progress, load_model
from qwen_agent.types import END_OF_TEXT, IM_END, IM_START, Generated, Prompt, Text, Usage

_STOP_CONTROLS = (IM_END.name, IM_START.name, END_OF_TEXT.name)
_KEPT_CACHES = 2
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Choice(Protocol):
    """Chooses tokens on the device that makes the logits (llm/cuda/choice.py)."""

    def sampler(self, config: GenerationConfig) -> Sampler: ...

    def follow(
        self, logits: torch.Tensor, cache: KVCache, config: GenerationConfig, ids: list[int], limit: int
    ) -> Iterator[int]: ...


@dataclass(slots=True, eq=False)
class _Session:
    """A KV cache and the request's ids: those whose keys it holds come first, then what is still to be read."""

    cache: KVCache
    ids: list[int]


class LocalRuntime:
    """Runs a Model. Several streams may be open at once, from one thread or many; each has its own KV cache."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str = "local",
        kept_caches: int = _KEPT_CACHES,
        choice: Choice | None = None,
    ) -> None:
        """``kept_caches`` bounds the KV caches of finished requests that stay for those to come.

        ``choice`` chooses tokens on the model's own device, if it can.
        """
        self.name = name
        self._choice = choice
        self.model = model
        self.tokenizer = tokenizer
        self.window = model.config.window
        self.stop_ids = frozenset(
            [tokenizer.specials[name] for name in _STOP_CONTROLS if name in tokenizer.specials]
            + [*model.config.eos_ids]
        )
        self._vocabulary = min(tokenizer.size, model.config.vocab)
        # Built at the first constrained request: a tenth of a second and more for a large vocabulary.
        self._compiler = functools.cache(lambda: Compiler(tokenizer, self.stop_ids))
        self._sessions: list[_Session] = []  # of finished requests, the last one last
        self._running: list[_Session] = []
        self._kept_caches = kept_caches

    def count_tokens(self, prompt: Prompt) -> int:
        return len(encode_prompt(self.tokenizer, prompt))

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        ids = encode_prompt(self.tokenizer, prompt)
        if not ids or len(ids) >= self.window:
            raise ContextOverflow(len(ids), self.window)
        return self._stream(ids, config)

    def _stream(self, ids: list[int], config: GenerationConfig) -> Iterator[Chunk]:
        session = self._check_out(ids, 0 if config.prompt_logprobs is not None else len(ids) - 1)
        try:
            yield from self._generate(session, ids, config)
        finally:
            self._check_in(session)

    def _generate(self, session: _Session, ids: list[int], config: GenerationConfig) -> Iterator[Chunk]:
        started = time.perf_counter()
        cached = session.cache.length
        if config.prompt_logprobs is None:
            logits = yield from self._read(session, ids)
        else:
            logits = yield from self._read_measured(session, ids, config.prompt_logprobs)
        if config.choices:
            weights = self._weigh(session.cache, logits, config.choices)
            yield Chunk(weights=weights, usage=Usage(len(ids), cached, 0, time.perf_counter() - started))
        first = time.perf_counter()
        writer = _Writer(self.tokenizer, config.stop)
        chooser = self._chooser(session, config)
        finish: FinishReason = "length"
        for token in self._decode(logits, session, config, chooser):
            if token in self.stop_ids:
                finish = "stop"
                break
            shown = writer.write(token, chooser.logprob)
            yield Chunk(text=shown, logprobs=writer.measured())
            if writer.stopped is not None:
                finish = "stop"
                break
        if chooser.ended:
            finish = "stop"
        usage = Usage(len(ids), cached, writer.tokens, first - started, time.perf_counter() - first)
        rest, output, logprobs = writer.flush(), writer.output(), writer.measured()
        yield Chunk(rest, finish=finish, stop=writer.stopped, output=output, logprobs=logprobs, usage=usage)

    def _read(self, session: _Session, ids: list[int]) -> Generator[Chunk, None, torch.Tensor]:
        """Prefill what the cache does not hold; the result is the logits [V] after the last id."""
        cached = session.cache.length
        pieces = prefill(self.model, ids[cached:], session.cache)
        while True:
            done, logits = next(pieces)
            yield Chunk(read=(cached + done, len(ids)))
            if logits is not None:
                return logits

    def _read_measured(self, session: _Session, ids: list[int], top: int) -> Generator[Chunk, None, torch.Tensor]:
        """Prefill everything, with the log-probabilities of ids from the second on; logits [V] after the last id."""
        measure = build_measure(self.tokenizer, self._vocabulary, top)
        step = min(rows_at_once(self._vocabulary), self.model.chunk)
        for start in range(0, len(ids), step):
            piece = ids[start : start + step]
            read = torch.tensor([piece], dtype=torch.int64, device=self.model.device)
            logits = self.model(read, session.cache)[0]
            following = ids[start + 1 : start + 1 + len(piece)]
            measured = measure(logits[: len(following)], following)
            yield Chunk(read=(start + len(piece), len(ids)), logprobs=measured)
        return logits[-1].float()

    def _decode(
        self, logits: torch.Tensor, session: _Session, config: GenerationConfig, chooser: _Chooser
    ) -> Iterator[int]:
        if self._choice is not None and config.grammar is None and config.logprobs is None:
            return self._choice.follow(logits, session.cache, config, session.ids, chooser.limit)
        return decode(self.model, logits, session.cache, chooser, chooser.limit)

    def _chooser(self, session: _Session, config: GenerationConfig) -> _Chooser:
        matcher = self._compiler().matcher(config.grammar) if config.grammar is not None else None
        if self._choice is not None:
            sample = self._choice.sampler(config)
        else:
            sample = build_sampler(config, self._vocabulary, self.model.device)
        limit = min(config.max_new_tokens, self.window - len(session.ids))
        bound = _Bound(matcher, self.tokenizer, config.stop) if matcher is not None else None
        wanted = config.logprobs
        measure = build_measure(self.tokenizer, self._vocabulary, wanted) if wanted is not None else None
        return _Chooser(sample, session.ids, bound, self.stop_ids, limit, measure)

    @torch.inference_mode()
    def _weigh(self, cache: KVCache, logits: torch.Tensor, choices: Sequence[Prompt]) -> tuple[float, ...]:
        """The probability of each choice at the end of what the cache holds, relative to the others.

        A choice is read only as far as the point where no other choice begins like it.
        """
        start = cache.length
        tails = [encode_prompt(self.tokenizer, choice) for choice in choices]
        if start + max(map(len, tails)) > self.window:
            return ()
        logs = self._branch(cache, logits, tails)
        cache.truncate(start)
        return tuple(torch.softmax(torch.tensor(logs), dim=0).tolist())

    def _branch(self, cache: KVCache, logits: torch.Tensor, tails: Sequence[Sequence[int]]) -> list[float]:
        """Log-probability of each tail, up to the first token that tells it from the others."""
        shared = min(_common(tails[0], tail) for tail in tails)
        log, rows = self._read_tail(cache, logits, tails[0][:shared])
        start, logs = cache.length, [log] * len(tails)
        for token in {tail[shared] for tail in tails if len(tail) > shared}:
            alike = [i for i, tail in enumerate(tails) if tail[shared : shared + 1] == [token]]
            if len(alike) == 1:
                logs[alike[0]] += float(torch.log_softmax(rows, dim=-1)[token])
                continue
            cache.truncate(start)
            deeper = self._branch(cache, rows, [tails[i][shared:] for i in alike])
            for i, more in zip(alike, deeper, strict=True):
                logs[i] += more
        return logs

    def _read_tail(self, cache: KVCache, logits: torch.Tensor, tail: Sequence[int]) -> tuple[float, torch.Tensor]:
        """Read a tail (it may be empty): its log-probability, and the logits [vocabulary] after it."""
        rows = logits[None, : self._vocabulary]
        if not tail:
            return 0.0, rows[0]
        read = torch.tensor([tail], dtype=torch.int64, device=self.model.device)
        rows = torch.cat((rows, self.model(read, cache)[0, :, : self._vocabulary].float()))
        log = torch.log_softmax(rows[:-1], dim=-1).gather(1, read.T)
        return float(log.sum()), rows[-1]

    @torch.inference_mode()
    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        """Log-probability of each choice after the prompt; the prompt is read once, then each choice on top of it."""
        ids = encode_prompt(self.tokenizer, prompt)
        tails = [encode_prompt(self.tokenizer, choice) for choice in choices]
        longest = len(ids) + max(map(len, tails), default=0)
        if not ids or longest > self.window:
            raise ContextOverflow(longest, self.window)
        session = self._check_out(ids, len(ids) - 1)
        try:
            logits = _result(self._read(session, ids))
            return [self._score_tail(session.cache, logits, len(ids), tail) for tail in tails]
        finally:
            session.cache.truncate(min(session.cache.length, len(ids)))
            self._check_in(session)

    def _score_tail(self, cache: KVCache, logits: torch.Tensor, start: int, tail: list[int]) -> float:
        if not tail:
            return 0.0
        rows = logits[None, : self._vocabulary]
        if len(tail) > 1:
            cache.truncate(start)
            read = torch.tensor([tail[:-1]], dtype=torch.int64, device=self.model.device)
            rows = torch.cat((rows, self.model(read, cache)[0, :, : self._vocabulary].float()))
        chosen = torch.tensor(tail, device=self.model.device)[:, None]
        return float(torch.log_softmax(rows, dim=-1).gather(1, chosen).sum())

    def _check_out(self, ids: list[int], most: int) -> _Session:
        """A session for ids that holds what some other has read of them already, at most the first ``most``.

        The other is gone on with if most of it is shared; else, or if it is running, its beginning is copied.
        """
        session = self._continued(ids, most)
        self._running.append(session)
        return session

    def _continued(self, ids: list[int], most: int) -> _Session:
        alpha = request_alpha(self.model.config, len(ids))
        running = list(self._running)
        others = [s for s in (*self._sessions, *running) if s.cache.alpha == alpha]
        # At least the last id is read again: its logits are what comes next.
        shared = [(min(_common(s.ids[: s.cache.length], ids[:most]), s.cache.length), s) for s in others]
        length, session = max(shared, key=lambda pair: pair[0], default=(0, None))
        if session is None or length == 0:
            return _Session(self.model.new_cache(len(ids)), list(ids))
        if 2 * length >= session.cache.length and session not in running and self._claim(session):
            session.cache.truncate(length)
            session.ids = list(ids)
            return session
        return _Session(session.cache.copy(length, len(ids)), list(ids))

    def _claim(self, session: _Session) -> bool:
        try:
            self._sessions.remove(session)  # atomic: of two threads that want it, one gets ValueError
        except ValueError:
            return False
        return True

    def _check_in(self, session: _Session) -> None:
        self._running.remove(session)
        # However the request ended, the cache says how much of it was read.
        session.ids = session.ids[: session.cache.length]
        self._sessions.append(session)
        while len(self._sessions) > self._kept_caches:
            self._sessions.pop(0)


class _Bound:
    """A grammar's matcher that does not let a stop string be written in the middle of what must be complete.

    Inside the arguments of a call, a stop string would cut the call in two.
    """

    def __init__(self, matcher: Matcher, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._matcher = matcher
        self._token_bytes = tokenizer.token_bytes
        self._stops = [stop.encode() for stop in stops]
        self._longest = max(map(len, self._stops), default=1)
        self._end = b""  # of what was written

    @property
    def ended(self) -> bool:
        return self._matcher.ended

    def choose(self, sample: Callable[[bytes], int], left: int, limit: int) -> int:
        """A token from ``sample`` (allowed tokens -> one of them). Raises GrammarTooComplex."""
        allowed = self._matcher.allowed(left, limit)
        token = sample(allowed)
        while self._matcher.unfinished and self._stops_at(token):
            without = bytearray(allowed)
            without[token // 8] &= ~(1 << token % 8)
            if not any(without):
                break
            allowed = bytes(without)
            token = sample(allowed)
        return token

    def take(self, token: int) -> list[int]:
        """Note that a token is written; the tokens that must follow it."""
        forced = self._matcher.advance(token)
        written = b"".join(map(self._token_bytes, (token, *forced)))
        self._end = (self._end + written)[-self._longest :]
        return forced

    def _stops_at(self, token: int) -> bool:
        text = self._end + self._token_bytes(token)
        return any(stop in text for stop in self._stops)


class _Chooser:
    """Picks the next tokens of one request: a sampled one, and with a grammar those that must follow it.

    With ``measure`` it gives them one at a time, since each is measured against the logits of its own place.
    """

    def __init__(
        self,
        sample: Sampler,
        ids: list[int],
        grammar: _Bound | None,
        stop_ids: Collection[int],
        limit: int,
        measure: Measure | None,
    ) -> None:
        self.limit = limit
        self.logprob: TokenLogprob | None = None  # of the last token
        self._sample = sample
        self._ids = ids
        self._grammar = grammar
        self._stop_ids = stop_ids
        self._measure = measure
        self._following: list[int] = []
        self._written = 0

    @property
    def ended(self) -> bool:
        """True if the grammar allows nothing more."""
        return self._grammar is not None and self._grammar.ended and not self._following

    def __call__(self, logits: torch.Tensor) -> list[int]:
        tokens = [] if self.ended else self._following or self._next(logits)
        if self._measure is not None:
            tokens, self._following = tokens[:1], tokens[1:]
            self.logprob = self._measure(logits[None], tokens)[0] if tokens else None
        self._ids += tokens
        self._written += len(tokens)
        return tokens

    def _next(self, logits: torch.Tensor) -> list[int]:
        if self._grammar is None:
            return [self._sample(logits, self._ids, None)]
        try:
            left = self.limit - self._written
            token = self._grammar.choose(lambda allowed: self._sample(logits, self._ids, allowed), left, self.limit)
        except GrammarTooComplex as error:
            # The parser copes with unconstrained text; a run that dies helps nobody.
            warnings.warn(f"going on without the grammar: {str(error).splitlines()[0]}", RuntimeWarning, stacklevel=2)
            self._grammar = None
            return self._next(logits)
        return [token] if token in self._stop_ids else [token, *self._grammar.take(token)]


def _result(steps: Generator[Chunk, None, torch.Tensor]) -> torch.Tensor:
    """Run a generator to its end for its return value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


class _Writer:
    """Collects generated tokens: the text that may be shown, and which tokens lie wholly before the stop."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(stops)
        self._ids: list[int] = []
        self._ends: list[int] = []  # length of the decoded text after each token
        self._logprobs: list[TokenLogprob | None] = []
        self._told = 0  # tokens whose log-probabilities were given away
        self.raw = b""  # everything written so far
        self.text = ""  # the same, as far as it is whole characters; held back or not
        self._shown = 0

    @property
    def tokens(self) -> int:
        return len(self._ids)

    @property
    def stopped(self) -> str | None:
        return self._stops.matched

    def write(self, token: int, logprob: TokenLogprob | None) -> str:
        self.raw += self._tokenizer.token_bytes(token)
        piece = self._decoder.feed(token)
        self.text += piece
        self._ids.append(token)
        self._ends.append(len(self.text))
        self._logprobs.append(logprob)
        return self._show(self._stops.feed(piece))

    def flush(self) -> str:
        if self.stopped is not None:
            return ""
        tail = self._decoder.flush()
        self.text += tail
        if self._ends:
            self._ends[-1] = len(self.text)
        return self._show(self._stops.feed(tail) + ("" if self.stopped else self._stops.flush()))

    def _show(self, text: str) -> str:
        self._shown += len(text)
        return text

    def measured(self) -> tuple[TokenLogprob, ...]:
        """The log-probabilities, where there are such, of the tokens that were shown since the last call."""
        told, self._told = self._told, self._kept()
        return tuple(logprob for logprob in self._logprobs[told : self._told] if logprob is not None)

    def _kept(self) -> int:
        """How many tokens lie wholly in the shown text."""
        return bisect.bisect_right(self._ends, self._shown)

    def output(self) -> Prompt:
        """The shown text: as tokens where they lie wholly before the stop, the rest of it as text."""
        kept = self._kept()
        covered = self._ends[kept - 1] if kept else 0
        segments: Prompt = (Generated(self.text[:covered], tuple(self._ids[:kept])),) if kept else ()
        rest = self.text[covered : self._shown]
        return (*segments, Text(rest)) if rest else segments


def load_runtime(
    model: str | Path = "embedded",
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    offline: bool = False,
    kv_cache: str | None = None,
    kept_caches: int = _KEPT_CACHES,
    progress: Progress | None = None,
) -> LocalRuntime:
    """Load "embedded", a local folder or a hub id, ready to generate.

    ``device`` defaults to CUDA if there is one, else the CPU; ``dtype`` to what is fast there: bfloat16 where the
    device computes in it (and for quantised weights, whose CPU kernels take it), else float16 on CUDA and float32 on
    the CPU. ``kv_cache`` "int8" halves the KV cache (CUDA only). ``kept_caches`` is how many finished requests keep
    theirs for those that begin alike. Raises ModelError or InputError with the fix.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kv_cache is not None and (kv_cache != "int8" or not where.startswith("cuda")):
        raise InputError(f"kv_cache {kv_cache!r} on {where} is not implemented: use 'int8' with device='cuda', or none")
    folder = resolve_model(model, revision=revision, endpoint=endpoint, offline=offline)
    tokenizer = load_tokenizer(folder)
    loaded = load_model(folder, where, _dtype(dtype, where, folder), progress)
    if loaded.device.type == "cuda":
        if has_triton():
            return _on_cuda(loaded, tokenizer, str(model), torch.int8 if kv_cache else None, kept_caches)
        warnings.warn("Triton is missing, so this runs several times slower: pip install triton", stacklevel=2)
    return LocalRuntime(loaded, tokenizer, name=str(model), kept_caches=kept_caches)


def _on_cuda(
    model: Model, tokenizer: Tokenizer, name: str, cache_dtype: torch.dtype | None, kept_caches: int
) -> LocalRuntime:
    """The runtime with fused kernels, compiled and captured."""
    from qwen_agent.llm.cuda import Choice, CudaModel

    fused = CudaModel(model, cache_dtype=cache_dtype)
    fused.warm_up()
    choice = Choice(fused, min(tokenizer.size, model.config.vocab))
    return LocalRuntime(fused, tokenizer, name=name, kept_caches=kept_caches, choice=choice)


def _dtype(asked: torch.dtype | str | None, device: str, folder: Path) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    if asked is not None:
        if asked not in _DTYPES:
            raise InputError(f"dtype {asked!r} is unknown: use one of {', '.join(_DTYPES)}")
        return _DTYPES[asked]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = read_model_config(folder).quantization is not None or _cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_has_bf16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False
