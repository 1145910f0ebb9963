"""How a run looks: on a terminal as it happens, and as one JSON object at its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from qwen_agent.prompt import printable
from qwen_agent.types import (
    AgentResult,
    ApprovalNeeded,
    Delta,
    Event,
    Finished,
    Step,
    StopReason,
    ToolCall,
    ToolFinished,
    Usage,
)

_LABELS = {
    "thought": ("Thought:", "bright_black"),
    "action": ("Action:", "cyan"),
    "action_input": ("Action Input:", "cyan"),
    "final_answer": ("Final Answer:", "green"),
}


class Transcript:
    """Prints events as a ReAct transcript. Colours disappear by themselves where stdout is not a terminal."""

    def __init__(self) -> None:
        self._part: str | None = None
        self._column = 0

    def show(self, event: Event) -> None:
        match event:
            case Delta(part, text):
                self._delta(part, printable(text))
            case ToolFinished(_, result):
                self._fresh_line()
                colour = "yellow" if result.ok else "red"
                click.echo(click.style("Observation: ", fg=colour, bold=True) + printable(result.content))
                self._part = None
            case ApprovalNeeded() | Finished():
                self.end()

    def end(self) -> None:
        self._fresh_line()
        self._part = None

    def _delta(self, part: str, text: str) -> None:
        if part != self._part:
            text = text.lstrip()
            if not text:
                return
            self._fresh_line()
            label, colour = _LABELS[part]
            click.secho(f"{label} ", fg=colour, bold=True, nl=False)
            self._part = part
            self._column = 1
        click.echo(text, nl=False)
        sys.stdout.flush()
        if text:
            self._column = 0 if text.endswith("\n") else 1

    def _fresh_line(self) -> None:
        if self._column:
            click.echo()
        self._column = 0


@contextmanager
def loading(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr while a model loads; nothing where stderr is not a terminal or ``quiet``."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(f"Loading {what}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def ask_person(call: ToolCall) -> bool:
    """Ask on the terminal whether a call may be made. Raises click.Abort on Ctrl-C."""
    arguments = call.raw if call.arguments is None else "\n".join(f"  {k}: {v}" for k, v in call.arguments.items())
    click.secho(f"{call.name} is to be called with\n{printable(arguments)}", fg="yellow", err=True)
    return click.confirm("Allow it?", default=False, err=True)


def summary(result: AgentResult) -> str:
    """One line about what a run cost, why it ended if not by itself, and how far its steps can be trusted."""
    usage, steps = result.usage, result.steps
    speed = usage.generated_tokens / usage.decode_seconds if usage.decode_seconds else 0.0
    chances = [_chance(step) for step in steps if step.confidence is not None]
    invented = sum(step.invented for step in steps)
    repairs = sum(len(_repairs(step)) for step in steps)
    parts = (
        "" if result.stop_reason is StopReason.FINAL_ANSWER else f"stopped: {result.stop_reason.value}",
        f"{sum(step.call is not None for step in steps)} tool calls",
        f"read {usage.prefilled_tokens} of {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} from the cache)",
        f"wrote {usage.generated_tokens} tokens at {speed:.0f}/s",
        f"confidence {' '.join(f'{chance:.2f}' for chance in chances)}" if chances else "",
        f"{invented} invented observations cut" if invented else "",
        f"{repairs} repairs" if repairs else "",
    )
    return "; ".join(part for part in parts if part)


def as_json(question: str, result: AgentResult) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    return {
        "question": question,
        "answer": result.answer,
        "stop_reason": result.stop_reason.value,
        "steps": [_step_json(step) for step in result.steps],
        "usage": _usage_json(result.usage),
    }


def _chance(step: Step) -> float:
    """What the model thought of doing what it then did."""
    assert step.confidence is not None
    return step.confidence.answer if step.call is None else step.confidence.tools.get(step.call.name, 0.0)


def _repairs(step: Step) -> list[str]:
    return [*step.repairs, *(step.call.repairs if step.call is not None else ())]


def _step_json(step: Step) -> dict[str, Any]:
    shown: dict[str, Any] = {"thought": step.thought}
    if step.call is not None:
        shown["action"] = step.call.name
        shown["action_input"] = step.call.raw if step.call.arguments is None else dict(step.call.arguments)
    if step.result is not None:
        shown["observation"] = step.result.content
        shown["ok"] = step.result.ok
        shown["seconds"] = round(step.result.seconds, 4)
    shown["repairs"] = _repairs(step)
    shown["invented_observations"] = step.invented
    if step.discarded:
        shown["discarded"] = step.discarded
    if step.confidence is not None:
        tools = {name: round(chance, 4) for name, chance in step.confidence.tools.items()}
        shown["confidence"] = {"answer": round(step.confidence.answer, 4), "tools": tools}
    return shown


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "prefilled_tokens": usage.prefilled_tokens,
        "generated_tokens": usage.generated_tokens,
        "prefill_seconds": round(usage.prefill_seconds, 4),
        "decode_seconds": round(usage.decode_seconds, 4),
    }
