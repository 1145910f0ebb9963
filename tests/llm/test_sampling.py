from __future__ import annotations

import pytest
import torch

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.sampling import build_sampler, keep_top_k, keep_top_p, penalize_repetition

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, 9.0])  # the last one is a padding row


def draws(config: GenerationConfig, n: int = 400, vocabulary: int = 4) -> list[int]:
    sample = build_sampler(config, vocabulary, CPU)
    return [sample(LOGITS, [], None) for _ in range(n)]


def test_greedy_takes_the_likeliest_real_token() -> None:
    assert draws(GenerationConfig(), 1) == [0]


def test_padding_rows_are_never_sampled() -> None:
    assert set(draws(GenerationConfig(temperature=5.0, seed=0))) == {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_tokens() -> None:
    config = GenerationConfig(temperature=1.0, seed=7)
    assert draws(config) == draws(config)
    assert draws(config) != draws(GenerationConfig(temperature=1.0, seed=8))


def test_without_a_seed_two_requests_differ() -> None:
    config = GenerationConfig(temperature=1.0)
    assert draws(config) != draws(config)


def test_frequencies_follow_the_softmax() -> None:
    counts = torch.tensor(draws(GenerationConfig(temperature=1.0, seed=0), 4000)).bincount(minlength=4) / 4000
    assert counts == pytest.approx(torch.softmax(LOGITS[:4], 0), abs=0.03)


def test_low_temperature_approaches_greedy() -> None:
    assert set(draws(GenerationConfig(temperature=0.01, seed=0))) == {0}


def test_top_k_keeps_k() -> None:
    assert set(draws(GenerationConfig(temperature=3.0, top_k=2, seed=0))) == {0, 1}
    assert torch.isinf(keep_top_k(LOGITS, 2)).sum() == 3


@pytest.mark.parametrize("p", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_top_p_equals_transformers(p: float) -> None:
    from transformers import TopPLogitsWarper

    logits = torch.randn(50, generator=torch.Generator().manual_seed(3)) * 3
    expected = TopPLogitsWarper(p)(torch.zeros(1, 1), logits[None])[0]
    assert torch.equal(keep_top_p(logits, p), expected)


def test_top_p_always_keeps_one() -> None:
    assert set(draws(GenerationConfig(temperature=1.0, top_p=1e-6, seed=0))) == {0}


def test_repetition_penalty_equals_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    ids = [0, 3, 3, 0]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), LOGITS[None].clone())[0]
    assert torch.equal(penalize_repetition(LOGITS, ids, 1.3), expected)


def test_allowed_ids_bound_the_choice() -> None:
    sample = build_sampler(GenerationConfig(), 4, CPU)
    assert sample(LOGITS, [], bytes([0b1100])) == 2
    assert sample(LOGITS, [], bytes([0b1000])) == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
    ],
)
def test_impossible_settings_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        GenerationConfig(**bad)  # type: ignore[arg-type]
