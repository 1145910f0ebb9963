"""The conversation loop of `qwen-agent chat`: read a line, obey or answer it, remember the turn."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace

import click

from qwen_agent.errors import QwenAgentError
from qwen_agent.prompt import printable
from qwen_agent.react import Agent
from qwen_agent.session import Session
from qwen_agent.types import AgentResult, Event, StopReason

_COMMANDS = """\
:help            show this
:history         show the conversation so far
:clear           forget the conversation
:seed [N]        show or set the seed for sampling
:exit            leave (Ctrl-D too)
Ctrl-C stops an answer; the turn is then forgotten."""

Show = Callable[[Iterable[Event]], AgentResult]


class Chat:
    """One conversation. ``show`` streams a run to the terminal and returns its result."""

    def __init__(self, agent: Agent, seed: int | None, show: Show) -> None:
        self._session = Session(agent)
        self._seed = secrets.randbelow(2**31) if seed is None else seed
        self._show = show

    def loop(self) -> None:
        """Until :exit, Ctrl-D, or Ctrl-C at the prompt."""
        _enable_line_editing()
        click.echo("Ask something, or :help.")
        while True:
            try:
                line = input("User> ").strip()
            except (EOFError, KeyboardInterrupt):
                click.echo()
                return
            except UnicodeDecodeError:
                click.echo("That line is not valid UTF-8; please type it again.", err=True)
                continue
            if line.startswith(":"):
                if not self._obey(line[1:].split()):
                    return
            elif line:
                self._answer(line)

    def _obey(self, words: list[str]) -> bool:
        """Run a command; False means: leave."""
        match words:
            case ["exit" | "quit" | "q"]:
                return False
            case ["help" | "h"]:
                click.echo(_COMMANDS)
            case ["history" | "his"]:
                self._print_history()
            case ["clear" | "cl" | "clear-history" | "clh" | "clear-his"]:
                self._session.clear()
                click.echo("The conversation is forgotten.")
            case ["seed"]:
                click.echo(f"The seed is {self._seed}.")
            case ["seed", number] if number.isdecimal():
                self._seed = int(number)
                click.echo(f"The seed is now {self._seed}.")
            case _:
                click.echo(f"There is no command :{' '.join(words)}\n{_COMMANDS}", err=True)
        return True

    def _answer(self, question: str) -> None:
        agent = self._session.agent
        self._session.agent = replace(agent, generation=replace(agent.generation, seed=self._seed))
        try:
            result = self._show(self._session.stream(question))
        except (KeyboardInterrupt, click.Abort):
            click.echo("\nStopped; this turn is forgotten.", err=True)
        except QwenAgentError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
        else:
            if result.stop_reason is StopReason.PAUSED:
                click.echo("That call needs your approval, and there is no terminal to ask on; forgotten.", err=True)

    def _print_history(self) -> None:
        if not self._session.history:
            click.echo("Nothing has been said yet.")
        for message in self._session.history:
            click.secho(f"{message.role.value.capitalize()}:", bold=True)
            click.echo(printable(message.content))


def _enable_line_editing() -> None:
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (importing it gives input() line editing)
