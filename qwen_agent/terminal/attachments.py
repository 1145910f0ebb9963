"""Files that a person gives to a conversation, and the tools that can open them.

Attached files are copied into one working folder. It is also where the code interpreter runs, and what the tools for
files and pictures read unless the user chose another folder; where the agent has no tool for a kind of file, one is
added. What the model is told of a file names the tools that open it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_agent.errors import InputError, MissingDependency

if TYPE_CHECKING:
    from qwen_agent.tools.base import Tool
    from qwen_agent.tools.catalog import Settings
    from qwen_agent.types import Artifact

MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_CODE = "code_interpreter"


@dataclass(frozen=True, slots=True)
class Attached:
    """A file as the tools know it. ``source`` is the user's own path, ``about`` what the model reads of it."""

    source: Path
    name: str
    about: str


class Attachments:
    """The files of one conversation.

    ``settings`` are those that the built-in tools were made with, ``folder`` is the working folder.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self.files: tuple[Attached, ...] = ()

    def add(self, path: str, tools: Mapping[str, Tool]) -> tuple[Attached, dict[str, Tool]]:
        """Attach a file: (how it is known, the tools that have to be added for it).

        Raises InputError for what cannot be read, and where nothing could open a file of this kind.
        """
        from qwen_agent.tools.artifacts import artifact_of
        from qwen_agent.tools.code_interpreter import give

        source = Path(path).expanduser()
        if not source.is_file():  # a pipe would be waited for
            raise InputError(f"'{source}' is not a file")
        try:
            artifact = artifact_of(source.read_bytes(), source.name, source)
        except OSError as error:
            raise InputError(f"'{source}' cannot be read ({error.strerror})") from None
        added = self._missing(artifact, tools)
        openers = self._openers(artifact, {**tools, **added})
        if not openers:
            raise InputError(f"no tool can open {source.name} ({artifact.media_type}): {_remedy(artifact)}")
        (name,) = give(self._folder, [source])
        kind = f"{artifact.media_type}, {artifact.width}x{artifact.height}" if artifact.width else artifact.media_type
        attached = Attached(source.resolve(), name, f"[Attached: {name} ({kind}); {' or '.join(openers)} can open it]")
        if all(known.name != name for known in self.files):
            self.files += (attached,)
        return attached, added

    def _missing(self, artifact: Artifact, tools: Mapping[str, Tool]) -> dict[str, Tool]:
        """The tools for a file of this kind that read the working folder and are not there yet."""
        from qwen_agent.tools import catalog

        here = replace(self._settings, files=self._folder, write=False)
        added: dict[str, Tool] = {}
        for entry in self._entries(artifact):
            try:
                built = catalog.build_tools([entry], here)
            except (InputError, MissingDependency):
                continue  # `add` says what is missing, if nothing else can open the file
            for tool in built:
                name = self._name(tool.name)
                if name not in tools:
                    added[name] = replace(tool, name=name)
        return added

    def _entries(self, artifact: Artifact) -> tuple[str, ...]:
        if artifact.width:
            return ("read_text", "describe_image") if self._settings.vision_model else ("read_text",)
        return ("files",) if artifact.media_type == "text/plain" else ()

    def _openers(self, artifact: Artifact, tools: Mapping[str, Tool]) -> list[str]:
        readers = ("read_file",) if artifact.media_type == "text/plain" else ()
        names = [self._name(name) for name in (("read_text", "describe_image") if artifact.width else readers)]
        return [name for name in (*names, _CODE) if name in tools]

    def _name(self, tool: str) -> str:
        """What the tool over the working folder is called: its own name, unless that one reads the user's folder."""
        return tool if self._settings.files in (None, self._folder) else f"{tool}_attached"


def working_folder() -> Path:
    """A private folder that is removed when the program ends."""
    from qwen_agent.tools.sandbox.workdir import remove_tree

    folder = Path(tempfile.mkdtemp(prefix="qwen-agent-"))

    def remove() -> None:
        with contextlib.suppress(OSError):
            remove_tree(folder) if os.name != "nt" else shutil.rmtree(folder)

    # At exit these run in reverse order: a sandbox that was opened in the folder is closed before.
    weakref.finalize(Attachments, remove)
    return folder


def settings_in(folder: Path, settings: Settings) -> Settings:
    """The settings for built-in tools that see what is attached."""
    # A tool that writes has to be told where: this folder is removed.
    files = folder if settings.files is None and not settings.write else settings.files
    return replace(settings, files=files, workdir=folder)


def mentioned(question: str, attach: Callable[[str], Attached]) -> tuple[str, list[Attached]]:
    """The question with each ``@path`` of a file that exists replaced by its attached name; and those files."""
    found: list[Attached] = []

    def put(match: re.Match[str]) -> str:
        path = match[1] or match[2]
        closing = ""
        while path and not Path(path).expanduser().is_file() and path[-1] in ".,;:!?)":
            path, closing = path[:-1], path[-1] + closing
        if not path or not Path(path).expanduser().is_file():
            return match[0]
        attached = attach(path)
        found.append(attached)
        return attached.name + closing

    return MENTION.sub(put, question), found


def announced(question: str, files: Iterable[Attached]) -> str:
    """The question as the model reads it, with a line about each file that is new to it."""
    return "\n".join([question, *dict.fromkeys(file.about for file in files)])


def _remedy(artifact: Artifact) -> str:
    if artifact.width:
        return "pip install 'qwen-react-agent[ocr]', or start with --vision-model"
    return f"start with --tools {_CODE}"
