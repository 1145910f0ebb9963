"""Our runtime as a model of lm-evaluation-harness.

Requests are answered in the order of their tokens, so that those with a common beginning (the five shots of a subject)
follow each other and it is read once. Every answer goes to the harness's cache of requests as it comes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from token_logprobs import token_logprobs
from tqdm import tqdm

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.runtime import text_of
from qwen_agent.llm.tokenizer import decode, encode_prompt
from qwen_agent.prompt import DEFAULT_SYSTEM, chatml
from qwen_agent.types import END_OF_TEXT, Control, Generated, Prompt, Text

Pair = tuple[tuple[str, str], list[int], list[int]]  # context and continuation, as text and as tokens
_SETTINGS = {"until", "do_sample", "temperature", "top_p", "top_k", "seed", "repetition_penalty", "max_gen_toks"}
_NEW_TOKENS = 256  # the harness's own default


class Chat(str):
    """The text of a conversation that still knows its control tokens, which text alone can never become."""

    prompt: Prompt

    @classmethod
    def of(cls, prompt: Prompt) -> Chat:
        names = (segment.name if isinstance(segment, Control) else segment.content for segment in prompt)
        chat = cls("".join(names))
        chat.prompt = prompt
        return chat


class RuntimeLM(TemplateLM):  # type: ignore[misc]
    """``max_length`` bounds what is read: of a longer prompt the end, with one place left for what follows."""

    def __init__(self, runtime: LocalRuntime, *, max_length: int | None = None) -> None:
        super().__init__()
        self.runtime = runtime
        self.max_length = min(max_length or runtime.window, runtime.window)
        self.cut = 0  # prompts that were too long
        if self.max_length < 2:
            raise InputError(f"max_length {max_length} cannot be used: it must be at least 2")

    # ---- tokens

    @property
    def eot_token_id(self) -> int:
        specials = self.runtime.tokenizer.specials
        return specials.get(END_OF_TEXT.name, min(self.runtime.stop_ids))

    @property
    def tokenizer_name(self) -> str:
        return self.runtime.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        return encode_prompt(self.runtime.tokenizer, _prompt(string))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Chat:
        """Qwen's ChatML, with the assistant's turn left open."""
        turns = [(turn["role"], turn["content"]) for turn in chat_history]
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else DEFAULT_SYSTEM
        roles = [role for role, _ in turns]
        if (
            not add_generation_prompt
            or roles != (["user", "assistant"] * len(roles))[: len(roles)]
            or not len(roles) % 2
        ):
            raise InputError(f"cannot ask for what follows the turns {roles}: users and assistants must alternate")
        said = [content for _, content in turns]
        return Chat.of(chatml(said[-1], list(zip(said[:-1:2], said[1::2], strict=True)), system))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if isinstance(context, Chat):
            return self.tok_encode(context), self.tok_encode(continuation)
        return super()._encode_pair(context, continuation)

    # ---- likelihoods

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: object) -> list[tuple[float, bool]]:
        """For each request, the log-probability of its continuation, and whether greedy decoding would write it."""
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, (_texts, ids, continuation) in enumerate(requests):
            if len(continuation) >= self.max_length:
                raise InputError(f"a continuation of {len(continuation)} tokens exceeds the {self.max_length} allowed")
            alike[tuple(ids)].append(number)
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="likelihoods") as bar:
            for context in sorted(alike):
                numbers = alike[context]
                tails = [requests[number][2] for number in numbers]
                for number, answer in zip(numbers, self._likelihoods(context, tails), strict=True):
                    answers[number] = answer
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
                bar.update(len(numbers))
        return [answers[number] for number in range(len(requests))]

    def _likelihoods(self, context: Sequence[int], tails: Sequence[list[int]]) -> list[tuple[float, bool]]:
        read = _tokens(self._fitting(context, max(map(len, tails))))
        logs = self.runtime.score(read, [_tokens(tail) for tail in tails])
        written = self._written(read, tails)
        return [(log, written[: len(tail)] == tail) for log, tail in zip(logs, tails, strict=True)]

    def _written(self, prompt: Prompt, tails: Sequence[list[int]]) -> list[int]:
        """What greedy decoding writes, at least as far as it agrees with one of the tails."""
        wanted = [decode(self.runtime.tokenizer, tail) for tail in tails]
        config = GenerationConfig(max_new_tokens=max(map(len, tails)), logprobs=0)
        written: list[int] = []
        text = ""
        for chunk in self.runtime.stream(prompt, config):
            written += [logprob.token for logprob in chunk.logprobs]
            text += chunk.text
            if not any(tail.startswith(text) for tail in wanted):
                break
        return written

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, every token read once, after as much before it as fits."""
        answers = []
        for request in tqdm(requests, desc="texts", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            answer = sum(self._following(*make_disjoint_window(window)) for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
            answers.append(answer)
        return answers

    def _following(self, context: list[int], tail: list[int]) -> float:
        return sum(list(token_logprobs(self.runtime, [*context, *tail]))[-len(tail) :])

    # ---- texts

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        ids = [self.tok_encode(request.args[0]) for request in requests]
        answers: dict[int, str] = {}
        for number in tqdm(sorted(range(len(requests)), key=ids.__getitem__), desc="texts", disable=disable_tqdm):
            config = generation_config(requests[number].args[1])
            *_, last = self.runtime.stream(_tokens(self._fitting(ids[number], config.max_new_tokens)), config)
            answers[number] = text_of(last.output)
            self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return [answers[number] for number in range(len(requests))]

    def _fitting(self, ids: Sequence[int], following: int) -> Sequence[int]:
        room = max(self.max_length - following, 1)
        self.cut += len(ids) > room
        return ids[-room:]


def generation_config(given: Mapping[str, Any]) -> GenerationConfig:
    """The harness's generation arguments as ours. Raises InputError for one we have not."""
    unknown = set(given) - _SETTINGS
    if unknown:
        raise InputError(f"generation settings {', '.join(sorted(unknown))} are unknown: use {', '.join(_SETTINGS)}")
    sampled = given.get("do_sample", float(given.get("temperature", 0)) > 0)
    until = given.get("until") or []
    return GenerationConfig(
        max_new_tokens=int(given.get("max_gen_toks", _NEW_TOKENS)),
        temperature=float(given.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(given.get("top_p", 1.0)),
        top_k=int(given.get("top_k", 0)),
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
        seed=given.get("seed"),
        stop=(until,) if isinstance(until, str) else tuple(until),
    )


def _prompt(text: str) -> Prompt:
    return text.prompt if isinstance(text, Chat) else (Text(text),)


def _tokens(ids: Sequence[int]) -> Prompt:
    return (Generated("", tuple(ids)),)
