"""The code interpreter: Python that a model wrote, run in the sandbox, told back as short text and files.

Promises
- code_runs_only_in_the_sandbox: see `qwen_agent.tools.sandbox`; where there can be none, making the tool fails. Only
  ``unsafe=True``, which is for the user to write, runs code without.
- the_text_is_plain: no terminal escapes, no control characters, no file name that looks like more than a name.
- figures_become_files: each open matplotlib figure is figure-N.png in the work directory, never over another file.
- what_is_made_is_handed_out: figures, and files that the code made or changed, are artifacts of the result.
- what_is_given_is_copied: the code gets copies of uploads, never over another file, and cannot change the originals.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable
from pathlib import Path

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools.artifacts import ArtifactStore, artifact_of, safe_name
from qwen_agent.tools.base import Tool, ToolOutput, cancelled
from qwen_agent.tools.beneath import Folder, read_at_most, size_text
from qwen_agent.tools.sandbox import Execution, Limits, Sandbox, open_sandbox
from qwen_agent.tools.sandbox.policy import MIB
from qwen_agent.tools.sandbox.workdir import remove_tree
from qwen_agent.types import Artifact

MAX_CODE = 1 << 20
MAX_NAMES = 20
MAX_HANDED_OUT = 64 * MIB  # of one call
MAX_UPLOAD = 256 * MIB
UNSAFE = "code_interpreter runs WITHOUT A SANDBOX: what a model writes can read, change and send everything you can"
START_SECONDS = 60.0  # more than the sandbox itself allows its start, so that its own words reach the model

_FENCE = re.compile(r"\s*```[ \t]*[\w+-]*[ \t]*\n(.*?)(?:\n?[ \t]*```)?\s*", re.DOTALL)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n|$)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def code_interpreter(
    workdir: Path | None = None,
    limits: Limits = Limits(),
    *,
    uploads: Iterable[str | os.PathLike[str] | Artifact] = (),
    store: ArtifactStore | None = None,
    unsafe: bool = False,
) -> Tool:
    """A tool that runs Python in a sandbox of its own, whose variables live as long as the tool.

    Code reads and writes files in ``workdir``; without one, in a temporary directory that is removed at exit. Copies
    of ``uploads`` lie there from the start. The interpreter starts at the first call and ends when the tool is garbage
    collected, or at exit. A call whose code fails, or breaks a limit, is a failed call: its text is all there is to
    say, and the next call works.

    Figures and files that a call makes are artifacts of its result. With a ``store`` they are copies in there, which
    no later call can change. Without one their paths lie in the work directory, where code inside may put something
    else in their place: open them with `qwen_agent.tools.beneath.Folder`.

    ``unsafe`` IS A DIFFERENT THING: no sandbox, a plain child process with all your rights, on any system. A document
    that the model reads may make it delete or send your files. For machines and containers with nothing to lose.

    Raises SandboxUnavailable, with the remedy, where code cannot be run safely, and InputError for a work directory
    that does not exist or that the host itself runs code from, or an upload that cannot be read.
    """
    interpreter = _Interpreter(workdir, limits, tuple(uploads), store, unsafe)
    duration = f"call may take {limits.seconds:g} seconds."
    bounds = f"A {duration}" if unsafe else f"There is no network, no shell and no subprocess; a {duration}"
    given = f" Files given: {', '.join(interpreter.given[:MAX_NAMES])}." if interpreter.given else ""
    return Tool(
        name="code_interpreter",
        name_for_human="Code Interpreter (UNSAFE: no sandbox)" if unsafe else "Code Interpreter",
        description=(
            "Runs Python code and returns what it prints, the value of the last expression and any error. Variables "
            f"and files are kept between calls, matplotlib figures are saved as PNG files. {bounds}{given}"
        ),
        parameters={
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The Python code to run"}},
            "required": ["code"],
        },
        function=interpreter.run,
        args_format="json",
        seconds=limits.seconds + limits.grace + START_SECONDS,
        repeatable=True,
        # What it prints may come from files by strangers. In the jail it changes nothing but its own work directory.
        untrusted=True,
        side_effects=unsafe,
        approval="ask" if unsafe else "auto",
    )


def give(workdir: Path, uploads: Iterable[str | os.PathLike[str] | Artifact]) -> list[str]:
    """Copy the user's files, or artifacts, into a work directory; returns the names that they have there.

    A file of the same name and content is left as it is; for other content a number is added to the name. Raises
    InputError for what is not a file, or is larger than 256 MiB.
    """
    folder = Folder(workdir)
    return [_give(folder, *_read_upload(upload)) for upload in uploads]


class _Interpreter:
    """A sandbox and its work directory, with the names of the figures given out so far."""

    def __init__(
        self,
        workdir: Path | None,
        limits: Limits,
        uploads: tuple[str | os.PathLike[str] | Artifact, ...],
        store: ArtifactStore | None,
        unsafe: bool,
    ) -> None:
        place = workdir or Path(tempfile.mkdtemp(prefix="qwen-agent-"))
        temporary = None if workdir else place
        try:
            self._sandbox = _opened(place, limits, unsafe)
            self._folder = Folder(place)
            self.given = give(place, uploads)
        except BaseException:
            if temporary:
                shutil.rmtree(temporary, ignore_errors=True)  # nothing has run yet
            raise
        self._store = store
        self._limit = limits.file
        self._figures = 0
        weakref.finalize(self, _clean_up, self._sandbox, temporary)

    def run(self, code: str) -> ToolOutput:
        source = strip_fence(code)
        if len(source) > MAX_CODE:
            raise ToolError(f"The code has {len(source)} characters; at most {MAX_CODE} can be run.")
        execution = self._sandbox.run(source, cancelled=cancelled)
        figures = self._save(execution.images)
        artifacts, refused = self._hand_out([*figures, *execution.files])
        text = describe(execution, figures)
        if refused:
            text += f"\nNot handed out: {'; '.join(refused)}"
        if execution.error or execution.state != "ok":
            raise ToolError(text)
        return ToolOutput(text, artifacts)

    def _save(self, images: tuple[bytes, ...]) -> list[str]:
        names = []
        for image in images:
            saved = False
            while not saved:
                self._figures += 1
                # The guest may have made a file, or a link, of that name.
                with contextlib.suppress(FileExistsError):
                    self._folder.write(f"figure-{self._figures}.png", image)
                    saved = True
            names.append(f"figure-{self._figures}.png")
        return names

    def _hand_out(self, names: list[str]) -> tuple[tuple[Artifact, ...], list[str]]:
        """The files of these names as artifacts, and why some are not."""
        artifacts, refused, room = [], [], MAX_HANDED_OUT
        for name in names[:MAX_NAMES]:
            try:
                data = self._folder.read(name, min(room, self._store.max_bytes if self._store else self._limit))
                room -= len(data)
                path = self._folder.path / name
                artifacts.append(self._store.add(data, name) if self._store else artifact_of(data, name, path))
            except InputError as problem:
                refused.append(str(problem))
        return tuple(artifacts), refused


def _opened(workdir: Path, limits: Limits, unsafe: bool) -> Sandbox:
    if not unsafe:
        return open_sandbox(workdir, limits)
    from qwen_agent.tools.sandbox.unsafe import UnsafeSession

    warnings.warn(UNSAFE, stacklevel=4)
    return UnsafeSession(workdir, limits)


def _read_upload(upload: str | os.PathLike[str] | Artifact) -> tuple[str, bytes]:
    if isinstance(upload, Artifact):
        place = Path(upload.path)
        data = Folder(place.parent).read(place.name, MAX_UPLOAD)
        if len(data) != upload.size or artifact_of(data, upload.name, place).id[:12] != upload.id[:12]:
            raise InputError(f"the artifact {upload.id} ({upload.name}) is no longer what it was")
        return upload.name, data
    path = Path(upload).expanduser()
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"the upload '{path}' is not a file")
    with path.open("rb") as file:
        data = read_at_most(file, MAX_UPLOAD + 1)
    if len(data) > MAX_UPLOAD:
        raise InputError(f"the upload '{path}' is larger than {size_text(MAX_UPLOAD)}")
    return path.name, data


def _give(folder: Folder, given: str, data: bytes) -> str:
    first = Path(safe_name(given))
    name, number = first.name, 1
    while True:
        try:
            folder.write(name, data)
            return name
        except FileExistsError:
            with contextlib.suppress(InputError):
                if folder.read(name, len(data)) == data:
                    return name
        if (number := number + 1) > 1000:
            raise InputError(f"{given!r} cannot be copied into '{folder.path}'")
        name = f"{first.stem}-{number}{first.suffix}"


def _clean_up(sandbox: Sandbox, temporary: Path | None) -> None:
    sandbox.close()
    if temporary is not None:
        with contextlib.suppress(OSError):
            remove_tree(temporary) if os.name != "nt" else shutil.rmtree(temporary)


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
