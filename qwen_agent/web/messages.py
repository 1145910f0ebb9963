"""Turns -> the messages that the chat shows. What a model or a tool wrote is data: never HTML, code only in fences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qwen_agent.errors import Busy, ContextOverflow, QwenAgentError
from qwen_agent.types import Artifact, StopReason
from qwen_agent.web.texts import Texts
from qwen_agent.web.turn import ShownStep, Turn

MAX_SHOWN_CHARS = 6000  # of one observation, or one argument
Messages = list[dict[str, Any]]

# Fenced blocks and code spans, where nothing is HTML, nor an entity a letter. The last fence may still be open.
_CODE = re.compile(
    r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?(?:\n {0,3}\1[`~]*[ \t]*$|\Z)|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)",
    re.DOTALL | re.MULTILINE,
)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_PICTURE = re.compile(r"!(?=\[)")


def shown(turns: Sequence[Turn], texts: Texts) -> tuple[Messages, list[int]]:
    """(the messages, the number of the turn that each belongs to)."""
    messages: Messages = []
    owners: list[int] = []
    for number, turn in enumerate(turns):
        made = [*_question(turn), *_reply(turn, texts)]
        messages += made
        owners += [number] * len(made)
    return messages, owners


def plain_markdown(text: str) -> str:
    """Markdown without raw HTML, and without pictures from elsewhere: they would tell where they are shown."""
    parts, end = [], 0
    for match in _CODE.finditer(text):
        parts += [_escaped(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, _escaped(text[end:])])


def fenced(text: str, language: str = "", *, most: int | None = MAX_SHOWN_CHARS) -> str:
    """A code block that its content cannot end; of a longer text the first ``most`` characters."""
    if most is not None and len(text) > most:
        text = f"{text[:most]}\n… ({len(text) - most})"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def problem_text(problem: Exception, texts: Texts) -> str:
    """What went wrong, for people. An error that nobody raised on purpose is only named: its text may be anything."""
    if isinstance(problem, ContextOverflow):
        return texts.too_long.format(tokens=problem.tokens, window=problem.window)
    if isinstance(problem, Busy):
        return texts.busy
    if isinstance(problem, QwenAgentError):
        return texts.failed.format(problem=problem)
    return texts.broken.format(kind=type(problem).__name__)


def _escaped(text: str) -> str:
    return _PICTURE.sub("&#33;", _TAG.sub("&lt;", text))


def _question(turn: Turn) -> Messages:
    files = [{"role": "user", "content": _file(file)} for file in turn.files]
    return [{"role": "user", "content": plain_markdown(turn.question)}, *files]


def _reply(turn: Turn, texts: Texts) -> Messages:
    messages: Messages = []
    for step in turn.steps:
        if not step.says_something and (turn.answer or turn.over):
            continue
        messages.append(_step(step, texts))
        messages += [{"role": "assistant", "content": _file(artifact)} for artifact in step.artifacts]
    if turn.answer:
        messages.append({"role": "assistant", "content": plain_markdown(turn.answer)})
    elif not turn.over and (not turn.steps or turn.steps[-1].phase == "done"):
        messages.append(_pending(_reading(turn, texts)))
    if note := _note(turn, texts):
        messages.append({"role": "assistant", "content": note})
    return messages


def _step(step: ShownStep, texts: Texts) -> dict[str, Any]:
    parts = [plain_markdown(step.thought.strip())]
    if step.tool and step.arguments.strip() not in ("", "{}"):
        parts += [f"**{texts.arguments}**", fenced(step.arguments.strip(), "python" if step.code else "json")]
    if step.phase == "done" and step.tool:
        parts += [f"**{texts.result if step.ok else texts.problem}**", fenced(step.observation or texts.not_called)]
    content = "\n\n".join(part for part in parts if part) or "…"
    metadata: dict[str, Any] = {"title": _title(step, texts), "status": "done" if step.phase == "done" else "pending"}
    if step.seconds is not None:
        metadata["duration"] = round(step.seconds, 2)
    return {"role": "assistant", "content": content, "metadata": metadata}


def _title(step: ShownStep, texts: Texts) -> str:
    if not step.tool:
        return texts.thought if step.phase == "done" else texts.thinking
    # The tool's name is the model's own word until the call is read.
    name = re.sub(r"[^\w.\-]", "", step.tool)[:60]
    if step.phase == "asking":
        return texts.asking.format(tool=name)
    if step.phase == "done":
        used = texts.refused_call if step.refused else texts.used if step.ok else texts.used_badly
        return used.format(tool=name)
    return texts.using.format(tool=name)


def _pending(title: str) -> dict[str, Any]:
    return {"role": "assistant", "content": "…", "metadata": {"title": title, "status": "pending"}}


def _reading(turn: Turn, texts: Texts) -> str:
    done, total = turn.read
    return texts.reading.format(percent=100 * done // total) if total > done else texts.thinking


def _note(turn: Turn, texts: Texts) -> str:
    if turn.problem is not None:
        return f"⚠️ {plain_markdown(problem_text(turn.problem, texts))}"
    if turn.end is StopReason.CANCELLED:
        return f"*{texts.stopped}*"
    if turn.end is None or turn.end is StopReason.FINAL_ANSWER:
        return ""
    return f"*{texts.limits.get(turn.end, texts.limit.format(reason=turn.end.value))}*"


def _file(artifact: Artifact) -> dict[str, Any]:
    named = {"orig_name": artifact.name, "alt_text": artifact.name}
    return {"path": artifact.path, "mime_type": artifact.media_type, **named}
