"""Where a conversation is held: the seam between it and a terminal, and the plain side of it, for pipes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import click

from qwen_agent.errors import InputError
from qwen_agent.prompt import printable
from qwen_agent.terminal.saved import Turn
from qwen_agent.terminal.transcript import show_run, written_out
from qwen_agent.types import AgentResult, Event, Step

PROMPT = "User> "


@dataclass(frozen=True, slots=True)
class State:
    """What a prompt completes, and shows at the press of a key."""

    tools: tuple[str, ...]
    saved: Callable[[], Sequence[str]]
    show_steps: Callable[[], None]


class Screen(Protocol):
    """What a conversation asks of the place where it is held."""

    def read(self, state: State) -> str:
        """What the person sends. Raises EOFError when there is no more, InputError for what is no text."""
        ...

    def answer(self, events: Iterable[Event], stopping: Callable[[], bool]) -> AgentResult:
        """Show a run as it happens and return its result."""
        ...

    def say(self, text: str) -> None: ...
    def complain(self, text: str) -> None: ...
    def steps(self, steps: Iterable[Step]) -> None: ...
    def turn(self, turn: Turn) -> None: ...
    def clear(self) -> None: ...


class PlainScreen:
    """Lines in, text out, no escape codes; colours only where click finds a terminal."""

    def read(self, state: State) -> str:
        try:
            return input(PROMPT)
        except EOFError:
            click.echo()
            raise
        except UnicodeDecodeError:
            raise InputError("That line is not valid UTF-8; please type it again.") from None

    def answer(self, events: Iterable[Event], stopping: Callable[[], bool]) -> AgentResult:
        return show_run(events)

    def say(self, text: str) -> None:
        click.echo(printable(text))

    def complain(self, text: str) -> None:
        click.secho(printable(text), fg="red", err=True)

    def steps(self, steps: Iterable[Step]) -> None:
        for label, text in written_out(steps):
            click.echo(f"{click.style(label, bold=True)} {text}")

    def turn(self, turn: Turn) -> None:
        for who, text in (("User", turn.question), ("Assistant", turn.result.transcript)):
            click.secho(f"{who}:", bold=True)
            click.echo(printable(text))

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            click.clear()  # does nothing without a terminal


def enable_line_editing() -> None:
    """Importing readline gives input() history and editing; Windows has none."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
