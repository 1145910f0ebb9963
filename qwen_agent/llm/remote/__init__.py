"""Someone else's engine behind our seam: `OpenAIRuntime` over any OpenAI-compatible endpoint.

runtime.py    the Runtime          endpoint.py   HTTP: streams, retries, errors     engines.py   what each understands
encoding.py   prompts -> requests  writing.py    events -> chunks
"""

from __future__ import annotations

from qwen_agent.llm.remote.endpoint import Timeouts
from qwen_agent.llm.remote.runtime import OpenAIRuntime

__all__ = ["OpenAIRuntime", "Timeouts"]
