"""The next token, chosen on the device: by the host's leave one at a time, or one step ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.cuda.model import CudaModel
from qwen_agent.llm.cuda.state import sent
from qwen_agent.llm.kernels.token_choice import Rules, Scratch, argmax, new_scratch, sample
from qwen_agent.llm.sampling import Sampler


class Choice:
    """The buffers by which a CudaModel's step chooses, for ids below ``vocabulary``."""

    def __init__(self, model: CudaModel, vocabulary: int) -> None:
        self.model, self.vocabulary = model, vocabulary
        device = model.device
        self._scratch: Scratch = new_scratch(vocabulary, device)
        self._parameters = torch.zeros(4, dtype=torch.float32, device=device)
        self.uniform = torch.zeros(1, dtype=torch.float32, device=device)
        self._allowed = torch.zeros(-(-vocabulary // 32), dtype=torch.int32, device=device)
        self._seen = torch.zeros(model.config.vocab, dtype=torch.uint8, device=device)
        model.kept.append(self._seen)
        self.holder: object = None  # stands for the run whose rules are on the device, without keeping it alive

    def sampler(self, config: GenerationConfig) -> Sampler:
        """A function (logits [V] on the device, ids so far, bitmask of allowed ids or None) -> next id."""
        uniforms = _uniforms(config)

        def choose(logits: Tensor, ids: Sequence[int], allowed: bytes | None) -> int:
            model = self.model
            with model.lock, torch.inference_mode():
                self._claim(object(), config, ids)
                self.uniform.fill_(uniforms())
                if allowed is not None:
                    self._set_allowed(allowed)
                model.step.logits.copy_(logits)
                masked = allowed is not None
                model.replay((self, "choose", self._kind(config), masked), lambda: self._choose(config, masked))
                return int(model.state.token)

        return choose

    def follow(
        self, logits: Tensor, cache: KVCache, config: GenerationConfig, ids: list[int], limit: int
    ) -> Iterator[int]:
        """Up to ``limit`` tokens after ``logits`` [V], appended to ``ids``; no token ends it, and there is no grammar.

        A step is queued before the host has seen the token it begins with, so the device never waits. Tokens count
        as read (in ``cache.length``) only when more are asked for: what is queued for nothing is not kept.
        """
        if limit <= 0:
            return
        run = _Run(self, cache, config)
        waiting = run.first(logits, ids)
        for left in range(limit - 1, -1, -1):
            ahead = run.step() if left else None
            token = waiting()
            ids.append(token)
            yield token
            if ahead is None:
                return
            cache.advance(1)
            waiting = ahead

    # ---- what a run puts on the device --------------------------------------------------------------------------

    def _claim(self, holder: object, config: GenerationConfig, ids: Sequence[int]) -> None:
        self.holder = holder
        self._set_rules(config, ids)

    def _set_rules(self, config: GenerationConfig, ids: Sequence[int]) -> None:
        numbers = [config.temperature or 1.0, float(config.top_k), config.top_p, config.repetition_penalty]
        self._parameters.copy_(sent(torch.tensor(numbers), self.model.device))
        if config.repetition_penalty != 1.0:
            self._seen.zero_()
            some = torch.tensor(sorted({i for i in ids if i < self._seen.shape[0]}), dtype=torch.int64)
            self._seen.index_fill_(0, some.to(self.model.device), 1)

    def _set_allowed(self, allowed: bytes) -> None:
        size = self._allowed.numel() * 4
        words = torch.frombuffer(bytearray(allowed[:size].ljust(size, b"\0")), dtype=torch.int32)
        self._allowed.copy_(sent(words, self.model.device))

    def _kind(self, config: GenerationConfig) -> tuple[bool, bool]:
        """What a captured graph depends on: greedy or not, repetition penalty or not."""
        return config.temperature == 0.0, config.repetition_penalty != 1.0

    def _choose(self, config: GenerationConfig, masked: bool) -> None:
        model = self.model
        seen = self._seen if config.repetition_penalty != 1.0 else None
        rules = Rules(self._parameters, self._allowed if masked else None, seen)
        if config.temperature == 0.0:
            argmax(model.step.logits, rules, self._scratch, model.state.token, pdl=model.pdl)
        else:
            sample(model.step.logits, rules, self.uniform, self._scratch, model.state.token, pdl=model.pdl)


class _Run:
    """One request that decodes ahead of the host."""

    def __init__(self, choice: Choice, cache: KVCache, config: GenerationConfig) -> None:
        self._choice, self._model, self._cache, self._config = choice, choice.model, cache, config
        self._kind = choice._kind(config)
        self._uniforms = _uniforms(config)
        self._position = cache.length  # of the token that the next step reads
        self._key = object()
        self._standing = False  # whether the state stands at this run's position
        self._stamp = 0  # the state's, when this run last used it
        self._last: Callable[[], int] = lambda: 0
        self._ids: list[int] = []

    def first(self, logits: Tensor, ids: list[int]) -> Callable[[], int]:
        """Choose from ``logits``; the answer waits for the device."""
        self._ids = ids
        with self._model.lock, torch.inference_mode():
            self._choice._claim(self._key, self._config, ids)
            self._model.step.logits.copy_(logits)
            self._launch("choose", lambda: self._choice._choose(self._config, False))
        return self._last

    def step(self) -> Callable[[], int]:
        """Queue the step that reads the last chosen token and chooses the next."""
        with self._model.lock, torch.inference_mode():
            self._take_the_device()
            self._launch("step", self._step_and_choose)
            self._position += 1
        return self._last

    def _take_the_device(self) -> None:
        """Have token, position, cache and rules of this run on the device; usually they are there."""
        state, cache = self._model.state, self._cache
        token = None
        if self._choice.holder is not self._key or self._stamp != state.stamp:
            token = self._last()
            self._choice._claim(self._key, self._config, [*self._ids, token])
        fits = self._position < cache.capacity
        cache.reserve(self._position + 1)
        if token is not None or not fits or not self._standing:
            state.stand(cache, self._position, 1, token)
            self._standing = True

    def _launch(self, what: str, launch: Callable[[], object]) -> None:
        if self._config.temperature:
            self._choice.uniform.fill_(self._uniforms())
        self._model.replay((self._choice, what, self._kind, False), launch)
        self._stamp = self._model.state.stamp
        self._last = _arriving(self._model.state.token)

    def _step_and_choose(self) -> None:
        self._model.step.run()
        self._choice._choose(self._config, False)


def _uniforms(config: GenerationConfig) -> Callable[[], float]:
    """Random numbers in [0, 1), the same ones for the same seed."""
    generator = torch.Generator()
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)
    return lambda: float(torch.rand((), generator=generator))


def _arriving(token: Tensor) -> Callable[[], int]:
    """A copy of ``token`` on its way to the host, and a function that waits for it."""
    if token.device.type != "cuda":
        value = int(token)
        return lambda: value
    slot = torch.empty(1, dtype=torch.int64, pin_memory=True)
    slot.copy_(token, non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def wait() -> int:
        event.synchronize()
        return int(slot)

    return wait
