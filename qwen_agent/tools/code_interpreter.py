"""The code interpreter: Python that a model wrote, run in the sandbox, told back as short text.

Promises
- code_runs_only_in_the_sandbox: see `qwen_agent.tools.sandbox`; where there can be none, making the tool fails.
- the_text_is_plain: no terminal escapes, no control characters, no file name that looks like more than a name.
- figures_become_files: each open matplotlib figure is figure-N.png in the work directory, never over another file.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import weakref
from pathlib import Path

from qwen_agent.errors import ToolError
from qwen_agent.tools.base import Tool
from qwen_agent.tools.sandbox import Execution, Limits, Sandbox, open_sandbox
from qwen_agent.tools.sandbox.workdir import WorkDir, remove_tree

MAX_CODE = 1 << 20
MAX_NAMES = 20
START_SECONDS = 60.0  # more than the sandbox itself allows its start, so that its own words reach the model

_FENCE = re.compile(r"\s*```[ \t]*[\w+-]*[ \t]*\n(.*?)(?:\n?[ \t]*```)?\s*", re.DOTALL)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n|$)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def code_interpreter(workdir: Path | None = None, limits: Limits = Limits()) -> Tool:
    """A tool that runs Python in a sandbox of its own, whose variables live as long as the tool.

    Code reads and writes files in ``workdir``; without one, in a temporary directory that is removed at exit. The
    interpreter starts at the first call and ends when the tool is garbage collected, or at exit. A call whose code
    fails, or breaks a limit, is a failed call: its text is all there is to say, and the next call works.

    Raises SandboxUnavailable, with the remedy, where code cannot be run safely, and InputError for a work directory
    that does not exist or that the host itself runs code from.
    """
    return Tool(
        name="code_interpreter",
        name_for_human="Code Interpreter",
        description=(
            "Runs Python code and returns what it prints, the value of the last expression and any error. Variables "
            "and files are kept between calls, matplotlib figures are saved as PNG files. There is no network, no "
            f"shell and no subprocess; a call may take {limits.seconds:g} seconds."
        ),
        parameters={
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The Python code to run"}},
            "required": ["code"],
        },
        function=_Interpreter(workdir, limits).run,
        args_format="json",
        seconds=limits.seconds + limits.grace + START_SECONDS,
    )


class _Interpreter:
    """A sandbox and its work directory, with the names of the figures given out so far."""

    def __init__(self, workdir: Path | None, limits: Limits) -> None:
        place = workdir or Path(tempfile.mkdtemp(prefix="qwen-agent-"))
        try:
            self._sandbox: Sandbox = open_sandbox(place, limits)
            self._folder = WorkDir(place)
        except BaseException:
            if workdir is None:
                place.rmdir()
            raise
        self._figures = 0
        weakref.finalize(self, _clean_up, self._sandbox, self._folder, None if workdir else place)

    def run(self, code: str) -> str:
        source = strip_fence(code)
        if len(source) > MAX_CODE:
            raise ToolError(f"The code has {len(source)} characters; at most {MAX_CODE} can be run.")
        execution = self._sandbox.run(source)
        text = describe(execution, self._save(execution.images))
        if execution.error or execution.state != "ok":
            raise ToolError(text)
        return text

    def _save(self, images: tuple[bytes, ...]) -> list[str]:
        names = []
        for image in images:
            saved = False
            while not saved:
                self._figures += 1
                # The guest may have made a file, or a link, of that name.
                with contextlib.suppress(FileExistsError):
                    self._folder.create(f"figure-{self._figures}.png", image)
                    saved = True
            names.append(f"figure-{self._figures}.png")
        return names


def _clean_up(sandbox: Sandbox, folder: WorkDir, temporary: Path | None) -> None:
    sandbox.close()
    folder.close()
    if temporary is not None:
        with contextlib.suppress(OSError):
            remove_tree(temporary)


def strip_fence(code: str) -> str:
    """The code inside a Markdown fence that encloses all of it; other code as it is."""
    match = _FENCE.fullmatch(code)
    return match[1] if match else code


def describe(execution: Execution, figures: list[str]) -> str:
    """What the model reads of a call: only the parts that there are."""
    first = 1 if execution.restarted else 0  # that the variables are lost explains all that follows
    stderr = plain(execution.stderr)
    parts = [
        *execution.notes[:first],
        plain(execution.stdout),
        stderr and f"stderr:\n{stderr}",
        plain(execution.value),
        plain(execution.error),
        *execution.notes[first:],
        _named("Figures", figures),
        _named("Files", list(execution.files)),
    ]
    return "\n".join(part for part in parts if part) or "The code ran without output."


def plain(text: str) -> str:
    """Text as it would look on a terminal, without what only a terminal understands."""
    text = _ESCAPE.sub("", text).replace("\r\n", "\n")
    return _CONTROL.sub("", _OVERWRITTEN.sub("", text)).rstrip()


def _named(title: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = [name if name.isprintable() else ascii(name) for name in names[:MAX_NAMES]]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{title}: {', '.join(shown)}{more}"
