"""A conversation on a real terminal: prompt_toolkit reads, rich writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style
from rich.console import Console
from rich.text import Text

from qwen_agent.prompt import printable
from qwen_agent.terminal.completion import CommandCompleter
from qwen_agent.terminal.live import LiveRun, folded
from qwen_agent.terminal.markdown import rendered
from qwen_agent.terminal.saved import Turn
from qwen_agent.terminal.screen import PROMPT, State
from qwen_agent.terminal.transcript import written_out
from qwen_agent.types import AgentResult, Event, Finished, Step

_STYLE = Style.from_dict({"prompt": "bold ansigreen", "continuation": "ansibrightblack"})
_MENU_LINES = 6


class RichScreen:
    """A terminal with colours, a history in the file ``history`` and completion."""

    def __init__(self, history: Path) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._state: State | None = None
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", PROMPT)],
            multiline=True,
            prompt_continuation=lambda width, *_: [("class:continuation", "... ".rjust(width))],
            history=_history(history),
            completer=CommandCompleter(self._now),
            complete_while_typing=True,
            reserve_space_for_menu=_MENU_LINES,
            key_bindings=self._keys(),
            enable_open_in_editor=True,
            style=_STYLE,
        )

    def read(self, state: State) -> str:
        self._state = state
        while True:
            try:
                return self._session.prompt()
            except KeyboardInterrupt:  # by a signal; the key itself clears the line
                continue

    def answer(self, events: Iterable[Event], stopping: Callable[[], bool]) -> AgentResult:
        with LiveRun(self._console, stopping) as shown:
            for event in events:
                shown.show(event)
                if isinstance(event, Finished):
                    return event.result
        raise AssertionError("a stream of events always ends with Finished")

    def say(self, text: str) -> None:
        self._console.print(Text(printable(text)))

    def complain(self, text: str) -> None:
        self._console.print(Text(printable(text), "red"))

    def steps(self, steps: Iterable[Step]) -> None:
        for label, text in written_out(steps):
            self._console.print(Text.assemble((label, "bold cyan"), " ", text))

    def turn(self, turn: Turn) -> None:
        self._console.print(Text.assemble((PROMPT, "bold green"), printable(turn.question)))
        for step in turn.result.steps:
            if step.call is not None:
                self._console.print(folded(step, self._console.width))
        self._console.print(rendered(turn.result.answer))

    def clear(self) -> None:
        click.clear()

    def _now(self) -> State:
        assert self._state is not None, "the prompt is shown by `read` alone"
        return self._state

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=typing)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=typing)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("tab", filter=typing)
        def _(event: KeyPressEvent) -> None:
            _complete(event.current_buffer)

        @keys.add("c-c", filter=typing)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.reset()

        @keys.add("c-d", filter=typing)
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.delete()
            else:
                event.app.exit(exception=EOFError)

        @keys.add("c-o", filter=typing)
        def _(event: KeyPressEvent) -> None:
            run_in_terminal(self._now().show_steps)

        return keys


def _complete(buffer: Buffer) -> None:
    """Put in what is the only way to go on, also before the menu has come up."""
    if buffer.complete_state is not None:
        buffer.complete_next()
        return
    offers = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
    if len(offers) == 1:
        buffer.apply_completion(offers[0])
    else:
        buffer.start_completion(insert_common_part=True)


def _history(file: Path) -> History:
    """What was typed before. It is private, and where it cannot be kept, it lasts as long as the program."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        with file.open("ab"):
            return FileHistory(str(file))
    except OSError:
        return InMemoryHistory()
