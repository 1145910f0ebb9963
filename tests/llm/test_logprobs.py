"""Log-probabilities of what is written and of what was read: the model's own, whatever chose the tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from qwen_agent.errors import InputError
from qwen_agent.llm import logprobs
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.runtime import Chunk, TokenLogprob
from qwen_agent.llm.sampling import Sampler, build_sampler
from qwen_agent.llm.tokenizer import encode_prompt
from qwen_agent.prompt import chatml
from qwen_agent.types import Generated, Prompt

HELLO = chatml("Say hello to Anna.", (), "You are a helpful assistant.")
CONFIG = GenerationConfig(max_new_tokens=12, logprobs=3)


def run(runtime: LocalRuntime, config: GenerationConfig, prompt: Prompt = HELLO) -> list[Chunk]:
    return list(runtime.stream(prompt, config))


def written(chunks: list[Chunk]) -> list[TokenLogprob]:
    return [entry for chunk in chunks if chunk.read is None for entry in chunk.logprobs]


def ids_of(chunk: Chunk) -> list[int]:
    return [i for segment in chunk.output if isinstance(segment, Generated) for i in segment.token_ids]


def expected(runtime: LocalRuntime, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] after each id, one at a time, as decoding computes them."""
    cache = runtime.model.new_cache(len(ids))
    rows = [runtime.model.last_logits(torch.tensor([[i]]), cache)[0, : runtime.tokenizer.size] for i in ids]
    return torch.log_softmax(torch.stack(rows), dim=-1)


def test_they_are_the_models_own_before_temperature_and_grammar(embedded: LocalRuntime) -> None:
    chunks = run(embedded, dataclasses.replace(CONFIG, temperature=1.7, top_k=5, repetition_penalty=1.3, seed=4))
    ids, told = ids_of(chunks[-1]), written(chunks)
    assert [entry.token for entry in told] == ids
    assert b"".join(entry.text for entry in told).decode() == "".join(chunk.text for chunk in chunks)
    start = len(encode_prompt(embedded.tokenizer, HELLO))
    rows = expected(embedded, [*encode_prompt(embedded.tokenizer, HELLO), *ids])[start - 1 : -1]
    for entry, row in zip(told, rows, strict=True):
        # Half precision: a prompt that is read in one piece differs a little from one read token by token.
        assert entry.logprob == pytest.approx(float(row[entry.token]), abs=0.25)
        assert [log for *_, log in entry.top] == sorted((log for *_, log in entry.top), reverse=True)
        assert len(entry.top) == 3
        assert entry.top[0][2] >= entry.logprob


def test_the_text_is_the_same_with_and_without_them(embedded: LocalRuntime) -> None:
    plain = run(embedded, dataclasses.replace(CONFIG, logprobs=None))
    assert not any(chunk.logprobs for chunk in plain)
    only_chosen = run(embedded, dataclasses.replace(CONFIG, logprobs=0))
    assert plain[-1].output == only_chosen[-1].output
    assert all(entry.top == () for entry in written(only_chosen))
    assert len(written(only_chosen)) == len(ids_of(plain[-1]))


def test_greedy_tokens_are_the_likeliest(embedded: LocalRuntime) -> None:
    for entry in written(run(embedded, CONFIG)):
        assert entry.top[0] == (entry.token, entry.text, entry.logprob)


def test_forced_tokens_of_a_grammar_are_measured_one_by_one(embedded: LocalRuntime) -> None:
    grammar = Grammar('start: "The answer is " /[0-9]/ ", and no more."')
    plain = run(embedded, GenerationConfig(grammar=grammar))
    chunks = run(embedded, GenerationConfig(grammar=grammar, logprobs=1))
    assert (chunks[-1].output, chunks[-1].finish) == (plain[-1].output, "stop")
    told = written(chunks)
    assert [entry.token for entry in told] == ids_of(chunks[-1])
    assert min(entry.logprob for entry in told) < -2, "the model would have written something else"
    assert any(entry.top[0][0] != entry.token for entry in told)


def test_what_a_stop_string_cuts_is_not_told(embedded: LocalRuntime) -> None:
    free = "".join(chunk.text for chunk in run(embedded, CONFIG))
    stop = free[6:9]
    chunks = run(embedded, dataclasses.replace(CONFIG, stop=(stop,)))
    assert chunks[-1].stop == stop
    shown = "".join(chunk.text for chunk in chunks)
    assert shown == free[: free.find(stop)]
    told = b"".join(entry.text for entry in written(chunks)).decode()
    assert shown.startswith(told)
    assert [entry.token for entry in written(chunks)] == ids_of(chunks[-1])
    seen = ""
    for chunk in chunks:  # never ahead of the text
        seen += chunk.text
        told_so_far = b"".join(e.text for c in chunks[: chunks.index(chunk) + 1] for e in c.logprobs).decode()
        assert seen.startswith(told_so_far)


def test_every_token_of_a_prompt_but_the_first_is_measured(
    embedded: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = encode_prompt(embedded.tokenizer, HELLO)
    rows = expected(embedded, ids)
    config = GenerationConfig(max_new_tokens=1, prompt_logprobs=2)
    whole = run(embedded, config)
    # A vocabulary as large as if only seven rows of logits could be held at a time.
    monkeypatch.setattr(logprobs, "_MAX_BYTES", 7 * 4 * embedded.tokenizer.size)
    pieces = run(embedded, config)
    assert len([chunk for chunk in pieces if chunk.read]) == -(-len(ids) // 7)
    for chunks in (whole, pieces):
        told = [entry for chunk in chunks if chunk.read for entry in chunk.logprobs]
        assert [entry.token for entry in told] == ids[1:]
        for at, entry in enumerate(told):
            assert entry.logprob == pytest.approx(float(rows[at, entry.token]), abs=0.3)
        assert told[0].top[0][2] == pytest.approx(float(rows[0].max()), abs=0.3)
        assert chunks[-1].usage.cached_tokens == 0, "what is in the cache has no logits"
    specials = {name.encode() for name in embedded.tokenizer.specials}
    assert {entry.text for chunk in whole if chunk.read for entry in chunk.logprobs} & specials


def test_a_device_that_chooses_ahead_of_the_host_is_held_back_for_them(embedded: LocalRuntime) -> None:
    """On CUDA tokens are chosen where their logits are, which then never reach the host: the plain path has them."""

    class Ahead:
        followed = 0

        def sampler(self, config: GenerationConfig) -> Sampler:
            return build_sampler(config, embedded.tokenizer.size, embedded.model.device)

        def follow(self, logits: object, cache: object, config: object, ids: list[int], limit: int) -> Iterator[int]:
            self.followed += 1
            return iter(())

    choice = Ahead()
    runtime = LocalRuntime(embedded.model, embedded.tokenizer, choice=choice)
    assert written(run(runtime, CONFIG)) == written(run(LocalRuntime(embedded.model, embedded.tokenizer), CONFIG))
    assert choice.followed == 0
    run(runtime, dataclasses.replace(CONFIG, logprobs=None))
    assert choice.followed == 1


def test_numbers_that_cannot_be_are_named() -> None:
    with pytest.raises(InputError, match="logprobs=-1"):
        GenerationConfig(logprobs=-1)
    with pytest.raises(InputError, match="prompt_logprobs=-2"):
        GenerationConfig(prompt_logprobs=-2)
