"""What Tab offers: commands, what they take, and the user's files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from qwen_agent.terminal import settings
from qwen_agent.terminal.commands import COMMANDS
from qwen_agent.terminal.screen import State

_MENTION = re.compile(r'(?:^|\s)@("?)([^\s"]*|(?<=")[^"]*)$')
_FILES = ("attach", "export")


class CommandCompleter(Completer):
    """Completes ``:commands``, their arguments and ``@paths``; in other text it stays silent."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before = document.text_before_cursor
        if before.startswith(":"):
            yield from self._for_command(before[1:], complete_event)
        elif mention := _MENTION.search(before):
            yield from self._for_path(mention[2], complete_event)

    def _for_command(self, before: str, event: CompleteEvent) -> Iterator[Completion]:
        name, space, rest = before.partition(" ")
        if not space:
            for command in COMMANDS:
                if command.names[0].startswith(name.lower()):
                    yield _offer(command.names[0], name, about=command.about)
            return
        last = rest.rpartition(" ")[2]
        if name in _FILES:
            yield from self._for_path(rest.lstrip(), event)
        elif name == "load":
            yield from _offers(reversed(self._state().saved()), last)
        elif name == "conf":
            yield from _offers((f"{each}=" for each in settings.NAMES), last)
        elif name == "tools":
            first = " " not in rest.lstrip()
            yield from _offers(("on", "off") if first else self._state().tools, last)

    def _for_path(self, path: str, event: CompleteEvent) -> Iterator[Completion]:
        for offer in self._paths.get_completions(Document(path), event):
            folder = (Path(path + offer.text)).expanduser().is_dir()
            yield Completion(offer.text + "/" * folder, offer.start_position, display=offer.display)


def _offers(words: Iterable[str], typed: str) -> Iterator[Completion]:
    return (_offer(word, typed) for word in words if word.startswith(typed))


def _offer(word: str, typed: str, about: str = "") -> Completion:
    return Completion(word, -len(typed), display_meta=about)
