"""A model for processes of their own: it says the last word of the question, slowly if asked to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.types import Prompt, Text, Usage


class FakeModel:
    name = "fake"
    window = 1000

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        time.sleep(self.seconds)
        word = text_of(prompt).split()[-2]  # before "assistant"
        if word == "fail":
            raise TimeoutError("no answer after 60 s")
        text = "" if word == "nothing" else f"said {word}"
        yield Chunk(text, finish="stop", output=(Text(text),), usage=Usage(1, 0, 2))

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return [0.0 for _ in choices]

    def count_tokens(self, prompt: Prompt) -> int:
        return 1


def load(model: str) -> FakeModel:
    return FakeModel(float(model))
