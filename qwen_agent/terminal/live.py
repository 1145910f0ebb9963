"""A run on a terminal while it happens: what is finished is printed once, what is being written stands below it.

Only the region below is ever drawn again. It is never higher than the screen, so nothing that has scrolled away is
printed twice. A finished step is one line: thought, call, result.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from qwen_agent.prompt import printable
from qwen_agent.terminal.markdown import rendered, split_finished
from qwen_agent.terminal.report import spent
from qwen_agent.types import (
    AgentResult,
    ApprovalNeeded,
    Delta,
    Event,
    Finished,
    ModelWrote,
    Reading,
    Step,
    StepFinished,
    StopReason,
    ToolCall,
    ToolStarted,
)

_FRAMES_PER_SECOND = 10
_LINES_BESIDE_TAIL = 3  # of the screen: the line typed last, the status, the cursor
_HIGHLIGHTED_LINES = 200  # a longer unfinished block is shown as it is written: to colour it takes too long
_THOUGHT_FROM = 60  # columns; on a narrower screen a folded step has no room for its thought


class LiveRun:
    """Shows the events of one run. Use it as a context manager; then the screen is left as it should be.

    ``stopping`` is asked whether the person has already stopped the run.
    """

    def __init__(self, console: Console, stopping: Callable[[], bool]) -> None:
        self._console = console
        self._stopping = stopping
        self._live: Live | None = None
        self._paused = threading.Event()
        # What is printed and what is drawn again must not meet: rich itself keeps them apart only in part.
        self._drawing = threading.RLock()
        self._spinner = Spinner("line" if _ascii_only(console) else "dots")
        self._keys = contextlib.ExitStack()
        self._began = time.monotonic()
        self._doing = "reading"
        self._thought = ""
        self._answer = ""  # what of it is not printed yet
        self._answered = False  # some of it is printed

    def __enter__(self) -> LiveRun:
        self._resume()
        return self

    def __exit__(self, *error: object) -> None:
        self._pause()
        if error[0] is not None:
            self._print_answer(self._answer)

    def show(self, event: Event) -> None:
        """Take notice of what happened."""
        if self._live is None:
            self._resume()
        with self._drawing:
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case Reading(done, total):
                self._doing = f"reading {done} of {total} tokens" if done < total else "thinking"
            case Delta("thought", text):
                self._thought += text
                self._doing = "thinking"
            case Delta("final_answer", text):
                self._doing = "answering"
                self._add_to_answer(text)
            case Delta("action" | "action_input"):
                self._doing = "writing a call"
            case ModelWrote():
                self._doing = "working"
            case ToolStarted(call):
                self._doing = _one_line(_call_text(call))
            case ApprovalNeeded():
                self._pause()
            case StepFinished(step):
                self._thought, self._doing = "", "reading"
                if step.call is not None:
                    self._console.print(folded(step, self._console.width, ascii_only=_ascii_only(self._console)))
                    for artifact in step.result.artifacts if step.result is not None else ():
                        self._console.print(Text(f"  {printable(artifact.path)}", "dim"), soft_wrap=True)
            case Finished(result):
                self._finish(result)

    def _add_to_answer(self, text: str) -> None:
        self._answer += text
        if "\n" not in text:
            return
        finished, self._answer = split_finished(self._answer)
        self._print_answer(finished)

    def _print_answer(self, text: str) -> None:
        if not text.strip():
            return
        if self._answered:
            self._console.print()
        self._console.print(rendered(text))
        self._answered = True

    def _finish(self, result: AgentResult) -> None:
        rest, self._answer = self._answer, ""
        self._pause()
        self._print_answer(rest)
        if result.stop_reason is not StopReason.CANCELLED:
            self._console.print(Text(spent(result), "dim"), end="\n\n")

    # ---- the region below

    def _resume(self) -> None:
        self._keys.enter_context(_keys_unseen())
        self._live = Live(get_renderable=self._below, console=self._console, transient=True, auto_refresh=False)
        self._live.start()
        self._paused = threading.Event()
        # Drawn by a thread of its own, so that it moves while a tool runs.
        threading.Thread(target=self._draw_again, args=(self._live, self._paused), daemon=True).start()

    def _draw_again(self, live: Live, paused: threading.Event) -> None:
        while not paused.wait(1 / _FRAMES_PER_SECOND):
            with self._drawing:
                if not paused.is_set():
                    live.refresh()

    def _pause(self) -> None:
        with self._drawing:
            self._paused.set()
            if self._live is not None:
                self._live.stop()
                self._live = None
        self._keys.close()

    def _below(self) -> RenderableType:
        doing = "stopping" if self._stopping() else self._doing
        seconds = time.monotonic() - self._began
        self._spinner.text = Text(f"{doing} · {seconds:.0f} s · Ctrl-C stops", "dim", no_wrap=True, overflow="ellipsis")
        room = max(self._console.height - _LINES_BESIDE_TAIL, 1)
        if self._answer.strip():
            gap = [Text("")] if self._answered else []
            return Group(*gap, _Tail(_unfinished(self._answer), room - len(gap)), self._spinner)
        if self._thought.strip():
            return Group(_Tail(Text(printable(self._thought).strip(), "dim italic"), min(room, 6)), self._spinner)
        return self._spinner


class _Tail:
    """The last lines of something."""

    def __init__(self, whole: RenderableType, lines: int) -> None:
        self._whole = whole
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options.update(height=None), pad=False)
        for line in lines[-self._lines :]:
            yield from line
            yield Segment.line()


def _unfinished(text: str) -> RenderableType:
    lines = text.splitlines()
    if len(lines) > _HIGHLIGHTED_LINES:
        return Text(printable("\n".join(lines[-_HIGHLIGHTED_LINES:])))
    return rendered(text)


def folded(step: Step, width: int, *, ascii_only: bool = False) -> Text:
    """A step with a call in one line of at most ``width`` columns."""
    assert step.call is not None
    ok = step.result is None or step.result.ok
    arrow, good, bad = (" -> ", "+ ", "x ") if ascii_only else (" → ", "✓ ", "✗ ")
    result = _one_line(step.result.content) if step.result is not None else ""
    seconds = f" {step.result.seconds:.1f} s" if step.result is not None and step.result.seconds >= 1 else ""
    parts = [(_one_line(_call_text(step.call)), "cyan"), (arrow + result, "" if ok else "red")]
    if step.thought and width >= _THOUGHT_FROM:
        parts.insert(0, (_one_line(step.thought) + " ", "dim italic"))
    line = Text(no_wrap=True, overflow="ellipsis").append(good if ok else bad, "green" if ok else "red")
    pieces = [Text(text, style) for text, style in parts]
    for piece, room in zip(pieces, _shared(width - 1 - line.cell_len - len(seconds), pieces), strict=True):
        piece.truncate(room, overflow="ellipsis")
        line.append_text(piece)
    return line.append(seconds, "dim")


def _shared(room: int, pieces: Sequence[Text]) -> list[int]:
    """Columns for each piece: equal parts, but what a short one leaves goes to the longer ones."""
    given = [0] * len(pieces)
    by_length = sorted(range(len(pieces)), key=lambda at: pieces[at].cell_len)
    for left, at in zip(range(len(pieces), 0, -1), by_length, strict=True):
        given[at] = max(min(pieces[at].cell_len, room // left), 0)
        room -= given[at]
    return given


def _call_text(call: ToolCall) -> str:
    if call.arguments is None:
        return f"{call.name}({call.raw})"
    return f"{call.name}({', '.join(_argument(name, value) for name, value in call.arguments.items())})"


def _argument(name: str, value: Any) -> str:
    return f'{name}="{value}"' if isinstance(value, str) else f"{name}={value!r}"


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _ascii_only(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


@contextlib.contextmanager
def _keys_unseen() -> Iterator[None]:
    """Keys do not show while the screen is drawn; what is typed is kept for the next prompt, and Ctrl-C works."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin.fileno())
    except (ImportError, OSError, ValueError):  # Windows, or no terminal
        yield
        return
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)
