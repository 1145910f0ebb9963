"""Tokens chosen on the device: the same ones as on the host, whoever else uses the model in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.cuda import Choice, CudaModel
from qwen_agent.llm.cuda.graphs import Replay, without_graphs
from qwen_agent.llm.generate import decode
from qwen_agent.llm.sampling import build_sampler
from tests.llm.kernels.test_cuda_model import GPU, QWEN1, SMALL, random_model

VOCABULARY = 90  # ids from here on are padding
PROMPT = [5, 17, 3, 80, 41]
STEPS = 8 if GPU else 3


@pytest.fixture(scope="module")
def choice(device: torch.device) -> Choice:
    return Choice(CudaModel(random_model(SMALL, device, torch.float32)), VOCABULARY)


def follow(choice: Choice, config: GenerationConfig, prompt: list[int], limit: int) -> Iterator[int]:
    model = choice.model
    cache = model.new_cache(len(prompt))
    logits = model.last_logits(torch.tensor([prompt], device=model.device), cache)[0]
    return choice.follow(logits, cache, config, list(prompt), limit)


def on_the_host(choice: Choice, config: GenerationConfig, prompt: list[int], limit: int) -> list[int]:
    model = choice.model
    ids, cache = list(prompt), model.new_cache(len(prompt))
    sample = build_sampler(config, VOCABULARY, model.device)

    def pick(logits: torch.Tensor) -> list[int]:
        ids.append(sample(logits, ids, None))
        return ids[-1:]

    logits = model.last_logits(torch.tensor([prompt], device=model.device), cache)[0]
    return list(decode(model, logits, cache, pick, limit))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_are_those_of_the_host(choice: Choice, penalty: float) -> None:
    config = GenerationConfig(temperature=0.0, repetition_penalty=penalty)
    assert list(follow(choice, config, PROMPT, STEPS)) == on_the_host(choice, config, PROMPT, STEPS)


def test_a_seed_gives_the_same_tokens_again(choice: Choice) -> None:
    config = GenerationConfig(temperature=1.0, top_p=0.9, top_k=20, seed=7)
    first, again = (list(follow(choice, config, PROMPT, STEPS)) for _ in range(2))
    assert first == again and max(first) < VOCABULARY
    other = list(follow(choice, GenerationConfig(temperature=1.0, top_p=0.9, top_k=20, seed=8), PROMPT, STEPS))
    assert first != other


def test_runs_that_take_turns_write_what_they_write_alone(choice: Choice) -> None:
    config = GenerationConfig(temperature=0.0, repetition_penalty=1.2)
    prompts = [PROMPT, [1, 2, 3]]
    steps = 5 if GPU else 3
    alone = [list(follow(choice, config, prompt, steps)) for prompt in prompts]
    runs = [follow(choice, config, prompt, steps) for prompt in prompts]
    together: list[list[int]] = [[], []]
    for _ in range(steps):
        for run, tokens in zip(runs, together, strict=True):
            tokens.append(next(run))
            model = choice.model  # a third party, by another way
            model.last_logits(torch.tensor([[9]], device=model.device), model.new_cache(4))
    assert together == alone


def test_what_was_queued_but_not_asked_for_is_not_in_the_cache(choice: Choice) -> None:
    model, config = choice.model, GenerationConfig(temperature=0.0)
    cache, ids = model.new_cache(len(PROMPT)), list(PROMPT)
    logits = model.last_logits(torch.tensor([PROMPT], device=model.device), cache)[0]
    run = choice.follow(logits, cache, config, ids, 10)
    tokens = [next(run), next(run), next(run)]
    run.close()
    assert ids == PROMPT + tokens
    assert cache.length == len(PROMPT) + 2  # the last one has not been read
    rest = model.last_logits(torch.tensor([tokens[-1:]], device=model.device), cache)[0]
    assert int(rest[:VOCABULARY].argmax()) == on_the_host(choice, config, PROMPT, 4)[3]


def test_a_mask_limits_the_choice(choice: Choice) -> None:
    sample = choice.sampler(GenerationConfig(temperature=0.0))
    logits = torch.arange(QWEN1.vocab, dtype=torch.float32, device=choice.model.device)
    allowed = bytearray(-(-VOCABULARY // 8))
    for i in (3, 40):
        allowed[i // 8] |= 1 << i % 8
    assert sample(logits, [], bytes(allowed)) == 40
    assert sample(logits, [], None) == VOCABULARY - 1


def launched_once_too_often(launch: Callable[[], object]) -> Replay:
    """What capturing does, without graphs: the kernels run once before there is anything to replay."""
    launch()
    return without_graphs(launch)


def test_what_a_capture_runs_leaves_no_trace(device: torch.device) -> None:
    model = CudaModel(random_model(SMALL, device, torch.float32), capture=launched_once_too_often)
    count = torch.zeros(1, device=device)
    model.kept.append(count)
    for runs in (1, 2, 3):
        model.replay("count", lambda: count.add_(1))
        assert int(count) == runs


@pytest.mark.parametrize("temperature", [0.0, 1.0] if GPU else [0.0])
def test_a_capture_neither_reads_nor_penalizes_a_token_twice(device: torch.device, temperature: float) -> None:
    """A choice marks its token as seen: were that kept from the run that captures, it would choose another one."""
    rules = GenerationConfig(temperature=temperature, repetition_penalty=5.0, seed=3)
    plain, twice = (
        Choice(CudaModel(random_model(SMALL, device, torch.float32), capture=capture), VOCABULARY)
        for capture in (without_graphs, launched_once_too_often)
    )
    steps = 8 if GPU else 3
    assert list(follow(plain, rules, PROMPT, steps)) == list(follow(twice, rules, PROMPT, steps))
    assert torch.equal(plain._seen, twice._seen)
    assert torch.equal(plain.model.state.numbers, twice.model.state.numbers)


def test_a_sampler_that_is_captured_chooses_by_the_rules_of_its_first_call(device: torch.device) -> None:
    model = CudaModel(random_model(SMALL, device, torch.float32), capture=launched_once_too_often)
    sample = Choice(model, VOCABULARY).sampler(GenerationConfig(temperature=0.0, repetition_penalty=5.0))
    logits = torch.zeros(QWEN1.vocab, device=device)
    logits[40], logits[3] = 5.0, 4.0
    assert sample(logits, [], None) == 40
    assert sample(logits, [40], None) == 3
