"""The question to a person before a call that needs approval."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Iterator

import click

from qwen_agent.prompt import printable
from qwen_agent.types import ToolCall

# Characters that show text in another order than it has: code could look harmless.
_REORDERING = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")


class Person:
    """Whoever sits at the terminal. "Always" holds for one tool and as long as this object lives."""

    def __init__(self) -> None:
        self._always: set[str] = set()

    def __call__(self, call: ToolCall) -> bool:
        """Whether the call may be made. Raises click.Abort on Ctrl-C and at the end of the input."""
        if call.name in self._always:
            return True
        arguments = call.raw if call.arguments is None else "\n".join(f"  {k}: {v}" for k, v in call.arguments.items())
        shown = _REORDERING.sub(lambda found: f"\\u{ord(found[0]):04x}", printable(arguments))
        click.secho(f"{call.name} is to be called with\n{shown}", fg="yellow", err=True)
        with _interruptible():
            _forget_what_was_typed()
            answer = click.prompt(
                "Allow it? y(es), n(o), a(lways, while this program runs)",
                type=click.Choice(["y", "yes", "n", "no", "a", "always"], case_sensitive=False),
                default="n",
                show_choices=False,
                err=True,
            )
        if answer[0] == "a":
            self._always.add(call.name)
        return answer[0] != "n"


def _forget_what_was_typed() -> None:
    """A key that was pressed before the question was seen is not an answer to it."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows, or no terminal
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises, whatever it does otherwise: nothing else ends a wait for the keyboard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
