"""The fourteen tools of Transformers Agents, by the names that its prompts know.

Names, descriptions, inputs and checkpoints are the original's (``src/transformers/tools`` of huggingface/transformers
v4.33.3, Apache-2.0; four of them lived in Spaces of ``huggingface-tools``); the code is ours, over transformers 5 and
diffusers. Two checkpoints have moved on the hub since, and are named where they are now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_agent.errors import InputError
from qwen_agent.hf_agent_adapter.hub_tool import HubTool
from qwen_agent.hf_agent_adapter.media_tools import (
    DocumentQuestionAnswering,
    ImageCaptioner,
    ImageGenerator,
    ImageQuestionAnswering,
    ImageSegmenter,
    ImageTransformer,
    TextReader,
    Transcriber,
    VideoGenerator,
)
from qwen_agent.hf_agent_adapter.text_tools import (
    Summarizer,
    TextClassifier,
    TextDownloader,
    TextQuestionAnswering,
    Translator,
)

# In the order of the original's prompt.
TOOLS: tuple[type[HubTool], ...] = (
    DocumentQuestionAnswering,
    ImageCaptioner,
    ImageQuestionAnswering,
    ImageSegmenter,
    Transcriber,
    Summarizer,
    TextClassifier,
    TextQuestionAnswering,
    TextReader,
    Translator,
    ImageTransformer,
    TextDownloader,
    ImageGenerator,
    VideoGenerator,
)


def default_toolbox(*, device: str = "") -> dict[str, HubTool]:
    """All fourteen, by name. None is loaded before it is called."""
    return {tool.name: tool(device=device) for tool in TOOLS}


def load_tool(task: str, checkpoint: str | None = None, *, device: str = "") -> HubTool:
    """One of the fourteen, by its task ("image-captioning"), its name, or its Space ("huggingface-tools/...").

    Raises InputError, with all tasks, for another one.
    """
    wanted = task.removeprefix("huggingface-tools/")
    for tool in TOOLS:
        if wanted in (tool.task, tool.name):
            return tool(checkpoint, device=device)
    raise InputError(f"there is no tool for {task!r}: the tasks are {', '.join(tool.task for tool in TOOLS)}")


def tool_creation_code(code: str, tools: Mapping[str, Any]) -> str:
    """The lines that make the tools which the code calls, for whoever runs it without an agent."""
    lines = [f"{name} = {_made_by(tool)}" for name, tool in tools.items() if name in code and type(tool) in TOOLS]
    return "\n".join(["from qwen_agent.hf_agent_adapter import load_tool", "", *lines]) + "\n"


def _made_by(tool: HubTool) -> str:
    own = "" if tool.checkpoint == type(tool).checkpoint else f", {tool.checkpoint!r}"
    return f'load_tool("{tool.task}"{own})'
