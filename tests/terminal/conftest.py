"""A real pseudo-terminal with a program in it, seen through a terminal emulator."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pexpect
import pyte
import pytest

import qwen_agent

PACKAGE = Path(qwen_agent.__file__).parent.parent
SCRIPTED = Path(__file__).with_name("scripted.py")


class Terminal:
    """``everything`` is what a person could scroll through; ``raw`` is every byte that the program wrote."""

    def __init__(self, command: list[str], environment: dict[str, str], columns: int, lines: int, folder: Path) -> None:
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            dimensions=(lines, columns),
            env={**_without_size(os.environ), "TERM": "xterm-256color", "PYTHONPATH": str(PACKAGE), **environment},
            cwd=str(folder),
            timeout=60,
        )
        self.child.delaybeforesend = None
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000, ratio=0.5)
        # A terminal answers when it is asked where the cursor is.
        self.screen.write_process_input = lambda data: self.child.send(data)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def read(self, seconds: float = 0.05) -> bool:
        """Show what comes within this time; False once the program has ended."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self.stream.feed(data)
        return True

    def until(self, done: str | Callable[[], bool], seconds: float = 30) -> str:
        """Read until the text can be seen (or the condition holds); returns everything."""
        end = time.monotonic() + seconds
        while not (done in self.everything if isinstance(done, str) else done()):
            alive = self.read()
            assert time.monotonic() < end, f"waited for {done!r}, saw:\n{self.everything}"
            assert alive or (done in self.everything if isinstance(done, str) else done()), (
                f"ended before {done!r}, saw:\n{self.everything}"
            )
        return self.everything

    @property
    def everything(self) -> str:
        rows = [
            "".join(row[column].data for column in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]
        return "\n".join([*rows, *(line.rstrip() for line in self.screen.display)]).rstrip()

    def prompt_shown(self) -> bool:
        """The last thing above the toolbar is an empty prompt."""
        return self.screen.display[self.screen.cursor.y].rstrip() == "User>"

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def ask(self, text: str, seconds: float = 30) -> str:
        """Type a line at the prompt, and wait for the next one."""
        self.until(self.prompt_shown, seconds)
        self.send(text)
        self.until(lambda: not self.prompt_shown(), seconds)
        self.send("\r")
        return self.until(self.prompt_shown, seconds)

    def leave(self) -> int:
        self.send("\x04")
        self.until(lambda: not self.read(), 30)
        self.child.close()
        return int(self.child.exitstatus or 0)


def _without_size(environment: Mapping[str, str]) -> dict[str, str]:
    """What the tests run in may say how large its own screen is."""
    return {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}


Start = Callable[..., Terminal]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversations and the history are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "qwen-react-agent"


@pytest.fixture
def on_terminal(tmp_path: Path, state: Path) -> Iterator[Callable[..., Terminal]]:
    """Start a command on a terminal; it is ended with the test."""
    started: list[Terminal] = []

    def start(command: list[str], *, columns: int = 80, lines: int = 24, **environment: str) -> Terminal:
        started.append(Terminal(command, environment, columns, lines, tmp_path))
        return started[-1]

    yield start
    for terminal in started:
        terminal.child.close(force=True)


@pytest.fixture
def chat(tmp_path: Path, on_terminal: Start) -> Start:
    """Start a chat whose model says these outputs, one after another."""

    def start(
        *outputs: str, delay: float = 0, options: tuple[str, ...] = (), columns: int = 80, lines: int = 24, **env: str
    ) -> Terminal:
        script = tmp_path / "script.json"
        script.write_text(json.dumps({"outputs": outputs, "delay": delay}), encoding="utf-8")
        terminal = on_terminal(
            [sys.executable, str(SCRIPTED), str(script), "chat", *options], columns=columns, lines=lines, **env
        )
        terminal.until(terminal.prompt_shown)
        return terminal

    return start


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[], list[dict[str, object]]]:
    """What the scripted model was asked, in order."""
    return lambda: [json.loads(line) for line in (tmp_path / "script.json.log").read_text().splitlines()]
