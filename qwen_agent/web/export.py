"""A conversation as a file to keep: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qwen_agent.types import Artifact
from qwen_agent.web.messages import fenced, problem_text
from qwen_agent.web.texts import ENGLISH, Texts
from qwen_agent.web.turn import ShownStep, Turn


def as_markdown(turns: Sequence[Turn], model: str, texts: Texts) -> str:
    """The conversation with all its steps."""
    parts = [f"# {texts.title}", f"*{model}*"]
    for turn in turns:
        parts += [f"## {texts.you}", turn.question]
        if turn.files:
            parts.append(f"{texts.files}: {_names(turn.files)}")
        parts.append(f"## {texts.agent}")
        parts += [part for step in turn.steps for part in _step(step, texts)]
        parts += [turn.answer] if turn.answer else []
        if turn.problem is not None:
            parts.append(f"*{problem_text(turn.problem, texts)}*")
    return "\n\n".join(parts) + "\n"


def as_json(turns: Sequence[Turn], model: str) -> str:
    """The conversation as one object; ``stop_reason`` is null where a turn failed or is not over."""
    return json.dumps({"model": model, "turns": [_turn(turn) for turn in turns]}, ensure_ascii=False, indent=2) + "\n"


def _step(step: ShownStep, texts: Texts) -> list[str]:
    parts = [f"> {line}" for line in step.thought.strip().splitlines()]
    shown = ["\n".join(parts)] if parts else []
    if step.tool:
        shown += [f"**{step.tool}**", fenced(step.arguments, "python" if step.code else "json", most=None)]
        shown += [
            f"**{texts.result if step.ok else texts.problem}**",
            fenced(step.observation or texts.not_called, most=None),
        ]
    if step.artifacts:
        shown.append(f"{texts.files}: {_names(step.artifacts)}")
    return shown


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "question": turn.question,
        "files": [_file(file) for file in turn.files],
        "steps": [
            {
                "thought": step.thought,
                "tool": step.tool or None,
                "arguments": step.arguments,
                "observation": step.observation,
                "ok": step.ok,
                "seconds": step.seconds,
                "files": [_file(file) for file in step.artifacts],
            }
            for step in turn.steps
        ],
        "answer": turn.answer,
        "stop_reason": turn.end.value if turn.end else None,
        "error": problem_text(turn.problem, ENGLISH) if turn.problem is not None else None,
        "usage": {"prompt_tokens": turn.usage.prompt_tokens, "generated_tokens": turn.usage.generated_tokens},
    }


def _file(artifact: Artifact) -> dict[str, Any]:
    return {"id": artifact.id, "name": artifact.name, "media_type": artifact.media_type, "size": artifact.size}


def _names(artifacts: Sequence[Artifact]) -> str:
    return ", ".join(artifact.name for artifact in artifacts)
