"""The conversation of `qwen-agent chat`: read what is sent, obey or answer it, remember and save the turn."""

from __future__ import annotations

import contextlib
import difflib
import json
import secrets
import shlex
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import click

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.react import Agent
from qwen_agent.session import Session
from qwen_agent.terminal import settings
from qwen_agent.terminal.attachments import Attached, Attachments, announced, mentioned
from qwen_agent.terminal.commands import help_text, read_command
from qwen_agent.terminal.report import as_json
from qwen_agent.terminal.saved import Conversation, Saved, Turn
from qwen_agent.terminal.screen import Screen, State
from qwen_agent.terminal.transcript import written_out
from qwen_agent.types import AgentResult, Event, Message, StopReason

_SEEDS = 2**31
_STOPPED = "Stopped; this question is forgotten."


class Chat:
    """One conversation at a time.

    ``name`` is what it is saved under (None: it is not saved, "": under a name made of the time). ``past`` is the
    saved conversation that this one goes on with; the agent's system message is taken as it is.
    """

    def __init__(
        self,
        agent: Agent,
        screen: Screen,
        attachments: Attachments,
        saved: Saved,
        *,
        name: str | None,
        past: Conversation | None = None,
    ) -> None:
        seed = secrets.randbelow(_SEEDS) if agent.generation.seed is None else agent.generation.seed
        self._agent = replace(agent, generation=replace(agent.generation, seed=seed))
        self._at_start = self._agent
        self._tools = dict(agent.tools)  # those that are switched off, too
        self._screen = screen
        self._attachments = attachments
        self._unannounced: list[Attached] = []
        self._saved = saved
        self._name = name
        self._turns: list[Turn] = []
        self._began = time.time()
        self._session = Session(self._agent)
        if past is not None:
            self._go_on_with(past)

    def loop(self) -> None:
        """Until :exit, Ctrl-D or the end of the input; without a terminal, until Ctrl-C too."""
        self._screen.say(self._greeting())
        while True:
            try:
                line = self._screen.read(self._state()).strip()
                if line.startswith(":"):
                    if not self._obey(line):
                        return
                elif line:
                    self._answer(line)
            except EOFError:
                return
            except QwenAgentError as error:
                self._screen.complain(str(error))

    # ---- questions

    def _answer(self, typed: str) -> None:
        question, files = mentioned(typed, self._attach)
        question = announced(question, [*self._unannounced, *(file for file in files if file not in self._unannounced)])
        self._session.agent = self._agent
        try:
            with _stoppable() as stopping:
                events = cast("Generator[Event, None, None]", self._session.stream(question, stopping))
                with contextlib.closing(events):
                    result = self._screen.answer(events, stopping)
        except (KeyboardInterrupt, click.Abort):
            self._screen.complain(f"\n{_STOPPED}")
            return
        if result.stop_reason is StopReason.CANCELLED:
            self._screen.complain(_STOPPED)
        elif result.stop_reason is StopReason.PAUSED:
            self._screen.complain("That call needs your approval, and there is no terminal to ask on; forgotten.")
        else:
            self._remember(Turn(question, result))

    def _remember(self, turn: Turn) -> None:
        self._turns.append(turn)
        self._unannounced.clear()
        if self._name is not None:
            self._save(self._name or self._saved.free_name())

    def _save(self, name: str) -> None:
        attached = tuple(str(file.source) for file in self._attachments.files)
        conversation = Conversation(
            self._agent.runtime.name, self._agent.system, tuple(self._turns), attached, self._began
        )
        self._name = self._saved.write(name, conversation)
        if self._name != name:
            self._screen.complain(f"{name} was changed by another program; this conversation goes on as {self._name}.")

    def _attach(self, path: str) -> Attached:
        attached, added = self._attachments.add(path, self._agent.tools)
        self._tools |= added
        self._agent = replace(self._agent, tools={**self._agent.tools, **added})
        if attached not in self._unannounced:
            self._unannounced.append(attached)
        return attached

    def _go_on_with(self, past: Conversation) -> None:
        messages: tuple[Message, ...] = ()
        for turn in past.turns:
            messages += self._agent.turn(turn.question, turn.result)
        self._turns, self._began = list(past.turns), past.began
        self._session = Session(self._agent, messages)
        for path in past.attached:
            try:
                self._attach(path)
            except QwenAgentError as error:
                self._screen.complain(f"{path} is no longer attached: {error}")
        self._unannounced.clear()  # the conversation speaks of them already
        if past.model != self._agent.runtime.name:
            self._screen.complain(f"This conversation began with {past.model}; now it is {self._agent.runtime.name}.")

    # ---- commands

    def _obey(self, line: str) -> bool:
        """Run a command; False means: leave."""
        name, rest = read_command(line)
        if name == "exit":
            return False
        obey: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._screen.say(help_text()),
            "clear": lambda _: self._screen.clear(),
            "clear-his": lambda _: self._forget(),
            "history": lambda _: self._show_history(),
            "undo": lambda _: self._undo(),
            "steps": lambda _: self._show_steps(),
            "seed": self._seed,
            "conf": self._configure,
            "reset-conf": lambda _: self._reset(),
            "system": self._set_system,
            "tools": self._switch_tools,
            "attach": self._attach_all,
            "sessions": lambda _: self._list_saved(),
            "save": self._save_as,
            "load": self._load,
            "export": self._export,
        }
        obey[name](rest)
        return True

    def _forget(self) -> None:
        kept = f" It is kept as {self._name}." if self._name and self._turns else ""
        self._session.clear()
        self._turns, self._began = [], time.time()
        self._name = None if self._name is None else ""
        self._screen.say(f"The conversation is forgotten.{kept}")

    def _show_history(self) -> None:
        if not self._turns:
            self._screen.say("Nothing has been said yet.")
        for turn in self._turns:
            self._screen.turn(turn)

    def _undo(self) -> None:
        if not self._turns:
            raise InputError("There is nothing to undo: nothing has been said yet.")
        undone = self._turns.pop()
        self._session = Session(self._agent, self._session.history[:-2])
        if self._name:
            self._save(self._name)
        self._screen.say(f"Forgotten: {undone.question}")

    def _show_steps(self) -> None:
        if not self._turns:
            self._screen.say("There is no answer yet.")
        elif not self._turns[-1].result.steps:
            self._screen.say("The last answer took no steps.")
        else:
            self._screen.steps(self._turns[-1].result.steps)

    def _seed(self, number: str) -> None:
        if number:
            self._sample(f"seed={number}")
        now = " now" if number else ""
        self._screen.say(f"The seed is{now} {self._agent.generation.seed}.")

    def _configure(self, changes: str) -> None:
        if changes:
            self._sample(changes)
        self._screen.say(settings.shown(self._agent.generation))

    def _sample(self, changes: str) -> None:
        self._agent = replace(self._agent, generation=settings.changed(self._agent.generation, changes))

    def _reset(self) -> None:
        self._agent = replace(self._agent, generation=self._at_start.generation)
        self._screen.say(settings.shown(self._agent.generation))

    def _set_system(self, text: str) -> None:
        if text:
            self._agent = replace(self._agent, system=text)
        self._screen.say(self._agent.system)

    def _switch_tools(self, words: str) -> None:
        match words.split():
            case []:
                pass
            case ["on" | "off" as switch, *names] if names:
                for name in names:
                    if name not in self._tools:
                        raise InputError(f"there is no tool {name!r}{_meant(name, self._tools)}")
                now = {*self._agent.tools, *names} if switch == "on" else {*self._agent.tools} - {*names}
                chosen = {name: tool for name, tool in self._tools.items() if name in now}
                self._agent = replace(self._agent, tools=chosen)
            case _:
                raise InputError(":tools takes nothing, or on or off and the names of tools")
        on = self._agent.tools
        lines = [f"{'on ' if name in on else 'off'}  {name}: {tool.description}" for name, tool in self._tools.items()]
        self._screen.say("\n".join(lines) or "There are no tools.")

    def _attach_all(self, paths: str) -> None:
        for path in _paths(paths):
            attached = self._attach(path)
            self._screen.say(attached.about.strip("[]"))
        if not paths:
            files = [f"{file.name}: {file.source}" for file in self._attachments.files]
            self._screen.say("\n".join(files) or "Nothing is attached.")

    def _list_saved(self) -> None:
        lines = [
            f"{'*' if each.name == self._name else ' '} {each.name}  {_day(each.changed)}  "
            + (each.problem or f"{each.turns}: {_short(each.first)}")
            for each in self._saved.list()
        ]
        self._screen.say("\n".join(lines) or "No conversation has been saved yet.")

    def _save_as(self, name: str) -> None:
        if not self._turns:
            raise InputError("There is nothing to save: nothing has been said yet.")
        self._save(self._saved.claim(name) if name else self._name or self._saved.free_name())
        self._screen.say(f"Saved as {self._name}; qwen-agent chat --resume {self._name} goes on with it.")

    def _load(self, name: str) -> None:
        if not name:
            raise InputError(":load takes the name of a conversation, or last; :sessions lists them")
        loaded, past = self._saved.read(name)
        self._agent = replace(self._agent, system=past.system)
        self._name = loaded
        self._go_on_with(past)
        self._screen.say(f"{loaded}: {_count(past.turns)}; :history shows them.")

    def _export(self, path: str) -> None:
        if not path:
            raise InputError(":export takes the file to write")
        if not self._turns:
            raise InputError("There is nothing to export: nothing has been said yet.")
        file = Path(path).expanduser()
        text = _as_json(self._turns) if file.suffix == ".json" else _as_markdown(self._turns)
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(text)
        except FileExistsError:
            raise InputError(f"'{file}' exists already: choose another name") from None
        except OSError as error:
            raise InputError(f"'{file}' cannot be written ({error.strerror})") from None
        self._screen.say(f"Wrote {file}.")

    # ---- what the screen shows

    def _greeting(self) -> str:
        agent = f"{self._agent.runtime.name}, with {', '.join(self._agent.tools) or 'no tools'}"
        if not self._turns:
            return f"{agent}. Ask something, or :help."
        return f"{agent}. {self._name}: {_count(self._turns)} so far; :history shows them."

    def _state(self) -> State:
        return State(tuple(self._tools), lambda: [each.name for each in self._saved.list()], self._show_steps)


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Gives whether Ctrl-C was pressed, which then stops the run in good order. Pressed again, it interrupts."""
    pressed: list[int] = []

    def press(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _as_json(turns: list[Turn]) -> str:
    return json.dumps([as_json(turn.question, turn.result) for turn in turns], ensure_ascii=False, indent=2) + "\n"


def _as_markdown(turns: list[Turn]) -> str:
    return "\n".join(_turn_markdown(turn.question, turn.result) for turn in turns)


def _turn_markdown(question: str, result: AgentResult) -> str:
    quoted = "\n".join(f"> {line}" for line in question.splitlines())
    steps = "\n".join(
        f"    {line}" for label, text in written_out(result.steps) for line in f"{label} {text}".split("\n")
    )
    return f"{quoted}\n\n" + (f"Steps:\n\n{steps}\n\n" if steps else "") + f"{result.answer}\n"


def _paths(text: str) -> list[str]:
    """One path, which may hold spaces, if there is such a file; else the words, with quotes around spaces."""
    if not text or Path(text).expanduser().is_file():
        return [text] if text else []
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{text} cannot be read ({error})") from None


def _meant(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(names) or 'none'}"


def _count(turns: Sequence[Turn]) -> str:
    return f"{len(turns)} question" + "s" * (len(turns) != 1)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
