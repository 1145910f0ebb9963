"""How likely a model finds each token of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime
from qwen_agent.types import Generated


def token_logprobs(runtime: Runtime, ids: Sequence[int]) -> Iterator[float]:
    """Natural log-probability of each token of ids from the second on, in one reading of all of them."""
    config = GenerationConfig(max_new_tokens=1, prompt_logprobs=0)
    for chunk in runtime.stream((Generated("", tuple(ids)),), config):
        if chunk.read is None:
            return
        yield from (logprob.logprob for logprob in chunk.logprobs)
