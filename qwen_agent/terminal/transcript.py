"""A run as text, in the words of ReAct: as it happens, and again afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator

import click

from qwen_agent.prompt import printable
from qwen_agent.types import AgentResult, ApprovalNeeded, Delta, Event, Finished, Step, ToolCall, ToolFinished

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


def show_run(events: Iterable[Event]) -> AgentResult:
    """Print a run as it happens and return its result."""
    transcript = Transcript()
    for event in events:
        transcript.show(event)
        if isinstance(event, Finished):
            return event.result
    raise AssertionError("a stream of events always ends with Finished")


def written_out(steps: Iterable[Step]) -> Iterator[tuple[str, str]]:
    """Steps as (label, text), such as ("Thought:", "I should ..."), with nothing left out."""
    for step in steps:
        if step.thought:
            yield "Thought:", printable(step.thought)
        if step.call is not None:
            yield "Action:", printable(step.call.name)
            yield "Action Input:", printable(arguments_text(step.call))
        if step.result is not None:
            yield "Observation:", printable(step.result.content)
            yield from (("File:", printable(artifact.path)) for artifact in step.result.artifacts)


def arguments_text(call: ToolCall) -> str:
    """The arguments as they were read; as they were written, where they could not be."""
    return call.raw if call.arguments is None else json.dumps(dict(call.arguments), ensure_ascii=False, default=str)
