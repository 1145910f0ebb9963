"""The whole runtime over the fused model: the same words as over the plain one, and the same left in its cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen_agent.llm import load_model
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.cuda import Choice, CudaModel
from qwen_agent.llm.local import LocalRuntime
from tests.llm.test_local import LetterTokenizer, finish, letters

PROMPT = (letters(torch.arange(20, 30).numpy()),)


@pytest.fixture
def both(qwen1_folder: Callable[..., Path], device: torch.device) -> tuple[LocalRuntime, LocalRuntime]:
    """The golden checkpoint, plain and fused."""
    tokenizer = LetterTokenizer()
    model = load_model(qwen1_folder(use_dynamic_ntk=True, use_logn_attn=True), device)
    fused = CudaModel(model)
    return LocalRuntime(model, tokenizer), LocalRuntime(fused, tokenizer, choice=Choice(fused, tokenizer.size))


def test_both_write_the_same_and_keep_the_same_in_their_caches(both: tuple[LocalRuntime, LocalRuntime]) -> None:
    first, again = (
        [finish(runtime, (*PROMPT, *more), max_new_tokens=3) for runtime in both] for more in ((), (letters([70, 71]),))
    )
    for plain, fused in (first, again):
        assert fused.output == plain.output
        assert (fused.finish, fused.usage.cached_tokens) == (plain.finish, plain.usage.cached_tokens)
    assert again[1].usage.cached_tokens == 10  # the prompt came from the cache


def test_a_stream_that_is_left_gives_its_cache_back(both: tuple[LocalRuntime, LocalRuntime]) -> None:
    _, fused = both
    stream = fused.stream(PROMPT, GenerationConfig(max_new_tokens=20))
    for _ in range(4):
        next(stream)
    stream.close()  # a step is under way
    assert finish(fused, PROMPT, max_new_tokens=2).usage.cached_tokens == 9
