"""What the handlers work with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime
from qwen_agent.react import Agent

AGENT = "react-agent"


@dataclass(frozen=True, slots=True)
class Engine:
    """A runtime, and how it generates where a request does not say.

    ``max_tokens`` bounds a message of a request that has no limit of its own; None: the window does. ``agent`` answers
    under the model name ``react-agent``; None: there is no such model. Its tools are run here, those of clients never.
    """

    runtime: Runtime
    defaults: GenerationConfig = field(default_factory=GenerationConfig)
    max_tokens: int | None = None
    agent: Agent | None = None

    def config(self, sampled: GenerationConfig, limit: int | None) -> GenerationConfig:
        """How a message is generated of at most ``limit`` tokens (None: the request does not say)."""
        return replace(sampled, max_new_tokens=limit or self.max_tokens or self.runtime.window)
