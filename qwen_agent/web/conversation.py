"""A conversation: its turns, its files and the one run that may be going on, which lives in a thread of its own.

The page only looks: a run goes on while a browser is reloaded, and ends by itself when nobody has looked for a while.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwen_agent.errors import InputError, QwenAgentError
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime
from qwen_agent.prompt import DEFAULT_SYSTEM
from qwen_agent.react import Agent
from qwen_agent.tools.artifacts import ArtifactStore, describe
from qwen_agent.tools.base import Tool
from qwen_agent.tools.beneath import Folder
from qwen_agent.tools.code_interpreter import give
from qwen_agent.types import Artifact, Finished, Message, StopReason, ToolCall, ToolFinished, ToolResult
from qwen_agent.web.turn import Turn

MAX_TURNS = 200
MAX_QUESTION_CHARS = 100_000
MAX_UPLOADS = 10  # of one question
MAX_STORED = 256 << 20  # bytes of one conversation
UNWATCHED_SECONDS = 90.0  # the page speaks up more often, even when it is hidden
_MAX_HANDED_OUT = 8  # files that one call left in the folder
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of a conversation: ``files`` is for the tools, ``artifacts`` for what none of them may change."""

    files: Path
    artifacts: Path


MakeTools = Callable[[Place], Sequence[Tool]]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user set on the page: the tools, how a step is sampled, whether to be asked before every call."""

    tools: tuple[str, ...]
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    ask: bool = False


@dataclass(slots=True, eq=False)
class _Job:
    """A run that goes on. It is told to stop, not waited for: what it still writes goes to a turn that nobody sees."""

    turn: Turn
    stopped: bool = False
    waiting: ToolCall | None = None
    granted: bool | None = None
    seen: dict[str, tuple[int, float]] = field(default_factory=dict)


class Conversation:
    """May be used from any thread. ``version`` grows with every change of what is to be seen."""

    def __init__(
        self,
        key: str,
        runtime: Runtime,
        make_tools: MakeTools,
        folder: Path,
        choices: Choices,
        *,
        system: str = DEFAULT_SYSTEM,
        limits: Limits = Limits(),
    ) -> None:
        self.key = key
        self.download_key = secrets.token_urlsafe(24)  # stands in addresses, so it opens nothing but the export
        self.choices = choices
        self.folder = folder
        self.version = 0
        self.turns: list[Turn] = []
        self.used = time.monotonic()
        self.runtime = runtime
        self._system, self._limits = system, limits
        place = Place(folder / "files", folder / "artifacts")
        self._files = Folder(place.files, create=True)
        self._store = ArtifactStore(place.artifacts, max_total=MAX_STORED)
        self._tools = {tool.name: tool for tool in make_tools(place)}
        self._changed = threading.Condition()
        self._job: _Job | None = None

    # ---- what can be asked

    def ask(self, question: str, uploads: Iterable[tuple[str, bytes]] = ()) -> None:
        """Begin a turn. Raises InputError for what cannot be asked or kept; no turn is then begun."""
        given = list(uploads)
        self._check(question, len(given))
        if self.running:
            raise InputError("the answer is still being written: wait for it, or stop it")
        files = tuple(self._store.add(data, name) for name, data in given)
        names = give(self._files.path, files)
        # A picture is known by its id to the tools that look at it, everything else by its name in the folder.
        told = [describe(file) if file.width else f"[file: {name}]" for file, name in zip(files, names, strict=True)]
        self._begin(len(self.turns), Turn(question.strip(), files, "\n".join(told)))

    def ask_again(self, at: int, question: str | None = None) -> None:
        """Ask the question of a turn again, as it was or changed; that turn and all after it are dropped."""
        if not 0 <= at < len(self.turns):
            raise InputError(f"there is no turn {at + 1} in this conversation: it has {len(self.turns)}")
        old = self.turns[at]
        question = old.question if question is None else question
        self._check(question, len(old.files))
        self.stop()
        self._begin(at, Turn(question.strip(), old.files, old.about_files))

    def stop(self) -> None:
        """End the run, if there is one, after the token that is being written."""
        with self._changed:
            if self._job is not None:
                self._job.stopped = True
            self._changed.notify_all()

    def decide(self, granted: bool) -> None:
        """Answer the call that waits for approval, if one does."""
        with self._changed:
            if self._job is not None and self._job.waiting is not None:
                self._job.granted = granted
            self._changed.notify_all()

    # ---- what can be seen

    @property
    def running(self) -> bool:
        return bool(self.turns) and not self.turns[-1].over

    @property
    def waiting(self) -> ToolCall | None:
        """The call that waits for approval."""
        return self._job.waiting if self._job is not None and self.running else None

    def watched(self) -> None:
        """Somebody looks: the run may go on."""
        self.used = time.monotonic()

    def close(self) -> None:
        """End the run and let go of the tools."""
        self.stop()
        self._tools = {}

    # ---- a run

    def _check(self, question: str, files: int) -> None:
        if not question.strip():
            raise InputError("the question is empty: ask something")
        if len(question) > MAX_QUESTION_CHARS:
            raise InputError(
                f"the question has {len(question)} characters, more than the {MAX_QUESTION_CHARS} allowed: "
                f"attach it as a file"
            )
        if files > MAX_UPLOADS:
            raise InputError(f"{files} files are more than the {MAX_UPLOADS} that go with one question")
        if len(self.turns) >= MAX_TURNS:
            raise InputError(f"this conversation has {MAX_TURNS} turns, which is the most: begin a new one")

    def _begin(self, at: int, turn: Turn) -> None:
        job = _Job(turn, seen=self._entries())
        with self._changed:
            history = [message for turn in self.turns[:at] for message in turn.messages]
            self.turns[at:] = [turn]
            self._job = job
            self._touch()
        self.watched()
        threading.Thread(target=self._run, args=(job, history), name="conversation", daemon=True).start()

    def _run(self, job: _Job, history: Sequence[Message]) -> None:
        turn = job.turn
        question = f"{turn.question}\n{turn.about_files}".strip()
        try:
            agent = self._agent(job)
            for event in agent.stream(question, history, lambda: self._is_over(job)):
                if isinstance(event, ToolFinished):
                    event = replace(event, result=self._handed_out(job, event.result))
                with self._changed:
                    turn.apply(event)
                    if isinstance(event, Finished) and event.result.stop_reason is not StopReason.CANCELLED:
                        turn.messages = agent.turn(question, event.result)
                    self._touch()
        except Exception as problem:
            if not isinstance(problem, QwenAgentError):
                _log.exception("a run on the web page failed")
            with self._changed:
                turn.fail(problem)
                self._touch()

    def _agent(self, job: _Job) -> Agent:
        choices = self.choices
        chosen = [self._tools[name] for name in choices.tools if name in self._tools]
        if choices.ask:
            chosen = [replace(tool, approval="ask") if tool.approval == "auto" else tool for tool in chosen]
        return Agent(
            self.runtime,
            chosen,
            system=self._system,
            generation=choices.generation,
            limits=self._limits,
            approve=lambda call: self._approved(job, call),
        )

    def _is_over(self, job: _Job) -> bool:
        return job.stopped or time.monotonic() - self.used > UNWATCHED_SECONDS

    def _approved(self, job: _Job, call: ToolCall) -> bool:
        with self._changed:
            job.waiting, job.granted = call, None
            self._touch()
            while job.granted is None and not self._is_over(job):
                self._changed.wait(1.0)
            job.waiting = None
            self._touch()
            return bool(job.granted)

    def _touch(self) -> None:
        self.version += 1

    # ---- files

    def _handed_out(self, job: _Job, result: ToolResult) -> ToolResult:
        """The result with copies of its files, and of those that the call left in the folder, which nothing changes."""
        before, job.seen = job.seen, self._entries()
        left = [name for name, seen in job.seen.items() if before.get(name) != seen][:_MAX_HANDED_OUT]
        paths = [*(Path(each.path) for each in result.artifacts), *(self._files.path / name for name in left)]
        names = [*(each.name for each in result.artifacts), *left]
        kept: dict[str, Artifact] = {}
        for path, name in zip(paths, names, strict=True):
            try:
                data = Folder(path.parent).read(path.name, self._store.max_bytes)
                copy = self._store.add(data, name)
            except (InputError, OSError) as problem:
                _log.info("a file of a tool is not shown: %s", problem)
            else:
                kept.setdefault(copy.id, copy)
        return replace(result, artifacts=tuple(kept.values()))

    def _entries(self) -> dict[str, tuple[int, float]]:
        try:
            found = self._files.entries()
        except InputError:  # a tool removed the folder
            return {}
        return {
            entry.name: (entry.size, entry.changed)
            for entry in found
            if entry.kind == "file" and not entry.name.startswith(".")
        }
