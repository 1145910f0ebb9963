"""The `:` commands: their names, what each takes, and which one was meant."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from qwen_agent.errors import InputError


@dataclass(frozen=True, slots=True)
class Command:
    """``names``: the first is its own, the others are short for it. ``takes`` is shown in the help."""

    names: tuple[str, ...]
    takes: str
    about: str


COMMANDS = (
    Command(("help", "h"), "", "show this"),
    Command(("exit", "quit", "q"), "", "leave (Ctrl-D too)"),
    Command(("clear", "cl"), "", "clear the screen"),
    Command(("clear-his", "clh", "clear-history"), "", "forget the conversation and begin a new one"),
    Command(("history", "his"), "", "show the conversation so far"),
    Command(("undo",), "", "forget the last question and its answer"),
    Command(("steps",), "", "show every step of the last answer in full (Ctrl-O too)"),
    Command(("seed",), "[N]", "show or set the seed for sampling"),
    Command(("conf",), "[NAME=VALUE ...]", "show or change how answers are sampled"),
    Command(("reset-conf",), "", "sample as at the start"),
    Command(("system",), "[TEXT]", "show or replace the system message"),
    Command(("tools",), "[on|off NAME ...]", "show the tools, or switch some on or off"),
    Command(("attach",), "[FILE ...]", "give files to the tools (or write @FILE in a question)"),
    Command(("sessions",), "", "list the conversations that are saved"),
    Command(("save",), "[NAME]", "save the conversation, under a name of its own"),
    Command(("load",), "NAME|last", "go on with a saved conversation"),
    Command(("export",), "FILE", "write the conversation to FILE: Markdown, or JSON if it ends with .json"),
)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}
_KEYS = """\
Enter sends, Alt-Enter (or Esc, Enter) begins a new line, and pasted text stays whole. Up and Ctrl-R find what was
typed before, Tab completes commands and files, Ctrl-C clears the line. While an answer is written, Ctrl-C stops it;
the question is then forgotten."""


def read_command(line: str) -> tuple[str, str]:
    """``:name rest`` -> (the command's own name, rest). Raises InputError, with the closest name, if there is none."""
    name, rest = (*line.removeprefix(":").split(None, 1), "", "")[:2]
    command = _BY_NAME.get(name.lower())
    if command is None:
        close = difflib.get_close_matches(name.lower(), _BY_NAME, n=1)
        hint = f"did you mean :{close[0]}?" if close else ":help lists them"
        raise InputError(f"There is no command :{name}; {hint}")
    if rest and not command.takes:
        raise InputError(f":{command.names[0]} takes nothing after it, but there is {rest!r}")
    return command.names[0], rest


def help_text() -> str:
    """Every command on a line, and the keys."""
    heads = [" ".join(f":{name}" for name in command.names[:3]) + f" {command.takes}" for command in COMMANDS]
    width = max(map(len, heads))
    lines = [f"{head:<{width}}  {command.about}" for head, command in zip(heads, COMMANDS, strict=True)]
    return "\n".join([*lines, "", _KEYS])
